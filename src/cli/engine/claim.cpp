// pith claim NAME: reruns a paper's central inequality and says whether it holds.
#include "engine/claim.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "cli/engine/commands.h"

namespace pith {

int claim_command(const Arguments& arguments) {
  std::string name;
  ClaimRun run;
  CommonOptions common;
  const auto app = new_app("claim", "Reruns a paper's central claim, seeded, beside a baseline of equal total bits.",
                           "pith claim spqr");
  app->add_option("NAME", name, "Method whose claim is run; without it the claims are listed");
  app->add_flag("--quick", run.quick, "One seed on the smallest model, seconds");
  app->add_option("--model", run.model_folder, "Model folder; default: the recipe model");
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
  const ClaimResult result = claim->run(run);
  terminal.clear();
  std::vector<std::vector<std::string>> rows = {{"arm", "metric", "seed", "value"}};
  for (const ClaimRow& r : result.rows)
    rows.push_back({r.arm, r.metric, std::to_string(r.seed), fmt::format("{:.6g}", r.value)});
  must(print_out(format_table(rows, {false, false, true, true}) + "\n" + result.statement + "\n" + result.found + "\n" +
                 (result.holds ? "The claim holds.\n" : "The claim does NOT hold.\n")));
  return result.holds ? 0 : 1;
}

}  // namespace pith
