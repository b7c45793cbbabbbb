// AdamW on plain tensors, with what training needs around it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nets/lm.h"
#include "tensor/tensor.h"

namespace pith {

/// Linear from 0 to `peak` over `warmup` steps, then a half cosine down to `floor` at step `total`.
double cosine_rate(int64_t step, int64_t warmup, int64_t total, double peak, double floor);

/// Scales all gradients so that their joint 2-norm is at most `limit`; returns the norm before. Parameters without a
/// gradient are left out.
double clip_gradients(const std::vector<Tensor>& parameters, double limit);

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double decay = 0.1;  ///< of matrices; vectors (norms, biases) are not decayed
};

/// m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g^2; w <- w - rate (m^ / (sqrt(v^) + eps) + decay w), where ^ divides
/// by 1 - b^t. Loshchilov and Hutter, 2017 (arXiv 1711.05101).
class AdamW {
 public:
  /// Parameters are leaf tensors that require gradients; they are changed in place.
  AdamW(TensorMap parameters, AdamWOptions options);
  void step(double rate);
  void zero_grad();

  int64_t steps() const { return steps_; }
  std::vector<Tensor> parameters() const;
  /// Moments as "m.NAME" and "v.NAME"; with `steps`, all that a later run needs.
  TensorMap state() const;
  /// Throws Failure when a moment is missing or has another shape.
  void restore(const TensorMap& state, int64_t steps);

 private:
  TensorMap parameters_, first_, second_;
  AdamWOptions options_;
  int64_t steps_ = 0;
};

}  // namespace pith
