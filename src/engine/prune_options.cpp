#include "engine/prune_options.h"

#include <string>

namespace pith {

SparsityPattern usable_pattern(const FitJob& job, const Options& options) {
  const SparsityPattern pattern = must(parse_pattern(options.text("pattern")));
  if (pattern.n > 0 && job.weight.size(1) % pattern.m != 0)
    throw Failure(user_error(job.name + ": " + std::to_string(job.weight.size(1)) + " columns are no multiple of " +
                             std::to_string(pattern.m) + ", as pattern " + options.text("pattern") +
                             " needs; use --sparsity instead"));
  return pattern;
}

std::vector<uint8_t> choose_mask(const Tensor& scores, SparsityPattern pattern, double sparsity, bool by_row) {
  const Tensor flat = scores.contiguous();
  const float* s = flat.const_data_ptr<float>();
  const int64_t rows = flat.size(0), cols = flat.size(1);
  std::vector<uint8_t> mask(static_cast<size_t>(rows * cols));
  if (pattern.n > 0) {
    keep_by_pattern(s, rows, cols, pattern, mask.data());
  } else if (by_row) {
    for (int64_t r = 0; r < rows; ++r)
      keep_largest(s + r * cols, cols, kept_count(cols, sparsity), mask.data() + r * cols);
  } else {
    keep_largest(s, rows * cols, kept_count(rows * cols, sparsity), mask.data());
  }
  return mask;
}

}  // namespace pith
