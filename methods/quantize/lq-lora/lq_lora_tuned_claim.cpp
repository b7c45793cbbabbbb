// The second half of LQ-LoRA's claim: after the same number of steps of fine-tuning at the same bytes, the low-rank
// part that took the largest directions of the rounding error ends better than QLoRA's, which begins at nothing beside
// the same grid. The grid stays; factors and norms move by distillation (train/distill.h) towards the float model. Each
// start has its own rate, the best of four by calibration text on the first seed. The ablation leaves out Fisher
// information. Embedding and head are as they are.
#include <fmt/format.h>

#include <cmath>

#include "base/hash.h"
#include "engine/claim_lm.h"
#include "represent/combine.h"
#include "represent/low_rank.h"
#include "train/distill.h"

namespace pith {
namespace {

constexpr std::string_view kStatement =
    "at equal bytes, after equal steps on factors and norms with the grid as it is: KL on unseen text of lq-lora < "
    "qlora (the same grid and a path that begins at nothing) on every seed, and lq-lora with Fisher information <= "
    "without (mean)";

constexpr const char* kGrid = "bits=2,group=64";
constexpr int64_t kRank = 4;

// QLoRA: U = 0, V uniform as LoRA begins.
NodePtr qlora(const FitJob& job) {
  const NodePtr grid = fit_spec(fmt::format("lq-lora:{},rank=0", kGrid), job);
  const int64_t rows = grid->rows(), cols = grid->cols();
  at::Generator draw = at::detail::createCPUGenerator(hash64(job.name, job.seed));
  const Tensor v = (at::rand({kRank, cols}, draw) * 2 - 1) / std::sqrt(static_cast<double>(cols));
  return must(Sum::make({grid, must(LowRank::make(dense_node(at::zeros({rows, kRank})), dense_node(v)))}));
}

ClaimResult run(const ClaimRun& request) {
  const uint64_t seeds = request.quick ? 1 : 3;
  const ClaimLm lm(request, request.quick ? 64 : 128, request.quick ? 8 : 64);
  const int64_t fitted = request.quick ? 8 : 64, taught = request.quick ? 16 : 800, judges = request.quick ? 2 : 16;
  std::vector<double> rates{1e-3, 3e-3, 1e-2, 3e-2};
  if (request.quick) rates.resize(1);
  struct Arm {
    std::string name;
    FitRule rule;
    double rate = 0;
  };
  const std::string rounds = request.quick ? ",iterations=2" : "";
  const auto lq = [&](const std::string& options) {
    return [more = options + rounds](const FitJob& job) {
      return fit_spec(fmt::format("lq-lora:{},rank={}{}", kGrid, kRank, more), job);
    };
  };
  std::vector<Arm> arms{
      {"lq-lora", lq("")}, {"qlora", qlora}, {"ablation: no Fisher information", lq(",fisher=false")}};
  ClaimResult result;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    const Tensor text = lm.calibration(seed, taught + judges);
    const auto statistics = lm.statistics(text.narrow(0, 0, fitted).contiguous(), fitted, seed);
    for (Arm& arm : arms) {
      const NodeMap start = fit_alone(lm, statistics.get(), [&](FitJob job) {
        job.seed = seed;
        return arm.rule(job);
      });
      const auto measure = [&](const std::string& when, const NodeMap& nodes) {
        const ClaimLm::Loss loss = lm.loss(nodes);
        result.rows.push_back({arm.name + when, "file bytes", seed, static_cast<double>(file_bytes(lm, nodes))});
        result.rows.push_back({arm.name + when, "kl", seed, loss.kl});
        result.rows.push_back({arm.name + when, "ppl", seed, loss.ppl});
        lm.progress().note(
            fmt::format("seed {}: {}{}: KL {:.5f}, ppl {:.4f}", seed, arm.name, when, loss.kl, loss.ppl));
      };
      const auto tune = [&](double rate) {
        DistillOptions options;
        options.steps = request.quick ? 2 : 60, options.batch = 4, options.looks = request.quick ? 1 : 3;
        options.rate = 0, options.vector_rate = rate;
        options.seed = seed;
        return tune_blocks(lm, start, text, judges, options);
      };
      result.rows.push_back({arm.name, "bits", seed, mean_bits(start)});
      measure(", before", start);
      TunedBlocks best;
      for (const double rate : arm.rate > 0 ? std::vector<double>{arm.rate} : rates) {
        TunedBlocks tuned = tune(rate);
        lm.progress().note(
            fmt::format("seed {}: {} at rate {}: validation KL {:.5f}", seed, arm.name, rate, tuned.validation));
        if (!best.nodes.empty() && !(tuned.validation < best.validation)) continue;
        best = std::move(tuned), arm.rate = rate;
      }
      measure("", best.nodes);
    }
  }
  for (const Arm& arm : arms) result.rows.push_back({arm.name, "rate", 0, arm.rate});
  uint64_t wins = 0;
  for (uint64_t seed = 1; seed <= seeds; ++seed)
    wins += claim_value(result.rows, "lq-lora", "kl", seed) < claim_value(result.rows, "qlora", "kl", seed);
  const auto kl = [&](const std::string& arm) { return claim_mean(result.rows, arm, "kl"); };
  const std::string plain = arms[2].name;
  result.statement = kStatement;
  result.holds = wins == seeds && kl("lq-lora") <= kl(plain);
  result.found = fmt::format(
      "{} of {} seeds at {:.3f} bits; mean KL lq-lora {:.4f} (before {:.4f}), qlora {:.4f} ({:.4f}), no Fisher "
      "information {:.4f} ({:.4f})",
      wins, seeds, claim_mean(result.rows, "lq-lora", "bits"), kl("lq-lora"), kl("lq-lora, before"), kl("qlora"),
      kl("qlora, before"), kl(plain), kl(plain + ", before"));
  return result;
}

}  // namespace

const Claim& lq_lora_tuned_claim() {
  static const Claim claim{"lq-lora-tuned", kStatement, run};
  return claim;
}

}  // namespace pith
