// llm-int8: 8-bit weights, 8-bit products, and the few input columns with huge values in 16 bits.
// Dettmers, Lewis, Belkada, Zettlemoyer: LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale, 2022
// (arXiv 2208.07339).
//
// Stored:   c_w = max_i |W_ri| of each row,  Wq = round(127 W / c_w)
// Product:  O = columns of X with some |x| >= threshold;  c_x = max of |x| over the rest of a token's row;
//           y = c_x c_w / 127^2 (Xq Wq^T without O, in int32)  +  X_O W_O^T in high precision
// The product is the kernel's (node DynamicInt8 asks for it); where a kernel computes in high precision throughout, the
// result is that of the stored weights.
//
// outlier-weights=fp16, as the paper has it: columns whose largest |x| on the calibration text reaches the threshold
// are stored in fp16 as well; outlier columns that the probe did not see fall back to int8. int8, the default, is what
// the authors' library does, and needs no calibration.
//
// Bits a weight: 8 + 32/in, with fp16 columns 24 to 32 bits for each of their entries. Layout: DynamicInt8(Grid) or
// DynamicInt8(Override(Grid, Csr)); codes -127 .. 127, fp32 scale c_w / 127 a row.
//
// Differs from the paper: an all-zero row has scale 1/127; embedding and head are the caller's choice.
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"threshold", ParamType::real, "6", 0, 65504, "",
     "|x| from which an input column is multiplied in high precision; 0 = no such columns"},
    {"outlier-weights", ParamType::choice, "int8", 0, 0, "int8|fp16",
     "how weights of outlier columns are stored; fp16 finds the columns on the calibration text"},
};

Needs needs_with(const Options& options) { return {.moments = options.text("outlier-weights") == "fp16"}; }

}  // namespace

const Method& llm_int8_method() {
  static const Method method{
      .name = "llm-int8",
      .family = "quantize",
      .title = "8-bit weights and products, outlier columns in 16 bits: half the memory, no calibration",
      .paper =
          "Dettmers, Lewis, Belkada, Zettlemoyer: LLM.int8(): 8-bit Matrix Multiplication for Transformers at "
          "Scale, 2022, arXiv 2208.07339",
      .params = kParams,
      .needs = {},
      .baseline = false,
      .example = "pith quantize llm-int8 MODEL --threshold 6 -o small.pith",
      .budget_options = "",
      .needs_with = needs_with,
  };
  return method;
}

}  // namespace pith
