// The claim of LLM.int8() at a size that fits here. Small models have few outlier features, so they are planted without
// changing the float model: six channels of every norm's gain times 20 to 40, the matching columns of what reads them
// divided by the same. Then one scale a row no longer fits the inputs, and taking out the outlier columns is what
// helps. Perplexity by the runtime's int8 kernel, one chunk of text a batch.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>

#include "engine/claim_lm.h"
#include "represent/combine.h"

namespace pith {
namespace {

constexpr std::string_view kStatement =
    "natural model: ppl(llm-int8) <= 1.005 ppl(float); planted outliers, on every seed: ppl(llm-int8, fp16 outlier "
    "weights) <= 1.01 ppl(float), ppl(int8 without outlier columns) >= 1.05 ppl(float)";

constexpr int kPlanted = 6;

// Norm gains up, the columns that read them down. The function stays the same.
TensorMap planted(const ClaimLm& lm, uint64_t seed) {
  at::Generator g = at::detail::createCPUGenerator(seed);
  const LmConfig& config = lm.config();
  const Tensor channels = at::randperm(config.hidden, g, at::kLong).narrow(0, 0, kPlanted);
  const Tensor factors = at::rand({kPlanted}, g, at::kFloat) * 20 + 20;
  Tensor gain = at::ones({config.hidden}, at::kFloat);
  gain.index_put_({channels}, factors);
  TensorMap out;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    for (const char* norm : {"input_layernorm.weight", "post_attention_layernorm.weight"})
      out[prefix + norm] = lm.weights().tensor(prefix + norm) * gain;
    for (const LmLinear& linear : block_linears(config, layer))
      if (linear.input == "attn_in" || linear.input == "mlp_in")
        out[linear.name] = lm.weights().tensor(linear.name) / gain;
  }
  return out;
}

// int8 codes with one scale for the whole matrix: every row gets the largest row's.
NodePtr one_scale(const FitJob& job) {
  FitJob flat = job;
  flat.weight = job.weight.reshape({1, -1});
  const NodePtr rounded = fit_spec("llm-int8:threshold=0", flat);
  Tensor values = at::empty(job.weight.sizes(), at::kFloat);
  rounded->decode_rows(0, 1, values.data_ptr<float>());
  // On that grid already: rows whose largest code is below 127 lose a little more, which only blurs this arm.
  FitJob again = job;
  again.weight = values;
  return fit_spec("llm-int8:threshold=0", again);
}

ClaimResult run(const ClaimRun& request) {
  const int seeds = request.quick ? 1 : 3;
  ClaimLm lm(request, request.quick ? 128 : 512, request.quick ? 16 : 48);
  const int64_t sequences = request.quick ? 8 : 16;
  ClaimResult result;
  const auto spec = [](std::string text) {
    return [text = std::move(text)](const FitJob& job) { return fit_spec(text, job); };
  };
  const auto measure = [&](const std::string& arm, uint64_t seed, const FitRule& rule) {
    // Only the probe for fp16 columns needs calibration.
    const NodeMap nodes = arm.find("fp16") != std::string::npos ? fit_blocks(lm, lm.calibration(seed, sequences), rule)
                                                                : fit_alone(lm, nullptr, rule);
    const double ppl = lm.perplexity(nodes);
    result.rows.push_back({arm, "ppl", seed, ppl});
    result.rows.push_back({arm, "bits", seed, mean_bits(nodes)});
    lm.progress().note(fmt::format("seed {}: {}: ppl {:.4f}", seed, arm, ppl));
    return ppl;
  };
  const double natural = lm.perplexity({});
  result.rows.push_back({"natural: float", "ppl", 0, natural});
  const double natural_int8 = measure("natural: llm-int8", 0, spec("llm-int8"));
  if (!request.quick) measure("natural: ablation, threshold 0", 0, spec("llm-int8:threshold=0"));

  // Share of input values that stay in int8 on the natural model: columns outside the outliers of the probe.
  std::atomic<int64_t> columns{0}, outliers{0};
  fit_blocks(lm, lm.calibration(0, sequences), [&](const FitJob& job) {
    columns += job.inputs->width();
    outliers += job.inputs->max_abs().ge(6.0).sum().item<int64_t>();
    return fit_spec("llm-int8", job);
  });
  result.rows.push_back({"natural: llm-int8", "share of columns without outliers", 0,
                         1 - static_cast<double>(outliers) / static_cast<double>(columns)});

  bool fp16_keeps = true, absmax_loses = true;
  double worst_fp16 = 0, least_absmax = 1e300;
  for (uint64_t seed = 1; seed <= static_cast<uint64_t>(seeds); ++seed) {
    TensorMap back;
    const TensorMap change = planted(lm, seed);
    for (const auto& [name, tensor] : change) back[name] = lm.weights().tensor(name);
    lm.replace(change);
    const double same = lm.perplexity({});
    result.rows.push_back({"planted: float", "ppl", seed, same});
    const double fp16 = measure("planted: llm-int8, fp16 outlier weights", seed, spec("llm-int8:outlier-weights=fp16"));
    const double absmax = measure("planted: ablation, threshold 0", seed, spec("llm-int8:threshold=0"));
    if (!request.quick) {
      measure("planted: llm-int8, int8 outlier weights", seed, spec("llm-int8"));
      measure("planted: one scale a matrix, threshold 0", seed, one_scale);
    }
    worst_fp16 = std::max(worst_fp16, fp16 / same);
    least_absmax = std::min(least_absmax, absmax / same);
    lm.replace(back);
  }
  fp16_keeps = worst_fp16 <= 1.01;
  absmax_loses = least_absmax >= 1.05;
  result.statement = kStatement;
  result.holds = natural_int8 <= 1.005 * natural && fp16_keeps && absmax_loses;
  result.found = fmt::format(
      "natural {:.5f}x; planted, worst of {} seeds: fp16 outlier weights {:.5f}x; without outlier columns at least "
      "{:.4f}x",
      natural_int8 / natural, seeds, worst_fp16, least_absmax);
  return result;
}

}  // namespace

const Claim& llm_int8_claim() {
  static const Claim claim{"llm-int8", kStatement, run};
  return claim;
}

}  // namespace pith
