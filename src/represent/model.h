// A language model in stored form: what it is, its tokenizer, and a representation tree for each tensor.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "formats/lm_config.h"
#include "formats/tokenizer_spec.h"
#include "represent/node.h"

namespace pith {

/// One tensor under its canonical name (formats/lm_config.h). The node is [shape[0], shape[1]], or [1, shape[0]] for a
/// vector.
struct ModelTensor {
  std::string name;
  std::vector<int64_t> shape;
  NodePtr node;
};

struct Model {
  LmConfig config;
  TokenizerSpec tokenizer;
  std::vector<ModelTensor> tensors;  ///< canonical order
  std::string origin;                ///< path it was read from; empty when made in memory
  std::string plan_json;             ///< plan that made it, as JSON text; empty when none
  std::string report_json;           ///< measured report, as JSON text; empty when none

  /// nullptr when there is no such tensor.
  const ModelTensor* find(std::string_view name) const;
  /// Exact bits of all sections in a `.pith` file; sections that several nodes share are counted once.
  BitReport bits() const;
  /// Number of weights.
  uint64_t parameters() const;
  /// Hash of everything that decides the numbers (configuration, names, shapes, stored bytes), as 32 hex digits. Reads
  /// all bytes (about 10 GB/s when cached), so callers keep the answer.
  std::string content_hash() const;
};

/// Tensors' nodes by canonical name.
using NodeMap = std::map<std::string, NodePtr, std::less<>>;
/// The model with these nodes in place of its own.
Model with_nodes(Model model, const NodeMap& nodes);

/// Rows and columns of the node of a tensor of this shape; an error when a size is not positive or overflows.
struct MatrixShape {
  int64_t rows = 0, cols = 0;
};
Result<MatrixShape> matrix_shape(const std::vector<int64_t>& shape);

/// Every tensor that the configuration asks for is there once with the right shape, and no other.
Status check_model(const Model& model);
/// Refuses NaN and infinity, naming the tensor and the place. Decodes everything once.
Status check_finite(const Model& model);

}  // namespace pith
