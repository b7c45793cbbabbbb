// Streaming second moments of a layer's inputs (README-weights, mechanism B).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "tensor/tensor.h"

namespace pith {

/// n, mean, sum of outer products, mean and maximum of the absolute values of vectors seen in batches. Products in
/// fp32, sums in fp64. The sum of outer products is symmetric, so it is kept (and computed) as panels of 256 rows from
/// the diagonal to the right: little more than half of the memory and of the time.
class Moments {
 public:
  static constexpr int64_t kPanel = 256;

  Moments() = default;
  /// Sums live on `device`, where the vectors will be.
  explicit Moments(int64_t width, at::Device device = at::kCPU);

  /// How several threads add to one Moments in a fixed order: called for each step of add() (the sums, then each panel)
  /// with what changes the sums; it runs that in this thread's turn. Products are formed outside of it.
  using InTurn = std::function<void(int64_t step, const std::function<void()>& commit)>;

  /// x: [tokens, width] fp32. Throws Failure when a value is not finite. With `in_turn` the width must be set already.
  void add(const Tensor& x, const InTurn& in_turn = {});
  void merge(const Moments& other);
  /// Rounds the panels to fp32, at the end of a collection: half the memory, and an error far below that of sampling.
  void compact();
  /// Brings the sums to the CPU, where everything but add() expects them.
  void to_cpu();

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

  /// E[x_j^2], [width] fp64.
  Tensor diagonal() const;
  /// sum x x^T, assembled, [width, width] fp64.
  Tensor sum_outer() const;

  /// Raw sums, for the statistics cache. Panel k: [rows k * 256 …, columns k * 256 … width) fp64, fp32 once compact.
  const std::vector<Tensor>& panels() const { return panels_; }
  const Tensor& sum() const { return sum_; }
  const Tensor& sum_abs() const { return sum_abs_; }
  /// Throws Failure when the shapes do not belong together.
  static Moments from_panels(int64_t count, std::vector<Tensor> panels, Tensor sum, Tensor sum_abs, Tensor max_abs);
  static Moments from_sums(int64_t count, const Tensor& sum_outer, Tensor sum, Tensor sum_abs, Tensor max_abs);

 private:
  int64_t count_ = 0, width_ = 0;
  std::vector<Tensor> panels_;
  Tensor sum_, sum_abs_, max_abs_;
};

}  // namespace pith
