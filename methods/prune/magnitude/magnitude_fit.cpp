#include "engine/fit.h"
#include "engine/prune_options.h"

namespace pith {
namespace {

NodePtr run(const FitJob& job, const Options& options) {
  const Tensor weight = usable_weight(job);
  const SparsityPattern pattern = usable_pattern(job, options);
  const Tensor scores = weight.abs();
  return masked_node(weight, choose_mask(scores, pattern, options.real("sparsity"), options.text("scope") == "row"),
                     pattern);
}

}  // namespace

const Fit& magnitude_fit() {
  static const Fit fit{"magnitude", run};
  return fit;
}

}  // namespace pith
