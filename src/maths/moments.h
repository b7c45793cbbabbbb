// Streaming second moments of a layer's inputs (README-weights, mechanism B).
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace pith {

/// n, mean, sum of outer products, mean and maximum of the absolute values of vectors seen in batches. Products in fp32, sums in fp64.
class Moments {
 public:
  Moments() = default;
  explicit Moments(int64_t width);

  /// x: [tokens, width] fp32. Throws Failure when a value is not finite.
  void add(const Tensor& x);
  void merge(const Moments& other);

  int64_t count() const { return count_; }
  int64_t width() const { return width_; }
  /// E[x x^T], [width, width] fp64.
  Tensor second() const;
  /// E[x], [width] fp64.
  Tensor mean() const;
  /// E|x|, [width] fp64.
  Tensor mean_abs() const;
  /// max |x|, [width] fp32.
  const Tensor& max_abs() const { return max_abs_; }

  /// Raw sums, for the statistics cache.
  const Tensor& sum_outer() const { return outer_; }
  const Tensor& sum() const { return sum_; }
  const Tensor& sum_abs() const { return sum_abs_; }
  static Moments from_sums(int64_t count, Tensor sum_outer, Tensor sum, Tensor sum_abs, Tensor max_abs);

 private:
  int64_t count_ = 0, width_ = 0;
  Tensor outer_, sum_, sum_abs_, max_abs_;
};

}  // namespace pith
