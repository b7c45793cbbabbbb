// pith cache eval MODEL --cache … : what smaller KV caches cost. pith cache METHOD --help: one method.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "cli/pith/commands.h"
#include "kernels/cpu.h"
#include "measure/cache_report.h"
#include "plan/size.h"
#include "runtime/builtin_text.h"
#include "runtime/cache_eval.h"
#include "runtime/model_file.h"
#include "runtime/text_tasks.h"
#include "runtime/tokenizer.h"

namespace pith {

namespace {

struct CacheArguments {
  std::string path, tasks = "passkey,niah,vt,ppl", lengths = "512,1k,2k", output;
  std::vector<std::string> texts;
  CacheEvalOptions options;
  bool json = false, exact = false, force = false;
  CommonOptions common;
};

std::vector<std::string> split_commas(const std::string& text) {
  std::vector<std::string> out;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) out.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

std::string machine() { return fmt::format("{} cores, {}", usable_cores(), isa_name(default_isa())); }

Status run(CacheArguments& a, const std::string& command, Terminal& terminal) {
  for (const std::string& text : split_commas(a.lengths)) {
    PITH_ASSIGN(const int64_t n, parse_tokens(text));
    a.options.lengths.push_back(n);
  }
  a.options.tasks = split_commas(a.tasks);
  if (a.options.lengths.empty() || a.options.tasks.empty()) return user_error("no task or no length to measure");
  const bool html = a.output.ends_with(".html");
  if (!a.output.empty() && !html && !a.output.ends_with(".json"))
    return user_error(a.output + ": expected a name that ends with .html or .json");
  if (!a.output.empty() && !a.force && file_exists(a.output))
    return user_error(a.output + ": exists already; --force writes over it");
  PITH_ASSIGN(const Model model, open_model(a.path));
  if (model.tokenizer.kind == TokenizerSpec::Kind::none)
    return data_error(a.path + ": has no tokenizer, so no task can be made");
  PITH_ASSIGN(const auto tokenizer, Tokenizer::create(model.tokenizer).context(a.path));
  std::vector<std::vector<int32_t>> documents;
  for (const std::string& name : a.texts) {
    PITH_ASSIGN(const std::string text, read_named_text(name));
    PITH_ASSIGN(auto tokens, tokenizer.encode(text, {false, false}).context(name));
    documents.push_back(std::move(tokens));
  }
  ThreadPool pool(a.common.threads);
  LmOptions options;
  options.precision = a.exact ? Precision::exact : Precision::fast;
  PITH_ASSIGN(const auto lm, Lm::load(model, options, pool, terminal));
  CacheReport report;
  PITH_ASSIGN(report.scores, evaluate_caches(*lm, tokenizer, documents, a.options, pool, terminal));
  terminal.clear();
  report.model = a.path.substr(a.path.find_last_of('/') + 1);
  report.title = "KV caches of " + report.model;
  report.command = command;
  report.version = pith_version();
  report.machine = machine();
  report.ask_after = a.options.ask_after;
  report.seed = a.options.seed;
  for (const CacheScore& s : report.scores)
    if (s.cache == "full" && s.task != "ppl" && s.accuracy < 0.8)
      report.notes.push_back(
          fmt::format("{} at {} tokens: with the dense cache the model answers {:.0f} % right, so "
                      "differences there say little",
                      s.task, s.length, 100 * s.accuracy));
  if (!a.output.empty()) {
    PITH_TRY(write_file(a.output, html ? cache_report_to_html(report) : cache_report_to_json(report), a.force));
  }
  if (a.json) return print_out(cache_report_to_json(report));
  std::vector<std::vector<std::string>> rows = {
      {"task", "tokens", "cache", "bytes", "of dense", "right", "nats", "KL", "+-", "prefill/s", "decode/s"}};
  double dense = 0;
  for (const CacheScore& s : report.scores) {
    if (s.cache == "full") dense = s.bytes;
    rows.push_back({s.task, std::to_string(s.length), s.cache, print_size(static_cast<uint64_t>(s.bytes)),
                    print_percent(s.bytes, dense), fmt::format("{:.1f} %", 100 * s.accuracy),
                    fmt::format("{:.4f}", s.nll), fmt::format("{:.4f}", s.kl), fmt::format("{:.4f}", s.kl_error),
                    fmt::format("{:.0f}", s.prefill_per_second),
                    s.decode_per_second > 0 ? fmt::format("{:.1f}", s.decode_per_second) : "-"});
  }
  std::string out = format_table(rows, {false, true, false, true, true, true, true, true, true, true, true});
  for (const std::string& note : report.notes) out += note + "\n";
  return print_out(out);
}

}  // namespace

int cache_command(const Arguments& arguments) {
  std::vector<std::string> known;
  for (const KvMethod* m : all_kv_methods()) known.emplace_back(m->name);
  const std::string what = arguments.empty() ? "" : arguments.front();
  if (what.empty() || what == "--help" || what == "-h") {
    std::vector<std::vector<std::string>> rows;
    for (const std::string& name : known) rows.push_back({"  " + name, std::string(find_method(name)->title)});
    const std::string text =
        "pith cache eval MODEL --cache METHOD…   accuracy, loss and speed against the bytes a cache holds\n"
        "pith cache METHOD --help                one method with its options\n\nMethods, for --cache here and in 'pith "
        "generate':\n" +
        format_table(rows, {});
    return what.empty() ? (print_result(text), 2) : print_result(text);
  }
  if (what != "eval") {
    known.emplace_back("eval");
    const Method* method = find_method(what);
    if (method == nullptr || method->family != "cache")
      return fail(user_error("'" + what + "' is no cache method" + did_you_mean(what, known)));
    if (arguments.size() == 2 && (arguments[1] == "--help" || arguments[1] == "-h"))
      return print_result(method_help(*method));
    return fail(user_error("a cache method runs inside 'pith generate MODEL --cache " + what +
                           "' or 'pith cache eval MODEL --cache " + what + "'; 'pith cache " + what +
                           " --help' shows its options"));
  }
  CacheArguments a;
  const auto app = new_app("cache eval",
                           "Reads prompts, makes their KV cache smaller, and scores what follows over what is left: "
                           "answers right, loss, KL from the dense cache and speed, against the bytes held.",
                           "pith cache eval model.gguf --cache snapkv:budget=25% --cache 'ems:budget=10%;q4'");
  app->add_option("FILE", a.path, "Model: .pith, .gguf, .safetensors or Hugging Face folder")->required();
  app->add_option("--cache", a.options.caches, "A cache to measure, several times for several; the dense one always is")
      ->required()
      ->type_name("METHOD")
      ->allow_extra_args(false);
  app->add_option("--tasks", a.tasks, "passkey, niah, vt and ppl, with commas [all]")->type_name("LIST");
  app->add_option("--lengths", a.lengths, "Tokens of the prompt, with commas [512,1k,2k]")->type_name("LIST");
  app->add_option("--items", a.options.items, "Items of each task and length [10]")
      ->check(CLI::Range(int64_t{1}, int64_t{100000}))
      ->type_name("N");
  app->add_option("--seed", a.options.seed, "Same seed, same items [1]")->type_name("N");
  app->add_flag("--ask-after", a.options.ask_after, "The question comes after the cache has been made smaller");
  app->add_option("--continuation", a.options.continuation, "Tokens that ppl scores [128]")
      ->check(CLI::Range(int64_t{1}, int64_t{65536}))
      ->type_name("N");
  app->add_option("--piece", a.options.piece,
                  "Feed what follows the prompt N tokens at a time, the cache made smaller after each; 0 = in one [0]")
      ->check(CLI::Range(int64_t{0}, int64_t{65536}))
      ->type_name("N");
  app->add_option("--text", a.texts,
                  "Text that tasks are made from, or builtin:NAME; several times for several texts [built-in held-out "
                  "encyclopedia, prose, documentation]")
      ->type_name("FILE")
      ->allow_extra_args(false);
  app->add_option("-o,--output", a.output, "Report: .html or .json")->type_name("FILE");
  app->add_flag("--force", a.force, "Write over an existing report");
  app->add_flag("--exact", a.exact, "Kernels that round no activations, slower");
  app->add_flag("--json", a.json, "As JSON on stdout");
  add_common_options(*app, a.common);
  if (const auto code = parse_arguments(*app, Arguments(arguments.begin() + 1, arguments.end()))) return *code;
  if (a.texts.empty()) a.texts = {"builtin:encyclopedia", "builtin:prose", "builtin:documentation"};
  std::string command = "pith cache";
  for (const std::string& argument : arguments)
    command += " " + (argument.find_first_of(" ;'\"") == std::string::npos ? argument : "'" + argument + "'");

  catch_interrupts();
  Terminal terminal(a.common.style());
  const Status status = run(a, command, terminal);
  terminal.clear();
  if (interrupted()) return kInterrupted;
  return status.ok() ? 0 : fail(status.error());
}

}  // namespace pith
