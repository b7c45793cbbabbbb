#include "represent/json_read.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/checked.h"

namespace pith {

using nlohmann::json;

static const json* member(const json& j, const char* key) {
  if (!j.is_object()) return nullptr;
  const auto it = j.find(key);
  return it == j.end() ? nullptr : &*it;
}

Result<int64_t> json_int(const json& j, const char* key, int64_t low, int64_t high) {
  const json* v = member(j, key);
  if (v == nullptr || !v->is_number_integer()) return data_error(fmt::format("'{}' is missing or not an integer", key));
  // An unsigned number above the signed range would wrap when read as signed.
  const bool too_big =
      v->is_number_unsigned() && v->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  const int64_t x = too_big ? std::numeric_limits<int64_t>::max() : v->get<int64_t>();
  if (too_big || x < low || x > high)
    return data_error(fmt::format("'{}' is {}, expected {} to {}", key, v->dump(), low, high));
  return x;
}

Result<float> json_float(const json& j, const char* key) {
  const json* v = member(j, key);
  if (v == nullptr || !v->is_number()) return data_error(fmt::format("'{}' is missing or not a number", key));
  const double x = v->get<double>();
  if (!std::isfinite(x) || std::abs(x) > 3.5e38 || !std::isfinite(static_cast<float>(x)))
    return data_error(fmt::format("'{}' is {}, expected a finite fp32 number", key, v->dump()));
  return static_cast<float>(x);
}

Result<std::string> json_text(const json& j, const char* key) {
  const json* v = member(j, key);
  if (v == nullptr || !v->is_string()) return data_error(fmt::format("'{}' is missing or not a string", key));
  return v->get<std::string>();
}

Result<const json*> json_object(const json& j, const char* key) {
  const json* v = member(j, key);
  if (v == nullptr || !v->is_object()) return data_error(fmt::format("'{}' is missing or not an object", key));
  return v;
}

Result<Section> json_section(const json& j, const char* key, const ParseContext& context) {
  PITH_ASSIGN(const std::string name, json_text(j, key));
  return context.sections.find(name);
}

Result<int64_t> section_items(const Section& section, std::string_view what) {
  uint64_t items = 1;
  for (const int64_t n : section.shape) {
    const auto product = n < 0 ? std::nullopt : checked_mul(items, static_cast<uint64_t>(n));
    if (!product || *product > (uint64_t{1} << 48)) return data_error(fmt::format("{}: impossible shape", what));
    items = *product;
  }
  const auto bytes = checked_mul(items, dtype_size(section.type));
  if (!bytes || *bytes != section.data.size())
    return data_error(fmt::format("{}: {} elements of {} do not fill {} bytes", what, items, dtype_name(section.type),
                                  section.data.size()));
  return static_cast<int64_t>(items);
}

Result<FloatArray> json_floats(const json& j, const char* key, int64_t count, const ParseContext& context) {
  PITH_ASSIGN(Section s, json_section(j, key, context));
  return FloatArray::make(s.type, count, std::move(s.data), key);
}

Result<IndexArray> json_indices(const json& j, const char* key, int64_t count, const ParseContext& context) {
  PITH_ASSIGN(Section s, json_section(j, key, context));
  return IndexArray::make(s.type, count, std::move(s.data), key);
}

Status check_shape(int64_t rows, int64_t cols, std::string_view what) {
  constexpr uint64_t kMost = uint64_t{1} << 40;
  const auto items =
      rows < 1 || cols < 1 ? std::nullopt : checked_mul(static_cast<uint64_t>(rows), static_cast<uint64_t>(cols));
  if (!items || *items > kMost)
    return data_error(fmt::format("{}: a matrix of {} x {} is impossible", what, rows, cols));
  return {};
}

Result<Shape2> json_shape(const json& j, const Limits& limits) {
  constexpr int64_t kMost = int64_t{1} << 40;
  PITH_ASSIGN(const int64_t rows, json_int(j, "rows", 1, kMost));
  PITH_ASSIGN(const int64_t cols, json_int(j, "cols", 1, kMost));
  PITH_TRY(check_shape(rows, cols, "shape"));
  if (static_cast<uint64_t>(rows) * static_cast<uint64_t>(cols) > limits.max_tensor_items)
    return data_error(
        fmt::format("a matrix of {} x {} is above the limit of {} elements", rows, cols, limits.max_tensor_items));
  return Shape2{rows, cols};
}

Result<NodePtr> json_node(const json& j, const char* key, const ParseContext& context, uint32_t depth) {
  PITH_ASSIGN(const json* child, json_object(j, key));
  return parse_node_at(*child, context, depth + 1).context(key);
}

Status check_codes(const Codes& codes, int low, int high, std::string_view what) {
  const auto [least, most] = codes.range();
  if (least >= low && most <= high) return {};
  const int64_t step = rows_at_once(codes.cols());
  std::vector<int16_t> buffer(static_cast<size_t>(std::min(step, codes.rows()) * codes.cols()));
  for (int64_t r = 0; r < codes.rows(); r += step) {
    const int64_t end = std::min(r + step, codes.rows());
    codes.read_rows(r, end, buffer.data());
    for (int64_t i = 0; i < (end - r) * codes.cols(); ++i)
      if (const int v = buffer[static_cast<size_t>(i)]; v < low || v > high)
        return data_error(
            fmt::format("{}: code {} in row {}, expected {} to {}", what, v, r + i / codes.cols(), low, high));
  }
  return {};
}

std::string percent(int64_t part, int64_t whole) {
  return fmt::format("{:.2g} %", 100.0 * static_cast<double>(part) / static_cast<double>(std::max<int64_t>(whole, 1)));
}

}  // namespace pith
