#include "base/file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>

#include "base/checked.h"

namespace pith {

/// The folder that holds `path`.
static std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

static Error io_error(const std::string& path, const char* what) {
  return user_error(path + ": " + what + ": " + std::strerror(errno));
}

namespace {
/// All mappings that are alive, by their first byte: who asks to drop pages may hold any memory.
struct Mappings {
  std::mutex mutex;
  std::map<const std::byte*, size_t> size;
};
Mappings& mappings() {
  static auto* all = new Mappings;  // outlives every static that holds a file
  return *all;
}
}  // namespace

Result<std::shared_ptr<const MappedFile>> MappedFile::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return io_error(path, "cannot open");
  struct stat st {};
  if (::fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
    ::close(fd);
    return user_error(path + ": is not a regular file");
  }
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = path;
  file->size_ = static_cast<size_t>(st.st_size);
  if (file->size_ > 0) {
    void* p = ::mmap(nullptr, file->size_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED) {
      file->size_ = 0;
      ::close(fd);
      return io_error(path, "cannot map into memory");
    }
    file->data_ = static_cast<const std::byte*>(p);
    const std::lock_guard lock(mappings().mutex);
    mappings().size[file->data_] = file->size_;
  }
  ::close(fd);
  return std::shared_ptr<const MappedFile>(std::move(file));
}

MappedFile::~MappedFile() {
  if (size_ == 0) return;
  const std::lock_guard lock(mappings().mutex);
  mappings().size.erase(data_);
  ::munmap(const_cast<std::byte*>(data_), size_);
}

void drop_mapped_pages(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const std::lock_guard lock(mappings().mutex);
  auto it = mappings().size.upper_bound(bytes.data());
  if (it == mappings().size.begin()) return;
  --it;
  if (bytes.data() + bytes.size() > it->first + it->second) return;
  // Whole pages: a page at the rim that somebody else still reads comes back by itself.
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(bytes.data()) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(bytes.data() + bytes.size());
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

Result<std::string> read_text(const std::string& path, uint64_t max_bytes) {
  PITH_ASSIGN(auto file, MappedFile::open(path));
  const auto bytes = file->bytes();
  if (bytes.size() > max_bytes)
    return data_error(path + ": has " + std::to_string(bytes.size()) + " bytes, at most " + std::to_string(max_bytes) +
                      " are read");
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

bool file_exists(const std::string& path) {
  struct stat st {};
  return ::stat(path.c_str(), &st) == 0;
}

bool is_directory(const std::string& path) {
  struct stat st {};
  return ::stat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode);
}

uint64_t file_bytes(const std::string& path) {
  struct stat st {};
  return ::stat(path.c_str(), &st) == 0 && S_ISREG(st.st_mode) ? static_cast<uint64_t>(st.st_size) : 0;
}

std::string_view last_part(std::string_view path) {
  while (path.size() > 1 && path.ends_with('/')) path.remove_suffix(1);
  return path.substr(path.rfind('/') + 1);
}

static constexpr std::string_view kUnfinished = ".part.";

std::string unfinished_name(const std::string& path) {
  return path + std::string(kUnfinished) + std::to_string(::getpid());
}

void remove_unfinished(const std::string& path) {
  namespace fs = std::filesystem;
  const std::string start = fs::path(path).filename().string() + std::string(kUnfinished);
  std::error_code error;
  for (fs::directory_iterator it(folder_of(path), error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with(start)) continue;
    pid_t owner = 0;
    const char* last = name.data() + name.size();
    const auto [rest, bad] = std::from_chars(name.data() + start.size(), last, owner);
    if (bad != std::errc() || rest != last || owner <= 0 || ::kill(owner, 0) == 0 || errno != ESRCH) continue;
    std::error_code ignored;  // what cannot be deleted is in nobody's way
    fs::remove_all(it->path(), ignored);
  }
}

Result<AtomicFile> AtomicFile::create(const std::string& path, bool overwrite) {
  if (path.empty()) return user_error("no output path given (use -o PATH)");
  if (is_directory(path)) return user_error(path + ": is a folder, a file name is needed");
  if (!overwrite && file_exists(path))
    return user_error(path + ": exists already; choose another name or pass --force");
  AtomicFile file;
  file.path_ = path;
  file.overwrite_ = overwrite;
  file.temporary_ = unfinished_name(path);
  // A file without a name vanishes by itself when the process is killed. Not every file system has them.
  if (::access("/proc/self/fd", X_OK) == 0)
    file.fd_ = ::open(folder_of(path).c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0644);
  if (file.fd_ >= 0) {
    file.nameless_ = true;
    return file;
  }
  remove_unfinished(path);
  file.fd_ = ::open(file.temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file.fd_ < 0) return io_error(path, "cannot write here");
  return file;
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      fd_(other.fd_),
      position_(other.position_),
      overwrite_(other.overwrite_),
      nameless_(other.nameless_) {
  other.fd_ = -1;
  other.temporary_.clear();
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty() && !nameless_) ::unlink(temporary_.c_str());
}

Status AtomicFile::write(std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t n = ::write(fd_, data.data(), std::min<size_t>(data.size(), size_t{1} << 30));
    if (n < 0) {
      if (errno == EINTR) continue;
      return io_error(path_, "cannot write");
    }
    position_ += static_cast<uint64_t>(n);
    data = data.subspan(static_cast<size_t>(n));
  }
  return {};
}

Status AtomicFile::write(std::string_view text) { return write(std::as_bytes(std::span(text.data(), text.size()))); }

Status AtomicFile::pad_to(uint64_t alignment) {
  static constexpr std::byte zeros[64] = {};
  uint64_t missing = round_up(position_, alignment) - position_;
  while (missing > 0) {
    const uint64_t n = std::min<uint64_t>(missing, sizeof zeros);
    PITH_TRY(write(std::span(zeros, n)));
    missing -= n;
  }
  return {};
}

Status AtomicFile::commit() {
  if (::fsync(fd_) != 0) return io_error(path_, "cannot write");
  // link refuses to replace a file that came into being meanwhile; rename would lose it.
  const std::string self = "/proc/self/fd/" + std::to_string(fd_);
  const char* from = nameless_ ? self.c_str() : temporary_.c_str();
  const auto link_to = [&](const std::string& to) {
    return ::linkat(AT_FDCWD, from, AT_FDCWD, to.c_str(), nameless_ ? AT_SYMLINK_FOLLOW : 0) == 0;
  };
  bool linked = link_to(path_);
  if (!linked && errno == EEXIST && !overwrite_)
    return user_error(path_ + ": exists already; choose another name or pass --force");
  if (!linked && nameless_) {
    // To replace a file, the new one needs a name of its own first.
    remove_unfinished(path_);
    ::unlink(temporary_.c_str());
    if (!link_to(temporary_)) return io_error(path_, "cannot give the finished file its name");
    nameless_ = false;
  }
  // Some file systems know no hard links, so a named file falls through to rename here.
  if (!linked && ::rename(temporary_.c_str(), path_.c_str()) != 0) return io_error(path_, "cannot rename into place");
  if (linked && !nameless_) ::unlink(temporary_.c_str());
  temporary_.clear();
  ::close(fd_);
  fd_ = -1;
  // The name must survive a power cut as well; best effort, some file systems refuse.
  if (const int folder = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); folder >= 0) {
    ::fsync(folder);
    ::close(folder);
  }
  return {};
}

Status write_file(const std::string& path, std::string_view content, bool overwrite) {
  PITH_ASSIGN(auto file, AtomicFile::create(path, overwrite));
  PITH_TRY(file.write(content));
  return file.commit();
}

}  // namespace pith
