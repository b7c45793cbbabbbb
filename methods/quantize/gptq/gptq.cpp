// gptq: rounding with error compensation, the baseline of calibrated weight quantizers.
// Frantar, Ashkboos, Hoefler, Alistarh: GPTQ, 2022 (arXiv 2210.17323).
//
// Columns are rounded one after the other; what a rounding does to the layer's output is undone as far as possible by
// the columns still to come (src/maths/gptq_walk.h):
//   H = E[x x^T],  U = upper Cholesky factor of (H + damp mean(diag H) I)^-1,  e_j = (w_j - q_j) / U_jj,  w_k -= e_j
//   U_jk
//
// Grids, bits and layout are those of rtn. A group's grid is fitted when the walk reaches it, on the compensated
// weights; static-groups fits all grids beforehand, on the original ones. order=act walks columns by falling E[x_j^2]:
// groups are then of walked neighbours and the order is stored (node Permuted, 8 or 16 bits a column), unless
// static-groups keeps the groups in place.
//
// Differs from the paper: zeros are real numbers, not integers; clip=mse weights a column's error by 1 / U_jj^2; inputs
// that calibration never saw get weight 0.
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"bits", ParamType::integer, "4", 2, 8, "", "bits of a code"},
    {"group", ParamType::integer, "128", 0, 65536, "", "columns that share a scale; 0 = the whole row"},
    {"grid", ParamType::choice, "asym", 0, 0, "asym|sym|nf", "shape of the grid"},
    {"clip", ParamType::choice, "mse", 0, 0, "none|mse", "range of the grid: the extremes, or least squared error"},
    {"stat-bits", ParamType::integer, "0", 0, 8, "", "bits of scales and zeros, in a second level; 0 = fp16"},
    {"stat-group", ParamType::choice, "16", 0, 0, "4|8|16", "rows that share second-level statistics"},
    {"order", ParamType::choice, "natural", 0, 0, "natural|act", "walk columns as they are, or by falling input power"},
    {"static-groups", ParamType::boolean, "false", 0, 0, "", "fit all grids before the walk"},
    {"damp", ParamType::real, "0.01", 0, 1, "", "added to the diagonal of H, as a share of its mean"},
};

}  // namespace

const Method& gptq_method() {
  static const Method method{
      .name = "gptq",
      .family = "quantize",
      .title = "Error-compensated rounding on fixed grids; the calibrated baseline",
      .paper =
          "Frantar, Ashkboos, Hoefler, Alistarh: GPTQ: Accurate Post-Training Quantization for Generative "
          "Pre-trained Transformers, 2022, arXiv 2210.17323",
      .params = kParams,
      .needs = {.moments = true},
      .baseline = true,
      .example = "pith quantize gptq MODEL --bits 3 --group 64 -o small.pith",
      .budget_options = "bits=2..8",
  };
  return method;
}

}  // namespace pith
