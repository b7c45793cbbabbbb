// Files: read-only mappings, whole-file reads, and writes that appear under their name only when complete.
#pragma once

#include <pith/result.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace pith {

/// A read-only memory mapping that lives as long as somebody holds it.
class MappedFile {
 public:
  static Result<std::shared_ptr<const MappedFile>> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  MappedFile() = default;
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// The pages under these bytes leave the process's memory when they belong to a mapping (they stay in the system's
/// cache, the next read brings them back); nothing happens to other memory. For loops over more than should be
/// resident.
void drop_mapped_pages(std::span<const std::byte> bytes);

/// Whole file as text; refuses files above `max_bytes`.
Result<std::string> read_text(const std::string& path, uint64_t max_bytes);

bool file_exists(const std::string& path);
bool is_directory(const std::string& path);
/// Bytes of a regular file; 0 when there is none of that name.
uint64_t file_bytes(const std::string& path);
/// What people call it: "a.gguf" of "models/a.gguf", "a" of "models/a/".
std::string_view last_part(std::string_view path);

/// Name for something that is not complete yet and shall become `path`: beside it, with the number of this process.
std::string unfinished_name(const std::string& path);
/// Deletes what killed processes left beside `path` under such names, files and folders.
void remove_unfinished(const std::string& path);

/// Writes into a nameless file in the folder of `path` (a temporary one beside it where the file system has no such
/// files); `commit` does fsync and gives it its name. Without commit nothing stays, a kill -9 included.
class AtomicFile {
 public:
  /// Fails at once when `path` exists and `overwrite` is false, or when its folder cannot be written.
  static Result<AtomicFile> create(const std::string& path, bool overwrite);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  Status write(std::span<const std::byte> data);
  Status write(std::string_view text);
  /// Pads with zero bytes up to a multiple of `alignment`.
  Status pad_to(uint64_t alignment);
  uint64_t position() const { return position_; }
  Status commit();

 private:
  AtomicFile() = default;
  std::string path_, temporary_;
  int fd_ = -1;
  uint64_t position_ = 0;
  bool overwrite_ = false, nameless_ = false;
};

/// AtomicFile in one call.
Status write_file(const std::string& path, std::string_view content, bool overwrite);

}  // namespace pith
