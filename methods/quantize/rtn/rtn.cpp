// rtn: rounding to nearest, the baseline of every weight quantizer.
//
//   w ~ s (c - z),   c = clamp(round(w / s + z)),   one s (and z) for each row and `group` columns
//
// Grids: asym, codes 0 .. 2^b-1 with a real zero z; sym, codes -2^(b-1) .. 2^(b-1)-1, s may be negative so that the
// lone lowest code serves the side that needs it; nf, levels at quantiles of the normal distribution (NF4 of QLoRA for
// b = 4). clip=none spans the extremes; mse looks for the range of least squared error, then refines s and z by least
// squares; act does the same with each column's error weighted by its mean squared input.
//
// Bits a weight, fp16 statistics: b + 16/group, asym b + 32/group. With stat-bits B and stat-group R (two levels as in
// SpQR): asym b + 2B/group + 64/(R group). Layout: node Grid with PackedCodes and AffineField or TwoLevelField.
// Matrices whose scales do not fit fp16 get fp32 ones.
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"bits", ParamType::integer, "4", 2, 8, "", "bits of a code"},
    {"group", ParamType::integer, "64", 0, 65536, "", "columns that share a scale; 0 = the whole row"},
    {"grid", ParamType::choice, "asym", 0, 0, "asym|sym|nf", "shape of the grid"},
    {"clip", ParamType::choice, "mse", 0, 0, "none|mse|act",
     "range of the grid: the extremes, least squared error, or that weighted by the inputs (needs calibration)"},
    {"stat-bits", ParamType::integer, "0", 0, 8, "", "bits of scales and zeros, in a second level; 0 = fp16"},
    {"stat-group", ParamType::choice, "16", 0, 0, "4|8|16", "rows that share second-level statistics"},
};

Needs needs_with(const Options& options) { return {.moments = options.text("clip") == "act"}; }

}  // namespace

const Method& rtn_method() {
  static const Method method{
      .name = "rtn",
      .family = "quantize",
      .title = "Rounding to nearest: seconds, no calibration; the baseline",
      .paper = "",
      .params = kParams,
      .needs = {},
      .baseline = true,
      .example = "pith quantize rtn MODEL --bits 4 --group 64 -o small.pith",
      .budget_options = "bits=3..8",
      .needs_with = needs_with,
  };
  return method;
}

}  // namespace pith
