// The options by which pruners say what stays: `pattern` and `sparsity`, with the same meaning in every table.
#pragma once

#include <vector>

#include "engine/fit.h"
#include "maths/sparse_fit.h"

namespace pith {

/// The option `pattern`; throws Failure naming the tensor when its columns are no multiple of M.
SparsityPattern usable_pattern(const FitJob& job, const Options& options);

/// The weights of highest score: by pattern, or the share 1 - sparsity of each row (by_row) or of the matrix.
/// scores: [rows, cols] fp32.
std::vector<uint8_t> choose_mask(const Tensor& scores, SparsityPattern pattern, double sparsity, bool by_row);

}  // namespace pith
