// Sizes and shares as people write them: "60MB" is 60,000,000 bytes, "57MiB" is 57 x 2^20, "2%" is 0.02.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "base/print.h"

namespace pith {

/// "60MB", "1.5 GB", "57MiB", "12k", "4096" (bytes). Upper and lower case are the same; fractions of a byte round down.
Result<uint64_t> parse_size(std::string_view text);

/// "2%" or "0.02" as 0.02. Negative shares are refused.
Result<double> parse_share(std::string_view text);

/// The shortest text that parse_size reads back exactly: "60MB", "57MiB", "1234567".
std::string print_exact_size(uint64_t bytes);

}  // namespace pith
