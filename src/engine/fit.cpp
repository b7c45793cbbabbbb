#include "engine/fit.h"

#include <algorithm>
#include <cmath>

#include "engine/grid_options.h"
#include "maths/linalg.h"
#include "maths/sparse_fit.h"
#include "represent/dense.h"
#include "tensor/parallel.h"

namespace pith {

const Fit* find_fit(std::string_view name) {
  for (const Fit* fit : all_fits())
    if (fit->name == name) return fit;
  return nullptr;
}

Tensor decoded(const Node& node) {
  Tensor values = at::empty({node.rows(), node.cols()}, at::kFloat);
  node.decode_rows(0, node.rows(), values.data_ptr<float>());
  return values;
}

static NodePtr dense_of(DType type, const Tensor& m) {
  const std::span<const float> values(m.const_data_ptr<float>(), static_cast<size_t>(m.numel()));
  return must(Dense::from(type, m.size(0), m.size(1), values));
}

NodePtr dense_node(const Tensor& matrix) {
  const Tensor m = matrix.to(at::kFloat).contiguous();
  return dense_of(value_type(largest_size(m)), m);
}

NodePtr exact_node(const Tensor& values) {
  const Tensor m = values.detach().to(at::kCPU, at::kFloat).contiguous();
  return dense_of(DType::f32, m.dim() == 1 ? m.unsqueeze(0) : m);
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

Tensor walk_factor(const FitJob& job, double damp) {
  const Moments& moments = seen_moments(job);
  if (job.factor) return job.factor(damp);
  return upper_inverse_factor(moments, damp, job.name, job.device).upper.to(at::kFloat).to(at::kCPU);
}

Tensor input_squares(const FitJob& job) { return seen_moments(job).diagonal(); }

// Rows in blocks and H in its panels: neither the whole error nor the square H is ever in memory, and what lies below
// H's diagonal is not computed twice. Blocks do not depend on the number of threads, so neither does the sum.
double predicted_loss(const FitJob& job, const Node& node) {
  constexpr int64_t kRows = 256;
  const at::NoGradGuard no_grad;
  const bool known = knows_inputs(job);
  const int64_t rows = node.rows(), cols = node.cols(), blocks = (rows + kRows - 1) / kRows;
  std::vector<double> loss(static_cast<size_t>(blocks));
  std::vector<Tensor> panels;
  if (known)
    for (const Tensor& panel : job.inputs->panels()) panels.push_back(panel.to(job.device, at::kFloat));
  parallel_tasks(blocks, [&](int64_t block) {
    const int64_t r0 = block * kRows, n = std::min(kRows, rows - r0);
    Tensor error = at::empty({n, cols}, at::kFloat);
    node.decode_rows(r0, r0 + n, error.data_ptr<float>());
    error = error.sub_(job.weight.narrow(0, r0, n)).to(job.device);
    Tensor per_row = at::zeros({n}, at::TensorOptions().dtype(at::kDouble).device(job.device));
    if (known) {
      int64_t i = 0;
      for (const Tensor& panel : panels) {
        const int64_t h = panel.size(0), rest = cols - i - h;
        const Tensor product = at::mm(error.narrow(1, i, h), panel);
        per_row += (product.narrow(1, 0, h) * error.narrow(1, i, h)).sum(1, false, at::kDouble);
        if (rest > 0)
          per_row += 2 * (product.narrow(1, h, rest) * error.narrow(1, i + h, rest)).sum(1, false, at::kDouble);
        i += h;
      }
      per_row /= static_cast<double>(job.inputs->count());
    } else {
      per_row = (error * error).sum(1, false, at::kDouble);
    }
    if (job.row_fisher.defined()) per_row *= job.row_fisher.narrow(0, r0, n).to(job.device, at::kDouble);
    loss[static_cast<size_t>(block)] = 0.5 * per_row.sum().item<double>();
  });
  double sum = 0;
  for (const double l : loss) sum += l;
  return sum;
}

}  // namespace pith
