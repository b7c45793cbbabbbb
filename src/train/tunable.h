// A stored matrix whose codes and continuous numbers can be tuned: what a tuner needs to know of a representation, and
// all it knows.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "entropy/codes.h"
#include "represent/model.h"
#include "tensor/tensor.h"

namespace pith {

/// A number or many that move by gradient.
struct Continuous {
  Tensor value;  ///< a leaf with requires_grad; used as the file will hold it
  Tensor size;   ///< what a step of rate 1 is; broadcasts to `value`
};

/// A matrix in stored form. Codes move by projection, continuous numbers by gradient.
class Tunable {
 public:
  virtual ~Tunable() = default;
  /// What node() decodes to, [rows, cols] fp32, bit for bit (products of low-rank factors: but for the order of their
  /// sums); differentiable in continuous().
  virtual Tensor values() const = 0;
  /// The matrix as it is now. Codes are packed; a file entropy-codes them again.
  virtual NodePtr node() const = 0;
  virtual std::vector<Continuous> continuous() const { return {}; }

  // ---- codes; what has none keeps these

  /// Codes as integers in fp32; written into to restore them. With continuous() all that changes. Undefined: no codes.
  virtual Tensor codes() const { return {}; }
  /// Neighbouring columns that share a code.
  virtual int64_t group() const { return 1; }
  /// Distance between neighbouring values at each weight, [rows, cols] or what broadcasts to it; no gradient.
  virtual Tensor unit() const { return {}; }
  /// Takes for each group of weights the code that minimises 1/2 |(target - value) / unit|^2 + price * bits of the
  /// code. Values that are there already stay.
  virtual void project(const Tensor& /*target*/, double /*price*/) {}
  /// About what the codes take in a file, where that depends on them.
  virtual double bits() const { return 0; }
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

/// The tuner's view of a node: grids, ggml blocks with fields, codebooks (also scaled by rows), products of two plain
/// factors, and sums with one of these in them; null for other trees.
std::unique_ptr<Tunable> tunable(const Node& node, const CodePrices& prices, at::Device device);

}  // namespace pith
