// The options by which methods choose a scalar grid: the same words, the same meaning in every parameter table.
#pragma once

#include "maths/grid_fit.h"
#include "plan/options.h"

namespace pith {

/// From the options bits, group, grid (asym|sym|nf), clip (none = by the extremes), stat-bits and stat-group.
GridSpec grid_spec(const Options& options);

/// Largest |w| of an fp32 matrix; decides whether fp16 can hold its scales.
float largest_size(const Tensor& weight);

}  // namespace pith
