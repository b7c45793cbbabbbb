// Leaves that store numbers directly: Dense, Blocks, Grid, Codebook.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/checked.h"
#include "base/hash.h"
#include "represent/blocks.h"
#include "represent/codebook.h"
#include "represent/dense.h"
#include "represent/grid.h"
#include "represent/json_read.h"

namespace pith {

using nlohmann::json;

// ---- Dense --------------------------------------------------------------------------------------

Result<NodePtr> Dense::make(DType type, int64_t rows, int64_t cols, Bytes data) {
  PITH_TRY(check_shape(rows, cols, "dense"));
  PITH_ASSIGN(FloatArray values, FloatArray::make(type, rows * cols, std::move(data), "dense"));
  return NodePtr(new Dense(rows, cols, std::move(values)));
}

Result<NodePtr> Dense::from(DType type, int64_t rows, int64_t cols, std::span<const float> values) {
  PITH_TRY(check_shape(rows, cols, "dense"));
  if (values.size() != static_cast<size_t>(rows * cols))
    return bug_error(fmt::format("dense: {} values for {} x {}", values.size(), rows, cols));
  PITH_ASSIGN(FloatArray array, FloatArray::from(type, values, "dense"));
  return NodePtr(new Dense(rows, cols, std::move(array)));
}

Result<NodePtr> Dense::parse(const json& j, const ParseContext& context, uint32_t /*depth*/) {
  PITH_ASSIGN(const Shape2 shape, json_shape(j, context.limits));
  PITH_ASSIGN(Section s, json_section(j, "section", context));
  return make(s.type, shape.rows, shape.cols, std::move(s.data));
}

void Dense::decode_rows(int64_t r0, int64_t r1, float* out) const { values_.read(r0 * cols_, (r1 - r0) * cols_, out); }

BitReport Dense::bits() const {
  BitReport report;
  report.payload = values_.stored_bits();
  return report;
}

json Dense::serialize(const std::string& prefix, SectionSink& sink) const {
  sink.add(prefix, type(), {rows_, cols_}, data());
  return {{"node", "dense"}, {"rows", rows_}, {"cols", cols_}, {"section", prefix}};
}

std::string Dense::describe() const {
  std::string name(dtype_name(type()));
  std::transform(name.begin(), name.end(), name.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; });
  return name[0] == 'f' && name.size() == 3 ? "fp" + name.substr(1) : name;  // fp16, fp32, bf16, f8_e4m3
}

// ---- Blocks -------------------------------------------------------------------------------------

Blocks::Blocks(GgmlType type, int64_t rows, int64_t cols, int64_t row_bytes, Bytes data)
    : Node(rows, cols), type_(type), row_bytes_(row_bytes), data_(std::move(data)) {}

Result<NodePtr> Blocks::make(GgmlType type, int64_t rows, int64_t cols, Bytes data) {
  PITH_TRY(check_shape(rows, cols, "blocks"));
  const GgmlTraits* traits = ggml_traits(static_cast<uint32_t>(type));
  if (traits == nullptr) return data_error(fmt::format("blocks: no ggml type has number {}", static_cast<int>(type)));
  const auto row_bytes = ggml_row_bytes(type, cols);
  if (!row_bytes)
    return data_error(fmt::format("blocks: rows of {} values are not a whole number of {} blocks of {}", cols,
                                  traits->name, traits->elements));
  const auto bytes = checked_mul(static_cast<uint64_t>(rows), *row_bytes);
  if (!bytes || *bytes != data.size())
    return data_error(fmt::format("blocks: {} x {} in {} takes {} bytes, found {}", rows, cols, traits->name,
                                  bytes.value_or(0), data.size()));
  return NodePtr(new Blocks(type, rows, cols, static_cast<int64_t>(*row_bytes), std::move(data)));
}

Result<NodePtr> Blocks::quantize(GgmlType type, int64_t rows, int64_t cols, std::span<const float> values,
                                 const float* importance) {
  PITH_TRY(check_shape(rows, cols, "blocks"));
  const auto row_bytes = ggml_row_bytes(type, cols);
  if (!row_bytes || !ggml_traits(type).writable || values.size() != static_cast<size_t>(rows * cols))
    return user_error(fmt::format("a matrix of {} x {} cannot be written as {}: {}", rows, cols, ggml_traits(type).name,
                                  row_bytes ? "no encoder for this type" : "rows are no whole number of blocks"));
  std::vector<std::byte> data(static_cast<size_t>(rows) * *row_bytes);
  for (int64_t r = 0; r < rows; ++r)
    quantize_row(type, values.data() + r * cols, cols, importance, data.data() + static_cast<size_t>(r) * *row_bytes);
  return make(type, rows, cols, Bytes::own(std::move(data)));
}

Result<NodePtr> Blocks::parse(const json& j, const ParseContext& context, uint32_t /*depth*/) {
  PITH_ASSIGN(const Shape2 shape, json_shape(j, context.limits));
  PITH_ASSIGN(const std::string name, json_text(j, "type"));
  const auto type = ggml_type_from_name(name);
  if (!type) return data_error(fmt::format("blocks: no ggml type is called '{}'", name));
  PITH_ASSIGN(Section s, json_section(j, "section", context));
  if (s.type != DType::u8) return data_error("blocks: section is not U8");
  return make(*type, shape.rows, shape.cols, std::move(s.data));
}

void Blocks::decode_rows(int64_t r0, int64_t r1, float* out) const {
  for (int64_t r = r0; r < r1; ++r, out += cols_) dequantize_row(type_, row_data(r), cols_, out);
}

BitReport Blocks::bits() const {
  BitReport report;
  report.payload = data_.size() * 8;
  return report;
}

json Blocks::serialize(const std::string& prefix, SectionSink& sink) const {
  sink.add(prefix, DType::u8, {rows_, row_bytes_}, data_);
  return {{"node", "blocks"}, {"rows", rows_}, {"cols", cols_}, {"type", ggml_traits(type_).name}, {"section", prefix}};
}

std::string Blocks::describe() const { return std::string(ggml_traits(type_).name); }

// ---- Grid ---------------------------------------------------------------------------------------

Grid::Grid(CodesPtr codes, std::vector<float> levels, FieldPtr scale, FieldPtr zero)
    : Node(codes->rows(), codes->cols()),
      codes_(std::move(codes)),
      levels_(std::move(levels)),
      scale_(std::move(scale)),
      zero_(std::move(zero)) {}

Result<NodePtr> Grid::make(CodesPtr codes, std::vector<float> levels, FieldPtr scale, FieldPtr zero) {
  if (codes == nullptr || scale == nullptr) return bug_error("grid: codes or scale missing");
  PITH_TRY(check_shape(codes->rows(), codes->cols(), "grid"));
  for (const auto& [field, name] : {std::pair(scale.get(), "scale"), std::pair(zero.get(), "zero")})
    if (field != nullptr && (field->rows() != codes->rows() || field->cols() != codes->cols()))
      return data_error(fmt::format("grid: codes are {} x {}, the {} is for {} x {}", codes->rows(), codes->cols(),
                                    name, field->rows(), field->cols()));
  if (levels.size() > 32768) return data_error(fmt::format("grid: {} levels, at most 32768", levels.size()));
  for (const float v : levels)
    if (!std::isfinite(v)) return data_error("grid: a level is not finite");
  if (!levels.empty()) PITH_TRY(check_codes(*codes, 0, static_cast<int>(levels.size()) - 1, "grid"));
  return NodePtr(new Grid(std::move(codes), std::move(levels), std::move(scale), std::move(zero)));
}

const Grid* row_col_grid(const Node& node) {
  if (node.kind() != "grid") return nullptr;
  const auto& grid = static_cast<const Grid&>(node);
  return grid.uniform() && grid.zero() == nullptr && grid.scale()->kind() == "row_col" ? &grid : nullptr;
}

Result<NodePtr> Grid::parse(const json& j, const ParseContext& context, uint32_t /*depth*/) {
  PITH_ASSIGN(const Shape2 shape, json_shape(j, context.limits));
  PITH_ASSIGN(const json* codes_json, json_object(j, "codes"));
  PITH_ASSIGN(CodesPtr codes, parse_codes(*codes_json, shape.rows, shape.cols, context));
  std::vector<float> levels;
  if (j.contains("levels")) {
    PITH_ASSIGN(Section s, json_section(j, "levels", context));
    PITH_ASSIGN(const int64_t count, section_items(s, "levels"));
    PITH_ASSIGN(FloatArray array, FloatArray::make(s.type, count, std::move(s.data), "levels"));
    if (count < 1 || count > 32768) return data_error(fmt::format("levels: {}, expected 1 to 32768", count));
    levels.resize(static_cast<size_t>(count));
    array.read(0, count, levels.data());
  }
  PITH_ASSIGN(const json* scale_json, json_object(j, "scale"));
  auto scale = parse_field(*scale_json, shape.rows, shape.cols, context).context("scale");
  if (!scale.ok()) return scale.error();
  FieldPtr zero;
  if (j.contains("zero")) {
    PITH_ASSIGN(const json* zero_json, json_object(j, "zero"));
    PITH_ASSIGN(zero, parse_field(*zero_json, shape.rows, shape.cols, context).context("zero"));
  }
  return make(std::move(codes), std::move(levels), std::move(scale).value(), std::move(zero));
}

// Numbers of a field spread over the columns.
static void spread(const float* groups, int64_t group, int64_t cols, float* out) {
  for (int64_t c = 0; c < cols; c += group) std::fill_n(out + c, std::min(group, cols - c), groups[c / group]);
}

void Grid::decode_rows(int64_t r0, int64_t r1, float* out) const {
  const int64_t step = std::min(rows_at_once(cols_), r1 - r0);
  if (step <= 0) return;
  const auto width = static_cast<size_t>(cols_);
  std::vector<int16_t> codes(static_cast<size_t>(step) * width);
  std::vector<float> scale(width), zero(zero_ ? width : 0), spread_scale, spread_zero;
  const int last_level = static_cast<int>(levels_.size()) - 1;
  // Group by group with the two numbers in registers where both fields agree on the groups; else column by column.
  const bool by_group = scale_->group() > 1 && (!zero_ || zero_->group() == scale_->group());
  for (int64_t first = r0; first < r1; first += step) {
    const int64_t end = std::min(first + step, r1);
    codes_->read_rows(first, end, codes.data());
    for (int64_t r = first; r < end; ++r, out += cols_) {
      const int16_t* code = codes.data() + (r - first) * cols_;
      if (uniform())
        for (int64_t c = 0; c < cols_; ++c) out[c] = static_cast<float>(code[c]);
      else  // clamped: damaged entropy-coded codes need not come out the same way twice
        for (int64_t c = 0; c < cols_; ++c)
          out[c] = levels_[static_cast<size_t>(std::clamp<int>(code[c], 0, last_level))];
      scale_->row(r, scale.data());
      if (zero_) zero_->row(r, zero.data());
      if (by_group) {
        const int64_t group = scale_->group();
        for (int64_t g = 0; g < scale_->groups(); ++g) {
          const float s = scale[static_cast<size_t>(g)];
          const float z = zero_ ? zero[static_cast<size_t>(g)] : 0.0f;
          const int64_t c1 = std::min(cols_, (g + 1) * group);
          for (int64_t c = g * group; c < c1; ++c) out[c] = s * (out[c] - z);
        }
        continue;
      }
      const float* s = scale.data();
      if (scale_->group() > 1) {
        spread_scale.resize(width);
        spread(scale.data(), scale_->group(), cols_, spread_scale.data());
        s = spread_scale.data();
      }
      if (!zero_) {
        for (int64_t c = 0; c < cols_; ++c) out[c] = s[c] * out[c];
        continue;
      }
      const float* z = zero.data();
      if (zero_->group() > 1) {
        spread_zero.resize(width);
        spread(zero.data(), zero_->group(), cols_, spread_zero.data());
        z = spread_zero.data();
      }
      for (int64_t c = 0; c < cols_; ++c) out[c] = s[c] * (out[c] - z[c]);
    }
  }
}

BitReport Grid::bits() const {
  BitReport report = codes_->bits();
  report += scale_->bits();
  if (zero_) report += zero_->bits();
  return report;
}

json Grid::serialize(const std::string& prefix, SectionSink& sink) const {
  json j = {{"node", "grid"}, {"rows", rows_}, {"cols", cols_}};
  j["codes"] = codes_->serialize(prefix, sink);
  if (!levels_.empty()) {
    // One table serves all matrices of a model (NF4), so it is shared.
    auto data = Bytes::own(levels_);
    std::string key = "levels-" + hash_hex(data.view).substr(0, 8);
    j["levels"] = sink.add_shared(std::move(key), DType::f32, {static_cast<int64_t>(levels_.size())}, std::move(data));
  }
  j["scale"] = scale_->serialize(prefix + ".scale", sink);
  if (zero_) j["zero"] = zero_->serialize(prefix + ".zero", sink);
  return j;
}

std::string Grid::describe() const {
  const auto* packed = dynamic_cast<const PackedCodes*>(codes_.get());
  const double coded = static_cast<double>(codes_->bits().total()) / static_cast<double>(rows_ * cols_);
  std::string text =
      packed ? fmt::format("grid {} bit", packed->width()) : fmt::format("grid {} {:.2f} bit", codes_->kind(), coded);
  if (!uniform()) text += fmt::format(" of {} levels", levels_.size());
  text += ", scale " + scale_->describe();
  if (zero_) text += ", zero " + zero_->describe();
  return text;
}

// Inverse of the normal distribution function, to double precision: bisection on erfc, which every libm rounds well.
static double normal_quantile(double p) {
  double low = -12, high = 12;
  for (int i = 0; i < 100; ++i) {
    const double mid = 0.5 * (low + high);
    (0.5 * std::erfc(-mid / std::numbers::sqrt2) < p ? low : high) = mid;
  }
  return 0.5 * (low + high);
}

std::vector<float> normal_float_levels(unsigned bits) {
  // QLoRA: 2^(b-1) quantiles on the negative side, 2^(b-1) + 1 on the positive side, the shared 0 once, all divided by
  // the largest. The outermost probability is the mean of 1 - 1/30 and 1 - 1/32 for 4 bits.
  const int half = 1 << (bits - 1);
  const double offset = 0.5 * ((1 - 1.0 / (4 * half)) + (1 - 1.0 / (4 * half - 2)));
  std::vector<float> levels;
  const double largest = normal_quantile(offset);
  // Negative side: half values from -largest to before 0; positive side: half values after 0, and 0 itself.
  for (int i = 0; i < half - 1; ++i)
    levels.push_back(static_cast<float>(-normal_quantile(offset + (0.5 - offset) * i / (half - 1)) / largest));
  levels.push_back(0.0f);
  for (int i = half - 1; i >= 0; --i)
    levels.push_back(static_cast<float>(normal_quantile(offset + (0.5 - offset) * i / half) / largest));
  return levels;
}

// ---- Codebook -----------------------------------------------------------------------------------

Codebook::Codebook(int64_t rows, int64_t cols, int64_t books_count, int64_t entries, int64_t length, CodesPtr codes,
                   FloatArray books, FloatArray basis)
    : Node(rows, cols),
      books_count_(books_count),
      entries_(entries),
      length_(length),
      groups_(static_cast<int64_t>(ceil_div(static_cast<uint64_t>(cols), static_cast<uint64_t>(length)))),
      codes_(std::move(codes)),
      books_(std::move(books)),
      basis_(std::move(basis)) {
  const int64_t all = books_count_ * entries_;
  const int64_t width = books_.size() / all;
  std::vector<float> raw(static_cast<size_t>(books_.size()));
  books_.read(0, books_.size(), raw.data());
  if (basis_.size() == 0) {
    table_ = std::move(raw);
    return;
  }
  std::vector<float> basis_values(static_cast<size_t>(basis_.size()));
  basis_.read(0, basis_.size(), basis_values.data());
  table_.assign(static_cast<size_t>(all * length_), 0.0f);
  for (int64_t e = 0; e < all; ++e)
    for (int64_t k = 0; k < width; ++k) {
      const float a = raw[static_cast<size_t>(e * width + k)];
      for (int64_t i = 0; i < length_; ++i)
        table_[static_cast<size_t>(e * length_ + i)] += a * basis_values[static_cast<size_t>(k * length_ + i)];
    }
}

Result<NodePtr> Codebook::make(int64_t cols, int64_t books_count, int64_t entries, int64_t length, CodesPtr codes,
                               FloatArray books, FloatArray basis) {
  if (codes == nullptr) return bug_error("codebook: no codes");
  PITH_TRY(check_shape(codes->rows(), cols, "codebook"));
  if (books_count < 1 || books_count > 64 || entries < 1 || entries > 65536 || length < 1 || length > cols)
    return data_error(
        fmt::format("codebook: {} books of {} entries of {} values; expected 1 to 64 books, 1 to 65536 "
                    "entries, 1 to {} values",
                    books_count, entries, length, cols));
  const auto groups = static_cast<int64_t>(ceil_div(static_cast<uint64_t>(cols), static_cast<uint64_t>(length)));
  if (codes->cols() != groups * books_count)
    return data_error(
        fmt::format("codebook: {} codes a row, expected {} groups of {}", codes->cols(), groups, books_count));
  const int64_t all = books_count * entries;
  int64_t width = length;
  if (basis.size() != 0) {
    width = basis.size() / length;
    if (basis.size() % length != 0)
      return data_error(fmt::format("codebook: basis of {} values for vectors of {}", basis.size(), length));
  }
  // The expanded table is what a reader allocates: bound it before trusting the header.
  const auto wanted = checked_mul(static_cast<uint64_t>(all), static_cast<uint64_t>(width));
  const auto expanded = checked_mul(static_cast<uint64_t>(all), static_cast<uint64_t>(length));
  if (!wanted || static_cast<uint64_t>(books.size()) != *wanted)
    return data_error(fmt::format("codebook: books hold {} values, expected {} x {} x {}", books.size(), books_count,
                                  entries, width));
  if (!expanded || *expanded > (uint64_t{1} << 25))
    return data_error(fmt::format("codebook: a table of {} entries of {} values is too large", all, length));
  if (books.first_non_finite() >= 0 || basis.first_non_finite() >= 0)
    return data_error("codebook: a value of the books or the basis is not finite");
  PITH_TRY(check_codes(*codes, first_code(entries), first_code(entries) + static_cast<int>(entries) - 1, "codebook"));
  const int64_t rows = codes->rows();
  return NodePtr(
      new Codebook(rows, cols, books_count, entries, length, std::move(codes), std::move(books), std::move(basis)));
}

Result<NodePtr> Codebook::parse(const json& j, const ParseContext& context, uint32_t /*depth*/) {
  PITH_ASSIGN(const Shape2 shape, json_shape(j, context.limits));
  PITH_ASSIGN(const int64_t books_count, json_int(j, "books_count", 1, 64));
  PITH_ASSIGN(const int64_t entries, json_int(j, "entries", 1, 65536));
  PITH_ASSIGN(const int64_t length, json_int(j, "length", 1, shape.cols));
  const auto groups = static_cast<int64_t>(ceil_div(static_cast<uint64_t>(shape.cols), static_cast<uint64_t>(length)));
  PITH_ASSIGN(const json* codes_json, json_object(j, "codes"));
  PITH_ASSIGN(CodesPtr codes, parse_codes(*codes_json, shape.rows, groups * books_count, context));
  FloatArray basis;
  int64_t width = length;
  if (j.contains("basis")) {
    PITH_ASSIGN(width, json_int(j, "width", 1, 1 << 20));
    PITH_ASSIGN(basis, json_floats(j, "basis", width * length, context));
  }
  PITH_ASSIGN(FloatArray books, json_floats(j, "books", books_count * entries * width, context));
  return make(shape.cols, books_count, entries, length, std::move(codes), std::move(books), std::move(basis));
}

void Codebook::decode_rows(int64_t r0, int64_t r1, float* out) const {
  const int64_t per_row = groups_ * books_count_;
  std::vector<int16_t> codes(static_cast<size_t>(per_row));
  for (int64_t r = r0; r < r1; ++r, out += cols_) {
    codes_->read_rows(r, r + 1, codes.data());
    for (int64_t g = 0; g < groups_; ++g) {
      float* to = out + g * length_;
      const int64_t n = std::min(length_, cols_ - g * length_);
      for (int64_t m = 0; m < books_count_; ++m) {
        const int64_t code =
            std::clamp<int64_t>(codes[static_cast<size_t>(g * books_count_ + m)] - first_code(), 0, entries_ - 1);
        const float* entry = table_.data() + (m * entries_ + code) * length_;
        if (m == 0)
          std::copy_n(entry, n, to);
        else
          for (int64_t i = 0; i < n; ++i) to[i] += entry[i];
      }
    }
  }
}

BitReport Codebook::bits() const {
  BitReport report = codes_->bits();
  report.tables += books_.stored_bits() + basis_.stored_bits();
  return report;
}

json Codebook::serialize(const std::string& prefix, SectionSink& sink) const {
  const int64_t width = books_.size() / (books_count_ * entries_);
  json j = {{"node", "codebook"},          {"rows", rows_},       {"cols", cols_},
            {"books_count", books_count_}, {"entries", entries_}, {"length", length_}};
  j["codes"] = codes_->serialize(prefix, sink);
  j["books"] = prefix + ".books";
  sink.add(prefix + ".books", books_.type(), {books_count_, entries_, width}, books_.bytes());
  if (basis_.size() != 0) {
    j["width"] = width;
    j["basis"] = prefix + ".basis";
    sink.add(prefix + ".basis", basis_.type(), {width, length_}, basis_.bytes());
  }
  return j;
}

std::string Codebook::describe() const {
  return fmt::format("codebook {} x {} of {} values{}", books_count_, entries_, length_,
                     basis_.size() ? " with basis" : "");
}

}  // namespace pith
