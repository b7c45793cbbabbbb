// A stored matrix whose codes and scales can be tuned: what a tuner needs to know of a representation, and all it
// knows.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "entropy/codes.h"
#include "represent/model.h"
#include "tensor/tensor.h"

namespace pith {

/// A matrix of codes that stand for values. Codes move by projection, continuous numbers by gradient.
class Tunable {
 public:
  virtual ~Tunable() = default;
  /// What node() decodes to, [rows, cols] fp32, bit for bit; differentiable in continuous().
  virtual Tensor values() const = 0;
  /// Numbers beside the codes that may move: leaves with requires_grad. They are used as the file will hold them.
  virtual std::vector<Tensor> continuous() const { return {}; }
  /// Distance between neighbouring values at each weight, [rows, cols] or what broadcasts to it; no gradient.
  virtual Tensor unit() const = 0;
  /// Takes for each weight the code that minimises 1/2 ((target - value) / unit)^2 + price * bits of the code.
  virtual void project(const Tensor& target, double price) = 0;
  /// About what the codes take in a file.
  virtual double bits() const = 0;
  /// The matrix as it is now. Codes are packed; a file entropy-codes them again.
  virtual NodePtr node() const = 0;
  /// Codes as integers in fp32, [rows, cols]; written into to restore them. With continuous() all that changes.
  virtual Tensor codes() const = 0;
};

/// Bits of each code by class of its place, from the codes of all entropy-coded grids of a model.
class CodePrices {
 public:
  explicit CodePrices(const Model& model);
  /// [64, 2 * kReach + 1]: bits of code c - kReach in a class.
  const Tensor& table() const { return table_; }
  static constexpr int kReach = 127;  ///< codes beyond it are rounded without regard to their bits

 private:
  Tensor table_;
};

/// The tuner's view of a node: row-and-column grids (ec), ggml blocks with fields; null for trees whose codes cannot be
/// moved.
std::unique_ptr<Tunable> tunable(const Node& node, const CodePrices& prices, at::Device device);

}  // namespace pith
