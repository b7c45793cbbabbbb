// sparsegpt: pruning with error compensation. Frantar, Alistarh: SparseGPT: Massive Language Models Can Be Accurately
// Pruned in One-Shot, 2023 (arXiv 2301.00774). A baseline here.
//
// The walk of GPTQ (src/maths/gptq_walk.h) with another rounding: a weight becomes 0 or stays. When the walk reaches a
// block, the weights of least w^2 / U_jj^2 go: of every m columns the best n stay (pattern N:M), or of 16 rows x 128
// columns the best share 1 - sparsity. What is lost is compensated by the columns still to come.
// With `bits` (patterns only) what stays is rounded at once, to an asymmetric grid of `group` kept weights, so the
// columns to come also compensate the rounding.
//
// Bits a weight: 1 + 16 (1 - s) with a Bitmap; 2:4 8.75 with fp16 values, (b + 32/group)/2 + 0.75 with b bits. Layout:
// Bitmap, NMask(Dense) or NMask(Grid).
//
// Differs from the paper: unstructured masks are chosen among 16 rows x 128 columns instead of all rows x 128.
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"pattern", ParamType::text, "none", 0, 0, "", "N:M, keep N of every M columns, such as 2:4; none = by sparsity"},
    {"sparsity", ParamType::real, "0.5", 0, 1, "", "share of weights set to zero, where no pattern is given"},
    {"bits", ParamType::integer, "0", 0, 8, "", "bits of the weights that stay, with a pattern; 0 = fp16"},
    {"group", ParamType::integer, "64", 0, 65536, "", "kept weights that share a scale; 0 = the whole row"},
    {"damp", ParamType::real, "0.01", 0, 1, "", "added to the diagonal of H, as a share of its mean"},
};

}  // namespace

const Method& sparsegpt_method() {
  static const Method method{
      .name = "sparsegpt",
      .family = "prune",
      .title = "Prune with error compensation, optionally rounding what stays",
      .paper =
          "Frantar, Alistarh: SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, 2023, "
          "arXiv 2301.00774",
      .params = kParams,
      .needs = {.moments = true},
      .baseline = true,
      .example = "pith prune sparsegpt MODEL --pattern 2:4 --bits 4 -o small.pith",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
