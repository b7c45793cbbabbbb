// pith compress MODEL --size 60MB -o OUT: the main job.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <ctime>

#include "base/file.h"
#include "base/threads.h"
#include "cli/engine/commands.h"
#include "kernels/cpu.h"
#include "plan/size.h"
#include "tensor/tensor.h"

namespace pith {

void CompressOptions::add_to(CLI::App& app, const Method* method) {
  const auto add_budget = [&](const std::string& name, std::string& value, const char* help) {
    if (method != nullptr)
      for (const Param& param : method->params)
        if (param.name == name) return;
    app.add_option("--" + name, value, help);
  };
  app.add_option("MODEL", request.input, "Hugging Face folder, .safetensors, .gguf or .pith")->required();
  app.add_option("-o,--output", request.output, "Where the result goes; .gguf for llama.cpp, else .pith")->required();
  add_budget("size", size, "Largest file size (60MB, 57MiB)");
  add_budget("ram", ram, "Largest memory of the loaded weights (80MB)");
  add_budget("bits", bits, "Bits per weight, everything counted (2.8)");
  add_budget("max-loss", max_loss, "Largest rise of perplexity on held-out text (2%)");
  app.add_option("--calib", request.calibration,
                 "Calibration text: a file, a folder, several with commas, or 'self' (written by the model); default: "
                 "the built-in mixture");
  app.add_option("--calib-sequences", request.calibration_sequences, "Sequences of calibration text")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--fisher-sequences", request.fisher_sequences, "Of these, how many also give gradients")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--sequence-length", request.sequence_length, "Tokens of a sequence")
      ->capture_default_str()
      ->check(CLI::Range(8, 1 << 20));
  app.add_option("--seed", request.seed, "Seed of everything random")->capture_default_str();
  app.add_option("--plan", request.plan, "Follow this plan file instead of solving one");
  app.add_option("--eval", eval, "Held-out texts to measure on, with commas; default: the built-in ones");
  app.add_option("--eval-chunks", request.eval_chunks, "Chunks of 512 tokens measured of each text (0: do not measure)")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--report", report, "Also write the report as HTML here (and as JSON beside it)");
  app.add_option("--work", request.work_folder, "Folder of finished units; default OUTPUT.work");
  app.add_option("--cache", request.cache_folder, "Folder that keeps calibration statistics between runs");
  app.add_flag("--dry-run", dry_run, "Stop after the pre-flight");
  app.add_flag("--force", request.force, "Overwrite the output");
  app.add_flag("--restart", request.restart, "Throw away units of an earlier, different run");
  app.add_flag("--keep-work", request.keep_work, "Leave the work folder in place");
  app.add_flag("--json", json, "Print the result as JSON");
  add_common_options(app, common);
}

void CompressOptions::finish(const std::string& command, const Arguments& arguments) {
  int budgets = 0;
  const auto set = [&](const std::string& text, Budget::Kind kind, double value) {
    if (text.empty()) return;
    request.budget = {kind, value};
    ++budgets;
  };
  if (!size.empty()) set(size, Budget::Kind::size, static_cast<double>(must(parse_size(size).context("--size"))));
  if (!ram.empty()) set(ram, Budget::Kind::ram, static_cast<double>(must(parse_size(ram).context("--ram"))));
  if (!max_loss.empty()) set(max_loss, Budget::Kind::loss, must(parse_share(max_loss).context("--max-loss")));
  if (!bits.empty()) {
    char* end = nullptr;
    const double value = std::strtod(bits.c_str(), &end);
    if (*end != '\0' || !(value > 0) || value > 64)
      throw Failure(user_error("--bits: '" + bits + "' is not a number of bits per weight above 0, such as 2.8"));
    set(bits, Budget::Kind::bits, value);
  }
  if (budgets > 1) throw Failure(user_error("give one of --size, --ram, --bits, --max-loss, not several"));
  for (size_t at = 0; !eval.empty() && at <= eval.size();) {
    const size_t comma = std::min(eval.find(',', at), eval.size());
    request.eval_texts.push_back(eval.substr(at, comma - at));
    at = comma + 1;
  }
  request.threads = common.threads;
  request.command = "pith " + command;
  for (const std::string& a : arguments) request.command += a.find(' ') == std::string::npos ? " " + a : " '" + a + "'";
}

namespace {

std::string number(const std::optional<double>& v, int digits) { return v ? fmt::format("{:.{}f}", *v, digits) : "-"; }

std::string summary(const Report& r) {
  std::vector<std::vector<std::string>> rows = {{"", "before", "after"}};
  rows.push_back({"file", print_size(r.before.file_bytes), print_size(r.after.file_bytes)});
  rows.push_back({"bits a weight", number(r.before.bits_per_weight, 2), number(r.after.bits_per_weight, 2)});
  if (r.before.loaded_bytes && r.after.loaded_bytes)
    rows.push_back({"memory when loaded", print_size(*r.before.loaded_bytes), print_size(*r.after.loaded_bytes)});
  for (const ReportText& t : r.texts) {
    rows.push_back({"perplexity, " + t.name, number(t.perplexity_before, 3), number(t.perplexity_after, 3)});
    rows.push_back(
        {"  mean KL, same top-1", "", number(t.kl, 4) + fmt::format(", {:.1f} %", 100 * t.top1.value_or(0))});
  }
  rows.push_back({"time, peak memory", print_duration(r.seconds.value_or(0)), print_size(r.peak_memory.value_or(0))});
  return format_table(rows, {false, true, true});
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[16];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%d", &parts)};
}

std::string file_name(const std::string& path) {
  const std::string trimmed = path.substr(0, path.find_last_not_of('/') + 1);
  return trimmed.substr(trimmed.rfind('/') + 1);
}

}  // namespace

int run_compression(CompressOptions& options) {
  catch_interrupts();
  Terminal terminal(options.common.style());
  CompressRequest& request = options.request;
  if (!options.dry_run && !request.force && file_exists(request.output))
    throw Failure(user_error(request.output + ": exists already; choose another name or pass --force"));
  if (request.budget.kind != Budget::Kind::none || options.dry_run) {
    const Preflight p = preflight(request, terminal);
    terminal.clear();
    terminal.note(fmt::format("{} weights, {} now{}; method {}", print_count(p.weights), print_size(p.input_bytes),
                              p.target_bytes > 0 ? ", to at most " + print_size(p.target_bytes) : "", p.method));
    if (p.seconds > 0)
      terminal.note(fmt::format("about {} and {} of memory; predicted loss {:.3f} nats a token",
                                print_duration(p.seconds), print_size(p.peak_memory), p.predicted_loss));
    if (options.dry_run) return 0;
  }
  CompressResult result = compress(request, terminal);
  terminal.clear();
  result.report.title = file_name(request.input) + " in " + print_size(result.report.after.file_bytes);
  result.report.version = pith_version();
  result.report.date = today();
  result.report.machine =
      fmt::format("{} threads, {}", request.threads > 0 ? request.threads : usable_cores(), isa_name(default_isa()));
  if (!options.report.empty()) {
    const std::string json_path = options.report.ends_with(".html")
                                      ? options.report.substr(0, options.report.size() - 5) + ".json"
                                      : options.report + ".json";
    must(write_file(options.report, report_to_html(result.report), true));
    must(write_file(json_path, report_to_json(result.report), true));
  }
  must(print_out(options.json ? report_to_json(result.report) : summary(result.report)));
  return 0;
}

int compress_command(const Arguments& arguments) {
  CompressOptions options;
  std::string allow;
  const auto app =
      new_app("compress", "Cuts a language model to a budget: the best file of that size, with the loss measured.",
              "pith compress SmolLM2.gguf --size 60MB -o small.pith --report report.html");
  options.add_to(*app);
  app->add_option("--allow", allow, "Methods the solver may choose from: 'gptq:bits=2..4;spqr'");
  if (const auto code = parse_arguments(*app, arguments)) return *code;
  options.finish("compress", arguments);
  options.request.allow = must(parse_allow(allow).context("--allow"));
  if (options.request.budget.kind == Budget::Kind::none && options.request.plan.empty())
    throw Failure(user_error("compress needs a budget: --size, --ram, --bits or --max-loss (or a --plan)"));
  return run_compression(options);
}

}  // namespace pith
