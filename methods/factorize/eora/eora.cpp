// eora: a small low-rank path beside a compressed matrix, chosen so that the layer's output suffers least.
// Liu, Khadkevich, Fung, Sakr, Yang, Wang, Muralidharan, Yin, Cheng, Kautz, Wang, Molchanov, Chen: EoRA: Training-free
// Compensation for Compressed LLM with Eigenspace Low-Rank Approximation, 2024 (arXiv 2410.21271).
//
//   W ~ Wc + B A,  B [out, r], A [r, in];  with D = W - Wc and C = E[x x^T] = Q diag(l) Q^T:
//   (D Q diag(sqrt l)) truncated to rank r by SVD, then taken back by diag(1 / sqrt l) Q^T
// which minimises E|(D - B A) x|^2 (Eckart-Young). metric=act uses diag(E|x_j|)^2 in place of C, svd the identity: the
// two baselines of the paper. l <= max(l) in eig-floor counts as zero: nothing is spent on directions that never occur.
//
// It works on whatever another method left (any tree), and needs the original matrix too.
// Bits a weight on top: r (out + in) factor-bits / (out in), with scales for 8 and 4 bits: 16 bits for each component
// of B and each 128 columns of A. Layout: Sum(compressed, LowRank(B, A)); factors Dense fp16 or symmetric Grid.
//
// Differs from the paper: a true mean over calibration tokens (its code lets early samples fade); small eigenvalues are
// dropped instead of raised; quantised factors: B is fitted again by least squares to the rounded A.
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"rank", ParamType::integer, "32", 0, 65536, "", "rank of the added path; at most min(out, in) is used"},
    {"rank-budget", ParamType::real, "0", 0, 16, "",
     "bits a weight that the path may take, instead of a rank; 0 = use rank"},
    {"metric", ParamType::choice, "eora", 0, 0, "eora|act|svd",
     "what the path minimises: the output's error, that with inputs taken as independent, or the weights' error"},
    {"factor-bits", ParamType::choice, "16", 0, 0, "16|8|4", "bits of the factors' entries"},
    {"eig-floor", ParamType::real, "1.1920929e-07", 0, 1, "",
     "eigenvalues of the inputs' covariance below largest x in x this count as zero"},
};

Needs needs_with(const Options& options) { return {.moments = options.text("metric") != "svd", .base = true}; }

}  // namespace

const Method& eora_method() {
  static const Method method{
      .name = "eora",
      .family = "factorize",
      .title = "A low-rank path beside compressed weights that buys back accuracy, without training",
      .paper =
          "Liu, Khadkevich, Fung, Sakr, Yang, Wang, Muralidharan, Yin, Cheng, Kautz, Wang, Molchanov, Chen: EoRA: "
          "Training-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation, 2024, "
          "arXiv 2410.21271",
      .params = kParams,
      .needs = {.moments = true, .base = true},
      .baseline = false,
      .example = "pith factorize eora MODEL --compressed small.pith --rank 32 -o better.pith",
      .budget_options = "",
      .needs_with = needs_with,
  };
  return method;
}

}  // namespace pith
