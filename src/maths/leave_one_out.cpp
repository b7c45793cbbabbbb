#include "maths/leave_one_out.h"

#include <algorithm>

namespace pith {
namespace {

// Squared normalised errors of n weights on a grid; the sum is returned.
double errors(const float* w, const float* diagonal, int64_t n, GridParams p, float levels, float* out) {
  const float inverse = p.scale == 0 ? 0 : 1 / p.scale;
  double sum = 0;
  for (int64_t j = 0; j < n; ++j) {
    const float c = round_even(std::min(std::max(w[j] * inverse + p.zero, 0.0f), levels));
    const float e = (p.scale * (c - p.zero) - w[j]) / diagonal[j];
    out[j] = e * e;
    sum += out[j];
  }
  return sum;
}

}  // namespace

void leave_one_out(const float* w, const float* diagonal, int64_t n, float levels, float threshold, uint8_t* marked,
                   std::vector<float>& scratch) {
  if (n == 0) return;
  scratch.resize(static_cast<size_t>(3 * n));
  float *error = scratch.data(), *other = error + n, *rest = other + n;
  const double all = errors(w, diagonal, n, extremes_grid(w, n, levels), levels, error);
  int64_t least = 0, most = 0;
  for (int64_t j = 0; j < n; ++j) {
    marked[j] = error[j] > threshold;  // the same grid without j: only its own error is gone
    if (w[j] < w[least]) least = j;
    if (w[j] > w[most]) most = j;
  }
  for (const int64_t i : {least, most}) {
    int64_t m = 0;
    for (int64_t j = 0; j < n; ++j)
      if (j != i) rest[m++] = w[j];
    const GridParams without = extremes_grid(rest, m, levels);
    marked[i] = all - (errors(w, diagonal, n, without, levels, other) - other[i]) > threshold;
    if (least == most) break;
  }
}

}  // namespace pith
