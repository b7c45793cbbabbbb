// The `.pith` file: a valid safetensors file whose `__metadata__` says how to run it. Each tensor of the model is one
// safetensors entry, holding its sections (the arrays of its representation tree) one after another; the manifest
// (JSON, zstd, base64 under the key "pith") lists sections, trees, configuration, plan, report and hashes. This layer
// knows sections and JSON text, not nodes: represent/ puts trees in and takes them out.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/limits.h"
#include "formats/bytes.h"
#include "formats/dtype.h"
#include "formats/safetensors.h"

namespace pith {

/// One array. `name` is unique in the file.
struct PithSection {
  std::string name;
  DType type{};
  std::vector<int64_t> shape;
  Bytes data;
};

struct PithTensor {
  std::string name;                   ///< canonical
  std::vector<int64_t> shape;         ///< of the matrix that the tree stands for
  std::string tree;                   ///< JSON text
  std::vector<PithSection> sections;  ///< its own arrays
};

/// Everything a file holds. All texts but `tokenizer` are JSON ("" = absent).
struct PithContents {
  std::string config;     ///< as config.json (lm_config_to_hf)
  std::string tokenizer;  ///< packed tokenizer (pack_tokenizer)
  std::string plan, report;
  std::vector<PithTensor> tensors;
  std::vector<PithSection> shared;  ///< arrays that several trees use
};

/// Writes through AtomicFile; the same contents give the same bytes. Data is read twice (hash, copy), so it may be
/// mapped.
Status write_pith(const std::string& path, const PithContents& contents, bool overwrite);
/// The exact size of that file.
Result<uint64_t> pith_file_bytes(const PithContents& contents);

class PithFile {
 public:
  /// Reads the manifest and checks all lengths and places, not the hashes of the data (verify does).
  static Result<PithFile> open(const std::string& path, const Limits& limits);
  static Result<PithFile> parse(Bytes file, const std::string& label, const Limits& limits);
  /// True when the file begins like a `.pith` file (a safetensors header with our key); cheap.
  static bool recognise(const std::string& path);

  int version() const { return version_; }
  const std::string& config() const { return contents_.config; }
  const std::string& plan() const { return contents_.plan; }
  const std::string& report() const { return contents_.report; }
  /// Packed tokenizer; empty when there is none.
  const std::string& tokenizer() const { return contents_.tokenizer; }
  const std::vector<PithTensor>& tensors() const { return contents_.tensors; }
  const PithTensor* tensor(std::string_view name) const;
  /// Any section by name, shared ones included; nullptr when there is none.
  const PithSection* find(std::string_view name) const;
  const std::vector<PithSection>& shared() const { return contents_.shared; }

  uint64_t file_bytes() const { return file_.file_bytes(); }
  uint64_t header_bytes() const { return file_.header_bytes(); }  ///< safetensors header, manifest included

  /// Reads everything and compares with the stored hashes; names the first entry that differs.
  Status verify() const;

 private:
  SafetensorsFile file_;
  std::string label_;
  int version_ = 0;
  PithContents contents_;
  std::map<std::string, std::string> hashes_;                             // entry -> hex
  std::map<std::string, std::pair<int64_t, size_t>, std::less<>> index_;  // section -> tensor (-1 shared), place
};

}  // namespace pith
