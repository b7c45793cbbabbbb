// Attention of some queries over the keys and values of one KV head, a tile of tokens at a time, with the softmax kept
// as a running maximum and sum: memory does not grow with the context.
#pragma once

#include <cstdint>

#include "kernels/kv_rows.h"
#include "kernels/ops.h"

namespace pith {

/// Queries of one KV head: `count` rows of `dim` floats, already scaled. Row i has position[i]. Values may be of
/// another width than queries and keys.
struct AttentionQueries {
  const float* q = nullptr;
  const int32_t* position = nullptr;
  int64_t count = 0, dim = 0, value_dim = 0;
  float softcap = 0;               ///< 0 = off
  int64_t window = 0;              ///< a query sees keys at most window - 1 positions back; 0 = all
  const uint16_t* bf16 = nullptr;  ///< the queries once more, rows up to a multiple of 16; null: products in fp32
};

/// True when attention_tile can use bf16 tiles for these queries.
bool attention_takes_bf16(const Ops& ops, int64_t count, int64_t dim, int64_t value_dim);

/// Running result: out[count up to 16s][value_dim] is not yet divided by sum[count]; top[count] is the largest score so
/// far. log-sum-exp of row i is top[i] + log(sum[i]).
struct AttentionState {
  float* out = nullptr;
  float* top = nullptr;
  float* sum = nullptr;
};

void attention_begin(const AttentionQueries& queries, AttentionState state);

/// Adds `count` (<= kAttentionTile) tokens: keys and values as fp32 rows of dim and value_dim, positions ascending. A
/// query sees a key when the key's position is not greater than its own. Any widths work; multiples of 16 are fast.
/// `scratch` holds attention_scratch(queries.count, dim) floats; afterwards it begins with [count][kAttentionTile]
/// numbers exp(score - top of the row), 0 where a key is not seen. `bias`: added to the scores of each token; null:
/// none.
inline constexpr int64_t kAttentionTile = 64;
int64_t attention_scratch(int64_t queries, int64_t dim);
void attention_tile(const Ops& ops, const AttentionQueries& queries, const float* keys, const float* values,
                    const int32_t* positions, int64_t count, float* scratch, AttentionState state,
                    const float* bias = nullptr);

/// The same for tokens [i0, i0 + count) of coded rows. `tile` has room for kAttentionTile rows of dim and value_dim.
void attention_tile_coded(const Ops& ops, const KvRowOps& rows, const AttentionQueries& queries, const KvRows& keys,
                          const KvRows& values, int64_t i0, const int32_t* positions, int64_t count, float* scratch,
                          float* tile, AttentionState state, const float* bias = nullptr);

/// Adds what the same queries found in `from`, over other tokens.
void attention_merge(const Ops& ops, const AttentionQueries& queries, AttentionState from, AttentionState into);

/// Divides by the sums. Rows that saw no key become zero.
void attention_end(const Ops& ops, const AttentionQueries& queries, AttentionState state);

}  // namespace pith
