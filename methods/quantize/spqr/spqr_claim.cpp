// The claim of SpQR at a size that fits here: at equal total bits (tables, outliers, counts, order: everything), 3-bit
// codes, less perplexity is lost than by GPTQ whose group size is chosen for the same total; and each part of the idea
// pays. Calibration: 32 sequences; statistics of each block behind the compressed blocks before it.
#include <fmt/format.h>

#include <cmath>

#include "engine/claim_lm.h"

namespace pith {
namespace {

constexpr std::string_view kStatement =
    "ppl(spqr) < ppl(gptq, 3 bits, group size for the same total bits) on every seed, and the mean excess over the "
    "float "
    "model is at most 0.7 of gptq's";

// Group size of plain 3-bit GPTQ at `bits` a weight: 3 + numbers/group, rounded so that GPTQ gets no fewer bits.
int64_t group_for(double bits, double numbers) {
  return std::max<int64_t>(1, static_cast<int64_t>(std::floor(numbers / (bits - 3))));
}

struct Measured {
  double ppl, bits;
};

ClaimResult run(const ClaimRun& request) {
  const int seeds = request.quick ? 1 : 3;
  const ClaimLm lm(request, request.quick ? 128 : 512, request.quick ? 16 : 48);
  const int64_t sequences = request.quick ? 16 : 32;
  ClaimResult result;
  const double float_ppl = lm.perplexity({});
  result.rows.push_back({"float", "ppl", 0, float_ppl});

  for (int seed = 1; seed <= seeds; ++seed) {
    const Tensor calibration = lm.calibration(static_cast<uint64_t>(seed), sequences);
    NodeMap spqr;
    const auto measure = [&](const std::string& arm, const FitRule& rule) {
      NodeMap nodes = fit_blocks(lm, calibration, rule);
      result.rows.push_back({arm, "bits", static_cast<uint64_t>(seed), mean_bits(nodes)});
      result.rows.push_back({arm, "ppl", static_cast<uint64_t>(seed), lm.perplexity(nodes)});
      lm.progress().note(
          fmt::format("seed {}: {}: {:.4f} bits, ppl {:.4f}", seed, arm, mean_bits(nodes), result.rows.back().value));
      return nodes;
    };
    const auto spec = [](std::string text) {
      return [text = std::move(text)](const FitJob& job) { return fit_spec(text, job); };
    };
    // Exactly the bits that spqr took for the same matrix.
    const auto same_bits = [&](std::string text) {
      return [&spqr, text = std::move(text)](const FitJob& job) {
        const Node& node = *spqr.at(job.name);
        const double bits = static_cast<double>(node.bits().total()) / static_cast<double>(node.rows() * node.cols()) +
                            0.01;  // row counts, where none was found
        return fit_spec(fmt::format("{},target-bits={:.5f}", text, bits), job);
      };
    };
    // tau 0.35 lands between 3.7 and 3.9 bits, where the claim is made; the paper's 0.2 spends more on outliers.
    for (const char* tau : {"0.2", "0.35"}) {
      if (request.quick && std::string_view(tau) == "0.2") continue;
      spqr = measure(fmt::format("spqr tau {}", tau), spec(fmt::format("spqr:bits=3,outlier-threshold={}", tau)));
      const double bits = mean_bits(spqr);
      measure(fmt::format("gptq asym, bits of tau {}", tau),
              spec(fmt::format("gptq:bits=3,group={}", group_for(bits, 32))));
      measure(fmt::format("gptq sym, bits of tau {}", tau),
              spec(fmt::format("gptq:bits=3,grid=sym,group={}", group_for(bits, 16))));
    }
    if (request.quick) continue;
    measure("gptq as published (range of the extremes)",
            spec(fmt::format("gptq:bits=3,clip=none,group={}", group_for(mean_bits(spqr), 32))));
    // Groups that take what the outliers took; the order of the columns and a short last group count too.
    int64_t smaller = group_for(mean_bits(spqr), 10);
    const auto no_outliers = [&] { return spec(fmt::format("spqr:bits=3,outlier-threshold=0,group={}", smaller)); };
    while (mean_bits(fit_blocks(lm, calibration, no_outliers())) > mean_bits(spqr) + 0.02) ++smaller;
    measure("ablation: no outliers, smaller groups", no_outliers());
    measure("ablation: no leave-one-out", same_bits("spqr:bits=3,simplified-outliers"));
    measure("ablation: fp16 statistics, larger groups",
            spec(fmt::format("spqr:bits=3,outlier-threshold=0.35,stat-bits=0,group={}", group_for(3.625, 32))));
    measure("ablation: outliers by magnitude", same_bits("spqr:bits=3,outlier-choice=magnitude"));
  }
  // The best of the baseline's grids, seed by seed, is what has to be beaten.
  const auto& rows = result.rows;
  const auto excess = [&](const std::string& tau, int& wins, double& ours, double& theirs) {
    for (int seed = 1; seed <= seeds; ++seed) {
      const auto ppl = [&](const std::string& arm) {
        return claim_value(rows, arm, "ppl", static_cast<uint64_t>(seed));
      };
      const double gptq = std::min(ppl("gptq asym, bits of tau " + tau), ppl("gptq sym, bits of tau " + tau));
      wins += ppl("spqr tau " + tau) < gptq;
      ours += (ppl("spqr tau " + tau) - float_ppl) / seeds;
      theirs += (gptq - float_ppl) / seeds;
    }
  };
  int wins = 0, wins_more = 0;
  double ours = 0, theirs = 0, ours_more = 0, theirs_more = 0;
  excess("0.35", wins, ours, theirs);
  if (!request.quick) excess("0.2", wins_more, ours_more, theirs_more);
  result.statement = kStatement;
  result.holds = wins == seeds && ours <= 0.7 * theirs;
  result.found =
      fmt::format("{} of {} seeds; excess {:.4f} against {:.4f} of gptq's better grid ({:.2f}x) at {:.3f} bits", wins,
                  seeds, ours, theirs, ours / theirs, claim_mean(rows, "spqr tau 0.35", "bits"));
  if (!request.quick)
    result.found +=
        fmt::format("; tau 0.2: {} of {} seeds, {:.4f} against {:.4f} ({:.2f}x) at {:.3f} bits", wins_more, seeds,
                    ours_more, theirs_more, ours_more / theirs_more, claim_mean(rows, "spqr tau 0.2", "bits"));
  if (!request.quick)
    result.found += fmt::format("; gptq as published: excess {:.4f}",
                                claim_mean(rows, "gptq as published (range of the extremes)", "ppl") - float_ppl);
  for (const ClaimSummary& arm : summarise(rows))
    if (arm.arm.starts_with("ablation") && arm.metric == "ppl")
      result.found += fmt::format("; {}: excess {:.4f} ({})", arm.arm.substr(10), arm.mean - float_ppl,
                                  arm.mean - float_ppl >= ours ? "worse" : "NOT worse");
  return result;
}

}  // namespace

const Claim& spqr_claim() {
  static const Claim claim{"spqr", kStatement, run};
  return claim;
}

}  // namespace pith
