// pith eval ppl|kl FILE: how good a model is, and how far it is from another one.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/pith/commands.h"
#include "formats/json_text.h"
#include "plan/size.h"
#include "runtime/builtin_text.h"
#include "runtime/evaluate.h"
#include "runtime/model_file.h"
#include "runtime/tokenizer.h"

namespace pith {

namespace {

struct EvalArguments {
  std::string path, against;
  std::vector<std::string> texts;
  EvalOptions options;
  bool json = false, fast = false;
  CommonOptions common;
};

/// A model that is opened, not yet brought into memory.
struct Opened {
  Model model;
  uint64_t file_bytes = 0;
};

Result<Opened> open(const std::string& path) {
  PITH_ASSIGN(auto model, open_model(path));
  return Opened{std::move(model), model_file_bytes(path)};
}

Result<std::unique_ptr<Lm>> load(const Opened& opened, const EvalArguments& a, ThreadPool& pool, Terminal& terminal) {
  LmOptions options;
  options.precision = a.fast ? Precision::fast : Precision::exact;
  return Lm::load(opened.model, options, pool, terminal);
}

/// The texts as tokens of `model`, before anything slow begins; sets the token that replaces the first of each chunk.
Result<std::vector<std::vector<int32_t>>> tokenize(const EvalArguments& a, const std::string& path, const Model& model,
                                                   EvalOptions& options) {
  if (model.tokenizer.kind == TokenizerSpec::Kind::none)
    return data_error(path + ": has no tokenizer, so text cannot be measured");
  PITH_ASSIGN(const auto tokenizer, Tokenizer::create(model.tokenizer).context(path));
  if (tokenizer.spec().add_bos) options.bos = tokenizer.bos();
  std::vector<std::vector<int32_t>> out;
  for (const std::string& name : a.texts) {
    PITH_ASSIGN(const std::string text, read_named_text(name));
    if (text.empty()) return user_error(name + ": is empty, so nothing can be measured on it");
    PITH_ASSIGN(auto tokens, tokenizer.encode(text).context(name));
    if (static_cast<int64_t>(tokens.size()) < options.context)
      return user_error(fmt::format("{}: has {} tokens, one chunk needs {}; pass a longer text or a smaller --context",
                                    name, tokens.size(), options.context));
    out.push_back(std::move(tokens));
  }
  return out;
}

nlohmann::json to_json(const PerplexityResult& r) {
  return {{"perplexity", r.ppl}, {"error", r.ppl_error}, {"nll", r.nll}, {"tokens", r.tokens}, {"chunks", r.chunks}};
}

Status run_ppl(const EvalArguments& a, Terminal& terminal) {
  ThreadPool pool(a.common.threads);
  EvalOptions options = a.options;
  PITH_ASSIGN(const Opened model, open(a.path));
  PITH_ASSIGN(const auto texts, tokenize(a, a.path, model.model, options));
  PITH_ASSIGN(const auto lm, load(model, a, pool, terminal));
  nlohmann::json list = nlohmann::json::array();
  std::vector<std::vector<std::string>> rows = {{"text", "tokens", "perplexity", "+-"}};
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::string& name = a.texts[i];
    PITH_ASSIGN(const auto r, perplexity(*lm, texts[i], options, pool, terminal));
    auto json = to_json(r);
    json["text"] = name;
    list.push_back(json);
    rows.push_back({name, print_count(static_cast<uint64_t>(r.tokens)), fmt::format("{:.4f}", r.ppl),
                    fmt::format("{:.4f}", r.ppl_error)});
  }
  terminal.clear();
  return print_out(
      a.json ? json_text(
                   {{"model", a.path}, {"file_bytes", model.file_bytes}, {"context", options.context}, {"texts", list}},
                   1) +
                   "\n"
             : format_table(rows, {false, true, true, true}));
}

Status run_kl(const EvalArguments& a, Terminal& terminal) {
  ThreadPool pool(a.common.threads);
  EvalOptions options = a.options;
  PITH_ASSIGN(const Opened model, open(a.path));
  PITH_ASSIGN(const Opened reference, open(a.against));
  PITH_ASSIGN(const auto texts, tokenize(a, a.against, reference.model, options));
  PITH_ASSIGN(const auto lm, load(model, a, pool, terminal));
  PITH_ASSIGN(const auto reference_lm, load(reference, a, pool, terminal));
  nlohmann::json list = nlohmann::json::array();
  std::vector<std::vector<std::string>> rows = {
      {"text", "tokens", "mean KL", "+-", "same top", "perplexity", "reference", "ratio"}};
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::string& name = a.texts[i];
    PITH_ASSIGN(const auto r, compare(*lm, *reference_lm, texts[i], options, pool, terminal));
    list.push_back({{"text", name},
                    {"model", to_json(r.model)},
                    {"reference", to_json(r.reference)},
                    {"ratio", r.ratio},
                    {"mean_kl", r.mean_kl},
                    {"mean_kl_error", r.mean_kl_error},
                    {"max_kl", r.max_kl},
                    {"same_top", r.same_top},
                    {"same_top_error", r.same_top_error}});
    rows.push_back({name, print_count(static_cast<uint64_t>(r.model.tokens)), fmt::format("{:.5f}", r.mean_kl),
                    fmt::format("{:.5f}", r.mean_kl_error), fmt::format("{:.2f} %", 100 * r.same_top),
                    fmt::format("{:.4f}", r.model.ppl), fmt::format("{:.4f}", r.reference.ppl),
                    fmt::format("{:.4f}", r.ratio)});
  }
  terminal.clear();
  const nlohmann::json json = {{"model", a.path},
                               {"reference", a.against},
                               {"file_bytes", model.file_bytes},
                               {"reference_file_bytes", reference.file_bytes},
                               {"context", options.context},
                               {"texts", list}};
  return print_out(a.json ? json_text(json, 1) + "\n"
                          : format_table(rows, {false, true, true, true, true, true, true, true}));
}

}  // namespace

int eval_command(const Arguments& arguments) {
  const std::string what = arguments.empty() ? "" : arguments.front();
  if (what.empty() || what == "--help" || what == "-h") {
    const std::string text =
        "Measures a language model on text.\nUsage: pith eval ppl FILE [OPTIONS]                perplexity\n"
        "       pith eval kl FILE --against REF [OPTIONS]   distance to another model\n"
        "See 'pith eval ppl --help' and 'pith eval kl --help'.\n";
    if (!what.empty()) return print_result(text);
    return fail(user_error("pith eval: say what is measured, ppl or kl; try 'pith eval --help'"));
  }
  if (what != "ppl" && what != "kl")
    return fail(
        user_error("pith eval: '" + what + "' is nothing that can be measured" + did_you_mean(what, {"ppl", "kl"})));

  const bool kl = what == "kl";
  EvalArguments a;
  const auto app =
      kl ? new_app("eval kl",
                   "Mean KL divergence of a reference model from this one, in nats a token, and how often both prefer "
                   "the same next token.",
                   "pith eval kl small.pith --against model.gguf --text notes.txt")
         : new_app("eval ppl",
                   "Perplexity on text, chunk by chunk, the second half of each chunk scored (as llama-perplexity).",
                   "pith eval ppl small.pith --text notes.txt");
  app->add_option("FILE", a.path, "Model: .pith, .gguf, .safetensors or Hugging Face folder")->required();
  if (kl)
    app->add_option("--against", a.against, "The reference model, with the same vocabulary")
        ->required()
        ->type_name("REF");
  app->add_option("--text", a.texts,
                  "Text file, or builtin:NAME; several times for several texts [all built-in held-out texts]")
      ->type_name("FILE")
      ->allow_extra_args(false);
  app->add_option("--context", a.options.context, "Tokens of a chunk [512]")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 24))
      ->type_name("N");
  app->add_option("--chunks", a.options.max_chunks, "Chunks at most; 0 = all [0]")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40))
      ->type_name("N");
  app->add_flag("--full-window", a.options.full_window, "Score all tokens of a chunk, not the second half");
  app->add_flag("--fast", a.fast, "Faster kernels that may round activations");
  app->add_flag("--json", a.json, "As JSON");
  add_common_options(*app, a.common);
  if (const auto code = parse_arguments(*app, Arguments(arguments.begin() + 1, arguments.end()))) return *code;
  if (a.texts.empty())
    for (const HeldoutText& t : builtin_heldout_texts()) a.texts.push_back("builtin:" + std::string(t.domain));

  catch_interrupts();
  Terminal terminal(a.common.style());
  const Status status = kl ? run_kl(a, terminal) : run_ppl(a, terminal);
  terminal.clear();
  if (interrupted()) return kInterrupted;
  return status.ok() ? 0 : fail(status.error());
}

}  // namespace pith
