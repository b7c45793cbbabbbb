// Numbers for people.
#pragma once

#include <cstdint>
#include <string>

namespace pith {

/// "60.0 MB", "873 B", "1.24 GB": three digits, decimal units.
std::string print_size(uint64_t bytes);
/// "1 min 23 s", "4.2 s", "2 h 05 min", "13 ms".
std::string print_duration(double seconds);
/// "134,515,008".
std::string print_count(uint64_t n);

}  // namespace pith
