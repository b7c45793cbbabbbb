// safetensors: an 8-byte length, a JSON header, then the tensors without holes. Reader (mapped), streaming writer,
// and the index of a sharded model.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/limits.h"
#include "formats/bytes.h"
#include "formats/dtype.h"

namespace pith {

struct SafetensorsEntry {
  std::string name;
  DType type{};
  std::vector<int64_t> shape;
  uint64_t begin = 0, bytes = 0;  ///< place in the file, checked
};

/// A mapped file. Copies share the mapping.
class SafetensorsFile {
 public:
  static Result<SafetensorsFile> open(const std::string& path, const Limits& limits);
  /// From bytes in memory; `label` stands in error messages.
  static Result<SafetensorsFile> parse(Bytes file, const std::string& label, const Limits& limits);

  /// In the order of the data.
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }
  const SafetensorsEntry* find(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  /// The bytes of one tensor; not aligned when the writer of the file did not care.
  Bytes data(const SafetensorsEntry& entry) const { return file_.slice(entry.begin, entry.bytes); }
  uint64_t header_bytes() const { return header_bytes_; }  ///< length field and JSON: where the data begins
  uint64_t file_bytes() const { return file_.size(); }

 private:
  Bytes file_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, size_t, std::less<>> index_;
  std::map<std::string, std::string> metadata_;
  uint64_t header_bytes_ = 0;
};

struct SafetensorsDecl {
  std::string name;
  DType type{};
  std::vector<int64_t> shape;
};

/// Entries are announced first, then their data is written in the same order, in pieces of any size.
class SafetensorsWriter {
 public:
  /// The data begins at a multiple of 64 bytes. Names must be unique.
  static Result<SafetensorsWriter> create(const std::string& path, const std::vector<SafetensorsDecl>& entries,
                                          const std::map<std::string, std::string>& metadata, bool overwrite);
  Status write(std::span<const std::byte> data);
  /// Checks that exactly the announced bytes were written, then lets the file appear.
  Status finish();
  uint64_t data_bytes() const { return expected_; }

 private:
  explicit SafetensorsWriter(AtomicFile file) : file_(std::move(file)) {}
  AtomicFile file_;
  uint64_t expected_ = 0, written_ = 0;
};

/// The header that SafetensorsWriter writes: length field, JSON, spaces up to a multiple of 64.
Result<std::string> safetensors_header(const std::vector<SafetensorsDecl>& entries,
                                       const std::map<std::string, std::string>& metadata);

/// One model in one or several files: `model.safetensors`, or all shards named by `model.safetensors.index.json`.
class ShardedSafetensors {
 public:
  /// `path`: a .safetensors file, an index file, or a folder with either. Checks index and shards against each other.
  static Result<ShardedSafetensors> open(const std::string& path, const Limits& limits);

  struct Found {
    const SafetensorsFile* file;
    const SafetensorsEntry* entry;
    Bytes data() const { return file->data(*entry); }
  };
  std::optional<Found> find(std::string_view name) const;
  /// All tensors, sorted by name.
  std::vector<Found> all() const;
  const std::vector<SafetensorsFile>& shards() const { return shards_; }

 private:
  std::vector<SafetensorsFile> shards_;
  std::map<std::string, std::pair<size_t, size_t>, std::less<>> index_;  // name -> shard, entry
};

}  // namespace pith
