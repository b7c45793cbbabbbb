#include "kernels/tile_linear.h"

#include <algorithm>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pith {

void* aligned_memory(size_t bytes) {
  constexpr size_t kHuge = 2 << 20, kLine = 64;
  if (bytes < 2 * kHuge) return std::aligned_alloc(kLine, (bytes + kLine) / kLine * kLine);
  void* p = std::aligned_alloc(kHuge, (bytes + kLine) / kLine * kLine);
#if defined(__linux__)
  if (p != nullptr) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return p;
}

float* thread_scratch(int slot, size_t floats) {
  thread_local Aligned<float> memory[5];
  if (memory[slot].size() < floats) memory[slot] = Aligned<float>(floats + floats / 4);
  return memory[slot].get();
}

TileLinear::TileLinear(int64_t rows, int64_t cols, const KernelOptions& options)
    : Linear(rows, cols), ops_(ops(options.isa.value_or(default_isa()))), precision_(options.precision) {}

// Decoding a tile costs about as much as multiplying it by ten tokens in integers.
static constexpr int64_t kTileTokens = 12;

TileLinear::Path TileLinear::path(int64_t n) const {
  const bool fast = precision_ == Precision::fast;
  if (fast && ops_.gemm_bf16 != nullptr && (n >= kTileTokens || (!has_dot() && n > 2))) return Path::bf16;
  if (!has_dot()) return Path::f32;
  if (!dot_needs_ints()) return n < kTileTokens ? Path::dot : Path::f32;
  return fast ? Path::dot : Path::f32;
}

int TileLinear::input_key(int64_t n) const {
  if (gathers()) return 0;
  const Path p = path(n);
  return p == Path::dot && dot_needs_ints() ? 1 : p == Path::bf16 ? 2 : 3;
}

void TileLinear::prepare(const float* x, int64_t n, ThreadPool& pool, std::unique_ptr<Input>& slot) const {
  auto* in = dynamic_cast<TileInput*>(slot.get());
  if (in == nullptr) {
    slot = std::make_unique<TileInput>();
    in = static_cast<TileInput*>(slot.get());
  }
  if (sorts_rows()) in->sorted = in->sorted_memory.ensure(static_cast<size_t>(n * rows_));
  const Path p = path(n);
  const int64_t padded = padded_cols(), chunks = padded / kChunk;
  const bool ints = p == Path::dot && dot_needs_ints();
  // fp32 paths read cols() values of a row; the integer path whole chunks.
  const bool copies = gathers() || (ints && padded != cols_);
  in->x_stride = copies && ints ? padded : cols_;
  in->x = x;
  if (copies) in->x = in->owned.ensure(static_cast<size_t>(n * in->x_stride));
  if (ints) {
    in->ints = {in->q.ensure(static_cast<size_t>(n * padded)), in->d.ensure(static_cast<size_t>(n * chunks)),
                in->s.ensure(static_cast<size_t>(n * chunks * 2))};
  }
  if (p == Path::bf16) {
    in->bf16_stride = padded;
    in->bf16.ensure(static_cast<size_t>((n + 15) / 16 * 16 * padded));
  }
  const auto one = [&](int64_t t) {
    const float* row = x + t * cols_;
    if (copies) {
      float* own = in->owned.get() + t * in->x_stride;
      if (gathers()) {
        gather(row, own);
      } else {
        std::copy_n(row, cols_, own);
      }
      std::fill(own + cols_, own + in->x_stride, 0.0f);
      row = own;
    }
    if (ints) {
      ops_.quantize(row, chunks, in->q.get() + t * padded, in->d.get() + t * chunks, in->s.get() + t * chunks * 2);
    }
    if (p == Path::bf16) {
      uint16_t* out = in->bf16.get() + t * padded;
      ops_.f32_to_bf16(row, cols_, out);
      std::fill(out + cols_, out + padded, static_cast<uint16_t>(0));
    }
  };
  if (p == Path::bf16) {
    std::fill(in->bf16.get() + n * padded, in->bf16.get() + (n + 15) / 16 * 16 * padded, static_cast<uint16_t>(0));
  } else if (!copies && !ints) {
    return;
  }
  constexpr int64_t kRows = 16;
  if (n < 2 * kRows) {
    for (int64_t t = 0; t < n; ++t) one(t);
  } else {
    pool.parallel_for((n + kRows - 1) / kRows, [&](int64_t b) {
      for (int64_t t = b * kRows; t < std::min(n, (b + 1) * kRows); ++t) one(t);
    });
  }
}

void TileLinear::whole_panel(int64_t t, float* panel) const {
  decode_panel(t, panel);
  if (sparse_.row_start.empty()) return;
  for (int64_t r = t * kTileRows; r < std::min(rows_, (t + 1) * kTileRows); ++r) {
    for (uint32_t i = sparse_.row_start[static_cast<size_t>(r)]; i < sparse_.row_start[static_cast<size_t>(r) + 1];
         ++i) {
      panel[sparse_.col[i] * kTileRows + r % kTileRows] += sparse_.value[i];
    }
  }
}

void TileLinear::add_sparse(int64_t t, const TileInput& x, int64_t n, float* y, int64_t ldy) const {
  if (sparse_.row_start.empty()) return;
  for (int64_t r = t * kTileRows; r < std::min(rows_, (t + 1) * kTileRows); ++r) {
    const uint32_t i0 = sparse_.row_start[static_cast<size_t>(r)], i1 = sparse_.row_start[static_cast<size_t>(r) + 1];
    if (i0 == i1) continue;
    for (int64_t k = 0; k < n; ++k) {
      const float* row = x.x + k * x.x_stride;
      float sum = 0;
      for (uint32_t i = i0; i < i1; ++i) sum += sparse_.value[i] * row[sparse_.col[i]];
      y[k * ldy + r % kTileRows] += sum;
    }
  }
}

void TileLinear::decode_panel_bf16(int64_t t, uint16_t* panel) const {
  float* wide = thread_scratch(3, static_cast<size_t>(padded_cols() * kTileRows));
  whole_panel(t, wide);
  ops_.pack_bf16(wide, kTileRows, padded_cols(), panel);
}

// Copies n rows of `width` floats.
static void copy_out(const float* from, int64_t stride, int64_t n, int64_t width, float* y, int64_t ldy) {
  for (int64_t i = 0; i < n; ++i) std::copy_n(from + i * stride, width, y + i * ldy);
}

void TileLinear::run_tiles(int64_t t0, int64_t t1, const Input& input, int64_t n, float* y, int64_t ldy) const {
  const auto& in = static_cast<const TileInput&>(input);
  const int64_t padded = padded_cols();
  switch (path(n)) {
    case Path::dot:
      for (int64_t t = t0; t < t1; ++t) {
        const int64_t width = std::min(kTileRows, rows_ - t * kTileRows);
        if (width == kTileRows) {
          dot(t, in, n, y + t * kTileRows, ldy);
          add_sparse(t, in, n, y + t * kTileRows, ldy);
          continue;
        }
        float* out = thread_scratch(0, static_cast<size_t>(n * kTileRows));
        dot(t, in, n, out, kTileRows);
        add_sparse(t, in, n, out, kTileRows);
        copy_out(out, kTileRows, n, width, y + t * kTileRows, ldy);
      }
      return;
    case Path::f32: {
      float* panel = thread_scratch(1, static_cast<size_t>(padded * kTileRows));
      for (int64_t t = t0; t < t1; ++t) {
        whole_panel(t, panel);
        const int64_t width = std::min(kTileRows, rows_ - t * kTileRows);
        float* out = y + t * kTileRows;
        if (width == kTileRows) {
          ops_.gemm_f32(in.x, in.x_stride, n, panel, kTileRows, cols_, out, ldy, false);
          continue;
        }
        float* part = thread_scratch(0, static_cast<size_t>(n * kTileRows));
        ops_.gemm_f32(in.x, in.x_stride, n, panel, kTileRows, cols_, part, kTileRows, false);
        copy_out(part, kTileRows, n, width, out, ldy);
      }
      return;
    }
    case Path::bf16: {
      auto* panel = reinterpret_cast<uint16_t*>(thread_scratch(1, static_cast<size_t>(padded * kTileRows)));
      const int64_t whole = n / 16 * 16, rest = (n + 15) / 16 * 16 - whole;
      for (int64_t t = t0; t < t1; t += 2) {
        uint16_t* second = panel + padded * kTileRows;
        decode_panel_bf16(t, panel);
        if (t + 1 < t1) {
          decode_panel_bf16(t + 1, second);
        } else {
          std::memset(second, 0, static_cast<size_t>(padded * kTileRows) * 2);
        }
        const int64_t width = std::min(t + 1 < t1 ? 2 * kTileRows : kTileRows, rows_ - t * kTileRows);
        float* out = y + t * kTileRows;
        if (width == 2 * kTileRows) {
          if (whole > 0) ops_.gemm_bf16(in.bf16.get(), padded, whole, panel, second, padded, out, ldy, false);
          if (rest > 0) {
            float* part = thread_scratch(0, 16 * 32);
            ops_.gemm_bf16(in.bf16.get() + whole * padded, padded, 16, panel, second, padded, part, 32, false);
            copy_out(part, 32, n - whole, width, out + whole * ldy, ldy);
          }
          continue;
        }
        float* part = thread_scratch(0, static_cast<size_t>((n + 15) / 16 * 16 * 32));
        ops_.gemm_bf16(in.bf16.get(), padded, whole + rest, panel, second, padded, part, 32, false);
        copy_out(part, 32, n, width, out, ldy);
      }
      return;
    }
  }
}

void TileLinear::decode_row(int64_t r, float* out) const {
  float* panel = thread_scratch(1, static_cast<size_t>(padded_cols() * kTileRows));
  whole_panel(r / kTileRows, panel);
  for (int64_t j = 0; j < cols_; ++j) out[j] = panel[j * kTileRows + r % kTileRows];
}

}  // namespace pith
