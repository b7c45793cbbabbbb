#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace pith {

static constexpr float kNone = -std::numeric_limits<float>::infinity();

static int64_t round16(int64_t n) { return (n + 15) / 16 * 16; }

// Scratch: scores [queries][64], the tile's keys as panels (bf16: half of each, then two panels of values),
// probabilities as bf16.
int64_t attention_scratch(int64_t queries, int64_t dim) {
  return round16(queries) * kAttentionTile * 3 / 2 + 2 * kAttentionTile * std::max<int64_t>(dim, 16);
}

bool attention_takes_bf16(const Ops& ops, int64_t count, int64_t dim, int64_t value_dim) {
  return ops.gemm_bf16 != nullptr && count >= 12 && dim % 32 == 0 && value_dim % 32 == 0;
}

void attention_begin(const AttentionQueries& q, AttentionState state) {
  std::fill_n(state.out, round16(q.count) * q.value_dim, 0.0f);
  std::fill_n(state.top, q.count, kNone);
  std::fill_n(state.sum, q.count, 0.0f);
}

// Keys [first, last) of the tile that query position p may see; positions ascend.
static void visible(const AttentionQueries& q, int32_t p, const int32_t* positions, int64_t count, int64_t& first,
                    int64_t& last) {
  last = positions[count - 1] <= p ? count : std::upper_bound(positions, positions + count, p) - positions;
  first = 0;
  if (q.window > 0) {
    const int64_t oldest = static_cast<int64_t>(p) - q.window + 1;
    first = std::lower_bound(positions, positions + count, oldest,
                             [](int32_t a, int64_t b) { return static_cast<int64_t>(a) < b; }) -
            positions;
  }
}

// Scores to exp(score - top), with what was summed so far brought to the new top.
static void weigh(const Ops& ops, const AttentionQueries& q, const int32_t* positions, int64_t count, float* scores,
                  AttentionState state, const float* bias) {
  for (int64_t i = 0; i < q.count; ++i) {
    float* s = scores + i * kAttentionTile;
    int64_t first = 0, last = 0;
    visible(q, q.position[i], positions, count, first, last);
    if (first >= last) {
      std::fill_n(s, kAttentionTile, 0.0f);
      continue;
    }
    if (q.softcap > 0) ops.softcap(s + first, last - first, q.softcap);
    if (bias != nullptr) ops.add(bias + first, last - first, s + first);
    const float top = std::max(state.top[i], ops.max(s + first, last - first));
    if (state.top[i] != top) {
      const float shrink = state.top[i] == kNone ? 0.0f : std::exp(state.top[i] - top);
      state.sum[i] *= shrink;
      ops.scale(state.out + i * q.value_dim, q.value_dim, shrink);
      state.top[i] = top;
    }
    state.sum[i] += ops.exp_sum(s + first, last - first, top);
    std::fill(s, s + first, 0.0f);
    std::fill(s + last, s + kAttentionTile, 0.0f);
  }
}

void attention_tile(const Ops& ops, const AttentionQueries& q, const float* keys, const float* values,
                    const int32_t* positions, int64_t count, float* scratch, AttentionState state, const float* bias) {
  const int64_t dim = q.dim, width = q.value_dim, tile = kAttentionTile;
  float* scores = scratch;
  float* panels = scores + round16(q.count) * tile;
  auto* narrow = reinterpret_cast<uint16_t*>(panels);
  auto* chances = reinterpret_cast<uint16_t*>(panels + 2 * tile * std::max<int64_t>(dim, 16));
  const bool bf16 = q.bf16 != nullptr;
  // Few queries: dot products with the rows as they are. Many: keys turned into panels, then matrix products.
  const bool few = q.count < 6;
  if (bf16) {
    // Two panels of 16 keys at a time. Keys beyond the last one give scores that nobody reads.
    for (int64_t b = 0; b < count; b += 2 * kTileRows) {
      for (int64_t h = b; h < b + 2 * kTileRows; h += kTileRows) {
        const int64_t rows = std::min(kTileRows, count - h);
        if (rows == kTileRows) {
          ops.pack_rows_bf16(keys + h * dim, dim, dim, narrow + (h - b) * dim);
        } else {
          float* wide = panels + tile * dim;
          ops.transpose16(keys + h * dim, dim, std::max<int64_t>(rows, 0), dim, wide);
          ops.pack_bf16(wide, kTileRows, dim, narrow + (h - b) * dim);
        }
      }
      ops.gemm_bf16(q.bf16, dim, round16(q.count), narrow, narrow + kTileRows * dim, dim, scores + b, tile, false);
    }
  } else if (few) {
    for (int64_t i = 0; i < q.count; ++i) {
      for (int64_t j = 0; j < count; ++j) scores[i * tile + j] = ops.dot(q.q + i * dim, keys + j * dim, dim);
    }
  } else {
    for (int64_t b = 0; b < count; b += kTileRows) {
      float* panel = panels + b * dim;
      const int64_t rows = std::min(kTileRows, count - b);
      ops.transpose16(keys + b * dim, dim, rows, dim, panel);
      ops.gemm_f32(q.q, dim, q.count, panel, kTileRows, dim, scores + b, tile, false);
    }
  }
  weigh(ops, q, positions, count, scores, state, bias);
  if (bf16) {
    const int64_t padded = (count + 31) / 32 * 32;
    for (int64_t i = 0; i < q.count; ++i) ops.f32_to_bf16(scores + i * tile, padded, chances + i * tile);
    std::fill(chances + q.count * tile, chances + round16(q.count) * tile, static_cast<uint16_t>(0));
    for (int64_t b = 0; b < width; b += 2 * kTileRows) {
      for (int64_t h = 0; h < 2; ++h) {
        uint16_t* panel = narrow + h * tile * kTileRows;
        ops.pack_bf16(values + b + h * kTileRows, width, count, panel);
        std::fill(panel + (count + 1) / 2 * 32, panel + padded * kTileRows, static_cast<uint16_t>(0));
      }
      ops.gemm_bf16(chances, tile, round16(q.count), narrow, narrow + tile * kTileRows, padded, state.out + b, width,
                    true);
    }
    return;
  }
  const int64_t whole = few ? 0 : width / kTileRows * kTileRows;
  for (int64_t b = 0; b < whole; b += kTileRows) {
    ops.gemm_f32(scores, tile, q.count, values + b, width, count, state.out + b, width, true);
  }
  if (whole == width) return;
  for (int64_t i = 0; i < q.count; ++i) {
    for (int64_t j = 0; j < count; ++j) {
      const float p = scores[i * tile + j];
      if (p != 0) ops.axpy(p, values + j * width + whole, width - whole, state.out + i * width + whole);
    }
  }
}

void attention_tile_coded(const Ops& ops, const KvRowOps& rows, const AttentionQueries& q, const KvRows& keys,
                          const KvRows& values, int64_t i0, const int32_t* positions, int64_t count, float* scratch,
                          float* tile, AttentionState state, const float* bias) {
  static_assert(kAttentionTile == kKvTile);
  if (q.count <= kKvFewQueries && !values.grid.by_channel) {
    rows.dot(keys, i0, count, q.q, q.count, scratch, kAttentionTile);
    weigh(ops, q, positions, count, scratch, state, bias);
    rows.axpy(values, i0, count, scratch, kAttentionTile, q.count, state.out);
    return;
  }
  float* wide = tile + kAttentionTile * q.dim;
  rows.decode(keys, i0, i0 + count, tile);
  rows.decode(values, i0, i0 + count, wide);
  attention_tile(ops, q, tile, wide, positions, count, scratch, state, bias);
}

void attention_merge(const Ops& ops, const AttentionQueries& q, AttentionState from, AttentionState into) {
  for (int64_t i = 0; i < q.count; ++i) {
    if (from.top[i] == kNone) continue;
    float *out = into.out + i * q.value_dim, *more = from.out + i * q.value_dim;
    const float top = std::max(from.top[i], into.top[i]);
    const float keep = into.top[i] == kNone ? 0.0f : std::exp(into.top[i] - top), add = std::exp(from.top[i] - top);
    ops.scale(out, q.value_dim, keep);
    ops.axpy(add, more, q.value_dim, out);
    into.sum[i] = into.sum[i] * keep + from.sum[i] * add;
    into.top[i] = top;
  }
}

void attention_end(const Ops& ops, const AttentionQueries& q, AttentionState state) {
  for (int64_t i = 0; i < q.count; ++i) {
    ops.scale(state.out + i * q.value_dim, q.value_dim, state.sum[i] > 0 ? 1.0f / state.sum[i] : 0.0f);
  }
}

}  // namespace pith
