// AVX2: codes of a unit become registers of 8 floats. Scales are taken out of the inner loops: of a sum over the
// channels of a group, or into the weights of the tokens.
#include <immintrin.h>

#include "kernels/kv_rows.h"

namespace pith {
namespace {

constexpr int64_t kRow = kKvMaxDim + 32;  // with padding to a whole unit

float wide(uint16_t half) { return _cvtsh_ss(half); }

template <int Bits>
inline constexpr int kParts = 8 / Bits;

template <int Bits>
inline void unpack(const uint8_t* unit, __m256* codes) {
  const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(unit)));
  const __m256i mask = _mm256_set1_epi32((1 << Bits) - 1);
  for (int k = 0; k < kParts<Bits>; ++k) {
    const __m256i part = k == 0 ? bytes : _mm256_srli_epi32(bytes, k * Bits);
    codes[k] = _mm256_cvtepi32_ps((k + 1) * Bits == 8 ? part : _mm256_and_si256(part, mask));
  }
}

inline float sum(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline float low_of(const KvRows& r, int64_t at, float d) {
  return r.m != nullptr ? wide(r.m[at]) : -d * static_cast<float>(1 << (r.grid.bits - 1));
}

template <int Bits>
void decode(const KvRows& r, int64_t i0, int64_t i1, float* out) {
  const KvGrid& g = r.grid;
  const int64_t row_bytes = kv_row_bytes(g, r.dim), groups = kv_row_groups(g, r.dim), unit = kv_unit(Bits);
  alignas(32) float row[kRow], ds[kRow] = {}, ms[kRow] = {};
  for (int64_t i = i0; i < i1; ++i, out += r.dim) {
    const uint8_t* codes = r.codes + i * row_bytes;
    const bool direct = r.dim % unit == 0;
    float* to = direct ? out : row;
    if (g.by_channel && (i == i0 || i % g.group == 0)) {
      for (int64_t c = 0; c < r.dim; ++c) {
        const int64_t at = i / g.group * r.dim + c;
        ds[c] = wide(r.d[at]);
        ms[c] = low_of(r, at, ds[c]);
      }
    }
    __m256 w[kParts<Bits>];
    for (int64_t c = 0; c < r.dim; c += unit) {
      unpack<Bits>(codes + c / unit * 8, w);
      if (g.by_channel) {
        for (int k = 0; k < kParts<Bits>; ++k) {
          _mm256_storeu_ps(to + c + 8 * k,
                           _mm256_fmadd_ps(w[k], _mm256_load_ps(ds + c + 8 * k), _mm256_load_ps(ms + c + 8 * k)));
        }
      } else {
        const int64_t at = i * groups + c / g.group;
        const float d = wide(r.d[at]), m = low_of(r, at, d);
        for (int k = 0; k < kParts<Bits>; ++k) {
          _mm256_storeu_ps(to + c + 8 * k, _mm256_fmadd_ps(w[k], _mm256_set1_ps(d), _mm256_set1_ps(m)));
        }
      }
    }
    if (!direct) __builtin_memcpy(out, row, static_cast<size_t>(r.dim) * sizeof(float));
  }
}

// Queries in rows of kRow floats, zero from dim to the end of the widest unit.
template <int Q>
void pad(const float* q, int64_t dim, float (*rows)[kRow]) {
  for (int i = 0; i < Q; ++i) {
    __builtin_memcpy(rows[i], q + i * dim, static_cast<size_t>(dim) * sizeof(float));
    __builtin_memset(rows[i] + dim, 0, 32 * sizeof(float));
  }
}

template <int Bits, int Q>
void dot_channels(const KvRows& r, int64_t i0, int64_t count, const float* q, float* scores, int64_t stride) {
  const int64_t row_bytes = kv_row_bytes(r.grid, r.dim), unit = kv_unit(Bits);
  alignas(32) float scaled[Q][kRow];
  float base[Q] = {};
  pad<Q>(q, r.dim, scaled);
  for (int64_t j = 0; j < count; ++j) {
    const int64_t t = i0 + j;
    if (j == 0 || t % r.grid.group == 0) {
      for (int i = 0; i < Q; ++i) base[i] = 0;
      for (int64_t c = 0; c < r.dim; ++c) {
        const int64_t at = t / r.grid.group * r.dim + c;
        const float d = wide(r.d[at]), m = low_of(r, at, d);
        for (int i = 0; i < Q; ++i) {
          scaled[i][c] = q[i * r.dim + c] * d;
          base[i] += q[i * r.dim + c] * m;
        }
      }
    }
    const uint8_t* codes = r.codes + t * row_bytes;
    __m256 acc[Q], w[kParts<Bits>];
    for (int i = 0; i < Q; ++i) acc[i] = _mm256_setzero_ps();
    for (int64_t c = 0; c < r.dim; c += unit, codes += 8) {
      unpack<Bits>(codes, w);
      for (int i = 0; i < Q; ++i) {
        for (int k = 0; k < kParts<Bits>; ++k) {
          acc[i] = _mm256_fmadd_ps(w[k], _mm256_load_ps(scaled[i] + c + 8 * k), acc[i]);
        }
      }
    }
    for (int i = 0; i < Q; ++i) scores[i * stride + j] = sum(acc[i]) + base[i];
  }
}

template <int Bits, int Q>
void dot_tokens(const KvRows& r, int64_t i0, int64_t count, const float* q, float* scores, int64_t stride) {
  const KvGrid& g = r.grid;
  const int64_t row_bytes = kv_row_bytes(g, r.dim), groups = kv_row_groups(g, r.dim), unit = kv_unit(Bits);
  alignas(32) float rows[Q][kRow];
  float sums[Q][kKvMaxDim / 8];
  pad<Q>(q, r.dim, rows);
  for (int i = 0; i < Q; ++i) {
    for (int64_t k = 0; k < groups; ++k) {
      float s = 0;
      for (int64_t c = k * g.group; c < r.dim && c < (k + 1) * g.group; ++c) s += rows[i][c];
      sums[i][k] = s;
    }
  }
  for (int64_t j = 0; j < count; ++j) {
    const uint8_t* codes = r.codes + (i0 + j) * row_bytes;
    __m256 total[Q], w[kParts<Bits>];
    float base[Q] = {};
    for (int i = 0; i < Q; ++i) total[i] = _mm256_setzero_ps();
    for (int64_t k = 0; k < groups; ++k) {
      const int64_t at = (i0 + j) * groups + k, end = (k + 1) * g.group < r.dim ? (k + 1) * g.group : r.dim;
      const float d = wide(r.d[at]), m = low_of(r, at, d);
      __m256 acc[Q];
      for (int i = 0; i < Q; ++i) acc[i] = _mm256_setzero_ps();
      for (int64_t c = k * g.group; c < end; c += unit, codes += 8) {
        unpack<Bits>(codes, w);
        for (int i = 0; i < Q; ++i) {
          for (int p = 0; p < kParts<Bits>; ++p) {
            acc[i] = _mm256_fmadd_ps(w[p], _mm256_load_ps(rows[i] + c + 8 * p), acc[i]);
          }
        }
      }
      for (int i = 0; i < Q; ++i) {
        total[i] = _mm256_fmadd_ps(acc[i], _mm256_set1_ps(d), total[i]);
        base[i] += m * sums[i][k];
      }
    }
    for (int i = 0; i < Q; ++i) scores[i * stride + j] = sum(total[i]) + base[i];
  }
}

// Units * kParts registers of channels for each query, over all tokens of the tile.
template <int Bits, int Q, int Units>
inline void gather(const uint8_t* codes, int64_t row_bytes, int64_t count, const float (*weights)[kKvTile],
                   float* out) {
  constexpr int n = Units * kParts<Bits>;
  __m256 acc[Q][n], w[n];
  for (int i = 0; i < Q; ++i) {
    for (int k = 0; k < n; ++k) acc[i][k] = _mm256_load_ps(out + i * kRow + 8 * k);
  }
  for (int64_t j = 0; j < count; ++j, codes += row_bytes) {
    for (int u = 0; u < Units; ++u) unpack<Bits>(codes + 8 * u, w + u * kParts<Bits>);
    for (int i = 0; i < Q; ++i) {
      const __m256 by = _mm256_set1_ps(weights[i][j]);
      for (int k = 0; k < n; ++k) acc[i][k] = _mm256_fmadd_ps(w[k], by, acc[i][k]);
    }
  }
  for (int i = 0; i < Q; ++i) {
    for (int k = 0; k < n; ++k) _mm256_store_ps(out + i * kRow + 8 * k, acc[i][k]);
  }
}

template <int Bits, int Q>
void axpy_tokens(const KvRows& r, int64_t i0, int64_t count, const float* p, int64_t stride, float* out) {
  const KvGrid& g = r.grid;
  const int64_t row_bytes = kv_row_bytes(g, r.dim), groups = kv_row_groups(g, r.dim), unit = kv_unit(Bits);
  alignas(32) float rows[Q][kRow], weights[Q][kKvTile];
  pad<Q>(out, r.dim, rows);
  const uint8_t* codes = r.codes + i0 * row_bytes;
  for (int64_t k = 0; k < groups; ++k) {
    const int64_t begin = k * g.group, end = begin + g.group < r.dim ? begin + g.group : r.dim;
    float offset[Q] = {};
    for (int64_t j = 0; j < count; ++j) {
      const int64_t at = (i0 + j) * groups + k;
      const float d = wide(r.d[at]), m = low_of(r, at, d);
      for (int i = 0; i < Q; ++i) {
        weights[i][j] = p[i * stride + j] * d;
        offset[i] += p[i * stride + j] * m;
      }
    }
    int64_t c = begin;
    if constexpr (Bits == 8) {  // one register a unit would leave the adders waiting
      for (; c + 2 * unit <= end; c += 2 * unit)
        gather<Bits, Q, 2>(codes + c / unit * 8, row_bytes, count, weights, &rows[0][c]);
    }
    for (; c < end; c += unit) gather<Bits, Q, 1>(codes + c / unit * 8, row_bytes, count, weights, &rows[0][c]);
    for (int i = 0; i < Q; ++i) {
      for (c = begin; c < end; ++c) rows[i][c] += offset[i];
    }
  }
  for (int i = 0; i < Q; ++i) __builtin_memcpy(out + i * r.dim, rows[i], static_cast<size_t>(r.dim) * sizeof(float));
}

// use.operator()<Q>() with Q = queries.
template <class Use>
void with_queries(int64_t queries, Use use) {
  switch (queries) {
    case 1:
      return use.template operator()<1>();
    case 2:
      return use.template operator()<2>();
    case 3:
      return use.template operator()<3>();
    case 4:
      return use.template operator()<4>();
    case 5:
      return use.template operator()<5>();
  }
}

template <class Use>
void with_bits(unsigned bits, Use use) {
  if (bits == 2) return use.template operator()<2>();
  if (bits == 4) return use.template operator()<4>();
  return use.template operator()<8>();
}

void decode_any(const KvRows& r, int64_t i0, int64_t i1, float* out) {
  with_bits(r.grid.bits, [&]<int Bits>() { decode<Bits>(r, i0, i1, out); });
}

void dot_any(const KvRows& r, int64_t i0, int64_t count, const float* q, int64_t queries, float* scores,
             int64_t stride) {
  with_bits(r.grid.bits, [&]<int Bits>() {
    with_queries(queries, [&]<int Q>() {
      if (r.grid.by_channel) {
        dot_channels<Bits, Q>(r, i0, count, q, scores, stride);
      } else {
        dot_tokens<Bits, Q>(r, i0, count, q, scores, stride);
      }
    });
  });
}

void axpy_any(const KvRows& r, int64_t i0, int64_t count, const float* p, int64_t stride, int64_t queries, float* out) {
  with_bits(r.grid.bits, [&]<int Bits>() {
    with_queries(queries, [&]<int Q>() { axpy_tokens<Bits, Q>(r, i0, count, p, stride, out); });
  });
}

}  // namespace

const KvRowOps& kv_row_ops_avx2() {
  static const KvRowOps table{decode_any, dot_any, axpy_any};
  return table;
}

}  // namespace pith
