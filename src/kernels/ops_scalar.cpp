// The reference: plain loops over integers, and the shared floating-point loops on the smallest vectors.
#include "base/half.h"
#include "kernels/ops.h"

namespace pith {
namespace {

#define PITH_LANES 4
#include "kernels/vector_ops.h"  // NOLINT(bugprone-suspicious-include)

void dot_f16(const float* x, const uint16_t* panel, int64_t k, float* y) {
  for (int r = 0; r < kTileRows; ++r) y[r] = 0;
  for (int64_t j = 0; j < k; ++j) {
    for (int r = 0; r < kTileRows; ++r) y[r] += x[j] * half_to_float(panel[j * kTileRows + r]);
  }
}

void dot_bf16(const float* x, const uint16_t* panel, int64_t k, float* y) {
  for (int r = 0; r < kTileRows; ++r) y[r] = 0;
  for (int64_t j = 0; j < k; ++j) {
    for (int r = 0; r < kTileRows; ++r) y[r] += x[j] * bf16_to_float(panel[j * kTileRows + r]);
  }
}

void half_to_f32(const uint16_t* in, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = half_to_float(in[i]);
}

void f32_to_half(const float* in, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = float_to_half(in[i]);
}

void quantize(const float* x, int64_t chunks, int8_t* q, float* d, float* s) {
  for (int64_t c = 0; c < chunks; ++c, x += kChunk, q += kChunk) {
    float top = 0;
    for (int i = 0; i < kChunk; ++i) top = __builtin_fmaxf(top, __builtin_fabsf(x[i]));
    const float step = top / 127.0f, inverse = top > 0 ? 127.0f / top : 0.0f;
    int sums[2] = {};
    for (int i = 0; i < kChunk; ++i) {
      const int v = static_cast<int>(__builtin_rintf(x[i] * inverse));
      q[i] = static_cast<int8_t>(v);
      sums[i / 16] += v;
    }
    d[c] = step;
    s[2 * c] = step * static_cast<float>(sums[0]);
    s[2 * c + 1] = step * static_cast<float>(sums[1]);
  }
}

// Code of lane r, column 4 q + j of a chunk; see IntTile.
int code_at(const uint8_t* chunk, unsigned bits, int r, int q, int j) {
  int value = 0, shift = 0;
  for (unsigned plane : {8u, 4u, 2u, 1u}) {
    if (!(bits & plane)) continue;
    const int p = static_cast<int>(plane);
    const int raw = chunk[(q % p) * 64 + r * 4 + j];
    value |= (p == 8 ? raw : (raw >> (p * (q / p))) & ((1 << p) - 1)) << shift;
    shift += p;
    chunk += 64 * p;
  }
  return value;
}

// d and m of lane r in a group: w = d * (level - zero) + m.
void scale_of(const IntTile& t, int64_t group, int r, float& d, float& m) {
  const int64_t at = group * kTileRows + r, super = group / t.groups_per_super * kTileRows + r;
  m = 0;
  switch (t.scale) {
    case ScaleKind::row:
      d = t.row_scale[r];
      return;
    case ScaleKind::f32:
      d = t.d32[at];
      if (t.min == MinKind::add) m = t.m32[at];
      if (t.min == MinKind::zero) m = -d * t.m32[at];
      return;
    case ScaleKind::f16:
      d = half_to_float(t.d[at]);
      if (t.min == MinKind::add) m = half_to_float(t.m[at]);
      if (t.min == MinKind::zero) m = -d * half_to_float(t.m[at]);
      return;
    case ScaleKind::block:
      d = half_to_float(t.d[super]) * static_cast<float>(t.d_code[at]);
      if (t.min != MinKind::none) m = -half_to_float(t.m[super]) * static_cast<float>(t.m_code[at]);
      return;
    case ScaleKind::two_level: {
      const auto field = [&](const uint16_t* stats, int code) {
        return half_to_float(stats[group * 2]) * (static_cast<float>(code) - half_to_float(stats[group * 2 + 1]));
      };
      d = field(t.d_stats, static_cast<uint8_t>(t.d_code[at]));
      if (t.min != MinKind::none) m = -d * field(t.m_stats, t.m_code[at]);
      return;
    }
  }
}

int level_of(const IntTile& t, int64_t chunk, int r, int column) {
  const int u = code_at(t.codes + chunk * t.bits * 64, t.bits, r, column / 4, column % 4);
  return t.table ? t.table[u] : u;
}

void decode_int(const IntTile& t, float* panel) {
  if (t.widths != nullptr) {
    __builtin_memset(panel, 0, static_cast<size_t>(t.chunks * kChunk * kTileRows) * sizeof(float));
    each_run(t, [&](const IntTile& run, int64_t c) { decode_int(run, panel + c * kChunk * kTileRows); });
    return;
  }
  for (int64_t c = 0; c < t.chunks; ++c) {
    for (int i = 0; i < kChunk; ++i) {
      const int64_t group = (2 * c + i / 16) / t.group_halves;
      for (int r = 0; r < kTileRows; ++r) {
        float d = 0, m = 0;
        scale_of(t, group, r, d, m);
        panel[(c * kChunk + i) * kTileRows + r] = d * static_cast<float>(level_of(t, c, r, i) - t.zero) + m;
      }
    }
  }
}

void dot_widths(const IntTile& t, const IntInput& x, int64_t n, float* y, int64_t ldy) {
  for (int64_t k = 0; k < n; ++k) {
    float* out = y + k * ldy;
    for (int r = 0; r < kTileRows; ++r) out[r] = 0;
    each_run(t, [&](const IntTile& run, int64_t first) {
      for (int64_t c = 0; c < run.chunks; ++c) {
        const int64_t at = k * t.chunks + first + c;
        for (int r = 0; r < kTileRows; ++r) {
          int sum = 0;
          for (int i = 0; i < kChunk; ++i) sum += (level_of(run, c, r, i) - run.zero) * x.q[at * kChunk + i];
          out[r] += t.row_scale[r] * x.d[at] * static_cast<float>(sum);
        }
      }
    });
  }
}

void dot_int(const IntTile& t, const IntInput& x, int64_t n, float* y, int64_t ldy) {
  if (t.widths != nullptr) return dot_widths(t, x, n, y, ldy);
  for (int64_t k = 0; k < n; ++k) {
    const int8_t* q = x.q + k * t.chunks * kChunk;
    const float *dx = x.d + k * t.chunks, *sx = x.s + k * t.chunks * 2;
    for (int r = 0; r < kTileRows; ++r) {
      float out = 0;
      const int64_t halves = 2 * t.chunks;
      for (int64_t h0 = 0; h0 < halves; h0 += t.group_halves) {
        float d = 0, m = 0, sum = 0, total = 0;
        scale_of(t, h0 / t.group_halves, r, d, m);
        const int64_t h1 = h0 + t.group_halves < halves ? h0 + t.group_halves : halves;
        for (int64_t h = h0; h < h1; ++h) {
          int acc = 0;
          for (int i = 0; i < 16; ++i) {
            acc += level_of(t, h / 2, r, static_cast<int>(h % 2) * 16 + i) * q[h * 16 + i];
          }
          sum += dx[h / 2] * static_cast<float>(acc);
          total += sx[h];
        }
        out += d * sum + (m - static_cast<float>(t.zero) * d) * total;
      }
      y[k * ldy + r] = out;
    }
  }
}

void dot_corrections(const CorrectionList& list, const float* x, float* y) {
  for (int r = 0; r < kTileRows; ++r) y[r] = 0;
  each_correction(list, [&](int64_t r, int64_t column, float by) { y[r] += by * x[column]; });
}

void reorder(const float* x, const uint16_t* order, const uint8_t* index, const float* table, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = index ? x[order[i]] * table[index[i]] : x[order[i]];
}

#include "kernels/common_ops.h"  // NOLINT(bugprone-suspicious-include)

}  // namespace

const Ops& ops_scalar() {
  static const Ops table = common_ops();
  return table;
}

}  // namespace pith
