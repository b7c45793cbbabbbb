#include <dirent.h>
#include <fmt/format.h>

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

std::string print_percent(double part, double whole) {
  return whole > 0 ? fmt::format("{:.1f} %", 100 * part / whole) : std::string("-");
}

}  // namespace pith
