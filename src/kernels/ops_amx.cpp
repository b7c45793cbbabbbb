// AMX: products of many tokens in bf16 tiles; everything else is AVX-512, compiled again here so that no function is
// shared between instruction sets.
#include <immintrin.h>

// GCC 12 takes the undefined operands inside its own intrinsics for ours.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#include "kernels/ops.h"

namespace pith {
namespace {

#define PITH_LANES 16
#include "kernels/vector_ops.h"  // NOLINT(bugprone-suspicious-include)
// clang-format off
#include "kernels/avx512_int.h"  // NOLINT(bugprone-suspicious-include)
#include "kernels/int_ops.h"     // NOLINT(bugprone-suspicious-include)
// clang-format on

// bf16 of two columns side by side in each row's lane: low half the first column.
inline __m512i bf16_pairs(__m512 first, __m512 second) {
  const __m256i a = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(first));
  const __m256i b = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(second));
  return _mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
}

void decode_int_bf16(const IntTile& t, uint16_t* panel) {
  by_bits(t, [&]<int Bits, bool Table>() {
    decode_tile<Bits, Table>(t, [&](int64_t column, const F16* w) {
      _mm512_storeu_si512(panel + column * kTileRows, bf16_pairs(w[0].v, w[1].v));
      _mm512_storeu_si512(panel + (column + 2) * kTileRows, bf16_pairs(w[2].v, w[3].v));
    });
  });
}

void pack_bf16(const float* panel, int64_t stride, int64_t k, uint16_t* out) {
  for (int64_t j = 0; j < k; j += 2) {
    const __m512 first = _mm512_loadu_ps(panel + j * stride);
    const __m512 second = j + 1 < k ? _mm512_loadu_ps(panel + (j + 1) * stride) : _mm512_setzero_ps();
    _mm512_storeu_si512(out + j * kTileRows, bf16_pairs(first, second));
  }
}

void pack_rows_bf16(const float* rows, int64_t stride, int64_t k, uint16_t* out) {
  for (int64_t j = 0; j < k; j += 32) {
    __m512i a[16], b[16];
    for (int r = 0; r < 16; ++r) {  // 32 bf16 of a row are 16 pairs; then the pairs are transposed
      const float* p = rows + r * stride + j;
      a[r] = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(p + 16), _mm512_loadu_ps(p)));
    }
    for (int r = 0; r < 16; r += 2) {
      b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
      b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
    }
    for (int r = 0; r < 16; r += 4) {
      a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
      a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
      a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
      a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
    }
    // a[4 g + c] holds column c of each 128-bit lane of rows 4 g … 4 g + 3.
    for (int c = 0; c < 4; ++c) {
      const __m512i low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88), high = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
      const __m512i low2 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
      const __m512i high2 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
      uint16_t* at = out + (j / 2 + c) * 32;
      _mm512_storeu_si512(at, _mm512_shuffle_i32x4(low, low2, 0x88));
      _mm512_storeu_si512(at + 4 * 32, _mm512_shuffle_i32x4(high, high2, 0x88));
      _mm512_storeu_si512(at + 8 * 32, _mm512_shuffle_i32x4(low, low2, 0xdd));
      _mm512_storeu_si512(at + 12 * 32, _mm512_shuffle_i32x4(high, high2, 0xdd));
    }
  }
}

void f32_to_bf16(const float* in, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 mask = n - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m256i h = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, in + i)));
    _mm256_mask_storeu_epi16(out + i, mask, h);
  }
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// GCC 12's intrinsic claims to read 8 bytes of the configuration only and loses the rest of it; so by hand.
inline void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }

// Tiles 0-3: sums of 16 tokens x 16 rows; 4, 5: tokens; 6, 7: weights. Strides in bytes.
inline void block_2x2(const uint16_t* a0, const uint16_t* a1, int64_t lda, const uint16_t* b0, const uint16_t* b1,
                      int64_t k, float* c, int64_t ldc, bool two_rows, bool add) {
  float* low = c + 16 * ldc;
  if (add) {
    _tile_loadd(0, c, ldc * 4);
    _tile_loadd(1, c + 16, ldc * 4);
    if (two_rows) {
      _tile_loadd(2, low, ldc * 4);
      _tile_loadd(3, low + 16, ldc * 4);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  if (two_rows) {
    for (int64_t j = 0; j < k; j += 32) {
      _tile_loadd(6, b0 + j * 16, 64);
      _tile_loadd(4, a0 + j, lda * 2);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b1 + j * 16, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, a1 + j, lda * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(2, low, ldc * 4);
    _tile_stored(3, low + 16, ldc * 4);
  } else {
    for (int64_t j = 0; j < k; j += 32) {
      _tile_loadd(6, b0 + j * 16, 64);
      _tile_loadd(7, b1 + j * 16, 64);
      _tile_loadd(4, a0 + j, lda * 2);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
  }
  _tile_stored(0, c, ldc * 4);
  _tile_stored(1, c + 16, ldc * 4);
}

void gemm_bf16(const uint16_t* a, int64_t lda, int64_t m, const uint16_t* panel0, const uint16_t* panel1, int64_t k,
               float* c, int64_t ldc, bool add) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = 16;
  configure(config);
  for (int64_t i = 0; i < m; i += 32) {
    block_2x2(a + i * lda, a + (i + 16) * lda, lda, panel0, panel1, k, c + i * ldc, ldc, i + 16 < m, add);
  }
  _tile_release();
}

#include "kernels/common_ops.h"  // NOLINT(bugprone-suspicious-include)

}  // namespace

const Ops& ops_amx() {
  static const Ops table = [] {
    Ops ops = common_ops();
    ops.decode_int_bf16 = decode_int_bf16;
    ops.pack_bf16 = pack_bf16;
    ops.pack_rows_bf16 = pack_rows_bf16;
    ops.f32_to_bf16 = f32_to_bf16;
    ops.gemm_bf16 = gemm_bf16;
    return ops;
  }();
  return table;
}

}  // namespace pith
