// JSON from files, parsed so that hostile text can neither throw, nor nest deeper than allowed, nor repeat a key.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/limits.h"

namespace pith {

/// Parses `text`; `what` ("config.json") stands in the error, which gives the byte where reading stopped.
/// A key that occurs twice in one object is an error: two readers would disagree about such a file.
Result<nlohmann::json> parse_json(std::string_view text, const std::string& what, const Limits& limits);
Result<nlohmann::json> read_json(const std::string& path, const Limits& limits);

/// Members with a type check; the fallback when the key is missing or null, an error when it is of another type.
Result<int64_t> json_int(const nlohmann::json& object, const char* key, int64_t fallback);
Result<double> json_number(const nlohmann::json& object, const char* key, double fallback);
Result<bool> json_bool(const nlohmann::json& object, const char* key, bool fallback);
Result<std::string> json_string(const nlohmann::json& object, const char* key, std::string fallback);

/// The value, when it is an integer >= 0 (parsed text and values made in memory differ in how they hold it).
std::optional<uint64_t> json_unsigned(const nlohmann::json& value);

/// dump() that cannot throw: bytes that are not UTF-8 become U+FFFD.
std::string json_text(const nlohmann::json& value, int indent = -1);

}  // namespace pith
