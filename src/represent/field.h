// A field gives each element of a grid its scale or zero: one number for each row and group of columns, stored in
// one of a few compact ways.
#pragma once

#include <array>

#include "represent/arrays.h"
#include "represent/codes.h"
#include "represent/node.h"

namespace pith {

class Field;
using FieldPtr = std::shared_ptr<const Field>;

/// A matrix [rows, groups] of finite numbers for a grid [rows, cols]; column c belongs to group c / group().
class Field {
 public:
  virtual ~Field() = default;
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  /// Columns that share a number; cols() means one number a row, 1 means one a column.
  int64_t group() const { return group_; }
  int64_t groups() const { return groups_; }

  virtual std::string_view kind() const = 0;
  /// The groups() numbers of row r.
  virtual void row(int64_t r, float* out) const = 0;
  virtual BitReport bits() const = 0;
  virtual nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const = 0;
  /// "fp16 g32", for describe().
  virtual std::string describe() const = 0;

 protected:
  Field(int64_t rows, int64_t cols, int64_t group);
  int64_t rows_, cols_, group_, groups_;
};

/// One number for each row and group, stored as f16, bf16 or f32; or one row of numbers that all rows share.
class AffineField final : public Field {
 public:
  /// `values` is [rows, groups] or, with `shared_rows`, [1, groups].
  static Result<FieldPtr> make(int64_t rows, int64_t cols, int64_t group, FloatArray values, bool shared_rows = false);
  /// The same from fp32 numbers, rounded to `type`.
  static Result<FieldPtr> from(int64_t rows, int64_t cols, int64_t group, DType type, std::span<const float> values,
                               bool shared_rows = false);

  const FloatArray& values() const { return values_; }
  bool shared_rows() const { return shared_rows_; }

  std::string_view kind() const override { return "affine"; }
  void row(int64_t r, float* out) const override { values_.read(shared_rows_ ? 0 : r * groups_, groups_, out); }
  BitReport bits() const override;
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  AffineField(int64_t rows, int64_t cols, int64_t group, FloatArray values, bool shared_rows);
  FloatArray values_;
  bool shared_rows_;
};

/// SpQR's two-level statistics. A b-bit code for each row and group; `stat_group` rows of one group share an fp16
/// scale and zero: value = scale2 * (code - zero2).
class TwoLevelField final : public Field {
 public:
  /// `codes` is [rows, groups]; `stats` is f16 [2, ceil(rows / stat_group), groups]: scales, then zeros.
  static Result<FieldPtr> make(int64_t cols, int64_t group, int64_t stat_group, CodesPtr codes, FloatArray stats);

  int64_t stat_group() const { return stat_group_; }
  const CodesPtr& codes() const { return codes_; }
  const FloatArray& stats() const { return stats_; }

  std::string_view kind() const override { return "two_level"; }
  void row(int64_t r, float* out) const override;
  BitReport bits() const override;
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  TwoLevelField(int64_t rows, int64_t cols, int64_t group, int64_t stat_group, CodesPtr codes, FloatArray stats);
  int64_t stat_group_;
  CodesPtr codes_;
  FloatArray stats_;
};

/// A step for each row times a step for each column, both as 8-bit logarithms in sixteenths of an octave:
/// value[r, c] = base * 2^((row_log[r] + col_log[c]) / 16).
class RowColField final : public Field {
 public:
  /// One axis as stored: logarithm = grain * (code + offset), codes [1, n] of any kind, so that they can be
  /// entropy-coded. Every logarithm must lie in 0 … 255.
  struct Axis {
    CodesPtr codes;
    int offset = 0;
  };
  static Result<FieldPtr> make(float base, int grain, Axis row, Axis col);
  /// The same from plain logarithms (multiples of `grain`), stored with 8 bits each.
  static Result<FieldPtr> make(float base, std::span<const uint8_t> row_log, std::span<const uint8_t> col_log,
                               int grain = 1);

  float base() const { return base_; }
  /// All logarithms are multiples of it (as stored; the plain make() stores grain 1).
  int grain() const { return grain_; }
  std::span<const uint8_t> row_log() const { return std::span(logs_).first(static_cast<size_t>(rows_)); }
  std::span<const uint8_t> col_log() const { return std::span(logs_).subspan(static_cast<size_t>(rows_)); }
  /// base * 2^(k / 16) for k = 0 … 510, the only values that occur; the same bits on every machine.
  const std::array<float, 511>& steps() const { return steps_; }

  std::string_view kind() const override { return "row_col"; }
  void row(int64_t r, float* out) const override;
  BitReport bits() const override;
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  RowColField(int64_t rows, int64_t cols, float base, int grain, Axis row, Axis col);
  float base_;
  int grain_;
  Axis row_, col_;
  std::vector<uint8_t> logs_;  ///< the rows' logarithms, then the columns'
  std::array<float, 511> steps_;
};

Result<FieldPtr> parse_field(const nlohmann::json& j, int64_t rows, int64_t cols, const ParseContext& context);

}  // namespace pith
