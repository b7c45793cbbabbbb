#include "represent/field.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/checked.h"
#include "represent/json_read.h"

namespace pith {

using nlohmann::json;

Field::Field(int64_t rows, int64_t cols, int64_t group)
    : rows_(rows),
      cols_(cols),
      group_(group),
      groups_(static_cast<int64_t>(ceil_div(static_cast<uint64_t>(cols), static_cast<uint64_t>(group)))) {}

static Status check_group(int64_t rows, int64_t cols, int64_t group) {
  PITH_TRY(check_shape(rows, cols, "field"));
  if (group < 1 || group > cols)
    return data_error(fmt::format("field: groups of {} columns, expected 1 to {}", group, cols));
  return {};
}

static std::string group_text(int64_t group, int64_t cols) {
  return group == cols ? std::string("per row") : fmt::format("g{}", group);
}

static std::string_view short_name(DType type) {
  return type == DType::f16 ? "fp16" : type == DType::bf16 ? "bf16" : "fp32";
}

// ---- AffineField --------------------------------------------------------------------------------

AffineField::AffineField(int64_t rows, int64_t cols, int64_t group, FloatArray values, bool shared_rows)
    : Field(rows, cols, group), values_(std::move(values)), shared_rows_(shared_rows) {}

Result<FieldPtr> AffineField::make(int64_t rows, int64_t cols, int64_t group, FloatArray values, bool shared_rows) {
  PITH_TRY(check_group(rows, cols, group));
  const auto groups = static_cast<int64_t>(ceil_div(static_cast<uint64_t>(cols), static_cast<uint64_t>(group)));
  const int64_t count = (shared_rows ? 1 : rows) * groups;
  if (values.size() != count)
    return data_error(
        fmt::format("field: {} numbers for {} rows of {} groups", values.size(), shared_rows ? 1 : rows, groups));
  if (values.type() != DType::f16 && values.type() != DType::bf16 && values.type() != DType::f32)
    return data_error(fmt::format("field: type {}, expected F16, BF16 or F32", dtype_name(values.type())));
  if (const int64_t bad = values.first_non_finite(); bad >= 0)
    return data_error(fmt::format("field: number {} is not finite", bad));
  return FieldPtr(new AffineField(rows, cols, group, std::move(values), shared_rows));
}

Result<FieldPtr> AffineField::from(int64_t rows, int64_t cols, int64_t group, DType type, std::span<const float> values,
                                   bool shared_rows) {
  PITH_ASSIGN(FloatArray array, FloatArray::from(type, values, "field"));
  return make(rows, cols, group, std::move(array), shared_rows);
}

BitReport AffineField::bits() const {
  BitReport report;
  report.scales = values_.stored_bits();
  return report;
}

json AffineField::serialize(const std::string& prefix, SectionSink& sink) const {
  sink.add(prefix, values_.type(), {shared_rows_ ? 1 : rows_, groups_}, values_.bytes());
  json j = {{"field", "affine"}, {"group", group_}, {"section", prefix}};
  if (shared_rows_) j["shared_rows"] = true;
  return j;
}

std::string AffineField::describe() const {
  if (shared_rows_ && groups_ == 1) return fmt::format("{} per matrix", short_name(values_.type()));
  return fmt::format("{} {}{}", short_name(values_.type()), group_text(group_, cols_),
                     shared_rows_ ? " of all rows" : "");
}

// ---- TwoLevelField ------------------------------------------------------------------------------

TwoLevelField::TwoLevelField(int64_t rows, int64_t cols, int64_t group, int64_t stat_group, CodesPtr codes,
                             FloatArray stats)
    : Field(rows, cols, group), stat_group_(stat_group), codes_(std::move(codes)), stats_(std::move(stats)) {}

Result<FieldPtr> TwoLevelField::make(int64_t cols, int64_t group, int64_t stat_group, CodesPtr codes,
                                     FloatArray stats) {
  if (codes == nullptr) return bug_error("field: no codes");
  const int64_t rows = codes->rows();
  PITH_TRY(check_group(rows, cols, group));
  const auto groups = static_cast<int64_t>(ceil_div(static_cast<uint64_t>(cols), static_cast<uint64_t>(group)));
  if (codes->cols() != groups)
    return data_error(fmt::format("field: {} codes a row for {} groups", codes->cols(), groups));
  if (stat_group < 1 || stat_group > rows)
    return data_error(fmt::format("field: statistics over {} rows, expected 1 to {}", stat_group, rows));
  const auto tiles = static_cast<int64_t>(ceil_div(static_cast<uint64_t>(rows), static_cast<uint64_t>(stat_group)));
  if (stats.type() != DType::f16 || stats.size() != 2 * tiles * groups)
    return data_error(fmt::format("field: statistics are {} {}, expected {} F16", stats.size(),
                                  dtype_name(stats.type()), 2 * tiles * groups));
  if (const int64_t bad = stats.first_non_finite(); bad >= 0)
    return data_error(fmt::format("field: statistic {} is not finite", bad));
  // fp16 times a 17-bit difference stays below 2^32: every value is finite.
  return FieldPtr(new TwoLevelField(rows, cols, group, stat_group, std::move(codes), std::move(stats)));
}

void TwoLevelField::row(int64_t r, float* out) const {
  constexpr int64_t kPiece = 256;  // groups at a time, so that the scratch lives on the stack
  const auto tiles = static_cast<int64_t>(ceil_div(static_cast<uint64_t>(rows_), static_cast<uint64_t>(stat_group_)));
  const int64_t scale_at = r / stat_group_ * groups_;
  const int64_t zero_at = tiles * groups_ + scale_at;
  thread_local std::vector<int16_t> codes;
  codes.resize(static_cast<size_t>(groups_));
  codes_->read_rows(r, r + 1, codes.data());
  float scale[kPiece], zero[kPiece];
  for (int64_t first = 0; first < groups_; first += kPiece) {
    const int64_t n = std::min(kPiece, groups_ - first);
    stats_.read(scale_at + first, n, scale);
    stats_.read(zero_at + first, n, zero);
    for (int64_t i = 0; i < n; ++i)
      out[first + i] = scale[i] * (static_cast<float>(codes[static_cast<size_t>(first + i)]) - zero[i]);
  }
}

BitReport TwoLevelField::bits() const {
  BitReport report;
  report.scales = codes_->bits().total() + stats_.stored_bits();
  return report;
}

json TwoLevelField::serialize(const std::string& prefix, SectionSink& sink) const {
  json codes = codes_->serialize(prefix, sink);
  const std::string stats = prefix + ".stats";
  sink.add(stats, DType::f16, {2, stats_.size() / 2 / groups_, groups_}, stats_.bytes());
  return {{"field", "two_level"},
          {"group", group_},
          {"stat_group", stat_group_},
          {"codes", std::move(codes)},
          {"stats", stats}};
}

std::string TwoLevelField::describe() const {
  const auto* packed = dynamic_cast<const PackedCodes*>(codes_.get());
  return fmt::format("{} {} over {} rows", packed ? fmt::format("{} bit", packed->width()) : std::string("coded"),
                     group_text(group_, cols_), stat_group_);
}

// ---- RowColField --------------------------------------------------------------------------------

RowColField::RowColField(int64_t rows, int64_t cols, float base, int grain, Axis row, Axis col)
    : Field(rows, cols, 1), base_(base), grain_(grain), row_(std::move(row)), col_(std::move(col)) {
  // Sixteenths of an octave in double, written out so that no library's exp2 decides the last bit.
  static constexpr double kSixteenth[16] = {1.0,
                                            1.0442737824274138,
                                            1.0905077326652577,
                                            1.1387886347566916,
                                            1.189207115002721,
                                            1.241857812073484,
                                            1.2968395546510096,
                                            1.3542555469368927,
                                            1.4142135623730951,
                                            1.4768261459394993,
                                            1.5422108254079407,
                                            1.6104903319492543,
                                            1.681792830507429,
                                            1.7562521603732995,
                                            1.8340080864093424,
                                            1.9152065613971474};
  for (int k = 0; k < 511; ++k)
    steps_[static_cast<size_t>(k)] =
        static_cast<float>(std::ldexp(static_cast<double>(base) * kSixteenth[k % 16], k / 16));
}

Result<FieldPtr> RowColField::make(float base, int grain, Axis row, Axis col) {
  if (row.codes == nullptr || col.codes == nullptr || row.codes->rows() != 1 || col.codes->rows() != 1)
    return data_error("field: logarithms of rows and columns must be one row of codes each");
  const int64_t rows = row.codes->cols(), cols = col.codes->cols();
  PITH_TRY(check_shape(rows, cols, "field"));
  if (grain < 1 || grain > 255) return data_error(fmt::format("field: grain {} is not within 1 to 255", grain));
  std::shared_ptr<RowColField> field(new RowColField(rows, cols, base, grain, std::move(row), std::move(col)));
  if (!std::isfinite(base) || !std::isfinite(field->steps_.back()))
    return data_error(fmt::format("field: base {} makes steps that are not finite", base));
  for (const Axis* axis : {&field->row_, &field->col_}) {
    std::vector<int16_t> codes(static_cast<size_t>(axis->codes->cols()));
    axis->codes->read_rows(0, 1, codes.data());
    for (const int16_t code : codes) {
      const int64_t log = static_cast<int64_t>(grain) * (code + static_cast<int64_t>(axis->offset));
      if (log < 0 || log > 255) return data_error(fmt::format("field: logarithm {} is not within 0 to 255", log));
      field->logs_.push_back(static_cast<uint8_t>(log));
    }
  }
  return FieldPtr(std::move(field));
}

Result<FieldPtr> RowColField::make(float base, std::span<const uint8_t> row_log, std::span<const uint8_t> col_log,
                                   int grain) {
  if (grain < 1) return data_error(fmt::format("field: grain {} is not within 1 to 255", grain));
  const auto pack = [&](std::span<const uint8_t> logs) {
    std::vector<int16_t> values;
    for (const uint8_t log : logs) values.push_back(static_cast<int16_t>(log / grain));
    return PackedCodes::pack(1, static_cast<int64_t>(logs.size()), 8, 0, values);
  };
  PITH_ASSIGN(CodesPtr row, pack(row_log));
  PITH_ASSIGN(CodesPtr col, pack(col_log));
  return make(base, grain, {std::move(row), 0}, {std::move(col), 0});
}

void RowColField::row(int64_t r, float* out) const {
  const float* steps = steps_.data() + row_log()[static_cast<size_t>(r)];
  const uint8_t* col = col_log().data();
  for (int64_t c = 0; c < cols_; ++c) out[c] = steps[col[c]];
}

BitReport RowColField::bits() const {
  BitReport report;
  report.scales = row_.codes->bits().total() + col_.codes->bits().total();
  return report;
}

json RowColField::serialize(const std::string& prefix, SectionSink& sink) const {
  return {{"field", "row_col"},        {"base", base_},
          {"grain", grain_},           {"row", row_.codes->serialize(prefix + ".row", sink)},
          {"row_offset", row_.offset}, {"col", col_.codes->serialize(prefix + ".col", sink)},
          {"col_offset", col_.offset}};
}

std::string RowColField::describe() const { return "row x column"; }

// ---- reading ------------------------------------------------------------------------------------

Result<FieldPtr> parse_field(const json& j, int64_t rows, int64_t cols, const ParseContext& context) {
  PITH_TRY(check_shape(rows, cols, "field"));
  PITH_ASSIGN(const std::string kind, json_text(j, "field"));
  if (kind == "row_col") {
    PITH_ASSIGN(const float base, json_float(j, "base"));
    PITH_ASSIGN(const int64_t grain, json_int(j, "grain", 1, 255));
    PITH_ASSIGN(const int64_t row_offset, json_int(j, "row_offset", -512, 512));
    PITH_ASSIGN(const int64_t col_offset, json_int(j, "col_offset", -512, 512));
    PITH_ASSIGN(const json* row_json, json_object(j, "row"));
    PITH_ASSIGN(const json* col_json, json_object(j, "col"));
    PITH_ASSIGN(CodesPtr row, parse_codes(*row_json, 1, rows, context));
    PITH_ASSIGN(CodesPtr col, parse_codes(*col_json, 1, cols, context));
    return RowColField::make(base, static_cast<int>(grain), {std::move(row), static_cast<int>(row_offset)},
                             {std::move(col), static_cast<int>(col_offset)});
  }
  PITH_ASSIGN(const int64_t group, json_int(j, "group", 1, cols));
  const auto groups = static_cast<int64_t>(ceil_div(static_cast<uint64_t>(cols), static_cast<uint64_t>(group)));
  if (kind == "affine") {
    const auto it = j.find("shared_rows");
    const bool shared = it != j.end() && it->is_boolean() && it->get<bool>();
    PITH_ASSIGN(FloatArray values, json_floats(j, "section", (shared ? 1 : rows) * groups, context));
    return AffineField::make(rows, cols, group, std::move(values), shared);
  }
  if (kind == "two_level") {
    PITH_ASSIGN(const int64_t stat_group, json_int(j, "stat_group", 1, rows));
    const auto tiles = static_cast<int64_t>(ceil_div(static_cast<uint64_t>(rows), static_cast<uint64_t>(stat_group)));
    PITH_ASSIGN(const json* codes_json, json_object(j, "codes"));
    PITH_ASSIGN(CodesPtr codes, parse_codes(*codes_json, rows, groups, context));
    PITH_ASSIGN(FloatArray stats, json_floats(j, "stats", 2 * tiles * groups, context));
    return TwoLevelField::make(cols, group, stat_group, std::move(codes), std::move(stats));
  }
  return data_error(fmt::format("field of kind '{}' is not known here; a newer pith may read it", kind));
}

}  // namespace pith
