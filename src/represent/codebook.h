// Vectors out of codebooks: each group of `length` neighbouring columns is a sum of one entry of each book.
#pragma once

#include "represent/arrays.h"
#include "represent/codes.h"
#include "represent/node.h"

namespace pith {

/// w[r, g * length + i] = sum_m book_m[codes[r, g * M + m] - first_code, i], or (book_m[...] * basis)[i] with a basis.
/// Columns beyond the last whole group use the first values of the last entry. Scales are Scaled's business.
class Codebook final : public Node {
 public:
  /// `codes` is [rows, M * ceil(cols / length)], the M codes of a group side by side. Code `first_code() + e` is entry
  /// e: codes count from 0, or from -32768 when there are more than 32768 entries (codes are signed 16-bit numbers).
  /// `books` is [M, entries, width]; width = length without a basis, else `basis` is [width, length].
  static Result<NodePtr> make(int64_t cols, int64_t books_count, int64_t entries, int64_t length, CodesPtr codes,
                              FloatArray books, FloatArray basis = {});
  static Result<NodePtr> parse(const nlohmann::json& j, const ParseContext& context, uint32_t depth);

  int64_t books_count() const { return books_count_; }
  int64_t entries() const { return entries_; }
  int64_t length() const { return length_; }
  int first_code() const { return first_code(entries_); }
  static int first_code(int64_t entries) { return entries > 32768 ? -32768 : 0; }
  int64_t groups() const { return groups_; }
  const CodesPtr& codes() const { return codes_; }
  const FloatArray& books() const { return books_; }
  const FloatArray& basis() const { return basis_; }
  /// All entries as fp32 with the basis multiplied in: [M, entries, length].
  std::span<const float> table() const { return table_; }

  std::string_view kind() const override { return "codebook"; }
  void decode_rows(int64_t r0, int64_t r1, float* out) const override;
  BitReport bits() const override;
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  Codebook(int64_t rows, int64_t cols, int64_t books_count, int64_t entries, int64_t length, CodesPtr codes,
           FloatArray books, FloatArray basis);
  int64_t books_count_, entries_, length_, groups_;
  CodesPtr codes_;
  FloatArray books_, basis_;
  std::vector<float> table_;
};

}  // namespace pith
