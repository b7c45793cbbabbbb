// The claim of MoDeGPT at a size that fits here: narrowing pairs of matrices in closed form loses less than truncating
// each matrix by itself under the covariance of its inputs, and than dropping the channels of smallest weights, at
// equal bytes. Blocks only; the embedding stays as it is. Calibration: 32 sequences of 512 tokens.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/claim_lm.h"
#include "maths/wsvd.h"
#include "represent/low_rank.h"

namespace pith {
namespace {

constexpr std::string_view kStatement =
    "a quarter and 40 % of the blocks' weights gone: held-out ppl(modegpt) at most 0.95 ppl(SVD of each matrix under "
    "its inputs' covariance) and at most 0.95 ppl(channels of smallest weights dropped), at equal bytes on every seed; "
    "and at 40 % ppl(entropic allocation) <= ppl(uniform), mean over seeds";

// Every matrix as a product of two, rank by rank at least as many numbers as the same share of its weights.
NodeMap separate_svd(const ClaimLm& lm, const Tensor& calibration, double kept) {
  return fit_blocks(lm, calibration, [&](const FitJob& job) {
    const int64_t out = job.weight.size(0), in = job.weight.size(1);
    const auto rank = static_cast<int64_t>(
        std::ceil(kept * static_cast<double>(out) * static_cast<double>(in) / static_cast<double>(out + in)));
    const LowRankFit fit = wsvd(job.weight, {}, input_moments(job), std::min(rank, std::min(out, in)), job.name);
    return must(LowRank::make(dense_node(fit.a), dense_node(fit.b)));
  });
}

ClaimResult run(const ClaimRun& request) {
  const int seeds = request.quick ? 1 : 3;
  const ClaimLm lm(request, request.quick ? 128 : 512, request.quick ? 8 : 48);
  const int64_t sequences = request.quick ? 8 : 32;
  ClaimResult result;
  const double whole = lm.perplexity({});
  result.rows.push_back({"float", "ppl", 0, whole});

  int held = 0, cases = 0;
  double svd_margin = 1e30, magnitude_margin = 1e30;
  for (int seed = 1; seed <= seeds; ++seed) {
    const Tensor text = lm.calibration(static_cast<uint64_t>(seed), sequences);
    for (const double ratio : {0.25, 0.4}) {
      if (request.quick && ratio < 0.4) continue;
      const std::string gone = fmt::format(", {:.0f} % gone", 100 * ratio);
      const auto note = [&](const std::string& arm, double ppl, double bits) {
        result.rows.push_back({arm + gone, "ppl", static_cast<uint64_t>(seed), ppl});
        result.rows.push_back({arm + gone, "bits", static_cast<uint64_t>(seed), bits});
        lm.progress().note(fmt::format("seed {}: {}{}: {:.3f} bits, ppl {:.4f}", seed, arm, gone, bits, ppl));
        return ppl;
      };
      const auto with = [&](const std::string& arm, const std::string& options) {
        const Model model =
            make_model(lm, fmt::format("modegpt:ratio={}{}", ratio, options), text, static_cast<uint64_t>(seed));
        return note(arm, lm.perplexity_of(model), block_bits(lm, model));
      };
      const double modegpt = with("modegpt", "");
      const double kept = claim_value(result.rows, "modegpt" + gone, "bits", static_cast<uint64_t>(seed)) / 16;
      const NodeMap separate = separate_svd(lm, text, kept);
      const double svd = note("SVD of each matrix", lm.perplexity(separate), mean_bits(separate));
      const double magnitude = with("smallest weights dropped", ",mlp=magnitude,qk=magnitude,vo=magnitude");
      ++cases;
      held += modegpt <= 0.95 * svd && modegpt <= 0.95 * magnitude;
      svd_margin = std::min(svd_margin, svd / modegpt);
      magnitude_margin = std::min(magnitude_margin, magnitude / modegpt);
      with("uniform", ",allocation=uniform");
      if (request.quick) continue;
      with("solver", ",allocation=solver");
      with("ablation: channels of leverage, down as it was", ",mlp=select");
      with("ablation: random channels of queries and keys", ",qk=random");
      with("ablation: queries and keys by size of weights", ",qk=magnitude");
      with("ablation: values without covariance", ",vo=plain");
    }
  }
  const auto ppl = [&](const std::string& arm) { return claim_mean(result.rows, arm + ", 40 % gone", "ppl"); };
  result.statement = kStatement;
  result.holds = held == cases && ppl("modegpt") <= ppl("uniform");
  result.found = fmt::format(
      "{} of {} cases; at least {:.3f} times the ppl with SVD of each matrix, {:.3f} with smallest weights dropped; 40 "
      "% "
      "gone, from {:.3f}: entropic {:.3f}, uniform {:.3f}",
      held, cases, svd_margin, magnitude_margin, whole, ppl("modegpt"), ppl("uniform"));
  if (!request.quick) {
    result.found += fmt::format(", solver {:.3f}", ppl("solver"));
    for (const ClaimSummary& arm : summarise(result.rows))
      if (arm.arm.starts_with("ablation") && arm.arm.ends_with("40 % gone") && arm.metric == "ppl")
        result.found += fmt::format("; {}: {:.3f}", arm.arm.substr(10), arm.mean);
  }
  return result;
}

}  // namespace

const Claim& modegpt_claim() {
  static const Claim claim{"modegpt", kStatement, run};
  return claim;
}

}  // namespace pith
