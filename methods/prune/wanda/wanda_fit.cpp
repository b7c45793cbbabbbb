#include "engine/fit.h"
#include "engine/prune_options.h"

namespace pith {
namespace {

NodePtr run(const FitJob& job, const Options& options) {
  const Tensor weight = usable_weight(job);
  const SparsityPattern pattern = usable_pattern(job, options);
  const Tensor scores = weight.abs() * input_squares(job).sqrt().to(at::kFloat);
  return masked_node(weight, choose_mask(scores, pattern, options.real("sparsity"), true), pattern);
}

}  // namespace

const Fit& wanda_fit() {
  static const Fit fit{"wanda", run};
  return fit;
}

}  // namespace pith
