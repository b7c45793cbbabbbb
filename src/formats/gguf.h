// GGUF v2 and v3, little endian: typed metadata and tensors. Reader (mapped) and streaming writer.
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
#include "formats/ggml_blocks.h"

namespace pith {

enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };
std::string_view gguf_type_name(GgufType type);

/// One metadata value: its type and its encoded bytes (inside the mapped file, or its own).
class GgufValue {
 public:
  static GgufValue u8(uint8_t v);
  static GgufValue u32(uint32_t v);
  static GgufValue i32(int32_t v);
  static GgufValue u64(uint64_t v);
  static GgufValue f32(float v);
  static GgufValue boolean(bool v);
  static GgufValue string(std::string_view v);
  static GgufValue u32s(std::span<const uint32_t> v);
  static GgufValue i32s(std::span<const int32_t> v);
  static GgufValue f32s(std::span<const float> v);
  static GgufValue bools(std::span<const uint8_t> v);
  static GgufValue u8s(std::span<const uint8_t> v);
  static GgufValue strings(std::span<const std::string> v);
  /// Checked bytes as they stand in a file.
  static GgufValue encoded(GgufType type, GgufType item, uint64_t count, Bytes raw);

  GgufType type() const { return type_; }
  GgufType item_type() const { return item_; }                  ///< of an array
  uint64_t count() const { return count_; }                     ///< items of an array; 1 otherwise
  std::span<const std::byte> raw() const { return raw_.view; }  ///< payload; strings carry their length before them

  /// The number, when it is one and fits (integers of any width, f32 and f64 for as_f64, bool only for as_bool).
  std::optional<int64_t> as_i64() const;
  std::optional<uint64_t> as_u64() const;
  std::optional<double> as_f64() const;
  std::optional<bool> as_bool() const;
  std::optional<std::string_view> as_string() const;
  /// Arrays; nullopt when the item type does not fit. Views point into the file.
  std::optional<std::vector<std::string_view>> as_strings() const;
  std::optional<std::vector<int64_t>> as_i64s() const;  ///< any integer or bool items
  std::optional<std::vector<float>> as_f32s() const;    ///< f32 or f64 items

 private:
  GgufType type_{}, item_{};
  uint64_t count_ = 1;
  Bytes raw_;
};

/// Key-value pairs in file order.
class GgufMetadata {
 public:
  const GgufValue* find(std::string_view key) const;
  /// Replaces in place or appends.
  void set(std::string key, GgufValue value);
  bool erase(std::string_view key);
  const std::vector<std::pair<std::string, GgufValue>>& items() const { return items_; }

  /// The value, or an error that names the key, what was expected and what stands there.
  Result<uint32_t> get_u32(std::string_view key) const;
  Result<double> get_f64(std::string_view key) const;
  Result<std::string> get_string(std::string_view key) const;
  Result<bool> get_bool(std::string_view key) const;
  /// The same with a fallback for a missing key; a key of the wrong type is still an error.
  Result<uint32_t> get_u32(std::string_view key, uint32_t fallback) const;
  Result<double> get_f64(std::string_view key, double fallback) const;
  Result<std::string> get_string(std::string_view key, std::string fallback) const;
  Result<bool> get_bool(std::string_view key, bool fallback) const;

 private:
  std::vector<std::pair<std::string, GgufValue>> items_;
  std::map<std::string, size_t, std::less<>> index_;
};

struct GgufTensor {
  std::string name;
  GgmlType type{};
  std::vector<int64_t> shape;     ///< slowest first, as everywhere in Pith (GGUF itself stores the reverse)
  uint64_t begin = 0, bytes = 0;  ///< place in the file, checked

  int64_t row_length() const { return shape.empty() ? 1 : shape.back(); }
  int64_t rows() const;  ///< product of all but the last dimension
  uint64_t row_bytes() const { return bytes / static_cast<uint64_t>(rows() > 0 ? rows() : 1); }
};

/// A mapped file. Copies share the mapping.
class GgufFile {
 public:
  static Result<GgufFile> open(const std::string& path, const Limits& limits);
  static Result<GgufFile> parse(Bytes file, const std::string& label, const Limits& limits);

  uint32_t version() const { return version_; }
  uint64_t alignment() const { return alignment_; }
  const GgufMetadata& metadata() const { return metadata_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* find(std::string_view name) const;
  Bytes data(const GgufTensor& tensor) const { return file_.slice(tensor.begin, tensor.bytes); }
  uint64_t file_bytes() const { return file_.size(); }
  uint64_t data_begin() const { return data_begin_; }

 private:
  Bytes file_;
  uint32_t version_ = 0;
  uint64_t alignment_ = 32, data_begin_ = 0;
  GgufMetadata metadata_;
  std::vector<GgufTensor> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
};

struct GgufDecl {
  std::string name;
  GgmlType type{};
  std::vector<int64_t> shape;  ///< slowest first
};

/// Bytes of a GGUF v3 file with this content, exactly: what a size budget needs before anything is written.
Result<uint64_t> gguf_file_bytes(const GgufMetadata& metadata, const std::vector<GgufDecl>& tensors);

/// Writes v3 with alignment 32: announced tensors first, then their data in the same order, in pieces of any size.
class GgufWriter {
 public:
  static Result<GgufWriter> create(const std::string& path, const GgufMetadata& metadata,
                                   const std::vector<GgufDecl>& tensors, bool overwrite);
  Status write(std::span<const std::byte> data);
  Status finish();

 private:
  explicit GgufWriter(AtomicFile file) : file_(std::move(file)) {}
  Status pad_finished();
  AtomicFile file_;
  std::vector<uint64_t> sizes_;
  size_t current_ = 0;
  uint64_t done_ = 0;  // bytes of the current tensor
};

}  // namespace pith
