// pith generate FILE -p "…": streams an answer.
#include "runtime/generate.h"

#include <fmt/format.h>

#include <memory>

#include "base/file.h"
#include "cli/pith/commands.h"
#include "measure/memory.h"
#include "plan/size.h"
#include "runtime/cache.h"
#include "runtime/chat.h"
#include "runtime/model_file.h"
#include "runtime/tokenizer.h"

namespace pith {

int generate_command(const Arguments& arguments) {
  std::string path, prompt, system, cache, context_text, save_cache, load_cache;
  bool raw = false, quiet = false;
  GenerateOptions options;
  CommonOptions common;
  const auto app =
      new_app("generate",
              "Writes an answer to a prompt, piece by piece. A model with a chat template is asked as in a chat; "
              "--raw continues the text instead.",
              "pith generate small.pith -p \"Why is the sky blue?\"");
  app->add_option("FILE", path, "Model: .pith, .gguf, .safetensors or Hugging Face folder")->required();
  app->add_option("-p,--prompt", prompt, "The prompt; @FILE reads it from a file")->required()->type_name("TEXT");
  app->add_option("--system", system, "System message of the chat")->type_name("TEXT");
  app->add_flag("--raw", raw, "Continue the prompt as it is, without chat template");
  app->add_option("-n,--max-tokens", options.max_tokens, "Tokens at most [256]")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->type_name("N");
  app->add_option("--temperature", options.sample.temperature, "0 takes the most probable token always [0]")
      ->check(CLI::Range(0.0, 100.0))
      ->type_name("T");
  app->add_option("--top-k", options.sample.top_k, "Choose among the K most probable; 0 = all [0]")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
      ->type_name("K");
  app->add_option("--top-p", options.sample.top_p, "Choose among the most probable that make up this share [1]")
      ->check(CLI::Range(0.0, 1.0))
      ->type_name("P");
  app->add_option("--min-p", options.sample.min_p, "Drop tokens below this share of the most probable [0]")
      ->check(CLI::Range(0.0, 1.0))
      ->type_name("P");
  app->add_option("--seed", options.sample.seed, "Same seed, same answer [1]")->type_name("N");
  app->add_option("--cache", cache,
                  "Makes the KV cache smaller: methods of the family cache, ';' between several [full]")
      ->type_name("METHOD");
  app->add_option("--context", context_text, "Tokens of prompt and answer together [the model's]")->type_name("N");
  app->add_option("--save-cache", save_cache, "Write the cache here when the prompt has been read")->type_name("FILE");
  app->add_option("--load-cache", load_cache, "Continue behind what --save-cache wrote")->type_name("FILE");
  app->add_flag("--quiet", quiet, "No line about speed at the end");
  add_common_options(*app, common);
  if (const auto code = parse_arguments(*app, arguments)) return *code;

  auto plan = parse_cache(cache);
  if (!plan.ok()) return fail(plan.error());
  if (!context_text.empty()) {
    const auto context = parse_tokens(context_text);
    if (!context.ok()) return fail(context.error());
    options.context = *context;
  }
  if (!save_cache.empty() && file_exists(save_cache))
    return fail(user_error(save_cache + ": exists already; choose another name or remove it"));
  if (prompt.starts_with('@')) {
    auto text = read_text(prompt.substr(1), uint64_t{1} << 30);
    if (!text.ok()) return fail(text.error());
    prompt = std::move(text).value();
  }

  catch_interrupts();
  Terminal terminal(common.style());
  auto model = open_model(path);
  if (!model.ok()) return fail(model.error());
  if (model->tokenizer.kind == TokenizerSpec::Kind::none)
    return fail(data_error(path + ": has no tokenizer, so it cannot read a prompt"));
  const auto tokenizer = Tokenizer::create(model->tokenizer);
  if (!tokenizer.ok()) return fail(Error{tokenizer.error().kind, path + ": " + tokenizer.error().message});

  const bool chat = !raw && load_cache.empty() && !model->tokenizer.chat_template.empty();
  if (!chat && !system.empty())
    return fail(
        user_error(path + ": has no chat template (or --raw or --load-cache was given), so --system has no place"));
  std::string text = prompt;
  if (chat) {
    std::vector<ChatMessage> messages;
    if (!system.empty()) messages.push_back({"system", system});
    messages.push_back({"user", prompt});
    auto rendered = render_chat(model->tokenizer, messages, true);
    if (!rendered.ok())
      return fail(Error{rendered.error().kind,
                        path + ": chat template: " + rendered.error().message + "; --raw goes without it"});
    text = std::move(rendered).value();
  }
  const auto tokens = tokenizer->encode(text, {!chat && load_cache.empty(), chat});
  if (!tokens.ok()) return fail(tokens.error());
  if (tokens->empty()) return fail(user_error("the prompt is empty; a model cannot begin with nothing"));
  const int64_t own = model->config.context, count = static_cast<int64_t>(tokens->size());
  if (own > 0 && options.context > own)
    return fail(user_error(fmt::format("--context {}: the model can hold {} tokens", options.context, own)));
  const int64_t context = options.context > 0 ? options.context : own;
  if (context > 0 && count >= context)
    return fail(user_error(fmt::format("the prompt has {} tokens, {} can hold {}", count,
                                       options.context > 0 ? "--context" : "the model", context)));

  ThreadPool pool(common.threads);
  LmOptions lm_options;
  lm_options.precision = Precision::fast;
  auto lm = Lm::load(*model, lm_options, pool, terminal);
  if (!lm.ok()) return fail(lm.error());
  terminal.clear();

  const auto stops = tokenizer->stop_ids();
  options.stop.assign(stops.begin(), stops.end());
  KvStore kv = (*lm)->new_kv();
  if (!load_cache.empty()) {
    const auto bytes = read_text(load_cache, uint64_t{1} << 40);
    if (!bytes.ok()) return fail(bytes.error());
    auto read = KvStore::read(*bytes, kv.shape(), kv.type()).context(load_cache);
    if (!read.ok()) return fail(read.error());
    kv = std::move(read).value();
  }
  auto driver = KvDriver::create(std::move(plan).value(), **lm);
  if (!driver.ok()) return fail(driver.error());
  if (const Status status = driver->check(count); !status.ok()) return fail(status.error());
  const uint64_t needed = driver->prompt_bytes(count), there = available_memory();
  if (there > 0 && needed > there)
    return fail(
        user_error(fmt::format("the cache of a prompt of {} tokens takes {} while it is read, but {} of memory "
                               "are free; give a shorter prompt{}",
                               count, print_size(needed), print_size(there),
                               driver->plan().stage.format ? "" : ", or a cache in fewer bits alone (--cache q4)")));
  options.cache = &*driver;
  if (!save_cache.empty())
    options.on_prompt = [&](const KvStore& store) { return write_file(save_cache, store.write(), false); };
  Status printed;
  const auto answer = generate(**lm, *tokenizer, *tokens, kv, options, pool, [&](std::string_view piece) {
    printed = print_out(piece);
    return printed.ok() && !interrupted();
  });
  if (!printed.ok()) return fail(printed.error());
  if (!answer.ok()) return fail(answer.error());
  if (const Status end = print_out("\n"); !end.ok()) return fail(end.error());
  if (!quiet && common.style() != ProgressStyle::none) {
    const double n = static_cast<double>(answer->tokens.size());
    terminal.note(fmt::format("{} tokens of prompt in {}, {} tokens at {:.1f} a second; weights {}, cache {}{}",
                              tokens->size(), print_duration(answer->prefill_seconds), answer->tokens.size(),
                              answer->decode_seconds > 0 ? n / answer->decode_seconds : 0.0,
                              print_size((*lm)->ram_bytes()), print_size(kv.bytes()),
                              driver->plan().whole() ? "" : " (" + driver->plan().text + ")"));
  }
  return interrupted() ? kInterrupted : 0;
}

}  // namespace pith
