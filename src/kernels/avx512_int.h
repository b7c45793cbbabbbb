// 512-bit primitives of int_ops.h. Included inside a namespace, by ops_avx512.cpp and ops_amx.cpp.

struct F16 {
  __m512 v;
  static F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static F16 splat(float f) { return {_mm512_set1_ps(f)}; }
  static F16 half(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static F16 bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
  }
  static F16 splat_half(uint16_t h) { return {_mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(h)))}; }
  static F16 from_i8(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  static F16 from_u8(const uint8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
};
inline F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F16 smaller(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }

struct I16 {
  __m512i v;
  static I16 zero() { return {_mm512_setzero_si512()}; }
  static I16 u16(const uint16_t* p) {
    return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static I16 u8(const uint8_t* p) {
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  template <int Bits>
  I16 above() const {
    return {_mm512_srli_epi32(v, Bits)};
  }
  /// The lowest bits as a signed number.
  template <int Bits>
  I16 below() const {
    return {_mm512_srai_epi32(_mm512_slli_epi32(v, 32 - Bits), 32 - Bits)};
  }
  F16 floats() const { return {_mm512_cvtepi32_ps(v)}; }
  F16 gather(const float* p) const { return {_mm512_i32gather_ps(v, p, 4)}; }
  F16 zero_selects(F16 a, F16 otherwise) const {
    return {_mm512_mask_mov_ps(otherwise.v, _mm512_testn_epi32_mask(v, v), a.v)};
  }
};
inline I16 operator+(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }

template <bool Table>
struct Levels {
  __m512i map{};
  explicit Levels(const uint8_t* table) {
    if (Table) map = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  }
};

template <int Bits, bool Table>
struct Quads {
  static constexpr int kBias = 0;
  __m512i u[8];

  static __m512i plane(const uint8_t* p, int i) { return _mm512_loadu_si512(p + 64 * i); }

  Quads(const uint8_t* p, const Levels<Table>& levels) {
    if constexpr (Bits == 8) {
      for (int q = 0; q < 8; ++q) u[q] = plane(p, q);
      return;
    }
    // Planes from the lowest bits up; each is shifted to its place and merged under its mask.
    if constexpr (Bits & 4) {
      const __m512i mask = _mm512_set1_epi8(15);
      for (int i = 0; i < 4; ++i) {
        const __m512i raw = plane(p, i);
        u[i] = _mm512_and_si512(raw, mask);
        u[i + 4] = _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask);
      }
    }
    constexpr int low2 = Bits & 4;
    if constexpr (Bits & 2) {
      const __m512i mask = _mm512_set1_epi8(static_cast<char>(3 << low2));
      for (int q = 0; q < 8; ++q) {
        const __m512i raw = plane(p + 64 * low2, q % 2);
        merge<low2 == 0>(u[q], shifted(raw, 2 * (q / 2) - low2), mask);
      }
    }
    constexpr int low1 = Bits & 6;
    if constexpr (Bits & 1) {
      const __m512i mask = _mm512_set1_epi8(static_cast<char>(1 << low1));
      const __m512i raw = plane(p + 64 * low1, 0);
      for (int q = 0; q < 8; ++q) merge<low1 == 0>(u[q], shifted(raw, q - low1), mask);
    }
    if constexpr (Table) {
      for (int q = 0; q < 8; ++q) u[q] = _mm512_shuffle_epi8(levels.map, u[q]);
    }
  }

  static __m512i shifted(__m512i raw, int right) {
    return right >= 0 ? _mm512_srli_epi16(raw, static_cast<unsigned>(right))
                      : _mm512_slli_epi16(raw, static_cast<unsigned>(-right));
  }
  template <bool First>
  static void merge(__m512i& into, __m512i bits, __m512i mask) {
    into = First ? _mm512_and_si512(bits, mask) : _mm512_ternarylogic_epi32(into, bits, mask, 0xf8);  // a | (b & c)
  }

  /// Sums of quads [A, B) against the chunk's 32 activations.
  template <int A, int B>
  F16 dot(const int8_t* q) const {
    __m512i s0 = _mm512_setzero_si512(), s1 = s0;
    for (int i = A; i < B; i += 2) {
      s0 = _mm512_dpbusd_epi32(s0, u[i], four(q + 4 * i));
      s1 = _mm512_dpbusd_epi32(s1, u[i + 1], four(q + 4 * i + 4));
    }
    return {_mm512_cvtepi32_ps(_mm512_add_epi32(s0, s1))};
  }
  /// dot<0, 8> of codes that are needed once.
  static F16 dot_once(const uint8_t* p, const Levels<Table>& levels, const int8_t* q) {
    return Quads(p, levels).template dot<0, 8>(q);
  }
  static __m512i four(const int8_t* q) {
    int v;
    __builtin_memcpy(&v, q, 4);
    return _mm512_set1_epi32(v);
  }

  /// The four columns of a quad as floats.
  void levels4(int q, F16* w) const {
    const __m512i byte = _mm512_set1_epi32(255);
    w[0].v = _mm512_cvtepi32_ps(_mm512_and_si512(u[q], byte));
    w[1].v = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(u[q], 8), byte));
    w[2].v = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(u[q], 16), byte));
    w[3].v = _mm512_cvtepi32_ps(_mm512_srli_epi32(u[q], 24));
  }
};

void half_to_f32(const uint16_t* in, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) F16::half(in + i).store(out + i);
  if (i < n) {
    const __mmask16 mask = static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m256i h = _mm256_maskz_loadu_epi16(mask, in + i);
    _mm512_mask_storeu_ps(out + i, mask, _mm512_cvtph_ps(h));
  }
}

void f32_to_half(const float* in, int64_t n, uint16_t* out) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 mask = n - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
    _mm256_mask_storeu_epi16(out + i, mask, _mm512_cvtps_ph(_mm512_maskz_loadu_ps(mask, in + i), nearest));
  }
}

void quantize(const float* x, int64_t chunks, int8_t* q, float* d, float* s) {
  for (int64_t c = 0; c < chunks; ++c, x += kChunk, q += kChunk) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    const float step = top / 127.0f, inverse = top > 0 ? 127.0f / top : 0.0f;
    const __m512i qa = _mm512_cvtps_epi32(_mm512_mul_ps(a, _mm512_set1_ps(inverse)));
    const __m512i qb = _mm512_cvtps_epi32(_mm512_mul_ps(b, _mm512_set1_ps(inverse)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtsepi32_epi8(qa));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16), _mm512_cvtsepi32_epi8(qb));
    d[c] = step;
    s[2 * c] = step * static_cast<float>(_mm512_reduce_add_epi32(qa));
    s[2 * c + 1] = step * static_cast<float>(_mm512_reduce_add_epi32(qb));
  }
}
