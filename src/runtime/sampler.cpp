#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace pith {

Sampler::Sampler(const SampleOptions& options) : options_(options), state_(options.seed) {}

// splitmix64: the same numbers everywhere, any seed is good.
double Sampler::uniform() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

int32_t Sampler::next(std::span<const float> logits) {
  const auto best = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  if (options_.temperature <= 0 || options_.top_k == 1) return best;

  // Candidates, most probable first. Only those that can survive min_p are sorted at all.
  const double top = logits[static_cast<size_t>(best)], inverse = 1.0 / options_.temperature;
  const double floor = options_.min_p > 0 ? std::log(std::min(options_.min_p, 1.0)) : -60.0;
  order_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    if ((static_cast<double>(logits[i]) - top) * inverse >= floor) order_.push_back(static_cast<int32_t>(i));
  }
  const auto before = [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  if (options_.top_k > 0 && static_cast<size_t>(options_.top_k) < order_.size()) {
    std::partial_sort(order_.begin(), order_.begin() + options_.top_k, order_.end(), before);
    order_.resize(static_cast<size_t>(options_.top_k));
  } else {
    std::sort(order_.begin(), order_.end(), before);
  }
  weights_.resize(order_.size());
  double sum = 0;
  for (size_t i = 0; i < order_.size(); ++i) {
    sum += weights_[i] = std::exp((static_cast<double>(logits[static_cast<size_t>(order_[i])]) - top) * inverse);
  }
  size_t kept = order_.size();
  if (options_.top_p < 1) {
    double reached = 0;
    for (kept = 0; kept < order_.size();) {
      reached += weights_[kept++];
      if (reached >= options_.top_p * sum) break;
    }
    sum = reached;
  }
  double at = uniform() * sum;
  for (size_t i = 0; i < kept; ++i) {
    at -= weights_[i];
    if (at < 0) return order_[i];
  }
  return order_[kept - 1];
}

}  // namespace pith
