// Matrices made ready to multiply. A representation (represent/node.h) says what is stored; a Linear is the layout in
// memory from which products are computed without decoding the matrix as a whole.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/threads.h"
#include "kernels/cpu.h"
#include "represent/node.h"

namespace pith {

enum class Precision : uint8_t {
  exact,  ///< products in fp32: the loss that is measured is the loss of the file, not of the kernel
  fast,   ///< activations may be rounded to 8 bits in groups of 32, or to bf16
};

struct KernelOptions {
  Precision precision = Precision::exact;
  std::optional<Isa> isa;  ///< empty = default_isa()
  bool keep_rows = false;  ///< run_tiles must write exactly the rows of its tiles (set for parts of other matrices)
};

/// One matrix W [rows, cols] in its kernel layout. Immutable, so threads may share it.
class Linear {
 public:
  virtual ~Linear() = default;
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }

  /// y[n, rows] = x[n, cols] * W^T. `x` and `y` do not overlap. The result does not depend on the number of threads.
  void multiply(const float* x, int64_t n, float* y, ThreadPool& pool) const;
  /// Row r as fp32 (an embedding looked up).
  virtual void decode_row(int64_t r, float* out) const = 0;
  /// Bytes of memory that this layout holds.
  virtual uint64_t ram_bytes() const = 0;
  /// "int tiles 4 bit g32", for `pith inspect` and benches.
  virtual std::string describe() const = 0;

  /// The activations in the form that the kernel wants; belongs to one product. `prepare` reuses what an earlier
  /// product left in `slot` when it can, so that its memory stays warm.
  class Input {
   public:
    virtual ~Input() = default;
  };
  virtual void prepare(const float* x, int64_t n, ThreadPool& pool, std::unique_ptr<Input>& slot) const = 0;
  /// Matrices with the same cols() and the same key > 0 can share one Input; 0 = none shares it.
  virtual int input_key(int64_t /*n*/) const { return 0; }
  /// The rows of y come in tiles of 16 that can be computed independently: run_tiles writes columns 16 t0 to
  /// min(16 t1, rows) of y (row stride `ldy`), or keeps them in `input` when the layout sorts rows.
  int64_t tiles() const { return (rows_ + 15) / 16; }
  virtual void run_tiles(int64_t t0, int64_t t1, const Input& input, int64_t n, float* y, int64_t ldy) const = 0;
  /// After all tiles: layouts that sort rows write y [n][rows].
  virtual void finish(const Input& /*input*/, int64_t /*n*/, float* /*y*/, ThreadPool& /*pool*/) const {}

 protected:
  Linear(int64_t rows, int64_t cols) : rows_(rows), cols_(cols) {}
  int64_t rows_, cols_;
};
using LinearPtr = std::unique_ptr<const Linear>;

/// Several matrices with the same input in one parallel region: ys[i][n, rows_i] = x * W_i^T.
void multiply_all(std::span<const Linear* const> matrices, const float* x, int64_t n, std::span<float* const> ys,
                  ThreadPool& pool);

/// Picks the layout. Every node has one; those without a kernel of their own decode tiles of rows as they multiply.
Result<LinearPtr> prepare_linear(NodePtr node, const KernelOptions& options);

/// What prepare_linear would hold in memory, without preparing: for `--ram` budgets. Exact for all nodes but those
/// with entropy-coded codes, where the codes are read to know.
uint64_t planned_ram_bytes(const Node& node, bool keep_rows = false);

}  // namespace pith
