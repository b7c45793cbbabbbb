// lq-lora: a coarse quantised matrix plus a low-rank one, found together.
// Guo, Greengard, Xing, Kim: LQ-LoRA: Low-rank Plus Quantized Matrix Decomposition for Efficient Language Model
// Finetuning, ICLR 2024 (arXiv 2311.12023).
//
//   W ~ Q + L1 L2,  Q on a NormalFloat grid, L1 [out, r], L2 [r, in], alternately
//   L1 L2 = the best of rank r for W - Q       (SVD)
//   Q     = round(W - L1 L2)                   (nearest level, a scale a group)
// from Q = 0 until the error rises. With Fisher information F of the entries the error is ||sqrt(F) o (W - Q - L1
// L2)||; the weighted SVD takes F as the outer product of its row and column means, diag(D1) (.) diag(D2). Rounding
// itself is not weighted. What the quantised matrix is worst at, the low-rank part takes over, and it is the part that
// fine-tuning trains (pith export --to peft).
//
// Bits a weight: bits + 16/group (fp16 scales), or bits + stat-bits/group + 32/(stat-group group) (scales quantised in
// a second level), plus 16 r (out + in)/(out in). Layout: Sum(Grid NF, LowRank(fp16, fp16)).
//
// Differs from the paper: the best iterate is kept (its code returns the one after the error rose), and L1 L2 is fitted
// once more to the last Q; the factors count as bits, and the choice of bits and groups for each matrix under a budget
// (the paper's integer program over 432 settings) is the budget solver of `pith compress --allow 'lq-lora:bits=2..4;…'`
// with the loss through the layer's inputs; F is G_r H_jj, from the statistics that all methods share, instead of
// squared gradients of single sequences; double quantisation is SpQR's (rows of a group of columns share the second
// level).
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"bits", ParamType::integer, "3", 2, 8, "", "bits of a code of the quantised part"},
    {"group", ParamType::integer, "32", 0, 65536, "", "columns that share a scale; 0 = the whole row"},
    {"stat-bits", ParamType::integer, "4", 0, 8, "", "bits of the scales, in a second level; 0 = fp16"},
    {"stat-group", ParamType::choice, "16", 0, 0, "4|8|16", "rows that share second-level statistics"},
    {"rank", ParamType::integer, "16", 0, 65536, "", "rank of the low-rank part; at most min(out, in) is used"},
    {"iterations", ParamType::integer, "20", 1, 1000, "", "most alternations; it stops when the error rises"},
    {"fisher", ParamType::boolean, "true", 0, 0, "", "weight errors by Fisher information of rows and columns"},
};

Needs needs_with(const Options& options) {
  return {.moments = options.flag("fisher"), .row_fisher = options.flag("fisher")};
}

}  // namespace

const Method& lq_lora_method() {
  static const Method method{
      .name = "lq-lora",
      .family = "quantize",
      .title = "A coarse grid plus a low-rank part found together: a small model that fine-tunes well",
      .paper =
          "Guo, Greengard, Xing, Kim: LQ-LoRA: Low-rank Plus Quantized Matrix Decomposition for Efficient Language "
          "Model Finetuning, ICLR 2024, arXiv 2311.12023",
      .params = kParams,
      .needs = {.moments = true, .row_fisher = true},
      .example = "pith quantize lq-lora MODEL --bits 3 --rank 16 -o small.pith",
      .budget_options = "bits=2..4",
      .needs_with = needs_with,
  };
  return method;
}

}  // namespace pith
