// Base64 (RFC 4648, with padding): bytes inside JSON.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace pith {

std::string to_base64(std::string_view bytes);
/// nullopt when a character is none of the alphabet; white space is skipped, the padding may be missing.
std::optional<std::string> from_base64(std::string_view text);

}  // namespace pith
