// The representation algebra (design.md section 3). A compressed matrix is a value: a tree of nodes, each of which can
// be decoded by rows, knows its exact size, and can be written and read. A method is a fit that returns a tree.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "formats/bytes.h"
#include "formats/dtype.h"

namespace pith {

/// Exact bits of a node as stored in a file, by what they are for. Headers of the file itself (section names, the tree
/// as JSON) are counted by the file (represent/model.h), not here.
struct BitReport {
  uint64_t payload = 0;  ///< codes, dense values
  uint64_t scales = 0;   ///< steps, scales, zeros, means
  uint64_t tables = 0;   ///< codebooks, probability tables
  uint64_t indices = 0;  ///< sparse positions, row pointers, masks
  uint64_t permutation = 0;
  uint64_t factors = 0;  ///< low-rank factors

  uint64_t total() const { return payload + scales + tables + indices + permutation + factors; }
  BitReport& operator+=(const BitReport& o) {
    payload += o.payload, scales += o.scales, tables += o.tables, indices += o.indices, permutation += o.permutation,
        factors += o.factors;
    return *this;
  }
};

/// Where a node's arrays go when it is written. Section names are unique in a file.
class SectionSink {
 public:
  virtual ~SectionSink() = default;
  virtual void add(std::string name, DType type, std::vector<int64_t> shape, Bytes data) = 0;
  /// A section that several nodes use (probability tables of a whole model): written once for each distinct `key`, so
  /// the key must tell different contents apart (a hash does).
  /// Returns the name under which it can be found again.
  virtual std::string add_shared(std::string key, DType type, std::vector<int64_t> shape, Bytes data) = 0;
};

struct Section {
  DType type{};
  std::vector<int64_t> shape;
  Bytes data;
};

/// Where a node's arrays come from when it is read.
class SectionSource {
 public:
  virtual ~SectionSource() = default;
  virtual Result<Section> find(std::string_view name) const = 0;
};

class Node;
using NodePtr = std::shared_ptr<const Node>;

/// Integer codes of a Grid or Codebook, however they are stored. Values are signed 16-bit.
/// Packed codes live in represent/; entropy-coded ones are an implementation in entropy/ of the same interface.
class Codes {
 public:
  virtual ~Codes() = default;
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  virtual std::string_view kind() const = 0;
  /// Codes of rows [r0, r1), row-major.
  virtual void read_rows(int64_t r0, int64_t r1, int16_t* out) const = 0;
  /// Smallest and largest value that can occur.
  virtual std::pair<int, int> range() const = 0;
  virtual BitReport bits() const = 0;
  virtual nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const = 0;

 protected:
  Codes(int64_t rows, int64_t cols) : rows_(rows), cols_(cols) {}
  int64_t rows_, cols_;
};
using CodesPtr = std::shared_ptr<const Codes>;
/// All codes, row-major.
std::vector<int16_t> all_codes(const Codes& codes);

struct ParseContext;
/// Reads one kind of codes; the entropy layer adds its own (dependency inversion: this layer stands above it).
struct CodesFormat {
  std::string_view kind;
  Result<CodesPtr> (*parse)(const nlohmann::json&, int64_t rows, int64_t cols, const ParseContext&);
};

struct ParseContext {
  const SectionSource& sections;
  const Limits& limits;
  std::vector<CodesFormat> codes_formats;  ///< beside "packed", which is always known
};

/// A matrix [rows, cols] of real numbers in stored form. Immutable. Vectors are one row.
class Node {
 public:
  virtual ~Node() = default;
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }

  virtual std::string_view kind() const = 0;
  /// Rows [r0, r1) as fp32, row-major, into `out`. Parsing has checked everything, so decoding cannot fail.
  virtual void decode_rows(int64_t r0, int64_t r1, float* out) const = 0;
  /// Exact size of this node and its children in a file.
  /// Sections given to add_shared are left out: the model counts each of them once.
  virtual BitReport bits() const = 0;
  virtual std::vector<NodePtr> children() const { return {}; }
  /// Adds its arrays to `sink` under names that begin with `prefix`, returns the description that parse_node reads.
  virtual nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const = 0;
  /// One line for `pith inspect`: "override(grid 3 bit g16, csr 0.4 %)".
  virtual std::string describe() const = 0;

 protected:
  Node(int64_t rows, int64_t cols) : rows_(rows), cols_(cols) {}
  int64_t rows_, cols_;
};

/// The whole matrix as fp32.
std::vector<float> decode_all(const Node& node);

/// Arrays of this tree that are mapped files leave the process's memory until they are read again (base/file.h).
void drop_mapped_pages(const Node& node);

/// Reads a tree; every length, index and depth is checked, so the nodes that come out decode without further checks.
Result<NodePtr> parse_node(const nlohmann::json& tree, const ParseContext& context);

/// Names of all node kinds that parse_node knows, sorted.
std::vector<std::string_view> node_kinds();

}  // namespace pith
