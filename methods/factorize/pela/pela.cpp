// pela: every matrix as a product of two thin ones, the damage repaired once by training beside the original.
// Guo, Wang, Kankanhalli: PELA: Learning Parameter-Efficient Models with Low-Rank Approximation, CVPR 2024
// (arXiv 2310.10700).
//
//   W [out, in] ~ A B,  A = U_r S_r^(1/2), B = S_r^(1/2) V_r^T by SVD,  r = floor(out in / (compression (out + in)))
//   loss = -log p(next token) + alpha mean over blocks (output - output of the original)^2
//          + gamma mean over matrices (max |A B - W| - eps)^2             (wp=hinge: nothing while the max is below
//          eps)
// trained on the calibration text, of which one sequence in sixteen judges; the best factors seen are kept. steps=0 is
// plain SVD. A matrix of which two factors would not be smaller stays as it is.
//
// Bits a weight: 16 r (out + in) / (out in), about 16 / compression. Layout: LowRank of two Dense fp16. A quantizer
// that gets the result sees the products, not the factors.
//
// Differs from the paper: language models (its task loss is the next token), all blocks' matrices and none beside them;
// a budget in bytes finds the compression.
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"compression", ParamType::real, "2", 1, 64, "",
     "by how much the blocks' weights become fewer; with --size, --ram or --bits these decide"},
    {"steps", ParamType::integer, "300", 0, 1000000, "", "steps of training; 0 = plain SVD"},
    {"batch", ParamType::integer, "8", 1, 4096, "", "sequences a step"},
    {"rate", ParamType::real, "0.0005", 1e-7, 1, "", "learning rate at its peak"},
    {"alpha", ParamType::real, "1", 0, 1e6, "", "weight of the distance between the blocks' outputs"},
    {"gamma", ParamType::real, "1", 0, 1e6, "", "weight of the largest change of a weight of each matrix"},
    {"eps", ParamType::real, "0.001", 0, 1, "", "largest change that costs nothing"},
    {"wp", ParamType::choice, "mse", 0, 0, "mse|hinge", "how the largest change is held at eps, or below it"},
    {"init", ParamType::choice, "svd", 0, 0, "svd|random", "where the factors start"},
};

}  // namespace

const Method& pela_method() {
  static const Method method{
      .name = "pela",
      .family = "factorize",
      .title = "Every matrix as a product of two thin ones, repaired by training beside the original",
      .paper =
          "Guo, Wang, Kankanhalli: PELA: Learning Parameter-Efficient Models with Low-Rank Approximation, CVPR 2024, "
          "arXiv 2310.10700",
      .params = kParams,
      .needs = {},
      .baseline = false,
      .example = "pith factorize pela MODEL --compression 1.5 --steps 500 -o small.pith",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
