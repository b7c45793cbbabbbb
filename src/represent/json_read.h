// Reading a node's description: every helper checks type and range and names the key in its error.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "represent/arrays.h"
#include "represent/node.h"

namespace pith {

/// An integer in [low, high].
Result<int64_t> json_int(const nlohmann::json& j, const char* key, int64_t low, int64_t high);
/// A finite number that is exact in fp32.
Result<float> json_float(const nlohmann::json& j, const char* key);
Result<std::string> json_text(const nlohmann::json& j, const char* key);
/// A member that is an object.
Result<const nlohmann::json*> json_object(const nlohmann::json& j, const char* key);

/// The section that the string under `key` names.
Result<Section> json_section(const nlohmann::json& j, const char* key, const ParseContext& context);
/// The same as numbers; any count.
Result<FloatArray> json_floats(const nlohmann::json& j, const char* key, int64_t count, const ParseContext& context);
Result<IndexArray> json_indices(const nlohmann::json& j, const char* key, int64_t count, const ParseContext& context);
/// Elements in a section as its shape and bytes agree on; an error when they do not.
Result<int64_t> section_items(const Section& section, std::string_view what);

/// "rows" and "cols": both positive, product within limits.max_tensor_items.
struct Shape2 {
  int64_t rows, cols;
};
Result<Shape2> json_shape(const nlohmann::json& j, const Limits& limits);
/// Refuses sizes that are not positive or whose product passes 2^40.
Status check_shape(int64_t rows, int64_t cols, std::string_view what);

/// The node under `key`, one level deeper than `depth`.
Result<NodePtr> json_node(const nlohmann::json& j, const char* key, const ParseContext& context, uint32_t depth);
Result<NodePtr> parse_node_at(const nlohmann::json& tree, const ParseContext& context, uint32_t depth);

/// Every code lies in [low, high]: by the range of its kind when that is enough, else by reading all.
Status check_codes(const Codes& codes, int low, int high, std::string_view what);

/// Rows to decode at once so that a scratch buffer of fp32 rows stays near 256 KiB.
inline int64_t rows_at_once(int64_t cols) { return cols >= 65536 ? 1 : 65536 / cols; }

/// "3.4 %" of part in whole.
std::string percent(int64_t part, int64_t whole);

}  // namespace pith
