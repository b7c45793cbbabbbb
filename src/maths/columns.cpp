#include "maths/columns.h"

#include <algorithm>
#include <numeric>

namespace pith {

std::vector<uint32_t> natural_order(int64_t cols) {
  std::vector<uint32_t> order(static_cast<size_t>(cols));
  std::iota(order.begin(), order.end(), 0u);
  return order;
}

std::vector<uint32_t> falling_order(const Tensor& values) {
  const Tensor v = values.to(at::kCPU, at::kDouble).contiguous();
  const double* d = v.const_data_ptr<double>();
  std::vector<uint32_t> order = natural_order(v.numel());
  std::stable_sort(order.begin(), order.end(), [d](uint32_t a, uint32_t b) { return d[a] > d[b]; });
  return order;
}

Tensor index_tensor(const std::vector<uint32_t>& order) {
  Tensor index = at::empty({static_cast<int64_t>(order.size())}, at::kLong);
  std::copy(order.begin(), order.end(), index.data_ptr<int64_t>());
  return index;
}

void clear_columns(Tensor& weight, const std::vector<int64_t>& columns) {
  float* w = weight.data_ptr<float>();
  for (int64_t r = 0; r < weight.size(0); ++r)
    for (const int64_t c : columns) w[r * weight.size(1) + c] = 0;
}

std::vector<float> column_importance(const Tensor& upper) {
  const Tensor diagonal = upper.diagonal().to(at::kDouble).contiguous();
  const double* u = diagonal.const_data_ptr<double>();
  const size_t n = static_cast<size_t>(diagonal.numel());
  double sum = 0;
  for (size_t j = 0; j < n; ++j) sum += 1 / (u[j] * u[j]);
  std::vector<float> importance(n);
  for (size_t j = 0; j < n; ++j) importance[j] = static_cast<float>(static_cast<double>(n) / (u[j] * u[j]) / sum);
  return importance;
}

}  // namespace pith
