// Additive codes of a matrix under the layer's inputs (Babenko and Lempitsky 2014; AQLM: Egiazarian et al. 2024, arXiv
// 2401.06118). With groups of `width` columns of one row, M books and a scale for each row,
//
//   w[r, group] ~ s_r sum_m C_m[code_m(r, group)],   loss = sum_r (w_r - q_r) H (w_r - q_r)^T
//
// The loss is a square in each part alone, so each part has a step of its own, and no step raises the loss.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace pith {

struct AdditiveCode {
  int64_t rows = 0, groups = 0, width = 0;
  Tensor books;   ///< [M, entries, width] fp32, rounded to fp16
  Tensor scales;  ///< [rows] fp32, rounded to fp16 if `half_scales`
  bool half_scales = true;
  std::vector<int32_t> codes;  ///< [rows, groups, M]

  int64_t books_count() const { return books.size(0); }
  int64_t entries() const { return books.size(1); }
  /// [rows, groups * width] fp32.
  Tensor decode() const;
};

/// What a code is fitted to: both padded to whole groups with zeros.
struct AdditiveTarget {
  Tensor weight;  ///< [rows, groups * width] fp32
  Tensor h;       ///< [groups * width]^2 fp32, symmetric, positive semi-definite

  double loss(const AdditiveCode& code) const;
};

/// Rows divided by their root mean square; book after book by k-means on what the books before it leave.
AdditiveCode residual_kmeans(const AdditiveTarget& target, int64_t width, int64_t books, int64_t entries,
                             int64_t rounds, uint64_t seed, const std::string& what);

/// The books that minimise the loss for these codes and scales, by `steps` conjugate gradients. True when the loss
/// fell; otherwise (rounding to fp16) nothing changes.
bool fit_books(const AdditiveTarget& target, AdditiveCode& code, int64_t steps);
/// The scale of each row that minimises its loss; rows that rounding would make worse keep theirs.
void fit_scales(const AdditiveTarget& target, AdditiveCode& code);
/// One pass over all groups in an order drawn by `seed`: for each row, book after book, all entries in place of the
/// present one; the `beam` best combinations of a group go on to its next book. beam = entries^(M-1) tries all.
void search_codes(const AdditiveTarget& target, AdditiveCode& code, int64_t beam, uint64_t seed);

}  // namespace pith
