// Which axes of which tensors move together: permuting an axis group leaves the model's function as it is, and dropping
// members of a group removes a unit (a channel, a head, an expert) cleanly. README-weights, mechanism A.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "formats/lm_config.h"
#include "nets/lm.h"

namespace pith {

/// Member j of the group owns indices [start + j * chunk, start + (j + 1) * chunk) of axis `axis` of `tensor`.
struct AxisUse {
  std::string tensor;
  int axis = 0;
  int64_t start = 0, chunk = 1;
};

struct AxisGroup {
  std::string name;  ///< "hidden", "layers.3.kv", "layers.3.kv.1.heads", "layers.3.kv.1.value", "layers.3.mlp",
                     ///< "layers.3.experts"
  int64_t size = 0;  ///< members
  std::vector<AxisUse> uses;
  /// Tensors that belong to one member as a whole (an expert's matrices): whole[k][j] is the name for member j.
  std::vector<std::vector<std::string>> whole;
};

/// All groups of a model: the hidden stream; for each layer the key-value heads with their query heads, the query heads
/// within a key-value head, the value channels of each key-value head, the MLP channels (of each expert), the experts.
std::vector<AxisGroup> axis_groups(const LmConfig& config);

/// Member j of the result is member order[j] of the input; `order` must be a permutation. Changes `tensors` in place.
/// Of key-value heads the caller moves the rope_pairs of the configuration too.
void permute(TensorMap& tensors, const AxisGroup& group, const std::vector<int64_t>& order);
/// Keeps only the members in `keep` (ascending, unique, not empty). The caller adapts the configuration.
void select(TensorMap& tensors, const AxisGroup& group, const std::vector<int64_t>& keep);

}  // namespace pith
