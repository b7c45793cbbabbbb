// The claim of AQLM at a size that fits here: at a little above 2 bits a weight, everything counted, sums of codebook
// entries fitted to the layer's output lose less perplexity than GPTQ with 2-bit codes in groups for at least as many
// bits; and what comes after k-means pays. Three books of 32 entries, because codebooks weigh much on matrices of 256
// by 256. Calibration: 24 sequences; statistics of each block behind the compressed blocks before it.
#include <fmt/format.h>

#include <algorithm>

#include "engine/claim_lm.h"

namespace pith {
namespace {

constexpr std::string_view kStatement =
    "ppl(aqlm 3x5g8) < ppl(gptq, 2 bits in groups for at least as many bits, the better of its grids) on every seed, "
    "and "
    "with k-means alone it is worse on every seed";

ClaimResult run(const ClaimRun& request) {
  const int seeds = request.quick ? 1 : 3;
  const ClaimLm lm(request, request.quick ? 128 : 512, request.quick ? 16 : 32);
  const int64_t sequences = request.quick ? 16 : 24;
  ClaimResult result;
  const double float_ppl = lm.perplexity({});
  result.rows.push_back({"float", "ppl", 0, float_ppl});
  for (int seed = 1; seed <= seeds; ++seed) {
    const Tensor calibration = lm.calibration(static_cast<uint64_t>(seed), sequences);
    const auto measure = [&](const std::string& arm, const std::string& spec) {
      const NodeMap nodes = fit_blocks(lm, calibration, [&](const FitJob& job) { return fit_spec(spec, job); });
      const ClaimLm::Loss loss = lm.loss(nodes);
      result.rows.push_back({arm, "bits", static_cast<uint64_t>(seed), mean_bits(nodes)});
      result.rows.push_back({arm, "ppl", static_cast<uint64_t>(seed), loss.ppl});
      result.rows.push_back({arm, "kl", static_cast<uint64_t>(seed), loss.kl});
      lm.progress().note(fmt::format("seed {}: {}: {:.4f} bits, ppl {:.4f}", seed, arm, mean_bits(nodes), loss.ppl));
    };
    const std::string scheme = "aqlm:books=3,bits=5,group=8";
    measure("aqlm 3x5g8", request.quick ? scheme + ",rounds=2,clusters=10" : scheme);
    measure("gptq asym", "gptq:bits=2,group=128");
    measure("gptq sym", "gptq:bits=2,grid=sym,group=64");
    // k-means sees the weights alone, so this arm is the same for every calibration text.
    measure("ablation: k-means only", scheme + (request.quick ? ",rounds=0,clusters=10" : ",rounds=0"));
  }
  const auto ppl = [&](const std::string& arm, int seed) {
    return claim_value(result.rows, arm, "ppl", static_cast<uint64_t>(seed));
  };
  int wins = 0, parts = 0;
  double ours = 0, theirs = 0;
  for (int seed = 1; seed <= seeds; ++seed) {
    const double best = ppl("aqlm 3x5g8", seed);
    const double gptq = std::min(ppl("gptq asym", seed), ppl("gptq sym", seed));
    wins += best < gptq;
    ours += best / seeds, theirs += gptq / seeds;
    parts += best < ppl("ablation: k-means only", seed);
  }
  result.statement = kStatement;
  result.holds = wins == seeds && parts == seeds;
  result.found = fmt::format("{} of {} seeds; ppl {:.3f} at {:.3f} bits against {:.3f} at {:.3f} (float {:.3f})", wins,
                             seeds, ours, claim_mean(result.rows, "aqlm 3x5g8", "bits"), theirs,
                             claim_mean(result.rows, "gptq sym", "bits"), float_ppl);
  for (const ClaimSummary& arm : summarise(result.rows))
    if (arm.arm.starts_with("ablation") && arm.metric == "ppl")
      result.found += fmt::format("; {}: {:.3f}", arm.arm.substr(10), arm.mean);
  return result;
}

}  // namespace

const Claim& aqlm_claim() {
  static const Claim claim{"aqlm", kStatement, run};
  return claim;
}

}  // namespace pith
