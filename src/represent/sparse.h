// Matrices with few non-zeros: by row lists, by N:M patterns, by a bit mask.
#pragma once

#include "represent/arrays.h"
#include "represent/codes.h"
#include "represent/node.h"

namespace pith {

/// Compressed sparse rows. Stored: entries a row (narrowest of u8, u16, u32), columns (narrowest type), values (f16,
/// bf16 or f32). Columns rise strictly inside a row.
class Csr final : public Node {
 public:
  /// `counts` has one number a row; `columns` and `values` one for each entry, row by row.
  static Result<NodePtr> make(int64_t rows, int64_t cols, IndexArray counts, IndexArray columns, FloatArray values);
  /// The same from plain arrays: `row_start` has rows + 1 numbers, values are rounded to `type`.
  static Result<NodePtr> from(int64_t rows, int64_t cols, std::span<const uint32_t> row_start,
                              std::span<const uint32_t> columns, std::span<const float> values,
                              DType type = DType::f16);
  static Result<NodePtr> parse(const nlohmann::json& j, const ParseContext& context, uint32_t depth);

  int64_t entries() const { return values_.size(); }
  /// rows + 1 positions in columns() and values().
  std::span<const uint32_t> row_start() const { return row_start_; }
  const IndexArray& columns() const { return columns_; }
  const FloatArray& values() const { return values_; }
  /// Puts the entries of rows [r0, r1) over `out`, row-major; what it does not hold stays as it is.
  void write_over(int64_t r0, int64_t r1, float* out) const;

  std::string_view kind() const override { return "csr"; }
  void decode_rows(int64_t r0, int64_t r1, float* out) const override;
  BitReport bits() const override;
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  Csr(int64_t rows, int64_t cols, IndexArray counts, IndexArray columns, FloatArray values,
      std::vector<uint32_t> row_start);
  IndexArray counts_, columns_;
  FloatArray values_;
  std::vector<uint32_t> row_start_;
};

/// N of every M columns may be non-zero. Which ones is a pattern number, the rank of the chosen set of columns in
/// lexicographic order: 2:4 has 6 patterns, 3 bits. The values are a node [rows, cols / M * N] of any kind.
class NMask final : public Node {
 public:
  /// 1 <= n <= m <= 16, cols a multiple of m. `patterns` is [rows, cols / m], each in [0, C(m, n)).
  static Result<NodePtr> make(int n, int m, CodesPtr patterns, NodePtr values);
  static Result<NodePtr> parse(const nlohmann::json& j, const ParseContext& context, uint32_t depth);

  int n() const { return n_; }
  int m() const { return m_; }
  const CodesPtr& patterns() const { return patterns_; }
  const NodePtr& values() const { return values_; }
  /// Columns (0 … m-1) of each pattern: n numbers a pattern.
  std::span<const uint8_t> positions() const { return positions_; }

  std::string_view kind() const override { return "nmask"; }
  void decode_rows(int64_t r0, int64_t r1, float* out) const override;
  BitReport bits() const override;
  std::vector<NodePtr> children() const override { return {values_}; }
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  NMask(int n, int m, CodesPtr patterns, NodePtr values);
  int n_, m_;
  CodesPtr patterns_;
  NodePtr values_;
  std::vector<uint8_t> positions_;
};

/// All patterns of n out of m columns in lexicographic order, n numbers each: (0,1) (0,2) … for 2:4.
std::vector<uint8_t> nm_patterns(int n, int m);
/// Bits that a pattern number of n:m takes.
unsigned nm_pattern_bits(int n, int m);

/// A bit for each column that says whether a value is stored, and the values (f16, bf16 or f32) in row order.
class Bitmap final : public Node {
 public:
  /// `mask`: ceil(cols / 8) bytes a row, least significant bit first, unused bits zero.
  static Result<NodePtr> make(int64_t rows, int64_t cols, Bytes mask, FloatArray values);
  /// Stores what is not zero in a matrix of fp32 values, rounded to `type`.
  static Result<NodePtr> from(int64_t rows, int64_t cols, std::span<const float> matrix, DType type = DType::f16);
  static Result<NodePtr> parse(const nlohmann::json& j, const ParseContext& context, uint32_t depth);

  int64_t entries() const { return values_.size(); }
  int64_t mask_row_bytes() const { return (cols_ + 7) / 8; }
  const std::byte* mask_row(int64_t r) const { return mask_.data() + r * mask_row_bytes(); }
  /// rows + 1 positions in values().
  std::span<const uint32_t> row_start() const { return row_start_; }
  const FloatArray& values() const { return values_; }

  std::string_view kind() const override { return "bitmap"; }
  void decode_rows(int64_t r0, int64_t r1, float* out) const override;
  BitReport bits() const override;
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  Bitmap(int64_t rows, int64_t cols, Bytes mask, FloatArray values, std::vector<uint32_t> row_start);
  Bytes mask_;
  FloatArray values_;
  std::vector<uint32_t> row_start_;
};

}  // namespace pith
