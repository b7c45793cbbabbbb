// Which weights of a group spoil the grid of the others.
#pragma once

#include <cstdint>
#include <vector>

#include "maths/grid_fit.h"

namespace pith {

/// The leave-one-out test on min-max grids (extremes_grid with `levels` + 1 codes): weight i is marked when
///   sum_j e_j^2 on the grid of all  -  sum over j != i of e_j^2 on the grid of the others  >  threshold,
/// e_j = (q(w_j) - w_j) / diagonal_j. Leaving out a weight that is neither the smallest nor the largest changes no
/// grid, so three fits decide all n tests. `scratch` is resized as needed.
void leave_one_out(const float* w, const float* diagonal, int64_t n, float levels, float threshold, uint8_t* marked,
                   std::vector<float>& scratch);

}  // namespace pith
