#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace pith {

double cosine_rate(int64_t step, int64_t warmup, int64_t total, double peak, double floor) {
  if (step < warmup) return peak * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (step >= total) return floor;
  const double way = static_cast<double>(step - warmup) / static_cast<double>(std::max<int64_t>(1, total - warmup));
  return floor + (peak - floor) * 0.5 * (1 + std::cos(std::numbers::pi * way));
}

double clip_gradients(const std::vector<Tensor>& parameters, double limit) {
  const at::NoGradGuard no_grad;
  std::vector<Tensor> squares;
  for (const Tensor& p : parameters) {
    if (p.grad().defined()) squares.push_back(p.grad().square().sum());
  }
  if (squares.empty()) return 0;
  const double norm = std::sqrt(at::stack(squares).sum().item<double>());
  if (norm > limit) {
    for (const Tensor& p : parameters) {
      if (p.grad().defined()) p.mutable_grad().mul_(limit / norm);
    }
  }
  return norm;
}

AdamW::AdamW(TensorMap parameters, AdamWOptions options) : parameters_(std::move(parameters)), options_(options) {
  for (const auto& [name, p] : parameters_) {
    first_[name] = at::zeros_like(p).detach();
    second_[name] = at::zeros_like(p).detach();
  }
}

void AdamW::step(double rate) {
  const at::NoGradGuard no_grad;
  ++steps_;
  const double correct1 = 1 - std::pow(options_.beta1, static_cast<double>(steps_));
  const double correct2 = 1 - std::pow(options_.beta2, static_cast<double>(steps_));
  for (auto& [name, p] : parameters_) {
    const Tensor g = p.grad();
    if (!g.defined()) continue;
    Tensor& m = first_[name];
    Tensor& v = second_[name];
    m.mul_(options_.beta1).add_(g, 1 - options_.beta1);
    v.mul_(options_.beta2).addcmul_(g, g, 1 - options_.beta2);
    if (p.dim() > 1) p.mul_(1 - rate * options_.decay);
    p.sub_(m / ((v / correct2).sqrt_().add_(options_.epsilon)), rate / correct1);
  }
}

void AdamW::zero_grad() {
  for (auto& [name, p] : parameters_) p.mutable_grad() = Tensor();
}

std::vector<Tensor> AdamW::parameters() const {
  std::vector<Tensor> out;
  for (const auto& [name, p] : parameters_) out.push_back(p);
  return out;
}

TensorMap AdamW::state() const {
  TensorMap out;
  for (const auto& [name, m] : first_) out["m." + name] = m;
  for (const auto& [name, v] : second_) out["v." + name] = v;
  return out;
}

void AdamW::restore(const TensorMap& state, int64_t steps) {
  const at::NoGradGuard no_grad;
  const auto take = [&](const std::string& name, Tensor& into) {
    const auto found = state.find(name);
    if (found == state.end() || found->second.sizes() != into.sizes()) {
      throw Failure(data_error("checkpoint has no '" + name + "' of the right shape; delete it to begin anew"));
    }
    into.copy_(found->second);
  };
  for (auto& [name, m] : first_) take("m." + name, m);
  for (auto& [name, v] : second_) take("v." + name, v);
  steps_ = steps;
}

}  // namespace pith
