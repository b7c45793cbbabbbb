// Plain numbers in tiles of 16 rows, and any other node decoded a tile at a time.
#pragma once

#include "kernels/tile_linear.h"
#include "represent/dense.h"

namespace pith {

/// f32, f16 or bf16 numbers as panels [cols][16].
class FloatTiles final : public TileLinear {
 public:
  static bool takes(const Node& node);
  static uint64_t planned_bytes(const Dense& dense);
  static std::unique_ptr<FloatTiles> make(const Dense& dense, const KernelOptions& options);

  uint64_t ram_bytes() const override { return data_.bytes() + sparse_.bytes(); }
  std::string describe() const override;

 private:
  FloatTiles(const Dense& dense, const KernelOptions& options);
  void decode_panel(int64_t t, float* panel) const override;
  bool has_dot() const override { return true; }
  void dot(int64_t t, const TileInput& x, int64_t n, float* y, int64_t ldy) const override;

  DType type_;
  unsigned size_;  ///< bytes of a number
  Aligned<uint8_t> data_;
};

/// The fallback: keeps the node as it is and decodes 16 rows at a time.
class NodeLinear final : public TileLinear {
 public:
  NodeLinear(NodePtr node, const KernelOptions& options)
      : TileLinear(node->rows(), node->cols(), options), node_(std::move(node)) {}
  uint64_t ram_bytes() const override { return (node_->bits().total() + 7) / 8 + sparse_.bytes(); }
  std::string describe() const override { return "decoded tiles of " + node_->describe(); }
  void decode_row(int64_t r, float* out) const override { node_->decode_rows(r, r + 1, out); }

 private:
  void decode_panel(int64_t t, float* panel) const override;
  NodePtr node_;
};

/// Sparse rows by themselves (a term of a Sum).
class CsrLinear final : public Linear {
 public:
  CsrLinear(int64_t rows, int64_t cols, TileSparse entries) : Linear(rows, cols), entries_(std::move(entries)) {}
  void prepare(const float* x, int64_t n, ThreadPool& pool, std::unique_ptr<Input>& slot) const override;
  void run_tiles(int64_t t0, int64_t t1, const Input& input, int64_t n, float* y, int64_t ldy) const override;
  void decode_row(int64_t r, float* out) const override;
  uint64_t ram_bytes() const override { return entries_.bytes(); }
  std::string describe() const override { return "sparse rows"; }

 private:
  TileSparse entries_;
};

}  // namespace pith
