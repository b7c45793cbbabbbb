#include "measure/memory.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>

namespace pith {

/// The number after `key` in a file of lines like "VmHWM:     1234 kB", in bytes; 0 when it is not there.
static uint64_t proc_field(const char* path, const char* key) {
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = ::read(fd, buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(n));
  ::close(fd);
  const size_t at = text.find(std::string("\n") + key + ":");
  if (at == std::string::npos) return 0;
  return std::strtoull(text.c_str() + at + std::strlen(key) + 2, nullptr, 10) * 1024;
}

uint64_t peak_memory() { return proc_field("/proc/self/status", "VmHWM"); }
uint64_t current_memory() { return proc_field("/proc/self/status", "VmRSS"); }
uint64_t current_anonymous_memory() { return proc_field("/proc/self/status", "RssAnon"); }
uint64_t available_memory() { return proc_field("/proc/meminfo", "MemAvailable"); }

bool reset_peak_memory() {
  const int fd = ::open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool done = ::write(fd, "5", 1) == 1;
  ::close(fd);
  return done;
}

}  // namespace pith
