// The `.pith` file: a valid safetensors file whose `__metadata__` says how to run it. Each tensor of the model is one
// safetensors entry that holds its sections (the arrays of its representation tree) one after another, each at a
// multiple of 64 bytes; a tensor that is one plain array is an ordinary entry of that type and shape. The manifest
// lists sections, trees, configuration, plan and report. This layer knows sections and JSON text, not nodes: represent/
// puts trees in and takes them out.
//
// __metadata__ keys:
//   format        "pith"
//   pith_version  "1"
//   pith          the manifest: JSON, zstd, base64. {"config": …, "plan": …, "report": …,
//                 "tensors": [[name, shape, tree, [[section, dtype, shape], …]], …], "shared": [[section, dtype,
//                 shape], …]}
//   pith_hashes   base64 of 16 bytes each: XXH3-128 of the compressed manifest, then of every entry, by entry name
// Entries beside the tensors: "pith.shared" (sections that several trees use), "pith.tokenizer" (pack_tokenizer).
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
  std::vector<int64_t> shape;         ///< of the tensor that the tree stands for
  std::string tree;                   ///< JSON text
  std::vector<PithSection> sections;  ///< its own arrays
};

/// Everything a file holds. All texts but `tokenizer` are JSON ("" = absent).
struct PithContents {
  std::string config;     ///< as config.json (lm_config_to_hf)
  std::string tokenizer;  ///< packed tokenizer (pack_tokenizer); "" = none
  std::string plan, report;
  std::vector<PithTensor> tensors;
  std::vector<PithSection> shared;  ///< arrays that several trees use
};

/// Writes through AtomicFile; the same contents give the same bytes. Data is read twice (hash, copy), so it may be
/// mapped; one tensor at a time is held in memory.
Status write_pith(const std::string& path, const PithContents& contents, bool overwrite);
/// The exact size of that file. Depends on sizes and texts only, so section data may be empty views of the right size.
Result<uint64_t> pith_file_bytes(const PithContents& contents);

class PithFile {
 public:
  /// Reads the manifest, checks its hash and all lengths and places; the hashes of the data are left to verify.
  static Result<PithFile> open(const std::string& path, const Limits& limits);
  static Result<PithFile> parse(Bytes file, const std::string& label, const Limits& limits);
  /// True when the file's header has our keys; cheap.
  static bool recognise(const std::string& path);

  int version() const { return version_; }
  const std::string& config() const { return contents_.config; }
  const std::string& plan() const { return contents_.plan; }
  const std::string& report() const { return contents_.report; }
  /// Packed tokenizer; empty when there is none.
  const std::string& tokenizer() const { return contents_.tokenizer; }
  const std::vector<PithTensor>& tensors() const { return contents_.tensors; }
  const std::vector<PithSection>& shared() const { return contents_.shared; }
  /// nullptr when there is none of that name.
  const PithTensor* tensor(std::string_view name) const;
  /// Any section by name, shared ones included; nullptr when there is none.
  const PithSection* find(std::string_view name) const;

  uint64_t file_bytes() const { return file_.file_bytes(); }
  uint64_t header_bytes() const { return file_.header_bytes(); }  ///< safetensors header, manifest included

  /// Reads everything and compares with the stored hashes; names the first entry that differs.
  Status verify() const;

 private:
  SafetensorsFile file_;
  std::string label_;
  int version_ = 0;
  PithContents contents_;
  std::map<std::string, std::string> hashes_;                             // entry -> 16 bytes
  std::map<std::string, std::pair<int64_t, size_t>, std::less<>> index_;  // section -> tensor (-1 shared), place
  std::map<std::string, size_t, std::less<>> tensors_;
};

}  // namespace pith
