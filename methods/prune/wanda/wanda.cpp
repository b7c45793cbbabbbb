// wanda: prune by weight times input. Sun, Liu, Bair, Kolter: A Simple and Effective Pruning Approach for Large
// Language Models, 2023 (arXiv 2306.11695). A baseline here.
//
// Score of weight (r, j): |w_rj| sqrt(E[x_j^2]). Stays: the best n of every m columns (pattern N:M), or the best share
// 1 - sparsity of each row. Nothing is updated.
//
// Bits and layout are those of magnitude: 1 + 16 (1 - s) with a Bitmap, 8.75 for 2:4 with an NMask.
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"pattern", ParamType::text, "none", 0, 0, "", "N:M, keep N of every M columns, such as 2:4; none = by sparsity"},
    {"sparsity", ParamType::real, "0.5", 0, 1, "", "share of weights set to zero, where no pattern is given"},
};

}  // namespace

const Method& wanda_method() {
  static const Method method{
      .name = "wanda",
      .family = "prune",
      .title = "Prune by weight times input power; nothing is updated",
      .paper =
          "Sun, Liu, Bair, Kolter: A Simple and Effective Pruning Approach for Large Language Models, 2023, "
          "arXiv 2306.11695",
      .params = kParams,
      .needs = {.moments = true},
      .baseline = true,
      .example = "pith prune wanda MODEL --pattern 2:4 -o small.pith",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
