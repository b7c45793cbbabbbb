#include <dirent.h>
#include <fmt/format.h>

#include <charconv>

#include "base/file.h"
#include "cli/pith/commands.h"

namespace pith {

int print_result(std::string_view text) {
  const Status status = print_out(text);
  return status.ok() ? 0 : fail(status.error());
}

uint64_t model_file_bytes(const std::string& path) {
  if (!is_directory(path)) return file_bytes(path);
  uint64_t sum = 0;
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) return 0;
  while (const dirent* entry = ::readdir(dir)) {
    const std::string name = entry->d_name;
    constexpr std::string_view ending = ".safetensors";
    if (name.size() > ending.size() && name.compare(name.size() - ending.size(), ending.size(), ending) == 0)
      sum += file_bytes(path + "/" + name);
  }
  ::closedir(dir);
  return sum;
}

Result<int64_t> parse_tokens(std::string_view text) {
  const bool thousands = text.ends_with('k') || text.ends_with('K');
  const std::string_view digits = text.substr(0, text.size() - (thousands ? 1 : 0));
  int64_t n = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), n);
  if (error != std::errc() || end != digits.data() + digits.size() || n < 1 || n > int64_t{1} << 30)
    return user_error(fmt::format("'{}' is no number of tokens; write 4096, or 4k for 4 x 1024", text));
  return thousands ? n * 1024 : n;
}

std::string print_percent(double part, double whole) {
  return whole > 0 ? fmt::format("{:.1f} %", 100 * part / whole) : std::string("-");
}

}  // namespace pith
