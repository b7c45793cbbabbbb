// k-means (Lloyd 1957) for vector codebooks: centres and codes that make sum_i w_i |x_i - c_code(i)|^2 small.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace pith {

struct KMeans {
  Tensor centres;              ///< [k, width] fp32
  std::vector<int32_t> codes;  ///< of each point
  std::vector<double> losses;  ///< after the first assignment and after each round; never rises
};

/// points: [n, width] fp32, finite. weights: [n] fp32, not negative; undefined: all 1. 1 <= k <= n.
/// Starts from k different points drawn by `seed` (with weights: those of weight 0 come last), ends after `rounds` or
/// when a round gains less than 1e-6 of the loss. A centre that loses all its points takes the point that is worst
/// served. Throws Failure naming `what` when k > n or a value is not finite. The same bits for any number of threads.
KMeans kmeans(const Tensor& points, const Tensor& weights, int64_t k, int64_t rounds, uint64_t seed,
              const std::string& what = "points");

}  // namespace pith
