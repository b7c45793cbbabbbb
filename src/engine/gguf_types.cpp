#include "engine/gguf_types.h"

#include <algorithm>
#include <vector>

#include "maths/linalg.h"

namespace pith {

static constexpr int64_t kSampleRows = 512;

std::vector<float> walk_importance(const FitJob& job) {
  if (!knows_inputs(job)) return std::vector<float>(static_cast<size_t>(job.weight.size(1)), 1.0f);
  return inverse_squared_diagonal(walk_factor(job, 0.01));
}

double gguf_rounding_loss(const FitJob& job, const std::vector<float>& importance, GgmlType type) {
  const int64_t rows = job.weight.size(0), cols = job.weight.size(1);
  Tensor fisher;
  if (job.row_fisher.defined()) fisher = job.row_fisher.to(at::kDouble).contiguous();
  const Tensor weight = job.weight.to(at::kFloat).contiguous();
  const int64_t stride = std::max<int64_t>(1, rows / kSampleRows);
  std::vector<std::byte> packed(*ggml_row_bytes(type, cols));
  std::vector<float> decoded(static_cast<size_t>(cols));
  double loss = 0, weight_seen = 0, weight_all = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const double g = fisher.defined() ? fisher.data_ptr<double>()[r] : 1.0;
    weight_all += g;
    if (r % stride != 0) continue;
    weight_seen += g;
    const float* w = weight.data_ptr<float>() + r * cols;
    quantize_row(type, w, cols, importance.data(), packed.data());
    dequantize_row(type, packed.data(), cols, decoded.data());
    double error = 0;
    for (int64_t j = 0; j < cols; ++j) {
      const double e = static_cast<double>(w[j]) - decoded[static_cast<size_t>(j)];
      error += e * e * importance[static_cast<size_t>(j)];
    }
    loss += g * error;
  }
  return weight_seen > 0 ? 0.5 * loss * weight_all / weight_seen : 0;
}

}  // namespace pith
