#include "maths/moments.h"

#include <string>

namespace pith {

Moments::Moments(int64_t width)
    : width_(width),
      outer_(at::zeros({width, width}, at::kDouble)),
      sum_(at::zeros({width}, at::kDouble)),
      sum_abs_(at::zeros({width}, at::kDouble)),
      max_abs_(at::zeros({width}, at::kFloat)) {}

void Moments::add(const Tensor& x) {
  const Tensor flat = x.reshape({-1, x.size(-1)}).to(at::kFloat);
  if (width_ == 0) *this = Moments(flat.size(1));
  if (flat.size(1) != width_)
    throw Failure(bug_error("moments: inputs of width " + std::to_string(flat.size(1)) + ", expected " +
                            std::to_string(width_)));
  const Tensor column_sum = flat.sum(0, false, at::kDouble);
  if (!at::isfinite(column_sum).all().item<bool>())
    throw Failure(data_error("a layer's input is not finite (NaN or infinity) on the calibration text"));
  outer_.add_(at::mm(flat.t(), flat));
  sum_.add_(column_sum);
  if (flat.size(0) > 0) {
    const Tensor size = flat.abs();
    sum_abs_.add_(size.sum(0, false, at::kDouble));
    max_abs_ = at::maximum(max_abs_, size.amax(0));
  }
  count_ += flat.size(0);
}

void Moments::merge(const Moments& other) {
  if (other.count_ == 0) return;
  if (width_ == 0) *this = Moments(other.width_);
  outer_.add_(other.outer_);
  sum_.add_(other.sum_);
  sum_abs_.add_(other.sum_abs_);
  max_abs_ = at::maximum(max_abs_, other.max_abs_);
  count_ += other.count_;
}

Tensor Moments::second() const { return outer_ / static_cast<double>(count_ > 0 ? count_ : 1); }

Tensor Moments::mean() const { return sum_ / static_cast<double>(count_ > 0 ? count_ : 1); }

Tensor Moments::mean_abs() const { return sum_abs_ / static_cast<double>(count_ > 0 ? count_ : 1); }

Moments Moments::from_sums(int64_t count, Tensor sum_outer, Tensor sum, Tensor sum_abs, Tensor max_abs) {
  Moments m;
  m.count_ = count;
  m.width_ = sum_outer.size(0);
  m.outer_ = std::move(sum_outer);
  m.sum_ = std::move(sum);
  m.sum_abs_ = std::move(sum_abs);
  m.max_abs_ = std::move(max_abs);
  return m;
}

}  // namespace pith
