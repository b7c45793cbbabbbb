#include "base/print.h"

#include <fmt/format.h>

#include <cmath>

namespace pith {

std::string print_size(uint64_t bytes) {
  if (bytes < 1000) return std::to_string(bytes) + " B";
  double v = static_cast<double>(bytes);
  for (const char* unit : {"kB", "MB", "GB", "TB", "PB", "EB"}) {
    v /= 1000;
    const int decimals = v < 9.995 ? 2 : v < 99.95 ? 1 : 0;
    if (v < 999.5 || unit[0] == 'E') return fmt::format("{:.{}f} {}", v, decimals, unit);
  }
  return std::to_string(bytes) + " B";
}

std::string print_duration(double seconds) {
  if (!(seconds >= 0)) return "?";
  if (seconds < 0.0995) return fmt::format("{:.0f} ms", seconds * 1000);
  if (seconds < 9.95) return fmt::format("{:.1f} s", seconds);
  if (seconds > 1e9) return "for ever";
  const auto s = static_cast<int64_t>(std::llround(seconds));
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} min {:02} s", s / 60, s % 60);
  return fmt::format("{} h {:02} min", s / 3600, s % 3600 / 60);
}

std::string print_count(uint64_t n) {
  std::string digits = std::to_string(n);
  for (size_t at = digits.size(); at > 3; at -= 3) digits.insert(at - 3, ",");
  return digits;
}

}  // namespace pith
