// Rows of keys or values as codes of 2, 4 or 8 bits, and attention straight from the codes: few queries multiply codes
// in registers, many take a tile decoded to fp32. Nothing is ever decoded whole.
#pragma once

#include <cstdint>

#include "kernels/cpu.h"

namespace pith {

/// How rows are rounded: w = d * code + m with fp16 d and m.
struct KvGrid {
  uint8_t bits = 8;         ///< 2, 4 or 8
  bool by_channel = false;  ///< a group is `group` tokens of one channel; false: `group` channels of one token
  bool centred = true;      ///< m = -2^(bits - 1) d, which is not stored
  uint16_t group = 32;      ///< within a token a multiple of kv_unit(bits), or no less than the row
  bool operator==(const KvGrid&) const = default;
};

/// Codes come in units of 8 bytes: byte j holds codes j, j + 8, … of the unit, the first in its lowest bits. Rows are
/// padded to whole units.
constexpr int64_t kv_unit(unsigned bits) { return 64 / bits; }
constexpr int64_t kv_row_bytes(const KvGrid& g, int64_t dim) {
  return (dim + kv_unit(g.bits) - 1) / kv_unit(g.bits) * 8;
}
/// Groups within a token's row (1 when groups go along tokens).
constexpr int64_t kv_row_groups(const KvGrid& g, int64_t dim) {
  return g.by_channel ? 1 : (dim + g.group - 1) / g.group;
}
/// fp16 numbers of `d` (and as many of `m`, unless centred) for n tokens.
constexpr int64_t kv_scales(const KvGrid& g, int64_t n, int64_t dim) {
  return g.by_channel ? (n + g.group - 1) / g.group * dim : n * kv_row_groups(g, dim);
}
/// Heads wider than this are not supported.
inline constexpr int64_t kKvMaxDim = 512;
/// Bits, group and width that the kernels can handle.
bool kv_grid_fits(const KvGrid& grid, int64_t dim);

/// Rows in coded form. d is [tokens][groups], or [tokens / group][dim] along channels; the last group of tokens may be
/// short. m is laid out like d; null when centred.
struct KvRows {
  KvGrid grid;
  int64_t dim = 0;
  const uint8_t* codes = nullptr;
  const uint16_t* d = nullptr;
  const uint16_t* m = nullptr;
};

/// Rounds n rows of dim floats. Along channels the first row begins a group. `m` is not written when centred.
void kv_encode(const KvGrid& grid, const float* rows, int64_t n, int64_t dim, uint8_t* codes, uint16_t* d, uint16_t* m);

/// At most this many queries are multiplied with codes; more are faster with decoded tiles.
inline constexpr int64_t kKvFewQueries = 5;
inline constexpr int64_t kKvTile = 64;

struct KvRowOps {
  /// out[i1 - i0][dim].
  void (*decode)(const KvRows& rows, int64_t i0, int64_t i1, float* out);
  /// scores[i * stride + j] = q[i] . row[i0 + j] for j < count <= kKvTile, i < queries <= kKvFewQueries.
  void (*dot)(const KvRows& rows, int64_t i0, int64_t count, const float* q, int64_t queries, float* scores,
              int64_t stride);
  /// out[i][dim] += sum over j of p[i * stride + j] * row[i0 + j]; groups within tokens only.
  void (*axpy)(const KvRows& rows, int64_t i0, int64_t count, const float* p, int64_t stride, int64_t queries,
               float* out);
};

/// The loops for an instruction set (those of avx2 serve the later ones).
const KvRowOps& kv_row_ops(Isa isa);
const KvRowOps& kv_row_ops_scalar();
const KvRowOps& kv_row_ops_avx2();

/// Multiplies each block of a row by an orthonormal Hadamard matrix, its own inverse. A block is the largest power of
/// two that divides dim: all of a row of 64 or 128. Spreads outliers over the channels before rounding.
void hadamard_rows(float* rows, int64_t n, int64_t dim);

}  // namespace pith
