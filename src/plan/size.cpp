#include "plan/size.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

namespace pith {

namespace {

struct Unit {
  std::string_view name;
  uint64_t bytes;
};
// The first name of each size is the one that is printed.
constexpr Unit kUnits[] = {{"", 1},
                           {"B", 1},
                           {"kB", 1000},
                           {"MB", 1000'000},
                           {"GB", 1000'000'000},
                           {"TB", 1000'000'000'000},
                           {"KiB", 1ull << 10},
                           {"MiB", 1ull << 20},
                           {"GiB", 1ull << 30},
                           {"TiB", 1ull << 40},
                           {"k", 1000},
                           {"M", 1000'000},
                           {"G", 1000'000'000},
                           {"T", 1000'000'000'000}};

std::string_view trim(std::string_view s) {
  while (!s.empty() && (s.front() == ' ' || s.front() == '\t')) s.remove_prefix(1);
  while (!s.empty() && (s.back() == ' ' || s.back() == '\t')) s.remove_suffix(1);
  return s;
}

bool same_letters(std::string_view a, std::string_view b) {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (lower(a[i]) != lower(b[i])) return false;
  return true;
}

Error bad_size(std::string_view text) {
  return user_error("'" + std::string(text) +
                    "' is no size; write 60MB (60,000,000 bytes), 57MiB, 1.5GB or plain bytes");
}

}  // namespace

Result<uint64_t> parse_size(std::string_view text) {
  const std::string_view s = trim(text);
  size_t end = 0;
  while (end < s.size() && ((s[end] >= '0' && s[end] <= '9') || s[end] == '.')) ++end;
  const std::string_view number = s.substr(0, end), name = trim(s.substr(end));
  const Unit* unit = nullptr;
  for (const Unit& u : kUnits)
    if (same_letters(u.name, name)) {
      unit = &u;
      break;
    }
  if (number.empty() || unit == nullptr) return bad_size(text);
  const char* const stop = number.data() + number.size();
  if (number.find('.') == std::string_view::npos) {  // whole numbers stay exact
    uint64_t v = 0, bytes = 0;
    const auto r = std::from_chars(number.data(), stop, v);
    if (r.ec != std::errc() || r.ptr != stop || __builtin_mul_overflow(v, unit->bytes, &bytes)) return bad_size(text);
    return bytes;
  }
  double v = 0;
  const auto r = std::from_chars(number.data(), stop, v);
  // 0.29 * 100 is 28.999…: add half a millionth of a byte before rounding down.
  const double bytes = std::floor(v * static_cast<double>(unit->bytes) + 5e-7);
  if (r.ec != std::errc() || r.ptr != stop || !(bytes < 0x1p63)) return bad_size(text);
  return static_cast<uint64_t>(bytes);
}

Result<double> parse_share(std::string_view text) {
  std::string_view s = trim(text);
  const bool percent = !s.empty() && s.back() == '%';
  if (percent) s = trim(s.substr(0, s.size() - 1));
  double v = 0;
  const auto r = std::from_chars(s.data(), s.data() + s.size(), v);
  if (s.empty() || r.ec != std::errc() || r.ptr != s.data() + s.size() || !std::isfinite(v) || v < 0)
    return user_error("'" + std::string(text) + "' is no share; write 2% or 0.02");
  return percent ? v / 100 : v;
}

std::string print_exact_size(uint64_t bytes) {
  std::string best = std::to_string(bytes);
  for (const Unit& unit : kUnits)
    if (bytes > 0 && unit.name.size() > 1 && bytes % unit.bytes == 0) {
      std::string candidate = std::to_string(bytes / unit.bytes) + std::string(unit.name);
      if (candidate.size() < best.size()) best = std::move(candidate);
    }
  return best;
}

}  // namespace pith
