#include "engine/jobs.h"

namespace pith {

std::vector<Target> block_targets(const LmConfig& config) {
  std::vector<Target> targets;
  for (int64_t layer = 0; layer < config.layers; ++layer)
    for (const LmLinear& linear : block_linears(config, layer))
      if (!linear.router) targets.push_back({linear.name, layer, linear.out, linear.in, linear.input, false, false});
  return targets;
}

std::vector<Target> compressible(const LmConfig& config) {
  std::vector<Target> targets = block_targets(config);
  targets.insert(targets.begin(),
                 {"model.embed_tokens.weight", -1, config.vocab, config.hidden, "", true, config.tied_embeddings});
  if (!config.tied_embeddings) targets.push_back({head_name(config), -1, config.vocab, config.hidden, "", false, true});
  return targets;
}

void thin_rows(FitJob& job, int64_t every) {
  if (every == 1) return;
  const auto thin = [&](const Tensor& rows) { return rows.slice(0, 0, rows.size(0), every).contiguous(); };
  job.weight = thin(job.weight);
  if (job.row_fisher.defined()) job.row_fisher = thin(job.row_fisher);
}

// A token that the calibration text lacks will be read one day: every row counts as if it had been seen this often.
static constexpr double kUnseenOccurrences = 0.2;

// Cost of an error e in row v: head 1/2 a_v e^T H e with a_v = mean p_v (1 - p_v); lookup 1/2 b_v e^T e. Both as one
// metric M = A H + B I shared by all rows (A = sum a, B = sum b) and a weight a row, (a_v tr H + b_v n) / tr M:
// exact where one of the two dominates.
JobSet::JobSet(const LmWeights& weights, const Statistics* statistics, int64_t layer)
    : weights_(weights), statistics_(statistics) {
  if (statistics == nullptr) return;
  known_ = true;
  if (layer >= 0) {
    block_ = statistics->block(layer);
    return;
  }
  const EndStatistics ends = statistics->ends();
  const LmConfig& config = weights.config();
  const double width = static_cast<double>(config.hidden);
  const Tensor h = ends.head_input.second();
  const Tensor identity = at::eye(config.hidden, at::kDouble);
  Tensor a = ends.head_fisher, b = ends.embedding_fisher;
  if (!a.defined()) {  // no gradients: every row of the head counts alike, lookups by how often they happen
    a = at::full({config.vocab}, 1.0 / static_cast<double>(config.vocab), at::kDouble);
    b = ends.token_count.to(at::kDouble) / ends.token_count.sum().to(at::kDouble);
  }
  const double seen = ends.token_count.sum().item<double>();
  const double b_sum = b.sum().item<double>();
  b = b + b_sum * kUnseenOccurrences / seen;
  const double a_total = a.sum().item<double>(), b_total = b.sum().item<double>();
  const double trace = h.trace().item<double>();
  const auto metric = [&](double wa, double wb) {
    const Tensor m = h * wa + identity * wb;
    const Tensor zero = at::zeros({config.hidden}, at::kDouble);
    return Moments::from_sums(1, m, zero, zero, zero.to(at::kFloat));
  };
  if (config.tied_embeddings) {
    embedding_metric_ = metric(a_total, b_total);
    embedding_rows_ = (a * trace + b * width) / (a_total * trace + b_total * width);
  } else {
    embedding_metric_ = metric(0, 1);
    embedding_rows_ = b;
    head_metric_ = metric(1, 0);
    head_rows_ = a;
  }
}

FitJob JobSet::make(const Target& target) const {
  FitJob job;
  job.name = target.name;
  job.weight = weights_.tensor(target.name);
  if (!known_) return job;
  if (target.embedding) {
    job.inputs = &embedding_metric_;
    job.row_fisher = embedding_rows_;
  } else if (target.head) {
    job.inputs = &head_metric_;
    job.row_fisher = head_rows_;
  } else {
    if (const auto it = block_.inputs.find(target.input); it != block_.inputs.end()) {
      job.inputs = &it->second;
      job.factor = [this, &target, moments = job.inputs](double damp) {
        return statistics_->upper_factor(target.layer, target.input, *moments, damp);
      };
    }
    if (const auto it = block_.row_fisher.find(target.name); it != block_.row_fisher.end()) job.row_fisher = it->second;
  }
  return job;
}

}  // namespace pith
