// The claim of LQ-LoRA before any fine-tuning (that is measured where models are trained): the alternation leaves less
// error than the grid alone or an SVD of its residual, matrix by matrix; and settings chosen for each matrix under a
// budget lose less on held-out text than one setting for all of the same bytes. Blocks only, embedding as it is.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "engine/claim_lm.h"
#include "maths/wsvd.h"
#include "plan/knapsack.h"
#include "represent/combine.h"
#include "represent/low_rank.h"

namespace pith {
namespace {

constexpr std::string_view kStatement =
    "unweighted, for every block matrix, NF2 and NF3, ranks 4 and 16: error(lq-lora) <= 0.99 error(grid, then SVD of "
    "its "
    "residual) < error(grid alone); and at equal bytes KL(settings by the budget solver) < KL(one setting for all) and "
    "KL(lq-lora) < KL(grid, then SVD), mean over seeds";

constexpr const char* kUniform = "bits=3,group=64,rank=4";

double squares(const Tensor& weight, const Tensor& approximation) {
  return (weight - approximation).to(at::kDouble).pow(2).sum().item<double>();
}

// Grid first, then the best low-rank path for what it left, under the same metric: the paper's idea taken out.
NodePtr one_shot(const FitJob& job) {
  const NodePtr grid = fit_spec("lq-lora:bits=3,group=64,rank=0", job);
  const Tensor left = job.row_fisher.to(at::kDouble), right = job.inputs->diagonal();
  const LowRankFit fit = wsvd(job.weight - decoded(*grid), left.clamp_min(1e-3 * left.mean().item<double>()),
                              right.clamp_min(1e-3 * right.mean().item<double>()), 4, job.name);
  return must(Sum::make({grid, must(LowRank::make(dense_node(fit.a), dense_node(fit.b)))}));
}

ClaimResult run(const ClaimRun& request) {
  const int seeds = request.quick ? 1 : 3;
  const ClaimLm lm(request, request.quick ? 128 : 512, request.quick ? 16 : 48);
  const int64_t sequences = request.quick ? 16 : 32;
  ClaimResult result;

  // Matrix by matrix, without any text.
  std::mutex mutex;
  int held = 0, cases = 0;
  double worst = 0;
  for (const int bits : {2, 3})
    for (const int rank : {4, 16}) {
      if (request.quick && (bits == 3 || rank == 16)) continue;
      const std::string grid = fmt::format("lq-lora:fisher=false,bits={}", bits);
      double sum = 0;
      int count = 0;
      fit_alone(lm, nullptr, [&](const FitJob& job) {
        const Tensor alone = decoded(*fit_spec(grid + ",rank=0", job));
        const LowRankFit svd = wsvd(job.weight - alone, {}, {}, rank, job.name);
        const NodePtr node = fit_spec(fmt::format("{},rank={}", grid, rank), job);
        const double before = squares(job.weight, alone), after = squares(job.weight, decoded(*node));
        const double shot = squares(job.weight, alone.to(at::kDouble) + at::mm(svd.a, svd.b));
        const std::lock_guard lock(mutex);
        held += after <= 0.99 * shot && shot < before;
        ++cases, ++count;
        sum += after / shot;
        worst = std::max(worst, after / shot);
        return node;
      });
      result.rows.push_back(
          {fmt::format("NF{}, rank {}", bits, rank), "error over that of grid, then SVD", 0, sum / count});
    }

  for (uint64_t seed = 1; seed <= static_cast<uint64_t>(seeds); ++seed) {
    const Tensor text = lm.calibration(seed, sequences);
    const auto statistics = lm.statistics(text, sequences, seed);
    const auto measure = [&](const std::string& arm, const NodeMap& nodes) {
      const ClaimLm::Loss loss = lm.loss(nodes);
      result.rows.push_back({arm, "bits", seed, mean_bits(nodes)});
      result.rows.push_back({arm, "kl", seed, loss.kl});
      result.rows.push_back({arm, "ppl", seed, loss.ppl});
      lm.progress().note(fmt::format("seed {}: {}: {:.3f} bits, KL {:.5f}", seed, arm, mean_bits(nodes), loss.kl));
    };
    const auto fit = [&](const std::string& options) {
      return fit_alone(lm, statistics.get(), [&](const FitJob& job) { return fit_spec("lq-lora:" + options, job); });
    };
    const NodeMap uniform = fit(kUniform);
    measure("lq-lora", uniform);
    measure("grid, then SVD", fit_alone(lm, statistics.get(), one_shot));

    // Settings for each matrix: bits, group and rank, at the bytes of the uniform one.
    std::vector<std::string> names;
    for (const auto& [name, node] : uniform) names.push_back(name);
    std::vector<KnapsackUnit> units(names.size());
    std::vector<NodeMap> options;
    for (const int bits : {2, 3, 4})
      for (const int group : {32, 64})
        for (const int rank : {1, 4, 8}) {
          if (request.quick && (group == 32 || rank != 4)) continue;
          std::map<std::string, double, std::less<>> losses;
          options.push_back(fit_alone(lm, statistics.get(), [&](const FitJob& job) {
            const NodePtr node = fit_spec(fmt::format("lq-lora:bits={},group={},rank={}", bits, group, rank), job);
            const double loss = predicted_loss(job, *node);
            const std::lock_guard lock(mutex);
            losses[job.name] = loss;
            return node;
          }));
          for (size_t k = 0; k < names.size(); ++k)
            units[k].push_back({(options.back().at(names[k])->bits().total() + 7) / 8, losses.at(names[k])});
        }
    uint64_t bytes = 0;
    for (const auto& [name, node] : uniform) bytes += (node->bits().total() + 7) / 8;
    const KnapsackAnswer answer = must(best_for_bytes(units, bytes));
    NodeMap mixed;
    for (size_t k = 0; k < names.size(); ++k)
      mixed[names[k]] = options[static_cast<size_t>(answer.choice[k])].at(names[k]);
    measure("settings by the solver", mixed);
    if (request.quick) continue;
    measure("ablation: one alternation", fit(std::string(kUniform) + ",iterations=1"));
    measure("ablation: no Fisher information", fit(std::string(kUniform) + ",fisher=false"));
    measure("baseline: NF grid of those bits alone", fit_alone(lm, statistics.get(), [](const FitJob& job) {
              return fit_spec("lq-lora:bits=3,stat-bits=0,group=24,rank=0", job);
            }));
  }
  const auto kl = [&](const std::string& arm) { return claim_mean(result.rows, arm, "kl"); };
  result.statement = kStatement;
  result.holds = held == cases && kl("settings by the solver") < kl("lq-lora") && kl("lq-lora") < kl("grid, then SVD");
  result.found =
      fmt::format("{} of {} cases, worst {:.3f}; KL lq-lora {:.5f}, grid then SVD {:.5f}, by the solver {:.5f}", held,
                  cases, worst, kl("lq-lora"), kl("grid, then SVD"), kl("settings by the solver"));
  if (!request.quick)
    result.found += fmt::format("; one alternation {:.5f}, no Fisher information {:.5f}, NF grid alone {:.5f}",
                                kl("ablation: one alternation"), kl("ablation: no Fisher information"),
                                kl("baseline: NF grid of those bits alone"));
  return result;
}

}  // namespace

const Claim& lq_lora_claim() {
  static const Claim claim{"lq-lora", kStatement, run};
  return claim;
}

}  // namespace pith
