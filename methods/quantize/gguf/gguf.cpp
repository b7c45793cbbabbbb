// gguf: calibrated rounding inside llama.cpp's own block types. Ours; the walk is GPTQ's (Frantar et al. 2022, arXiv
// 2210.17323). The result is a GGUF of exactly the size and types that llama.cpp's quantizer would write, that stock
// llama.cpp runs, with a quarter to a half less damage.
//
//   U = upper Cholesky factor of (Hq + damp mean(diag Hq) I)^-1,   Hq = E[xq xq^T], xq inputs of the compressed prefix
//   target  W* = W + W (C - Hq) (Hq + damp mean(diag Hq) I)^-1,    C = E[x xq^T]: outputs of the float model, made
//           from the inputs that will really arrive
//   d, dmin of a block: least squares weighted with 1 / U_jj^2 on the weights as compensated so far, rounded to fp16
//   sub-block, when the walk reaches it: least squares again, then the inner walk is simulated for its scale and
//           minimum codes at -1, 0, +1 and the pair of least sum (e / U_jj)^2 stays
//   codes: nearest level along the walk, w_k -= (w_j - q_j) U_jk / U_jj for k > j
//   order of the walk: blocks, sub-blocks in them and columns in these by falling E[xq_j^2]; H and C are permuted alike
//
// Bits and layout: those of the block type (formats/ggml_blocks.cpp), nothing beside them.
#include "runtime/method.h"

namespace pith {

static constexpr Param kParams[] = {
    {"type", ParamType::choice, "Q4_K", 0, 0, "Q2_K|Q3_K|Q4_K|Q5_K|Q6_K|Q4_0|Q4_1|Q5_0|Q5_1|Q8_0|IQ4_NL",
     "block type; a matrix whose rows do not fit it takes the fallback"},
    {"fallback", ParamType::choice, "Q4_0", 0, 0, "Q4_0|Q4_1|Q5_0|Q5_1|Q8_0|IQ4_NL",
     "block of 32 for rows that are no multiple of 256"},
    {"damp", ParamType::real, "0.01", 0, 1, "", "added to the diagonal of H, as a share of its mean"},
    {"correct", ParamType::boolean, "true", 0, 0, "",
     "aim at the float model's outputs from the inputs of the compressed prefix (target correction)"},
    {"sort", ParamType::boolean, "true", 0, 0, "", "walk from the columns with the largest inputs to the smallest"},
    {"compensate", ParamType::boolean, "true", 0, 0, "", "move each column's rounding error into the columns after it"},
};

const Method& gguf_method() {
  static const Method method{
      .name = "gguf",
      .family = "quantize",
      .title = "better rounding in llama.cpp's own block types: files that stock llama.cpp runs",
      .paper = "",
      .params = kParams,
      .needs = {.moments = true, .cross = true, .row_fisher = true},
      .example = "pith quantize gguf smollm2.gguf --type Q4_0 -o small.gguf",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
