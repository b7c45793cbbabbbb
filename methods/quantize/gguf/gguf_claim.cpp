// The claim of calibrated rounding inside GGUF block types: at equal types, and so at equal bytes, much less
// perplexity is lost than by rounding each block on its own with errors weighted by E[x_j^2], which is what an
// importance matrix does. That baseline is Pith's own rounding; llama.cpp's program is a matter of bench/. The walk
// sees the inputs that the compressed part of the model before it delivers; the embedding stays as it is.
#include <fmt/format.h>

#include "engine/claim_lm.h"

namespace pith {
namespace {

constexpr std::string_view kStatement =
    "mean over seeds, excess of perplexity over the float model: walk <= 0.75 of rounding weighted by an importance "
    "matrix for Q4_K, <= 0.6 for Q3_K and Q2_K";

struct Type {
  const char* name;
  double limit;
};
constexpr Type kTypes[] = {{"Q4_K", 0.75}, {"Q3_K", 0.6}, {"Q2_K", 0.6}};

// Rounding with an importance matrix: only the mean squares of the inputs are known.
NodePtr imatrix(const std::string& type, FitJob job) {
  const Moments squares = Moments::from_sums(1, job.inputs->diagonal().diag(), job.inputs->mean(),
                                             job.inputs->mean_abs(), job.inputs->max_abs());
  job.inputs = &squares;
  job.factor = nullptr;
  return fit_spec(fmt::format("gguf:type={},compensate=false,correct=false,damp=0", type), job);
}

ClaimResult run(const ClaimRun& request) {
  const int seeds = request.quick ? 1 : 3;
  const ClaimLm lm(request, request.quick ? 128 : 512, request.quick ? 16 : 48);
  const int64_t sequences = request.quick ? 16 : 32;
  ClaimResult result;
  const double float_ppl = lm.perplexity({});
  result.rows.push_back({"float", "ppl", 0, float_ppl});
  for (uint64_t seed = 1; seed <= static_cast<uint64_t>(seeds); ++seed) {
    const Tensor text = lm.calibration(seed, sequences);
    const auto statistics = lm.statistics(text, 0, seed);
    for (const Type& type : kTypes) {
      if (request.quick && std::string_view(type.name) != "Q3_K") continue;
      const auto measure = [&](const std::string& arm, const NodeMap& nodes) {
        const std::string name = fmt::format("{} {}", type.name, arm);
        const ClaimLm::Loss loss = lm.loss(nodes);
        result.rows.push_back({name, "ppl", seed, loss.ppl});
        result.rows.push_back({name, "kl", seed, loss.kl});
        if (seed == 1) result.rows.push_back({name, "bits", seed, mean_bits(nodes)});
        lm.progress().note(fmt::format("seed {}: {}: ppl {:.4f}, KL {:.5f}", seed, name, loss.ppl, loss.kl));
      };
      const auto walk = [&](const std::string& options) {
        const std::string spec = fmt::format("gguf:type={}{}", type.name, options);
        return fit_blocks(lm, text, [&](const FitJob& job) { return fit_spec(spec, job); }, {.cross = true});
      };
      measure("importance matrix",
              fit_alone(lm, statistics.get(), [&](const FitJob& job) { return imatrix(type.name, job); }));
      measure("walk", walk(""));
      if (request.quick) continue;
      measure("ablation: no target correction", walk(",correct=false"));
      measure("ablation: no compensation", walk(",compensate=false"));
    }
  }

  result.statement = kStatement;
  result.holds = true;
  for (const Type& type : kTypes) {
    if (request.quick && std::string_view(type.name) != "Q3_K") continue;
    const auto mean = [&](const std::string& arm, const char* metric) {
      return claim_mean(result.rows, fmt::format("{} {}", type.name, arm), metric);
    };
    const auto excess = [&](const std::string& arm) { return mean(arm, "ppl") - float_ppl; };
    const double ours = excess("walk"), theirs = excess("importance matrix");
    result.holds = result.holds && ours <= type.limit * theirs;
    result.found +=
        fmt::format("{}{}: excess {:.4f} against {:.4f} ({:.2f}x), KL {:.2f}x", result.found.empty() ? "" : "; ",
                    type.name, ours, theirs, ours / theirs, mean("walk", "kl") / mean("importance matrix", "kl"));
    if (request.quick) continue;
    result.found += fmt::format(", no target correction {:.4f}, no compensation {:.4f}",
                                excess("ablation: no target correction"), excess("ablation: no compensation"));
  }
  return result;
}

}  // namespace

const Claim& gguf_claim() {
  static const Claim claim{"gguf", kStatement, run};
  return claim;
}

}  // namespace pith
