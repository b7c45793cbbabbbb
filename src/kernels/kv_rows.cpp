#include "kernels/kv_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/half.h"

namespace pith {

bool kv_grid_fits(const KvGrid& g, int64_t dim) {
  if ((g.bits != 2 && g.bits != 4 && g.bits != 8) || g.group < 1 || dim < 1 || dim > kKvMaxDim) return false;
  return g.by_channel || g.group >= dim || g.group % kv_unit(g.bits) == 0;
}

// Rounding of one group of numbers.
namespace {

struct Scale {
  uint16_t d, m;
  float step, low, inverse;
};

uint16_t half(float v) { return float_to_half(std::clamp(v, -65504.0f, 65504.0f)); }

// `lowest` and `highest` of the group; `extreme` is the one of larger magnitude, with its sign.
Scale scale_of(const KvGrid& g, float lowest, float highest) {
  Scale s{};
  const float levels = static_cast<float>((1 << g.bits) - 1), zero = static_cast<float>(1 << (g.bits - 1));
  if (g.centred) {
    const float extreme = -lowest > highest ? lowest : highest;
    // 8 bits: the same reach on both sides. Fewer: the lone lowest code serves the side that needs it.
    s.d = half(g.bits == 8 ? std::fabs(extreme) / (zero - 1) : extreme / -zero);
    s.step = half_to_float(s.d);
    s.low = -zero * s.step;
  } else {
    s.m = half(lowest);
    s.low = half_to_float(s.m);
    s.d = half(std::max(highest - s.low, 0.0f) / levels);
    s.step = half_to_float(s.d);
  }
  s.inverse = s.step != 0 ? 1 / s.step : 0;
  return s;
}

uint8_t code_of(const KvGrid& g, const Scale& s, float x) {
  const float zero = static_cast<float>(1 << (g.bits - 1)), top = static_cast<float>((1 << g.bits) - 1);
  const float c = g.centred ? x * s.inverse + zero : (x - s.low) * s.inverse;
  return static_cast<uint8_t>(std::clamp(std::floor(c + 0.5f), 0.0f, top));
}

void put(const KvGrid& g, uint8_t* row, int64_t channel, uint8_t code) {
  const int64_t unit = kv_unit(g.bits), in_unit = channel % unit;
  row[channel / unit * 8 + in_unit % 8] |= static_cast<uint8_t>(code << (in_unit / 8 * g.bits));
}

int code_at(const KvGrid& g, const uint8_t* row, int64_t channel) {
  const int64_t unit = kv_unit(g.bits), in_unit = channel % unit;
  return row[channel / unit * 8 + in_unit % 8] >> (in_unit / 8 * g.bits) & ((1 << g.bits) - 1);
}

}  // namespace

void kv_encode(const KvGrid& g, const float* rows, int64_t n, int64_t dim, uint8_t* codes, uint16_t* d, uint16_t* m) {
  const int64_t row_bytes = kv_row_bytes(g, dim), groups = kv_row_groups(g, dim);
  std::memset(codes, 0, static_cast<size_t>(n * row_bytes));
  const int64_t tokens = g.by_channel ? g.group : 1, channels = g.by_channel ? 1 : g.group;
  for (int64_t t = 0; t < n; t += tokens) {
    const int64_t t1 = std::min(n, t + tokens);
    for (int64_t c = 0; c < dim; c += channels) {
      const int64_t c1 = std::min(dim, c + channels);
      float lowest = rows[t * dim + c], highest = lowest;
      for (int64_t i = t; i < t1; ++i) {
        for (int64_t j = c; j < c1; ++j) {
          lowest = std::min(lowest, rows[i * dim + j]);
          highest = std::max(highest, rows[i * dim + j]);
        }
      }
      const Scale s = scale_of(g, lowest, highest);
      const int64_t at = g.by_channel ? t / tokens * dim + c : t * groups + c / channels;
      d[at] = s.d;
      if (!g.centred) m[at] = s.m;
      for (int64_t i = t; i < t1; ++i) {
        for (int64_t j = c; j < c1; ++j) put(g, codes + i * row_bytes, j, code_of(g, s, rows[i * dim + j]));
      }
    }
  }
}

void hadamard_rows(float* rows, int64_t n, int64_t dim) {
  const int64_t block = dim & -dim;
  const float norm = 1 / std::sqrt(static_cast<float>(block));
  for (float *x = rows, *end = rows + n * dim; x != end; x += block) {
    for (int64_t h = 1; h < block; h *= 2) {
      for (int64_t i = 0; i < block; i += 2 * h) {
        for (int64_t j = i; j < i + h; ++j) {
          const float a = x[j], b = x[j + h];
          x[j] = a + b;
          x[j + h] = a - b;
        }
      }
    }
    for (int64_t i = 0; i < block; ++i) x[i] *= norm;
  }
}

// The reference: number by number.
namespace {

float value_at(const KvRows& r, int64_t token, int64_t channel) {
  const KvGrid& g = r.grid;
  const int64_t at =
      g.by_channel ? token / g.group * r.dim + channel : token * kv_row_groups(g, r.dim) + channel / g.group;
  const float d = half_to_float(r.d[at]);
  const float m = g.centred ? -d * static_cast<float>(1 << (g.bits - 1)) : half_to_float(r.m[at]);
  return d * static_cast<float>(code_at(g, r.codes + token * kv_row_bytes(g, r.dim), channel)) + m;
}

void decode(const KvRows& r, int64_t i0, int64_t i1, float* out) {
  for (int64_t i = i0; i < i1; ++i) {
    for (int64_t c = 0; c < r.dim; ++c) *out++ = value_at(r, i, c);
  }
}

void dot(const KvRows& r, int64_t i0, int64_t count, const float* q, int64_t queries, float* scores, int64_t stride) {
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t i = 0; i < queries; ++i) {
      float s = 0;
      for (int64_t c = 0; c < r.dim; ++c) s += q[i * r.dim + c] * value_at(r, i0 + j, c);
      scores[i * stride + j] = s;
    }
  }
}

void axpy(const KvRows& r, int64_t i0, int64_t count, const float* p, int64_t stride, int64_t queries, float* out) {
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t i = 0; i < queries; ++i) {
      for (int64_t c = 0; c < r.dim; ++c) out[i * r.dim + c] += p[i * stride + j] * value_at(r, i0 + j, c);
    }
  }
}

}  // namespace

const KvRowOps& kv_row_ops_scalar() {
  static const KvRowOps table{decode, dot, axpy};
  return table;
}

const KvRowOps& kv_row_ops(Isa isa) { return isa == Isa::scalar ? kv_row_ops_scalar() : kv_row_ops_avx2(); }

}  // namespace pith
