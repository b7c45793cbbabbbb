// The error-compensated column walk of GPTQ (Frantar et al. 2022, arXiv 2210.17323), shared by every method that rounds
// weights one column after the other. With U the upper Cholesky factor of (H + damping)^-1:
//
//   for j = 0 .. cols-1:   q_j = policy(w_j),   e_j = (w_j - q_j) / U_jj,   w_k -= e_j U_jk for all k > j
//
// Rows never meet, so they go in tiles of 16 that walk alone, one tile a thread. Every element sees the same fp32
// operations in the same order whatever the block size, the number of threads or the instruction set: the result is bit
// for bit that of the plain loop above.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "tensor/parallel.h"
#include "tensor/tensor.h"

namespace pith {

/// Rows of one tile. Policies may rely on it: a tile begins at a multiple of 16 and has 16 rows, fewer only at the end.
inline constexpr int64_t kWalkRows = 16;

/// w[r][c] -= sum_k e[r][k] * u[k][c], the terms subtracted one by one in the order of k (so no blocking shows).
/// w: [rows, cols] with row stride ldw; e: [rows, depth]; u: [depth, cols].
void subtract_product(float* w, int64_t ldw, const float* e, int64_t lde, const float* u, int64_t ldu, int64_t rows,
                      int64_t depth, int64_t cols);

/// Walks all columns of `weight` [rows, cols] (fp32, CPU, contiguous), in place: it leaves what the policy returned.
/// `factor` = U, [cols, cols]; fp64 is rounded to fp32. `group` columns are announced together; 0 = the whole row.
///
/// Policy (called from several threads, never for the same row at once):
///   void begin_group(int64_t row0, int64_t rows, int64_t col0, int64_t cols, const float* w, int64_t ld);
///     w[r * ld + c]: the compensated weights of row row0 + r, column col0 + c, just before the group is walked.
///   float quantize(int64_t row, int64_t col, float w);
///     the value that will be decoded. Returning w itself (an outlier kept apart) leaves no error to compensate.
///
/// Returns sum_j e_j^2 of each row: its error in the norm of H + damping.
template <class Policy>
std::vector<double> gptq_walk(Tensor& weight, const Tensor& factor, int64_t group, Policy& policy, int64_t block = 32) {
  const int64_t rows = weight.size(0), cols = weight.size(1);
  if (weight.scalar_type() != at::kFloat || !weight.is_contiguous() || !weight.device().is_cpu())
    throw Failure(bug_error("gptq_walk: the weight must be fp32, contiguous, on the CPU"));
  if (factor.dim() != 2 || factor.size(0) != cols || factor.size(1) != cols)
    throw Failure(
        bug_error("gptq_walk: the factor must be [" + std::to_string(cols) + ", " + std::to_string(cols) + "]"));
  if (group <= 0 || group > cols) group = cols;
  // A group must find its columns up to date: blocks hold whole groups, or groups are cut into blocks of their own.
  block = std::max<int64_t>(block, 1);
  const int64_t step = group <= block ? block / group * group : block;

  const Tensor upper = factor.to(at::kCPU, at::kFloat).contiguous();
  const float* u = upper.data_ptr<float>();
  float* const w = weight.data_ptr<float>();
  std::vector<double> loss(static_cast<size_t>(rows), 0.0);

  const int64_t tiles = (rows + kWalkRows - 1) / kWalkRows;
  parallel_tasks(tiles, [&](int64_t tile) {
    std::vector<float> errors(static_cast<size_t>(kWalkRows * step));
    const int64_t row0 = tile * kWalkRows, n = std::min(kWalkRows, rows - row0);
    float* const wt = w + row0 * cols;
    for (int64_t b0 = 0, b1 = 0; b0 < cols; b0 = b1) {
      b1 = std::min(b0 + step, cols);
      if (group > block) b1 = std::min(b1, b0 / group * group + group);
      for (int64_t j = b0; j < b1; ++j) {
        if (j % group == 0) policy.begin_group(row0, n, j, std::min(group, cols - j), wt + j, cols);
        const float diagonal = u[j * cols + j];
        for (int64_t r = 0; r < n; ++r) {
          const float value = wt[r * cols + j];
          const float q = policy.quantize(row0 + r, j, value);
          const float e = (value - q) / diagonal;
          wt[r * cols + j] = q;
          errors[static_cast<size_t>(r * step + (j - b0))] = e;
          loss[static_cast<size_t>(row0 + r)] += static_cast<double>(e) * e;
        }
        subtract_product(wt + j + 1, cols, errors.data() + (j - b0), step, u + j * cols + j + 1, cols, n, 1,
                         b1 - j - 1);
      }
      subtract_product(wt + b1, cols, errors.data(), step, u + b0 * cols + b1, cols, n, b1 - b0, cols - b1);
    }
  });
  return loss;
}

}  // namespace pith
