// Products of a stored matrix and one vector on an NVIDIA GPU (Hopper). Optional: there where CMake found a CUDA
// compiler. Built as a library of its own (pith_cuda), so that pith and libpith stay free of CUDA.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "represent/node.h"

namespace pith::cuda {

/// Name of the current GPU, or why these kernels cannot run on this machine.
Result<std::string> device();

class Matrix;
using MatrixPtr = std::shared_ptr<const Matrix>;

/// A matrix in the memory of the current GPU, in the layout that the kernels read (layout.h). Immutable.
class Matrix {
 public:
  /// Packs a tree that pack() takes (pack.h) and copies it to the GPU.
  static Result<MatrixPtr> make(const Node& node);
  /// The same matrix in other memory.
  virtual Result<MatrixPtr> copy() const = 0;
  virtual ~Matrix() = default;

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  /// What one product reads of the matrix: codes, statistics, corrections, order, tables.
  uint64_t bytes() const { return bytes_; }

 protected:
  int64_t rows_ = 0, cols_ = 0;
  uint64_t bytes_ = 0;
};

/// y = matrix * x. x: cols fp16 numbers, y: rows fp16 numbers, on the same GPU, 16-byte aligned. Sums are fp32, in an
/// order that depends on the matrix alone.
struct Product {
  const Matrix* matrix;
  const void* x;
  void* y;
};

/// Starts all products on a stream (cudaStream_t, null: the default one); they must not depend on each other.
/// Products of one layout share launches. Returns once they are started.
Status multiply(std::span<const Product> products, void* stream = nullptr);

}  // namespace pith::cuda
