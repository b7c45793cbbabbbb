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

#include "formats/dtype.h"
#include "represent/node.h"
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

/// The root mean square of each row, as it is stored.
struct RowScales {
  Tensor values;     ///< [rows] fp32
  bool half = true;  ///< rounded to fp16; false where that is too narrow
  /// Rows divided by them; rows of zeros stay.
  Tensor divide(const Tensor& weight) const;
};
RowScales row_scales(const Tensor& weight);

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

/// For each row of x, [n, width], one entry of each book, [M, entries, width], whose sum is near it in squared
/// distance: book after book anew, the `beam` best combinations kept. `codes`, [n, M] int64, is where it begins, and
/// stays where nothing nearer is found. One book: the nearest entry.
Tensor nearest_codes(const Tensor& x, const Tensor& books, const Tensor& codes, int64_t beam);

/// What a codebook is made of, all on the CPU. Undefined: there is none.
struct CodebookParts {
  int64_t cols = 0, length = 0;
  Tensor codes = {};   ///< [rows, groups * M], whole numbers from 0 of any type
  Tensor books = {};   ///< [M, entries, width]
  Tensor basis = {};   ///< [width, length]
  Tensor scales = {};  ///< [rows]
  DType books_type = DType::f16, basis_type = DType::f16, scales_type = DType::f16;
};
/// Scaled by rows(Codebook), or the Codebook alone; codes in the fewest bits that hold any entry.
NodePtr codebook_node(const CodebookParts& parts);

}  // namespace pith
