#include "maths/moments.h"

#include <algorithm>
#include <string>
#include <utility>

namespace pith {

Moments::Moments(int64_t width, at::Device device) : width_(width) {
  const auto doubles = at::TensorOptions().dtype(at::kDouble).device(device);
  sum_ = at::zeros({width}, doubles);
  sum_abs_ = at::zeros({width}, doubles);
  max_abs_ = at::zeros({width}, doubles.dtype(at::kFloat));
  for (int64_t i = 0; i < width; i += kPanel)
    panels_.push_back(at::zeros({std::min(kPanel, width - i), width - i}, doubles));
}

void Moments::add(const Tensor& x, const InTurn& in_turn) {
  const at::NoGradGuard no_grad;
  const Tensor flat = x.detach().reshape({-1, x.size(-1)}).to(at::kFloat).contiguous();
  const int64_t width = flat.size(1), tokens = flat.size(0);
  if (width_ == 0 && !in_turn) *this = Moments(width, flat.device());
  if (width != width_)
    throw Failure(
        bug_error("moments: inputs of width " + std::to_string(width) + ", expected " + std::to_string(width_)));
  const auto commit = [&](int64_t step, const std::function<void()>& change) {
    in_turn ? in_turn(step, change) : change();
  };
  const Tensor sum = flat.sum(0, false, at::kDouble);
  if (!at::isfinite(sum).all().item<bool>())
    throw Failure(data_error("a layer's input is not finite (NaN or infinity) on the calibration text"));
  const Tensor size = flat.abs(), sum_abs = size.sum(0, false, at::kDouble);
  const Tensor max_abs = tokens > 0 ? size.amax(0) : at::zeros_like(max_abs_);
  commit(-1, [&] {
    sum_.add_(sum);
    sum_abs_.add_(sum_abs);
    max_abs_ = at::maximum(max_abs_, max_abs);
    count_ += tokens;
  });
  const Tensor turned = flat.t();
  for (size_t k = 0; k < panels_.size(); ++k) {
    const int64_t i = static_cast<int64_t>(k) * kPanel;
    Tensor product;
    if (tokens > 0) product = at::mm(turned.narrow(0, i, panels_[k].size(0)), flat.narrow(1, i, width - i));
    commit(static_cast<int64_t>(k), [&] {
      if (tokens > 0) panels_[k].add_(product);
    });
  }
}

void Moments::merge(const Moments& other) {
  if (other.width_ == 0) return;
  if (width_ == 0) *this = Moments(other.width_);
  if (width_ != other.width_) throw Failure(bug_error("moments of two widths cannot be merged"));
  for (size_t k = 0; k < panels_.size(); ++k) panels_[k].add_(other.panels_[k]);
  sum_.add_(other.sum_);
  sum_abs_.add_(other.sum_abs_);
  max_abs_ = at::maximum(max_abs_, other.max_abs_);
  count_ += other.count_;
}

void Moments::compact() {
  for (Tensor& panel : panels_) panel = panel.to(at::kFloat);
}

void Moments::to_cpu() {
  if (width_ == 0) return;
  for (Tensor& panel : panels_) panel = panel.to(at::kCPU);
  sum_ = sum_.to(at::kCPU), sum_abs_ = sum_abs_.to(at::kCPU), max_abs_ = max_abs_.to(at::kCPU);
}

Tensor Moments::sum_outer() const {
  Tensor full = at::empty({width_, width_}, at::kDouble);
  for (size_t k = 0; k < panels_.size(); ++k) {
    const int64_t i = static_cast<int64_t>(k) * kPanel, h = panels_[k].size(0), rest = width_ - i - h;
    full.narrow(0, i, h).narrow(1, i, width_ - i).copy_(panels_[k]);
    // Below the diagonal block: the mirror image of what stands right of it. The block itself came out of one product,
    // whose two halves may differ in the last bit, so its lower half is mirrored too.
    Tensor block = full.narrow(0, i, h).narrow(1, i, h);
    block.copy_(block.triu() + block.triu(1).t());
    if (rest > 0) full.narrow(0, i + h, rest).narrow(1, i, h).copy_(full.narrow(0, i, h).narrow(1, i + h, rest).t());
  }
  return full;
}

Tensor Moments::second() const { return sum_outer().div_(static_cast<double>(count_ > 0 ? count_ : 1)); }

Tensor Moments::diagonal() const {
  std::vector<Tensor> parts;
  for (const Tensor& panel : panels_) parts.push_back(panel.diagonal().to(at::kDouble));
  const Tensor all = parts.empty() ? at::zeros({0}, at::kDouble) : at::cat(parts);
  return all / static_cast<double>(count_ > 0 ? count_ : 1);
}

Tensor Moments::mean() const { return sum_ / static_cast<double>(count_ > 0 ? count_ : 1); }

Tensor Moments::mean_abs() const { return sum_abs_ / static_cast<double>(count_ > 0 ? count_ : 1); }

Moments Moments::from_panels(int64_t count, std::vector<Tensor> panels, Tensor sum, Tensor sum_abs, Tensor max_abs) {
  Moments m(sum.size(0));
  bool fits =
      panels.size() == m.panels_.size() && sum_abs.sizes() == m.sum_.sizes() && max_abs.sizes() == m.sum_.sizes();
  for (size_t k = 0; fits && k < panels.size(); ++k) fits = panels[k].sizes() == m.panels_[k].sizes();
  if (!fits) throw Failure(data_error("moments: sums whose shapes do not belong together"));
  m.count_ = count;
  m.panels_ = std::move(panels);
  m.sum_ = std::move(sum);
  m.sum_abs_ = std::move(sum_abs);
  m.max_abs_ = std::move(max_abs);
  return m;
}

Moments Moments::from_sums(int64_t count, const Tensor& sum_outer, Tensor sum, Tensor sum_abs, Tensor max_abs) {
  const int64_t width = sum_outer.size(0);
  std::vector<Tensor> panels;
  for (int64_t i = 0; i < width; i += kPanel)
    panels.push_back(
        sum_outer.narrow(0, i, std::min(kPanel, width - i)).narrow(1, i, width - i).to(at::kDouble).clone());
  return from_panels(count, std::move(panels), std::move(sum), std::move(sum_abs), std::move(max_abs));
}

}  // namespace pith
