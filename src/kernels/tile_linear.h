// What all layouts share: a matrix is a row of tiles of 16 rows, and many tokens are multiplied by decoding one tile at
// a time into a panel [cols][16] for a matrix kernel.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels/linear.h"
#include "kernels/ops.h"

namespace pith {

/// Memory on a cache line; large pieces on huge pages where the system has them.
void* aligned_memory(size_t bytes);

/// Uninitialised array on a cache line, for kernels.
template <class T>
class Aligned {
 public:
  Aligned() = default;
  explicit Aligned(size_t count) : data_(static_cast<T*>(aligned_memory(count * sizeof(T)))), size_(count) {}
  /// At least `count` elements, keeping the memory when it is large enough but not the values.
  T* ensure(size_t count) {
    if (size_ < count) *this = Aligned(count);
    return get();
  }
  T* get() { return data_.get(); }
  const T* get() const { return data_.get(); }
  size_t size() const { return size_; }
  uint64_t bytes() const { return size_ * sizeof(T); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

/// The three forms in which kernels take activations; filled as needed.
struct TileInput final : Linear::Input {
  const float* x = nullptr;  ///< the caller's [n][cols], or `owned`
  int64_t x_stride = 0;
  Aligned<float> owned;
  IntInput ints;
  Aligned<int8_t> q;
  Aligned<float> d, s;
  Aligned<uint16_t> bf16;  ///< [n up to 16s][cols up to 32s], zero-padded
  int64_t bf16_stride = 0;
  float* sorted = nullptr;  ///< y [n][rows] of a layout that sorts rows, until its finish()
  Aligned<float> sorted_memory;
};

/// Corrections added to single weights: outliers that override a base. Lists by row.
struct TileSparse {
  std::vector<uint32_t> row_start;  ///< rows + 1, or empty: no corrections
  std::vector<uint16_t> col;
  std::vector<float> value;
  uint64_t bytes() const { return row_start.size() * 4 + col.size() * 2 + value.size() * 4; }
};

class TileLinear : public Linear {
 public:
  /// Columns that TileSparse can name.
  static constexpr int64_t kMaxSparseCols = 65536;
  void set_sparse(TileSparse sparse) { sparse_ = std::move(sparse); }
  void prepare(const float* x, int64_t n, ThreadPool& pool, std::unique_ptr<Input>& slot) const override;
  int input_key(int64_t n) const override;
  void run_tiles(int64_t t0, int64_t t1, const Input& input, int64_t n, float* y, int64_t ldy) const override;
  void decode_row(int64_t r, float* out) const override;

 protected:
  TileLinear(int64_t rows, int64_t cols, const KernelOptions& options);

  /// Weights of tile t as panel[cols up to 32s][16]; columns beyond cols() are zero.
  virtual void decode_panel(int64_t t, float* panel) const = 0;
  virtual void decode_panel_bf16(int64_t t, uint16_t* panel) const;
  /// Few tokens at a time without decoding: y[n][16] of a tile, row stride ldy.
  virtual bool has_dot() const { return false; }
  virtual bool dot_needs_ints() const { return false; }
  virtual void dot(int64_t /*t*/, const TileInput& /*x*/, int64_t /*n*/, float* /*y*/, int64_t /*ldy*/) const {}
  virtual bool sorts_rows() const { return false; }
  /// Layouts with their own order and factors of columns (ec) say so; `gather` makes one token's x ready for them.
  virtual bool gathers() const { return false; }
  virtual void gather(const float* /*x*/, float* /*out*/) const {}

  int64_t padded_cols() const { return (cols_ + kChunk - 1) / kChunk * kChunk; }
  enum class Path : uint8_t { dot, f32, bf16 };
  Path path(int64_t n) const;

  /// decode_panel and the corrections of sparse_.
  void whole_panel(int64_t t, float* panel) const;
  void add_sparse(int64_t t, const TileInput& x, int64_t n, float* y, int64_t ldy) const;

  TileSparse sparse_;
  const Ops& ops_;
  const Precision precision_;
};

/// Scratch memory of the calling thread, reused between calls; `slot` tells apart what is needed at the same time.
float* thread_scratch(int slot, size_t floats);

}  // namespace pith
