// magnitude: keep the largest weights, the baseline of every pruner.
//
// Score of weight (r, j): |w_rj|. Stays: the best n of every m columns (pattern N:M), or the best share 1 - sparsity of
// each row, or of the whole matrix (scope).
//
// Bits a weight, fp16 values, s = share of zeros: Bitmap 1 + 16 (1 - s); 2:4: NMask 16/2 + 3/4 = 8.75. Layout: nodes
// NMask(Dense) and Bitmap (represent/sparse.h). Values outside fp16's range are kept as fp32.
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"pattern", ParamType::text, "none", 0, 0, "", "N:M, keep N of every M columns, such as 2:4; none = by sparsity"},
    {"sparsity", ParamType::real, "0.5", 0, 1, "", "share of weights set to zero, where no pattern is given"},
    {"scope", ParamType::choice, "row", 0, 0, "row|matrix", "weights compete inside their row or inside the matrix"},
};

}  // namespace

const Method& magnitude_method() {
  static const Method method{
      .name = "magnitude",
      .family = "prune",
      .title = "Keep the largest weights; seconds, no calibration; the baseline",
      .paper = "",
      .params = kParams,
      .needs = {},
      .baseline = true,
      .example = "pith prune magnitude MODEL --pattern 2:4 -o small.pith",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
