#include "engine/fit.h"

#include <cmath>

#include "tensor/parallel.h"

namespace pith {

const Fit* find_fit(std::string_view name) {
  for (const Fit* fit : all_fits())
    if (fit->name == name) return fit;
  return nullptr;
}

Tensor usable_weight(const FitJob& job) {
  if (!job.weight.defined() || job.weight.dim() != 2 || job.weight.numel() == 0)
    throw Failure(data_error(job.name + ": expected a matrix with at least one row and column"));
  Tensor weight = job.weight.detach().to(at::kCPU, at::kFloat).contiguous().clone();
  const float* w = weight.const_data_ptr<float>();
  for (int64_t i = 0; i < weight.numel(); ++i)
    if (!std::isfinite(w[i]))
      throw Failure(data_error(job.name + ": row " + std::to_string(i / weight.size(1)) + ", column " +
                               std::to_string(i % weight.size(1)) + " is " + (std::isnan(w[i]) ? "NaN" : "infinite") +
                               "; the model file is damaged, or its training diverged"));
  return weight;
}

bool knows_inputs(const FitJob& job) {
  if (job.inputs == nullptr || job.inputs->count() == 0) return false;
  if (job.inputs->width() != job.weight.size(1))
    throw Failure(bug_error(job.name + ": statistics of " + std::to_string(job.inputs->width()) + " inputs for " +
                            std::to_string(job.weight.size(1)) + " columns"));
  return true;
}

static const Moments& seen_moments(const FitJob& job) {
  if (!knows_inputs(job))
    throw Failure(
        user_error(job.name + ": this method needs statistics of the layer's inputs, and calibration saw none"));
  return *job.inputs;
}

Tensor input_moments(const FitJob& job) { return seen_moments(job).second(); }

Tensor input_squares(const FitJob& job) { return seen_moments(job).diagonal(); }

double predicted_loss(const FitJob& job, const Node& node) {
  const OneThread one;  // the same number for any number of threads: plans depend on it
  std::vector<float> decoded = decode_all(node);
  const Tensor approx = at::from_blob(decoded.data(), {node.rows(), node.cols()}, at::kFloat);
  const Tensor error = job.weight - approx;
  Tensor per_row;
  if (knows_inputs(job))
    per_row = (at::mm(error, job.inputs->second().to(at::kFloat)) * error).sum(1, false, at::kDouble);
  else
    per_row = (error * error).sum(1, false, at::kDouble);
  if (job.row_fisher.defined()) per_row = per_row * job.row_fisher.to(at::kDouble);
  return 0.5 * per_row.sum().item<double>();
}

}  // namespace pith
