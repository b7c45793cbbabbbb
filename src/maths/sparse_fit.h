// Choosing which weights stay, and storing what stays.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <string_view>
#include <vector>

#include "represent/node.h"
#include "tensor/tensor.h"

namespace pith {

/// "2:4": n of every m columns stay. n = 0: no pattern ("none").
struct SparsityPattern {
  int n = 0, m = 0;
};
/// Refuses what is not N:M with 1 <= N <= M <= 16.
Result<SparsityPattern> parse_pattern(std::string_view text);

/// Sets mask[i] = 1 for the `keep` largest of n scores, 0 for the others; of equal scores the first ones stay.
void keep_largest(const float* scores, int64_t n, int64_t keep, uint8_t* mask);

/// keep_largest in every group of m scores of every row; cols must be a multiple of m.
void keep_by_pattern(const float* scores, int64_t rows, int64_t cols, SparsityPattern pattern, uint8_t* mask);

/// fp16, or fp32 when the largest or the typical |value| lies outside fp16's good range.
DType value_type(float largest);

/// What the mask keeps of `weight` [rows, cols] (fp32): NMask of dense values with a pattern, Bitmap without.
NodePtr masked_node(const Tensor& weight, const std::vector<uint8_t>& mask, SparsityPattern pattern);

/// NMask whose values are a ready node [rows, cols / m * n].
NodePtr pattern_node(int64_t rows, int64_t cols, const std::vector<uint8_t>& mask, SparsityPattern pattern,
                     NodePtr values);

/// How many of `total` weights stay at a share of zeros (`sparsity` in [0, 1]).
int64_t kept_count(int64_t total, double sparsity);

}  // namespace pith
