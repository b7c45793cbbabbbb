// pith compress MODEL --size 60MB -o OUT: the main job.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cinttypes>
#include <cstdio>
#include <ctime>

#include "base/file.h"
#include "base/threads.h"
#include "cli/engine/commands.h"
#include "kernels/cpu.h"
#include "plan/size.h"
#include "tensor/tensor.h"

namespace pith {

/// What 'pith tune' does when it is not told.
static constexpr int64_t kTuneSteps = 300;

void CompressOptions::add_to(CLI::App& app, const Method* method) {
  const auto add_budget = [&](const std::string& name, std::string& value, const char* type, const char* help) {
    if (method != nullptr)
      for (const Param& param : method->params)
        if (param.name == name) return;
    app.add_option("--" + name, value, help)->type_name(type);
  };
  app.add_option("MODEL", request.input, "Hugging Face folder, .safetensors, .gguf or .pith")->required();
  app.add_option("-o,--output", request.output, "Where the result goes; .gguf for llama.cpp, else .pith")
      ->required()
      ->type_name("FILE");
  add_budget("size", size, "SIZE", "Largest file size (60MB, 57MiB)");
  add_budget("ram", ram, "SIZE", "Largest memory of the loaded weights (80MB)");
  add_budget("bits", bits, "N", "Bits per weight, everything counted (2.8)");
  add_budget("max-loss", max_loss, "SHARE", "Largest rise of perplexity on held-out text (2%)");
  app.add_option("--calib", request.calibration,
                 "Calibration text: a file, a folder, several with commas, or 'self' (written by the model); default: "
                 "the built-in mixture")
      ->type_name("FILES");
  app.add_option("--calib-sequences", request.calibration_sequences, "Sequences of calibration text")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N");
  app.add_option("--fisher-sequences", request.fisher_sequences, "Of these, how many also give gradients")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20))
      ->type_name("N");
  app.add_option("--sequence-length", request.sequence_length, "Tokens of a sequence")
      ->capture_default_str()
      ->check(CLI::Range(8, 1 << 20))
      ->type_name("N");
  app.add_option("--tune", request.tune_steps,
                 "Steps of tuning by distillation afterwards: less loss in the same bytes, for a lot of time (0: none)")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 24))
      ->type_name("STEPS");
  app.add_flag("!--keep-codes", request.tune_codes,
               "Tuning leaves all codes as they are: scales, codebooks, low-rank parts and norms move");
  app.add_option("--tune-batch", request.tune_batch, "Sequences of calibration text in a step of tuning")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 16))
      ->type_name("N");
  app.add_option("--device", request.device,
                 "Where calibration, factors and tuning run: cpu, or cuda when libtorch has it")
      ->capture_default_str()
      ->type_name("DEVICE");
  app.add_option("--memory", memory,
                 "What activations of the calibration may take; beyond it they go to files and fewer threads work "
                 "[1 GiB, or half a GiB a thread]")
      ->type_name("SIZE");
  app.add_option("--seed", request.seed, "Seed of everything random")->capture_default_str()->type_name("N");
  app.add_option("--eval", eval, "Held-out texts to measure on, with commas; default: the built-in ones")
      ->type_name("FILES");
  app.add_option("--eval-chunks", request.eval_chunks, "Chunks of 512 tokens measured of each text (0: do not measure)")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20))
      ->type_name("N");
  app.add_option("--report", request.report, "Also write the report as HTML here (and as JSON beside it)")
      ->type_name("FILE");
  app.add_option("--work", request.work_folder, "Folder of finished units; default OUTPUT.work")->type_name("FOLDER");
  app.add_option("--units", units,
                 "Share I of N processes or machines that work in one --work folder (and --cache): 1/N decides and "
                 "writes, the others fit units for it")
      ->type_name("I/N");
  app.add_option("--cache", request.cache_folder,
                 "Folder that keeps calibration statistics between runs [~/.cache/pith]")
      ->type_name("FOLDER");
  app.add_flag("--dry-run", dry_run, "Stop after the pre-flight");
  app.add_flag("--force", request.force, "Overwrite the output and the report");
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
  if (!memory.empty()) request.memory = must(parse_size(memory).context("--memory"));
  if (!max_loss.empty()) {
    const double value = must(parse_share(max_loss).context("--max-loss"));
    if (!(value > 0)) throw Failure(user_error("--max-loss: '" + max_loss + "' allows no loss at all; ask for more"));
    set(max_loss, Budget::Kind::loss, value);
  }
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
  if (!units.empty()) {
    char end = 0;
    if (std::sscanf(units.c_str(), "%" SCNd64 "/%" SCNd64 "%c", &request.share, &request.shares, &end) != 2 ||
        request.share < 1 || request.share > request.shares || request.shares > 100000)
      throw Failure(user_error("--units: '" + units + "' is not I/N with I from 1 to N, such as 2/4"));
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

}  // namespace

int run_compression(CompressOptions& options) {
  catch_interrupts();
  Terminal terminal(options.common.style());
  CompressRequest& request = options.request;
  const auto tell = [&](const Preflight& p) {
    terminal.clear();
    const std::string size = p.target_bytes > 0     ? ", to at most " + print_size(p.target_bytes)
                             : p.expected_bytes > 0 ? ", about " + print_size(p.expected_bytes) + " after"
                                                    : "";
    terminal.note(fmt::format("{} weights, {} now{}; method {}", print_count(p.weights), print_size(p.input_bytes),
                              size, p.method));
    const std::string loss =
        p.predicted_loss ? fmt::format("; predicted loss {:.2g} nats a token", *p.predicted_loss) : "";
    terminal.note(
        fmt::format("about {} and {} of memory{}", print_duration(p.seconds), print_size(p.peak_memory), loss));
  };
  if (options.dry_run) {
    tell(preflight(request, terminal));
    return 0;
  }
  if (request.share > 1) {
    const int64_t fitted = help_compress(request, terminal);
    terminal.clear();
    must(print_out(fmt::format("fitted {} units for {}\n", fitted, request.output)));
    return 0;
  }
  request.version = pith_version();
  request.date = today();
  request.machine =
      fmt::format("{} threads, {}", request.threads > 0 ? request.threads : usable_cores(), isa_name(default_isa()));
  const bool budget = request.budget.kind != Budget::Kind::none;
  const Report result = compress(request, terminal, budget ? tell : std::function<void(const Preflight&)>());
  terminal.clear();
  must(print_out(options.json ? report_to_json(result) : summary(result)));
  return 0;
}

int compress_command(const Arguments& arguments) {
  CompressOptions options;
  std::string allow;
  const auto app =
      new_app("compress", "Cuts a language model to a budget: the best file of that size, with the loss measured.",
              "pith compress SmolLM2.gguf --size 60MB -o small.pith --report report.html");
  options.add_to(*app);
  app->add_option("--allow", allow, "Methods the solver may choose from: 'gptq:bits=2..4;spqr'")->type_name("METHODS");
  std::string sensitivity = "predicted";
  app->add_option("--sensitivity", sensitivity,
                  "Losses by which --allow's options are weighed: 'predicted', or scaled by what one option of each "
                  "matrix costs alone on calibration text, 'measured' (slow)")
      ->check(CLI::IsMember({"predicted", "measured"}))
      ->capture_default_str()
      ->type_name("HOW");
  app->add_option("--plan", options.request.plan,
                  "Follow this plan instead of solving one; 'pith inspect --plan' prints that of a .pith file")
      ->type_name("FILE");
  if (const auto code = parse_arguments(*app, arguments)) return *code;
  options.finish("compress", arguments);
  options.request.allow = must(parse_allow(allow).context("--allow"));
  options.request.measured_sensitivity = sensitivity == "measured";
  if (options.request.budget.kind == Budget::Kind::none && options.request.plan.empty())
    throw Failure(user_error("compress needs a budget: --size, --ram, --bits or --max-loss (or a --plan)"));
  return run_compression(options);
}

int tune_command(const Arguments& arguments) {
  CompressOptions options;
  const auto app =
      new_app("tune", "Tunes a compressed model towards its original by distillation: less loss in the same bytes.",
              "pith tune SmolLM2.gguf --compressed small.pith --tune 400 -o better.pith");
  options.add_to(*app);
  app->add_option("--compressed", options.request.base, "The compressed model; MODEL is the original")
      ->required()
      ->type_name("FILE");
  if (const auto code = parse_arguments(*app, arguments)) return *code;
  options.finish("tune", arguments);
  if (options.request.budget.kind != Budget::Kind::none)
    throw Failure(user_error("tune keeps the size of the compressed model; leave the budget out"));
  if (options.request.tune_steps == 0) options.request.tune_steps = kTuneSteps;
  return run_compression(options);
}

}  // namespace pith
