// The hot loops, one table of function pointers for each instruction set. Raw pointers, no allocation, no checks: the
// callers in this folder hold the preconditions. Every table gives the results of the scalar one up to rounding.
#pragma once

#include <cstdint>

#include "kernels/cpu.h"

namespace pith {

/// Rows are handled in tiles of 16: one row a lane of a 512-bit register, or of two 256-bit ones.
inline constexpr int64_t kTileRows = 16;
/// Columns of integer codes come in chunks of 32, the group in which activations are rounded to 8 bits.
inline constexpr int64_t kChunk = 32;

/// How the scales of integer codes are stored; a tile has 16 of each per group of columns.
enum class ScaleKind : uint8_t {
  row,        ///< one fp32 scale a row
  f32,        ///< fp32 [groups][16]
  f16,        ///< fp16 [groups][16]
  block,      ///< int8 [groups][16] times fp16 [supers][16]
  two_level,  ///< uint8 codes [groups][16], and fp16 scale2, zero2 a group: scale2 * (code - zero2)
};
/// The second number of a group.
enum class MinKind : uint8_t {
  none,
  add,   ///< w = d * u + m
  zero,  ///< w = d * (u - z)
};

/// One tile of 16 rows of integer codes u >= 0 of `bits` bits: w = d * (level(u) - zero) + m.
/// A chunk (32 columns) takes bits * 64 bytes: bit planes of 8, 4, 2 or 1 bits, the plane of the lowest bits first
/// (5 = 4 + 1, 3 = 2 + 1, …). Seen as 16 lanes of 4 bytes, byte j of lane r of the unpacked quad q is the code of row
/// r, column 4 q + j; a plane of p bits holds quad q at register q % p, shifted left by p * (q / p) in each byte.
struct IntTile {
  const uint8_t* codes = nullptr;
  int64_t chunks = 0;
  unsigned bits = 0;
  const uint8_t* widths = nullptr;  ///< instead of `bits`: of each chunk, 0 to 8; zero = 2^(bits - 1), ScaleKind::row
  int zero = 0;                     ///< subtracted from each level
  const uint8_t* table = nullptr;   ///< 16 levels for 4-bit codes; null: level(u) = u
  ScaleKind scale = ScaleKind::row;
  MinKind min = MinKind::none;
  int64_t group_halves = 0;           ///< columns of a group / 16: 1 or even
  int64_t groups_per_super = 1;       ///< ScaleKind::block
  const float* row_scale = nullptr;   ///< row
  const float* d32 = nullptr;         ///< f32: scales
  const float* m32 = nullptr;         ///< f32: the second number
  const uint16_t* d = nullptr;        ///< f16: scales; block: super scales
  const uint16_t* m = nullptr;        ///< f16: the second number; block: super minimum
  const int8_t* d_code = nullptr;     ///< block; as uint8: two_level
  const uint8_t* m_code = nullptr;    ///< block, two_level
  const uint16_t* d_stats = nullptr;  ///< two_level: [groups][2] scale2, zero2
  const uint16_t* m_stats = nullptr;
};

/// use(run, c) for each run of chunks of one width of a tile with `widths`: a tile of these chunks, which begin at
/// chunk c. Chunks without bits are left out: their weights are 0.
template <class Use>
void each_run(const IntTile& tile, Use use) {
  IntTile run = tile;
  run.widths = nullptr;
  for (int64_t c = 0, end = 0; c < tile.chunks; c = end) {
    run.bits = tile.widths[c];
    for (end = c + 1; end < tile.chunks && tile.widths[end] == run.bits;) ++end;
    if (run.bits == 0) continue;
    run.chunks = end - c;
    run.zero = 1 << (run.bits - 1);
    use(run, c);
    run.codes += run.chunks * run.bits * 64;
  }
}

/// Corrections of the codes of a tile in steps of 16, one for each row: entry r of a step is row r's next one, 8 bits:
/// how many columns after the one before it is (6 bits; the first counts from column 0), then what is added to the code
/// there (2 bits, signed). Gap 0 after an entry adds to the same code, in units 4 times as large; gap 63 with nothing
/// to add leads on; rows with fewer corrections than others end in zeros.
struct CorrectionList {
  static constexpr int kBits = 2, kValues = 1 << kBits, kMaxGap = (1 << (8 - kBits)) - 1;
  static constexpr float kMaxUnit = 1 << 16;  ///< no code needs larger ones, and zeros at the end must not overflow
  const uint8_t* entries = nullptr;           ///< [steps][16]
  int64_t steps = 0;
};
/// use(row of the tile, column, what is added to the code there) for all of them.
template <class Use>
void each_correction(const CorrectionList& list, Use use) {
  constexpr int kBits = CorrectionList::kBits;
  for (int64_t r = 0; r < kTileRows; ++r) {
    int64_t column = 0;
    float unit = 1.0f / CorrectionList::kValues;
    for (int64_t k = 0; k < list.steps; ++k) {
      const uint8_t entry = list.entries[k * kTileRows + r];
      const int gap = entry >> kBits, by = static_cast<int8_t>(entry << (8 - kBits)) >> (8 - kBits);
      const float next = unit * CorrectionList::kValues;
      unit = gap != 0 ? 1.0f : next < CorrectionList::kMaxUnit ? next : CorrectionList::kMaxUnit;
      column += gap;
      if (by != 0) use(r, column, static_cast<float>(by) * unit);
    }
  }
}

/// Activations rounded to 8 bits: x = q * d, one d for each token and chunk.
struct IntInput {
  const int8_t* q = nullptr;  ///< [n][chunks * 32], in [-127, 127]
  const float* d = nullptr;   ///< [n][chunks]
  const float* s = nullptr;   ///< [n][chunks * 2]: d * sum of q over 16 columns
};

struct Ops {
  /// c[m][16] (+)= a[m][k] * panel[k][16]; strides in elements.
  void (*gemm_f32)(const float* a, int64_t lda, int64_t m, const float* panel, int64_t panel_stride, int64_t k,
                   float* c, int64_t ldc, bool add);
  /// The same with an fp16 panel and one row: y[16] = x[k] * panel[k][16].
  void (*dot_f16)(const float* x, const uint16_t* panel, int64_t k, float* y);
  void (*dot_bf16)(const float* x, const uint16_t* panel, int64_t k, float* y);
  /// panel[cols][16] of `rows` <= 16 rows of floats; missing rows become zero.
  void (*transpose16)(const float* in, int64_t stride, int64_t rows, int64_t cols, float* panel);
  void (*half_to_f32)(const uint16_t* in, int64_t n, float* out);
  void (*f32_to_half)(const float* in, int64_t n, uint16_t* out);
  /// x[32 * chunks] to q, d, s as in IntInput.
  void (*quantize)(const float* x, int64_t chunks, int8_t* q, float* d, float* s);
  /// y[n][16] of a tile of codes; row t at y + t * ldy.
  void (*dot_int)(const IntTile& tile, const IntInput& x, int64_t n, float* y, int64_t ldy);
  /// y[16] = the corrections times x [cols].
  void (*dot_corrections)(const CorrectionList& list, const float* x, float* y);
  /// out[i] = x[order[i]], times table[index[i]] unless `index` is null.
  void (*reorder)(const float* x, const uint16_t* order, const uint8_t* index, const float* table, int64_t n,
                  float* out);
  /// The tile's weights as panel[chunks * 32][16].
  void (*decode_int)(const IntTile& tile, float* panel);
  /// x *= gain / rms(x), out of place: out[n] = x * gain * rsqrt(mean(x^2) + eps).
  void (*rms_norm)(const float* x, const float* gain, int64_t n, float eps, float* out);
  /// y += x.
  void (*add)(const float* x, int64_t n, float* y);
  /// gate = act(gate) * up.
  void (*silu_mul)(float* gate, const float* up, int64_t n);
  void (*gelu_mul)(float* gate, const float* up, int64_t n);
  /// x = cap * tanh(x / cap).
  void (*softcap)(float* x, int64_t n, float cap);
  /// Rotate-half rotary embedding of one head: pairs (i, i + dim/2).
  void (*rope)(float* x, const float* cosines, const float* sines, int64_t half);
  /// x = exp(x - max), returns the sum.
  float (*exp_sum)(float* x, int64_t n, float max);
  float (*max)(const float* x, int64_t n);
  void (*scale)(float* x, int64_t n, float by);
  float (*dot)(const float* a, const float* b, int64_t n);
  /// y += a * x.
  void (*axpy)(float a, const float* x, int64_t n, float* y);

  // ---- bf16 matrix products; null where the instruction set has none
  // -------------------------------------------------
  /// out[k / 2][16][2] bf16 from the tile's weights: pairs of columns side by side.
  void (*decode_int_bf16)(const IntTile& tile, uint16_t* panel);
  /// The same from a panel[k][16] of fp32 whose rows are `stride` apart.
  void (*pack_bf16)(const float* panel, int64_t stride, int64_t k, uint16_t* out);
  /// The same from 16 rows of k floats (k a multiple of 32), `stride` apart: out is their transpose in pairs.
  void (*pack_rows_bf16)(const float* rows, int64_t stride, int64_t k, uint16_t* out);
  void (*f32_to_bf16)(const float* in, int64_t n, uint16_t* out);
  /// c[m][32] = a[m][k] * (panel0 | panel1)[k][32]; m a multiple of 16, k of 32. Rows of a are lda apart.
  void (*gemm_bf16)(const uint16_t* a, int64_t lda, int64_t m, const uint16_t* panel0, const uint16_t* panel1,
                    int64_t k, float* c, int64_t ldc, bool add);
};

/// The table of an instruction set that is in available_isas().
const Ops& ops(Isa isa);

const Ops& ops_scalar();
const Ops& ops_avx2();
const Ops& ops_avx512();
const Ops& ops_amx();

}  // namespace pith
