// From a model and its statistics to the jobs that fits take: which matrices there are to compress, and what is known
// about each.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/calibrate.h"
#include "engine/fit.h"
#include "nets/lm.h"

namespace pith {

/// One matrix that may be compressed.
struct Target {
  std::string name;
  int64_t layer = -1;  ///< -1: embedding or head
  int64_t rows = 0, cols = 0;
  std::string input;                     ///< "attn_in", …; empty for embedding and head
  bool embedding = false, head = false;  ///< both when they are tied
};

/// All matrices of a model in file order: embedding, blocks, head. Routers of experts are left out (tiny, decisive).
std::vector<Target> compressible(const LmConfig& config);
/// Those in blocks.
std::vector<Target> block_targets(const LmConfig& config);

/// Leaves one row of the job in so many.
void thin_rows(FitJob& job, int64_t every);

/// Jobs of one layer (-1: embedding and head) with the statistics that they point to.
class JobSet {
 public:
  /// `statistics` may be null when no method needs any.
  JobSet(const LmWeights& weights, const Statistics* statistics, int64_t layer);
  /// Weight and statistics of one target of this layer.
  FitJob make(const Target& target) const;

 private:
  const LmWeights& weights_;
  const Statistics* statistics_;
  BlockStatistics block_;
  bool known_ = false;
  Moments head_metric_, embedding_metric_;
  Tensor head_rows_, embedding_rows_;
};

}  // namespace pith
