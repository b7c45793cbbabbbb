// Matrices and inputs as trained layers have them, for tests of fits.
#pragma once

#include <string>

#include "engine/fit.h"
#include "runtime/method.h"

namespace pith::test {

inline at::Generator generator(uint64_t seed) { return at::detail::createCPUGenerator(seed); }

/// Rows of unequal size, and a few weights far out.
inline Tensor weights_like(int64_t rows, int64_t cols, uint64_t seed, double size = 0.05) {
  at::Generator g = generator(seed);
  const Tensor w = at::randn({rows, cols}, g, at::kFloat) * size * at::exp(at::randn({rows, 1}, g, at::kFloat) * 0.3);
  return at::where(at::rand({rows, cols}, g, at::kFloat).gt(0.995), w * 8, w).contiguous();
}

/// Moments of inputs with few strong directions, columns of unequal power, and `dead` columns that never fire.
inline Moments correlated(int64_t cols, uint64_t seed, int64_t dead = 0) {
  at::Generator g = generator(seed);
  const int64_t tokens = 3 * cols + 20, sources = std::max<int64_t>(cols / 3, 1);
  const Tensor power = at::exp(at::randn({cols}, g, at::kFloat) * 0.7);
  Tensor x = at::mm(at::randn({tokens, sources}, g, at::kFloat), at::randn({sources, cols}, g, at::kFloat) * 0.5) +
             at::randn({tokens, cols}, g, at::kFloat) * 0.5;
  x = x * power + 0.1;
  if (dead > 0) x.narrow(1, cols / 2, dead).zero_();
  Moments moments(cols);
  moments.add(x);
  return moments;
}

inline Options options_of(const Method& method, const std::string& text) {
  return must(Options::parse(text, method.params));
}

/// Runs a fit on one matrix: fit("spqr", "bits=3", weight, moments).
inline NodePtr fit(const std::string& name, const std::string& options, const Tensor& weight, const Moments& moments,
                   NodePtr base = nullptr) {
  FitJob job;
  job.name = "layers.0.test";
  job.weight = weight;
  job.inputs = &moments;
  job.base = std::move(base);
  return find_fit(name)->run(job, options_of(*find_method(name), options));
}

using pith::decoded;

/// Sum over rows of dW H dW^T.
inline double output_error(const Tensor& weight, const Node& node, const Moments& moments) {
  const Tensor e = (weight - decoded(node)).to(at::kDouble);
  return (at::mm(e, moments.second()) * e).sum().item<double>();
}

inline double bits_a_weight(const Node& node) {
  return static_cast<double>(node.bits().total()) / static_cast<double>(node.rows() * node.cols());
}

}  // namespace pith::test
