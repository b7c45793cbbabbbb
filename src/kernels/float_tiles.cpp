#include "kernels/float_tiles.h"

#include <algorithm>
#include <cstring>

namespace pith {

bool FloatTiles::takes(const Node& node) {
  const auto* dense = dynamic_cast<const Dense*>(&node);
  if (dense == nullptr) return false;
  return dense->type() == DType::f32 || dense->type() == DType::f16 || dense->type() == DType::bf16;
}

uint64_t FloatTiles::planned_bytes(const Dense& dense) {
  const auto tiles = static_cast<uint64_t>((dense.rows() + kTileRows - 1) / kTileRows);
  return tiles * kTileRows * static_cast<uint64_t>(dense.cols()) * dtype_size(dense.type());
}

FloatTiles::FloatTiles(const Dense& dense, const KernelOptions& options)
    : TileLinear(dense.rows(), dense.cols(), options), type_(dense.type()), size_(dtype_size(dense.type())) {}

template <class T>
static void interleave(const T* rows, int64_t count, int64_t cols, T* panel) {
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t j = 0; j < cols; ++j) panel[j * kTileRows + r] = rows[r * cols + j];
  }
}

std::unique_ptr<FloatTiles> FloatTiles::make(const Dense& dense, const KernelOptions& options) {
  std::unique_ptr<FloatTiles> out(new FloatTiles(dense, options));
  out->data_ = Aligned<uint8_t>(planned_bytes(dense));
  std::memset(out->data_.get(), 0, out->data_.bytes());
  const int64_t cols = dense.cols();
  std::vector<uint8_t> rows(static_cast<size_t>(kTileRows * cols) * out->size_);
  for (int64_t t = 0; t < out->tiles(); ++t) {
    const int64_t count = std::min(kTileRows, dense.rows() - t * kTileRows);
    // Mapped bytes need not be aligned for their type.
    std::memcpy(rows.data(), dense.data().data() + static_cast<size_t>(t * kTileRows * cols) * out->size_,
                static_cast<size_t>(count * cols) * out->size_);
    uint8_t* panel = out->data_.get() + static_cast<size_t>(t * kTileRows * cols) * out->size_;
    if (out->size_ == 4) {
      interleave(reinterpret_cast<const uint32_t*>(rows.data()), count, cols, reinterpret_cast<uint32_t*>(panel));
    } else {
      interleave(reinterpret_cast<const uint16_t*>(rows.data()), count, cols, reinterpret_cast<uint16_t*>(panel));
    }
  }
  return out;
}

std::string FloatTiles::describe() const { return "float tiles " + std::string(dtype_name(type_)); }

void FloatTiles::decode_panel(int64_t t, float* panel) const {
  const int64_t count = kTileRows * cols_;
  const uint8_t* data = data_.get() + static_cast<size_t>(t * count) * size_;
  if (type_ == DType::f32) {
    std::memcpy(panel, data, static_cast<size_t>(count) * 4);
  } else if (type_ == DType::f16) {
    ops_.half_to_f32(reinterpret_cast<const uint16_t*>(data), count, panel);
  } else {
    const auto* in = reinterpret_cast<const uint16_t*>(data);
    for (int64_t i = 0; i < count; ++i) panel[i] = bf16_to_float(in[i]);
  }
  std::fill(panel + count, panel + padded_cols() * kTileRows, 0.0f);
}

void FloatTiles::dot(int64_t t, const TileInput& x, int64_t n, float* y, int64_t ldy) const {
  const int64_t count = kTileRows * cols_;
  const uint8_t* data = data_.get() + static_cast<size_t>(t * count) * size_;
  if (type_ == DType::f32) {
    ops_.gemm_f32(x.x, x.x_stride, n, reinterpret_cast<const float*>(data), kTileRows, cols_, y, ldy, false);
    return;
  }
  const auto* in = reinterpret_cast<const uint16_t*>(data);
  const auto kernel = type_ == DType::f16 ? ops_.dot_f16 : ops_.dot_bf16;
  for (int64_t k = 0; k < n; ++k) kernel(x.x + k * x.x_stride, in, cols_, y + k * ldy);
}

void NodeLinear::decode_panel(int64_t t, float* panel) const {
  const int64_t r0 = t * kTileRows, count = std::min(kTileRows, rows_ - r0);
  float* rows = thread_scratch(2, static_cast<size_t>(kTileRows * cols_));
  node_->decode_rows(r0, r0 + count, rows);
  if (count < kTileRows) std::fill(rows + count * cols_, rows + kTileRows * cols_, 0.0f);
  interleave(rows, kTileRows, cols_, panel);
  std::fill(panel + cols_ * kTileRows, panel + padded_cols() * kTileRows, 0.0f);
}

void CsrLinear::prepare(const float* x, int64_t, ThreadPool&, std::unique_ptr<Input>& slot) const {
  auto in = std::make_unique<TileInput>();
  in->x = x;
  in->x_stride = cols_;
  slot = std::move(in);
}

void CsrLinear::run_tiles(int64_t t0, int64_t t1, const Input& input, int64_t n, float* y, int64_t ldy) const {
  const auto& in = static_cast<const TileInput&>(input);
  for (int64_t r = t0 * kTileRows; r < std::min(rows_, t1 * kTileRows); ++r) {
    for (int64_t k = 0; k < n; ++k) {
      const float* x = in.x + k * in.x_stride;
      float sum = 0;
      for (uint32_t i = entries_.row_start[static_cast<size_t>(r)]; i < entries_.row_start[static_cast<size_t>(r) + 1];
           ++i) {
        sum += entries_.value[i] * x[entries_.col[i]];
      }
      y[k * ldy + r] = sum;
    }
  }
}

void CsrLinear::decode_row(int64_t r, float* out) const {
  std::fill_n(out, cols_, 0.0f);
  for (uint32_t i = entries_.row_start[static_cast<size_t>(r)]; i < entries_.row_start[static_cast<size_t>(r) + 1];
       ++i) {
    out[entries_.col[i]] = entries_.value[i];
  }
}

}  // namespace pith
