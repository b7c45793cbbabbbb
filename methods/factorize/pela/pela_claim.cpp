// The claim of PELA on a language model: products of two thin matrices, started from the SVD and trained once with the
// original's features and a bound on what weights change by, lose less than the same products trained as long on the
// task alone. Half of the blocks' weights; 100 steps of 8 sequences of 256 tokens.
#include <fmt/format.h>

#include "engine/claim_lm.h"

namespace pith {
namespace {

constexpr std::string_view kStatement =
    "half of the blocks' weights, equal bytes and steps: held-out ppl(pela) < ppl(SVD, then the task's loss alone) on "
    "every seed and by 0.5 % in the mean; no part taken out (features, bound, start from the SVD) makes it better in "
    "the "
    "mean; and without training SVD takes at least 1.5 times the ppl of pela";

ClaimResult run(const ClaimRun& request) {
  const int seeds = request.quick ? 1 : 3;
  const ClaimLm lm(request, request.quick ? 64 : 256, request.quick ? 8 : 96);
  ClaimResult result;
  result.rows.push_back({"float", "ppl", 0, lm.perplexity({})});
  const std::string common = request.quick ? "pela:steps=4,batch=2" : "pela:steps=100,batch=8,rate=0.001";
  int held = 0;
  for (int seed = 1; seed <= seeds; ++seed) {
    const Tensor text = lm.calibration(static_cast<uint64_t>(seed), request.quick ? 8 : 256);
    const auto with = [&](const std::string& arm, const std::string& options) {
      const Model model = make_model(lm, common + options, text, static_cast<uint64_t>(seed));
      const double ppl = lm.perplexity_of(model);
      result.rows.push_back({arm, "ppl", static_cast<uint64_t>(seed), ppl});
      if (seed == 1) result.rows.push_back({arm, "bits", 1, block_bits(lm, model)});
      lm.progress().note(fmt::format("seed {}: {}: ppl {:.4f}", seed, arm, ppl));
      return ppl;
    };
    const double pela = with("pela", "");
    held += pela < with("SVD, then the task's loss", ",alpha=0,gamma=0");
    if (seed == 1) result.rows.push_back({"SVD", "ppl", 1, lm.perplexity_of(make_model(lm, "pela:steps=0", text, 1))});
    if (request.quick) continue;
    with("ablation: no features", ",alpha=0");
    with("ablation: no bound", ",gamma=0");
    with("ablation: random start", ",init=random");
  }
  const auto ppl = [&](const std::string& arm) { return claim_mean(result.rows, arm, "ppl"); };
  result.statement = kStatement;
  result.holds =
      held == seeds && ppl("pela") <= 0.995 * ppl("SVD, then the task's loss") && ppl("SVD") >= 1.5 * ppl("pela");
  result.found = fmt::format("pela {:.4f}, SVD then the task's loss {:.4f} ({} of {} seeds), SVD alone {:.4f}",
                             ppl("pela"), ppl("SVD, then the task's loss"), held, seeds, ppl("SVD"));
  for (const ClaimSummary& arm : summarise(result.rows)) {
    if (!arm.arm.starts_with("ablation") || arm.metric != "ppl") continue;
    result.holds = result.holds && ppl("pela") <= arm.mean;
    result.found += fmt::format(", {} {:.4f}", arm.arm.substr(10), arm.mean);
  }
  return result;
}

}  // namespace

const Claim& pela_claim() {
  static const Claim claim{"pela", kStatement, run};
  return claim;
}

}  // namespace pith
