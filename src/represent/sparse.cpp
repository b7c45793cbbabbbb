#include "represent/sparse.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "represent/json_read.h"

namespace pith {

using nlohmann::json;

static Status check_values(const FloatArray& values, std::string_view what) {
  if (values.type() != DType::f16 && values.type() != DType::bf16 && values.type() != DType::f32)
    return data_error(fmt::format("{}: values of type {}, expected F16, BF16 or F32", what, dtype_name(values.type())));
  if (const int64_t bad = values.first_non_finite(); bad >= 0)
    return data_error(fmt::format("{}: value {} is not finite", what, bad));
  return {};
}

// ---- Csr ----------------------------------------------------------------------------------------

Csr::Csr(int64_t rows, int64_t cols, IndexArray counts, IndexArray columns, FloatArray values,
         std::vector<uint32_t> row_start)
    : Node(rows, cols),
      counts_(std::move(counts)),
      columns_(std::move(columns)),
      values_(std::move(values)),
      row_start_(std::move(row_start)) {}

Result<NodePtr> Csr::make(int64_t rows, int64_t cols, IndexArray counts, IndexArray columns, FloatArray values) {
  PITH_TRY(check_shape(rows, cols, "csr"));
  if (counts.size() != rows) return data_error(fmt::format("csr: {} counts for {} rows", counts.size(), rows));
  if (columns.size() != values.size())
    return data_error(fmt::format("csr: {} columns for {} values", columns.size(), values.size()));
  if (values.size() > int64_t{0xffffffff}) return data_error("csr: more than 2^32 entries");
  PITH_TRY(check_values(values, "csr"));
  std::vector<uint32_t> row_start(static_cast<size_t>(rows) + 1, 0);
  int64_t at = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t n = counts[r];
    if (n > values.size() - at)
      return data_error(fmt::format("csr: row {} ends at entry {}, there are {}", r, at + n, values.size()));
    for (int64_t i = at; i < at + n; ++i) {
      if (columns[i] >= static_cast<uint64_t>(cols))
        return data_error(fmt::format("csr: column {} in row {}, the matrix has {}", columns[i], r, cols));
      if (i > at && columns[i] <= columns[i - 1])
        return data_error(
            fmt::format("csr: columns of row {} do not rise ({} after {})", r, columns[i], columns[i - 1]));
    }
    at += n;
    row_start[static_cast<size_t>(r) + 1] = static_cast<uint32_t>(at);
  }
  if (at != values.size()) return data_error(fmt::format("csr: rows hold {} entries, there are {}", at, values.size()));
  return NodePtr(new Csr(rows, cols, std::move(counts), std::move(columns), std::move(values), std::move(row_start)));
}

Result<NodePtr> Csr::from(int64_t rows, int64_t cols, std::span<const uint32_t> row_start,
                          std::span<const uint32_t> columns, std::span<const float> values, DType type) {
  PITH_TRY(check_shape(rows, cols, "csr"));
  if (row_start.size() != static_cast<size_t>(rows) + 1 || row_start.front() != 0 ||
      row_start.back() != columns.size() || columns.size() != values.size() || cols > int64_t{0xffffffff})
    return bug_error("csr: row starts, columns and values do not fit together");
  std::vector<uint32_t> counts(static_cast<size_t>(rows));
  for (size_t r = 0; r < counts.size(); ++r) {
    if (row_start[r + 1] < row_start[r]) return bug_error(fmt::format("csr: row start {} falls", r + 1));
    counts[r] = row_start[r + 1] - row_start[r];
  }
  PITH_ASSIGN(FloatArray rounded, FloatArray::from(type, values, "csr"));
  const uint32_t most = *std::max_element(counts.begin(), counts.end());
  return make(rows, cols, IndexArray::from(counts, most), IndexArray::from(columns, static_cast<uint32_t>(cols - 1)),
              std::move(rounded));
}

Result<NodePtr> Csr::parse(const json& j, const ParseContext& context, uint32_t /*depth*/) {
  PITH_ASSIGN(const Shape2 shape, json_shape(j, context.limits));
  PITH_ASSIGN(const int64_t entries, json_int(j, "entries", 0, int64_t{0xffffffff}));
  PITH_ASSIGN(IndexArray counts, json_indices(j, "counts", shape.rows, context));
  PITH_ASSIGN(IndexArray columns, json_indices(j, "columns", entries, context));
  PITH_ASSIGN(FloatArray values, json_floats(j, "values", entries, context));
  return make(shape.rows, shape.cols, std::move(counts), std::move(columns), std::move(values));
}

void Csr::write_over(int64_t r0, int64_t r1, float* out) const {
  float buffer[256];
  for (int64_t r = r0; r < r1; ++r, out += cols_) {
    int64_t i = row_start_[static_cast<size_t>(r)];
    const int64_t end = row_start_[static_cast<size_t>(r) + 1];
    while (i < end) {
      const int64_t n = std::min<int64_t>(256, end - i);
      values_.read(i, n, buffer);
      for (int64_t k = 0; k < n; ++k) out[columns_[i + k]] = buffer[k];
      i += n;
    }
  }
}

void Csr::decode_rows(int64_t r0, int64_t r1, float* out) const {
  std::fill_n(out, (r1 - r0) * cols_, 0.0f);
  write_over(r0, r1, out);
}

BitReport Csr::bits() const {
  BitReport report;
  report.payload = values_.stored_bits();
  report.indices = counts_.stored_bits() + columns_.stored_bits();
  return report;
}

json Csr::serialize(const std::string& prefix, SectionSink& sink) const {
  sink.add(prefix + ".counts", counts_.type(), {rows_}, counts_.bytes());
  sink.add(prefix + ".columns", columns_.type(), {entries()}, columns_.bytes());
  sink.add(prefix + ".values", values_.type(), {entries()}, values_.bytes());
  return {{"node", "csr"},
          {"rows", rows_},
          {"cols", cols_},
          {"entries", entries()},
          {"counts", prefix + ".counts"},
          {"columns", prefix + ".columns"},
          {"values", prefix + ".values"}};
}

std::string Csr::describe() const { return "csr " + percent(entries(), rows_ * cols_); }

// ---- NMask --------------------------------------------------------------------------------------

static int64_t binomial(int m, int n) {
  int64_t c = 1;
  for (int i = 1; i <= n; ++i) c = c * (m - n + i) / i;
  return c;
}

std::vector<uint8_t> nm_patterns(int n, int m) {
  std::vector<uint8_t> all;
  std::vector<int> set(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) set[static_cast<size_t>(i)] = i;
  for (int64_t k = binomial(m, n); k > 0; --k) {
    for (const int v : set) all.push_back(static_cast<uint8_t>(v));
    // The next set in lexicographic order: raise the last number that can still rise, the rest follow closely.
    int i = n - 1;
    while (i >= 0 && set[static_cast<size_t>(i)] == m - n + i) --i;
    if (i < 0) break;
    ++set[static_cast<size_t>(i)];
    for (int k2 = i + 1; k2 < n; ++k2) set[static_cast<size_t>(k2)] = set[static_cast<size_t>(k2 - 1)] + 1;
  }
  return all;
}

unsigned nm_pattern_bits(int n, int m) {
  const auto last = static_cast<uint64_t>(binomial(m, n) - 1);
  return std::max(1u, static_cast<unsigned>(std::bit_width(last)));
}

NMask::NMask(int n, int m, CodesPtr patterns, NodePtr values)
    : Node(patterns->rows(), patterns->cols() * m),
      n_(n),
      m_(m),
      patterns_(std::move(patterns)),
      values_(std::move(values)),
      positions_(nm_patterns(n, m)) {}

Result<NodePtr> NMask::make(int n, int m, CodesPtr patterns, NodePtr values) {
  if (patterns == nullptr || values == nullptr) return bug_error("nmask: patterns or values missing");
  if (n < 1 || n > m || m > 16) return data_error(fmt::format("nmask: {} of {}, expected 1 <= n <= m <= 16", n, m));
  PITH_TRY(check_shape(patterns->rows(), patterns->cols(), "nmask"));
  const int64_t groups = patterns->cols();
  if (values->rows() != patterns->rows() || values->cols() != groups * n)
    return data_error(fmt::format("nmask: values are {} x {}, expected {} x {}", values->rows(), values->cols(),
                                  patterns->rows(), groups * n));
  PITH_TRY(check_codes(*patterns, 0, static_cast<int>(binomial(m, n)) - 1, "nmask"));
  return NodePtr(new NMask(n, m, std::move(patterns), std::move(values)));
}

Result<NodePtr> NMask::parse(const json& j, const ParseContext& context, uint32_t depth) {
  PITH_ASSIGN(const Shape2 shape, json_shape(j, context.limits));
  PITH_ASSIGN(const int64_t m, json_int(j, "m", 1, 16));
  PITH_ASSIGN(const int64_t n, json_int(j, "n", 1, m));
  if (shape.cols % m != 0) return data_error(fmt::format("nmask: {} columns are no multiple of {}", shape.cols, m));
  PITH_ASSIGN(const json* codes_json, json_object(j, "patterns"));
  PITH_ASSIGN(CodesPtr patterns, parse_codes(*codes_json, shape.rows, shape.cols / m, context));
  PITH_ASSIGN(NodePtr values, json_node(j, "values", context, depth));
  return make(static_cast<int>(n), static_cast<int>(m), std::move(patterns), std::move(values));
}

void NMask::decode_rows(int64_t r0, int64_t r1, float* out) const {
  const int64_t groups = patterns_->cols(), kept = values_->cols();
  const int last = static_cast<int>(positions_.size()) / n_ - 1;
  const int64_t step = std::min(rows_at_once(cols_), r1 - r0);
  if (step <= 0) return;
  std::vector<float> values(static_cast<size_t>(step * kept));
  std::vector<int16_t> patterns(static_cast<size_t>(step * groups));
  std::fill_n(out, (r1 - r0) * cols_, 0.0f);
  for (int64_t first = r0; first < r1; first += step) {
    const int64_t end = std::min(first + step, r1);
    values_->decode_rows(first, end, values.data());
    patterns_->read_rows(first, end, patterns.data());
    for (int64_t g = 0; g < (end - first) * groups; ++g, out += m_) {
      const int pattern = std::clamp<int>(patterns[static_cast<size_t>(g)], 0, last);
      const uint8_t* at = positions_.data() + static_cast<size_t>(pattern) * static_cast<size_t>(n_);
      const float* value = values.data() + g * n_;
      for (int i = 0; i < n_; ++i) out[at[i]] = value[i];
    }
  }
}

BitReport NMask::bits() const {
  BitReport report = values_->bits();
  report.indices += patterns_->bits().total();
  return report;
}

json NMask::serialize(const std::string& prefix, SectionSink& sink) const {
  json j = {{"node", "nmask"}, {"rows", rows_}, {"cols", cols_}, {"n", n_}, {"m", m_}};
  j["patterns"] = patterns_->serialize(prefix + ".patterns", sink);
  j["values"] = values_->serialize(prefix + ".values", sink);
  return j;
}

std::string NMask::describe() const { return fmt::format("{}:{}({})", n_, m_, values_->describe()); }

// ---- Bitmap -------------------------------------------------------------------------------------

Bitmap::Bitmap(int64_t rows, int64_t cols, Bytes mask, FloatArray values, std::vector<uint32_t> row_start)
    : Node(rows, cols), mask_(std::move(mask)), values_(std::move(values)), row_start_(std::move(row_start)) {}

Result<NodePtr> Bitmap::make(int64_t rows, int64_t cols, Bytes mask, FloatArray values) {
  PITH_TRY(check_shape(rows, cols, "bitmap"));
  const int64_t row_bytes = (cols + 7) / 8;
  if (mask.size() != static_cast<uint64_t>(rows * row_bytes))
    return data_error(fmt::format("bitmap: mask has {} bytes, expected {} rows of {}", mask.size(), rows, row_bytes));
  if (values.size() > int64_t{0xffffffff}) return data_error("bitmap: more than 2^32 values");
  PITH_TRY(check_values(values, "bitmap"));
  std::vector<uint32_t> row_start(static_cast<size_t>(rows) + 1, 0);
  uint64_t at = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const std::byte* row = mask.data() + r * row_bytes;
    for (int64_t i = 0; i < row_bytes; ++i) at += static_cast<uint64_t>(std::popcount(static_cast<unsigned>(row[i])));
    if (cols % 8 != 0 && (static_cast<unsigned>(row[row_bytes - 1]) >> (cols % 8)) != 0)
      return data_error(fmt::format("bitmap: bits beyond column {} are set in row {}", cols, r));
    if (at > static_cast<uint64_t>(values.size())) break;
    row_start[static_cast<size_t>(r) + 1] = static_cast<uint32_t>(at);
  }
  if (at != static_cast<uint64_t>(values.size()))
    return data_error(fmt::format("bitmap: the mask and the {} values do not agree", values.size()));
  return NodePtr(new Bitmap(rows, cols, std::move(mask), std::move(values), std::move(row_start)));
}

Result<NodePtr> Bitmap::from(int64_t rows, int64_t cols, std::span<const float> matrix, DType type) {
  PITH_TRY(check_shape(rows, cols, "bitmap"));
  if (matrix.size() != static_cast<size_t>(rows * cols))
    return bug_error(fmt::format("bitmap: {} values for {} x {}", matrix.size(), rows, cols));
  const int64_t row_bytes = (cols + 7) / 8;
  std::vector<std::byte> mask(static_cast<size_t>(rows * row_bytes));
  std::vector<float> kept;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      if (const float v = matrix[static_cast<size_t>(r * cols + c)]; v != 0) {
        mask[static_cast<size_t>(r * row_bytes + c / 8)] |= static_cast<std::byte>(1 << (c % 8));
        kept.push_back(v);
      }
  PITH_ASSIGN(FloatArray values, FloatArray::from(type, kept, "bitmap"));
  return make(rows, cols, Bytes::own(std::move(mask)), std::move(values));
}

Result<NodePtr> Bitmap::parse(const json& j, const ParseContext& context, uint32_t /*depth*/) {
  PITH_ASSIGN(const Shape2 shape, json_shape(j, context.limits));
  PITH_ASSIGN(const int64_t entries, json_int(j, "entries", 0, int64_t{0xffffffff}));
  PITH_ASSIGN(Section mask, json_section(j, "mask", context));
  if (mask.type != DType::u8) return data_error("bitmap: mask is not U8");
  PITH_ASSIGN(FloatArray values, json_floats(j, "values", entries, context));
  return make(shape.rows, shape.cols, std::move(mask.data), std::move(values));
}

void Bitmap::decode_rows(int64_t r0, int64_t r1, float* out) const {
  std::fill_n(out, (r1 - r0) * cols_, 0.0f);
  const int64_t row_bytes = mask_row_bytes();
  std::vector<float> values(static_cast<size_t>(cols_));
  for (int64_t r = r0; r < r1; ++r, out += cols_) {
    const int64_t first = row_start_[static_cast<size_t>(r)];
    values_.read(first, row_start_[static_cast<size_t>(r) + 1] - first, values.data());
    const float* value = values.data();
    const std::byte* mask = mask_row(r);
    for (int64_t i = 0; i < row_bytes; ++i)
      for (auto bits = static_cast<unsigned>(mask[i]); bits != 0; bits &= bits - 1)
        out[i * 8 + std::countr_zero(bits)] = *value++;
  }
}

BitReport Bitmap::bits() const {
  BitReport report;
  report.payload = values_.stored_bits();
  report.indices = mask_.size() * 8;
  return report;
}

json Bitmap::serialize(const std::string& prefix, SectionSink& sink) const {
  sink.add(prefix + ".mask", DType::u8, {rows_, mask_row_bytes()}, mask_);
  sink.add(prefix + ".values", values_.type(), {entries()}, values_.bytes());
  return {{"node", "bitmap"},
          {"rows", rows_},
          {"cols", cols_},
          {"entries", entries()},
          {"mask", prefix + ".mask"},
          {"values", prefix + ".values"}};
}

std::string Bitmap::describe() const { return "bitmap " + percent(entries(), rows_ * cols_); }

}  // namespace pith
