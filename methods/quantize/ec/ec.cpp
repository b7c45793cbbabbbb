// ec: error-compensated rounding on unbounded grids with entropy-coded codes. Ours; the theory is high-rate
// quantisation and reverse water-filling, the walk is GPTQ's (Frantar et al. 2022, arXiv 2210.17323).
//
//   U = upper Cholesky factor of (H + damp mean(diag H) I)^-1,  H = E[x x^T] of the layer's input
//   G_r = Fisher information of output row r: mean squared gradient of the text's loss at that output
//   step(r, j) = step * U_jj / sqrt(G_r)            every weight's rounding then costs the same loss, step^2 / 12
//   code(r, j) = round(w / step(r, j)) along the walk: w_k -= (w_j - code step) U_jk / U_jj for k > j
//
// `step` is one number for a whole model and the only one that sets its size: how many bits a layer, a row or a column
// gets follows by itself. Plain uniform rounding is within 0.25 bit of the rate-distortion bound when its codes are
// entropy-coded, which is what fixed-width grids cannot reach.
//
// Layout: Grid(codes, RowCol steps). Steps are logarithms in eighths of an octave, one a row and one a column; codes
// are packed in a work folder and entropy-coded in a file (src/entropy: one of 64 static tables, picked by a row and a
// column term in quarter octaves). Bits a weight: entropy + about (4.5 + 2.5) / cols + (3 + 2.5) / rows for the side
// arrays + 64 tables (2 kB) for the whole model.
#include "runtime/method.h"

namespace pith {

static constexpr Param kParams[] = {
    {"step", ParamType::real, "0.0002", 1e-12, 1e12, "",
     "rounding step of the whole model in square-root loss units; smaller is larger and better (--size sets it)"},
    {"damp", ParamType::real, "0.01", 0, 1, "", "added to the diagonal of H, as a share of its mean"},
    {"fisher", ParamType::boolean, "true", 0, 0, "", "let the loss decide how fine each output row is rounded"},
    {"compensate", ParamType::boolean, "true", 0, 0, "", "move each column's rounding error into the columns after it"},
    {"dead-zone", ParamType::real, "0.02", 0, 0.4, "",
     "how much wider than half a step the interval around zero is, in steps (rate-distortion rounding)"},
};

const Method& ec_method() {
  static const Method method{
      .name = "ec",
      .family = "quantize",
      .title =
          "the best file for its bytes: error-compensated rounding, steps that follow the loss, entropy-coded codes",
      .paper = "",
      .params = kParams,
      .needs = {.moments = true, .row_fisher = true},
      .example = "pith quantize ec smollm2.gguf --size 60MB -o small.pith",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
