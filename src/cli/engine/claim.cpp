// pith claim NAME: reruns a paper's central inequality and says whether it holds.
#include "engine/claim.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <optional>

#include "base/file.h"
#include "cli/engine/commands.h"

namespace pith {

/// Machines differ in the last bits of sums; a claim's numbers may differ by this much, relative.
static constexpr double kTolerance = 0.02;

int claim_command(const Arguments& arguments) {
  std::string name, ledger_path, write_path;
  ClaimRun run;
  CommonOptions common;
  const auto app = new_app("claim", "Reruns a paper's central claim, seeded, beside a baseline of equal total bits.",
                           "pith claim spqr");
  app->add_option("NAME", name, "Method whose claim is run; without it the claims are listed");
  app->add_flag("--quick", run.quick, "One seed on the smallest model, seconds");
  app->add_option("--model", run.model_folder, "Model folder; default: the recipe model");
  app->add_option("--ledger", ledger_path, "Committed ledger to compare with: exit code 1 when the run differs");
  app->add_option("--write", write_path, "Write the ledger of this run here");
  add_common_options(*app, common);
  if (const auto code = parse_arguments(*app, arguments)) return *code;
  if (name.empty()) {
    std::vector<std::vector<std::string>> rows;
    for (const Claim* c : all_claims()) rows.push_back({std::string(c->name), std::string(c->statement)});
    must(print_out(format_table(rows, {})));
    return 0;
  }
  const Claim* claim = find_claim(name);
  if (claim == nullptr) {
    std::vector<std::string> known;
    for (const Claim* c : all_claims()) known.emplace_back(c->name);
    throw Failure(user_error("there is no claim '" + name + "'" + did_you_mean(name, known)));
  }
  catch_interrupts();
  Terminal terminal(common.style());
  run.progress = &terminal;
  std::optional<Ledger> committed;  // read first: a wrong path is not found out after an hour
  if (!ledger_path.empty()) committed = must(read_ledger(must(read_text(ledger_path, 16 << 20))).context(ledger_path));
  const Ledger ledger = run_claim(*claim, run);
  const ClaimResult& result = ledger.result;
  terminal.clear();
  std::vector<std::vector<std::string>> rows = {{"arm", "metric", "seed", "value"}};
  for (const ClaimRow& r : result.rows)
    rows.push_back({r.arm, r.metric, std::to_string(r.seed), fmt::format("{:.6g}", r.value)});
  std::string out = format_table(rows, {false, false, true, true}) + "\n" + result.statement + "\n" + result.found +
                    "\n" + (result.holds ? "The claim holds.\n" : "The claim does NOT hold.\n");
  bool as_expected = result.holds;
  if (committed) {
    const auto differences = compare_ledgers(*committed, ledger, kTolerance);
    for (const std::string& line : differences) out += line + "\n";
    out += differences.empty() ? "The run repeats the ledger.\n" : "The run differs from the ledger.\n";
    as_expected = differences.empty();
  }
  must(print_out(out));
  if (!write_path.empty()) must(write_file(write_path, print_ledger(ledger), true));
  return as_expected ? 0 : 1;
}

}  // namespace pith
