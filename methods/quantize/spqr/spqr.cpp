// spqr: tiny groups, quantised statistics, and the few weights that matter kept apart.
// Dettmers, Svirschevski, Egiazarian, Kuznedelev, Frantar, Ashkboos, Borzunov, Hoefler, Alistarh: SpQR, 2023
// (arXiv 2306.03078).
//
//   w = s (c - z), unless (row, column) is an outlier: then w is an fp16 number of its own
//
// The walk of GPTQ (src/maths/gptq_walk.h) over columns by falling E[x_j^2] (order=act), H damped by its whole mean.
// When it reaches a group of `group` columns, in each row:
//   E0 = sum_j ((q(w_j) - w_j) / U_jj)^2 with the grid of all weights, E_i the same without weight i, grid included;
//   weight i is a likely outlier when E0 - E_i > T;  T = tau mean_j(var_rows(W_j) / U_jj^2)
//   the grid is fitted to the rest; s and z of `stat-group` rows are rounded to stat-bits on a min-max grid of their
//   own, whose two numbers are fp16.
// A weight whose error (w - q)^2 / U_jj^2 exceeds T when it is rounded is an outlier: it keeps its error-compensated
// value.
//
// Leaving out a weight that is neither the smallest nor the largest of its group changes no min-max grid, so three fits
// a group decide all leave-one-out tests.
//
// Bits a weight: b + 2 stat-bits/group + 64/(group stat-group) + 32 rho + row counts + permutation, rho the share of
// outliers (16 bits value, 8 or 16 bits column). Layout: Permuted(Override(Grid with two TwoLevelFields, Csr)).
//
// Differs from the paper: a grid's range always holds 0 (a group of equal weights is exact); `target-bits` finds tau by
// bisection; the last group may be short; where the weights' size does not suit fp16, statistics are fp32 and
// one-level.
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"bits", ParamType::integer, "3", 2, 8, "", "bits of a code"},
    {"group", ParamType::integer, "16", 0, 65536, "", "columns that share a scale and zero; 0 = the whole row"},
    {"stat-bits", ParamType::integer, "3", 0, 8, "", "bits of scales and zeros; 0 = fp16, one level"},
    {"stat-group", ParamType::choice, "16", 0, 0, "4|8|16", "rows that share second-level statistics"},
    {"outlier-threshold", ParamType::real, "0.2", 0, 1e9, "",
     "tau: squared error, relative to the layer's, above which a weight is kept apart; 0 = no outliers"},
    {"simplified-outliers", ParamType::boolean, "false", 0, 0, "", "skip the leave-one-out test"},
    {"outlier-choice", ParamType::choice, "error", 0, 0, "error|magnitude",
     "an outlier is what errs most at the output (the paper), or what is largest: w^2 > tau times the mean (to "
     "compare)"},
    {"target-bits", ParamType::real, "0", 0, 32, "",
     "choose tau so that a weight takes at most so many bits, everything counted; 0 = use outlier-threshold"},
    {"order", ParamType::choice, "act", 0, 0, "act|natural", "walk columns by falling input power, or as they are"},
    {"damp", ParamType::real, "1", 0, 1, "", "added to the diagonal of H, as a share of its mean"},
};

}  // namespace

const Method& spqr_method() {
  static const Method method{
      .name = "spqr",
      .family = "quantize",
      .title = "Tiny groups with quantised statistics, outliers kept apart: near-lossless 3 to 5 bits",
      .paper =
          "Dettmers, Svirschevski, Egiazarian, Kuznedelev, Frantar, Ashkboos, Borzunov, Hoefler, Alistarh: SpQR: A "
          "Sparse-Quantized Representation for Near-Lossless LLM Weight Compression, 2023, arXiv 2306.03078",
      .params = kParams,
      .needs = {.moments = true},
      .baseline = false,
      .example = "pith quantize spqr MODEL --bits 3 --group 16 -o small.pith",
      .budget_options = "bits=2..5",
  };
  return method;
}

}  // namespace pith
