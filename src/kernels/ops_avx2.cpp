// AVX2 with FMA and F16C: a tile is two registers of 8 rows.
#include <immintrin.h>

#include "kernels/ops.h"

namespace pith {
namespace {

#define PITH_LANES 8
#include "kernels/vector_ops.h"  // NOLINT(bugprone-suspicious-include)

struct F16 {
  __m256 a, b;
  static F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static F16 splat(float f) { return {_mm256_set1_ps(f), _mm256_set1_ps(f)}; }
  static __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static F16 half(const uint16_t* p) { return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))}; }
  static F16 bf16(const uint16_t* p) {
    const auto wide = [](const uint16_t* h) {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(h)), 16));
    };
    return {wide(p), wide(p + 8)};
  }
  static F16 splat_half(uint16_t h) {
    const __m256 v = _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(h)));
    return {v, v};
  }
  static F16 from_i32(__m256i lo, __m256i hi) { return {_mm256_cvtepi32_ps(lo), _mm256_cvtepi32_ps(hi)}; }
  static F16 from_i8(const int8_t* p) {
    const __m128i v = load128(p);
    return from_i32(_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)));
  }
  static F16 from_u8(const uint8_t* p) {
    const __m128i v = load128(p);
    return from_i32(_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8)));
  }
  void store(float* p) const {
    _mm256_storeu_ps(p, a);
    _mm256_storeu_ps(p + 8, b);
  }
};
inline F16 operator+(F16 x, F16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F16 operator-(F16 x, F16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F16 operator*(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F16 fma(F16 x, F16 y, F16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F16 smaller(F16 x, F16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }

struct I16 {
  __m256i a, b;
  static I16 zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static I16 u16(const uint16_t* p) {
    return {_mm256_cvtepu16_epi32(F16::load128(p)), _mm256_cvtepu16_epi32(F16::load128(p + 8))};
  }
  static I16 u8(const uint8_t* p) {
    const __m128i v = F16::load128(p);
    return {_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
  }
  template <int Bits>
  I16 above() const {
    return {_mm256_srli_epi32(a, Bits), _mm256_srli_epi32(b, Bits)};
  }
  /// The lowest bits as a signed number.
  template <int Bits>
  I16 below() const {
    constexpr int kUp = 32 - Bits;
    return {_mm256_srai_epi32(_mm256_slli_epi32(a, kUp), kUp), _mm256_srai_epi32(_mm256_slli_epi32(b, kUp), kUp)};
  }
  F16 floats() const { return F16::from_i32(a, b); }
  F16 gather(const float* p) const { return {_mm256_i32gather_ps(p, a, 4), _mm256_i32gather_ps(p, b, 4)}; }
  F16 zero_selects(F16 x, F16 otherwise) const {
    const auto one = [](__m256i v, __m256 then, __m256 other) {
      return _mm256_blendv_ps(other, then, _mm256_castsi256_ps(_mm256_cmpeq_epi32(v, _mm256_setzero_si256())));
    };
    return {one(a, x.a, otherwise.a), one(b, x.b, otherwise.b)};
  }
};
inline I16 operator+(I16 x, I16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }

template <bool Table>
struct Levels {
  __m256i map{};
  explicit Levels(const uint8_t* table) {
    if (Table) map = _mm256_broadcastsi128_si256(F16::load128(table));
  }
};

// Two registers of 8 rows for each quad.
template <int Bits, bool Table>
struct Quads {
  static constexpr bool kWide = Bits == 8 || Table;  // levels above 127
  static constexpr int kBias = kWide ? 128 : 0;
  __m256i u[2][8];

  Quads(const uint8_t* p, const Levels<Table>& levels) {
    for (int part = 0; part < 2; ++part) unpack(p, levels, part, u[part]);
  }

  static __m256i plane(const uint8_t* p, int i, int part) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 64 * i + 32 * part));
  }

  static void unpack(const uint8_t* p, const Levels<Table>& levels, int part, __m256i* u) {
    if constexpr (Bits == 8) {
      for (int q = 0; q < 8; ++q) u[q] = plane(p, q, part);
      return;
    }
    if constexpr (Bits & 4) {
      const __m256i mask = _mm256_set1_epi8(15);
      for (int i = 0; i < 4; ++i) {
        const __m256i raw = plane(p, i, part);
        u[i] = _mm256_and_si256(raw, mask);
        u[i + 4] = _mm256_and_si256(_mm256_srli_epi16(raw, 4), mask);
      }
    }
    constexpr int low2 = Bits & 4;
    if constexpr (Bits & 2) {
      const __m256i mask = _mm256_set1_epi8(static_cast<char>(3 << low2));
      for (int q = 0; q < 8; ++q) {
        const __m256i raw = plane(p + 64 * low2, q % 2, part);
        merge<low2 == 0>(u[q], _mm256_and_si256(shifted(raw, 2 * (q / 2) - low2), mask));
      }
    }
    constexpr int low1 = Bits & 6;
    if constexpr (Bits & 1) {
      const __m256i mask = _mm256_set1_epi8(static_cast<char>(1 << low1));
      const __m256i raw = plane(p + 64 * low1, 0, part);
      for (int q = 0; q < 8; ++q) merge<low1 == 0>(u[q], _mm256_and_si256(shifted(raw, q - low1), mask));
    }
    if constexpr (Table) {
      for (int q = 0; q < 8; ++q) u[q] = _mm256_shuffle_epi8(levels.map, u[q]);
    }
  }

  static __m256i shifted(__m256i raw, int right) {
    return right >= 0 ? _mm256_srli_epi16(raw, right) : _mm256_slli_epi16(raw, -right);
  }
  template <bool First>
  static void merge(__m256i& into, __m256i bits) {
    into = First ? bits : _mm256_or_si256(into, bits);
  }

  // maddubs adds two products of an unsigned and a signed byte in 16 saturating bits: exact for levels up to 127. Of
  // wider levels 128 is taken away (kBias): |u - 128| <= 128, with its sign moved to x, is exact as well.
  template <int A, int B>
  static __m256i dot_part(const __m256i* u, const int8_t* q) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sum = _mm256_setzero_si256();
    // 16-bit sums of pairs stay exact for `run` quads: 2 * 127 * (2^bits - 1) each.
    [[maybe_unused]] constexpr int run = Bits <= 4 ? 8 : Bits == 5 ? 4 : Bits == 6 ? 2 : 1;
    if constexpr (kWide) {
      const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
      for (int i = A; i < B; ++i) {
        const __m256i x = four(q + 4 * i), s = _mm256_xor_si256(u[i], flip);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(s), _mm256_sign_epi8(x, s));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
      }
    } else {
      for (int i = A; i < B; i += run) {
        __m256i pairs = _mm256_maddubs_epi16(u[i], four(q + 4 * i));
        for (int j = i + 1; j < i + run && j < B; ++j) {
          pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(u[j], four(q + 4 * j)));
        }
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
      }
    }
    return sum;
  }
  template <int A, int B>
  F16 dot(const int8_t* q) const {
    return F16::from_i32(dot_part<A, B>(u[0], q), dot_part<A, B>(u[1], q));
  }

  /// dot<0, 8> of codes that are needed once: half of the rows at a time, so that sixteen registers do.
  static F16 dot_once(const uint8_t* p, const Levels<Table>& levels, const int8_t* q) {
    __m256i sum[2];
    for (int part = 0; part < 2; ++part) {
      __m256i u[8];
      unpack(p, levels, part, u);
      sum[part] = dot_part<0, 8>(u, q);
    }
    return F16::from_i32(sum[0], sum[1]);
  }
  static __m256i four(const int8_t* q) {
    int v;
    __builtin_memcpy(&v, q, 4);
    return _mm256_set1_epi32(v);
  }

  void levels4(int q, F16* w) const {
    const __m256i byte = _mm256_set1_epi32(255);
    w[0] = F16::from_i32(_mm256_and_si256(u[0][q], byte), _mm256_and_si256(u[1][q], byte));
    w[1] = F16::from_i32(_mm256_and_si256(_mm256_srli_epi32(u[0][q], 8), byte),
                         _mm256_and_si256(_mm256_srli_epi32(u[1][q], 8), byte));
    w[2] = F16::from_i32(_mm256_and_si256(_mm256_srli_epi32(u[0][q], 16), byte),
                         _mm256_and_si256(_mm256_srli_epi32(u[1][q], 16), byte));
    w[3] = F16::from_i32(_mm256_srli_epi32(u[0][q], 24), _mm256_srli_epi32(u[1][q], 24));
  }
};

// clang-format off
#include "kernels/int_ops.h"  // NOLINT(bugprone-suspicious-include)
// clang-format on

void half_to_f32(const uint16_t* in, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, _mm256_cvtph_ps(F16::load128(in + i)));
  for (; i < n; ++i) out[i] = _cvtsh_ss(in[i]);
}

void f32_to_half(const float* in, int64_t n, uint16_t* out) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), nearest));
  }
  for (; i < n; ++i) out[i] = _cvtss_sh(in[i], nearest);
}

void quantize(const float* x, int64_t chunks, int8_t* q, float* d, float* s) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  for (int64_t c = 0; c < chunks; ++c, x += kChunk, q += kChunk) {
    __m256 v[4], top8 = _mm256_setzero_ps();
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(x + 8 * i);
      top8 = _mm256_max_ps(top8, _mm256_and_ps(v[i], magnitude));
    }
    float top = 0;
    for (int i = 0; i < 8; ++i) top = top8[i] > top ? top8[i] : top;
    const float step = top / 127.0f, inverse = top > 0 ? 127.0f / top : 0.0f;
    __m256i w[4];
    for (int i = 0; i < 4; ++i) w[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], _mm256_set1_ps(inverse)));
    for (int i = 0; i < 2; ++i) {
      const __m256i sum = _mm256_add_epi32(w[2 * i], w[2 * i + 1]);
      const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
      const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
      s[2 * c + i] = step * static_cast<float>(_mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1))));
    }
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // undoes the lanes of the two packs
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(w[0], w[1]), _mm256_packs_epi32(w[2], w[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm256_permutevar8x32_epi32(bytes, order));
    d[c] = step;
  }
}

#include "kernels/common_ops.h"  // NOLINT(bugprone-suspicious-include)

}  // namespace

const Ops& ops_avx2() {
  static const Ops table = common_ops();
  return table;
}

}  // namespace pith
