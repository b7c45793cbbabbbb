// svfit: adapts a model to a text by training singular values only.
// Sun, Wei, Wu, Shi, He, Ma, Xie, Yang: SVFit: Parameter-Efficient Fine-Tuning of Large Pre-Trained Models Using
// Singular Values, 2024 (arXiv 2409.05926).
//
//   W = U diag(s) V^T;  of the first r directions the numbers sigma, s_1 .. s_r at the beginning, are trained:
//   y = W x + U_r ((sigma - s) * V_r^T x),   dL/dsigma_i = sum over tokens of (u_i^T dL/dy) (v_i^T x)
// U, V and the rest of W stay as they are. r is given, or the least with s_1^2 + .. + s_r^2 >= energy of the sum.
// Loss: next token on the calibration text, of which one sequence in eight judges; the best numbers seen are kept.
//
// The result is the merged model, W + U_r diag(sigma - s) V_r^T as Dense fp16: no cost at inference, no fewer bytes.
// What one task needs beside the original model is small and is written with --delta FILE: safetensors with s and sigma
// of each matrix, 64 bits a direction, and the hash of the original. --from FILE merges such a file without training; U
// and V are made again from the original, and no sign or order of theirs matters, as u_i v_i^T is free of both.
//
// Differs from the paper: language models instead of classifiers (whose heads train along); s is kept beside sigma, so
// that a delta is refused where the decomposition is another one. Ablations: basis=random trains as many numbers along
// directions that are no singular ones, which=bottom and random the least and any directions.
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"rank", ParamType::integer, "0", 0, 65536, "", "singular values trained of each matrix; 0 = as energy asks"},
    {"energy", ParamType::real, "1", 0.01, 1, "",
     "without a rank: the share of the sum of squared singular values that is trained; 1 = all"},
    {"targets", ParamType::choice, "qv", 0, 0, "qv|qkvo|all", "matrices of each block: as letters, or all"},
    {"steps", ParamType::integer, "300", 1, 1000000, "", "steps of training"},
    {"batch", ParamType::integer, "8", 1, 4096, "", "sequences a step"},
    {"rate", ParamType::real, "0.02", 1e-6, 10, "", "learning rate at its peak, in units of the mean singular value"},
    {"which", ParamType::choice, "top", 0, 0, "top|bottom|random", "which singular values, where not all are trained"},
    {"basis", ParamType::choice, "singular", 0, 0, "singular|random", "singular vectors, or random orthogonal ones"},
    {"delta", ParamType::text, "", 0, 0, "", "file to write the trained numbers to"},
    {"from", ParamType::text, "", 0, 0, "", "file with numbers that were trained before: merged, nothing is trained"},
};

}  // namespace

const Method& svfit_method() {
  static const Method method{
      .name = "svfit",
      .family = "factorize",
      .title = "Adapts a model to a text by training singular values: kilobytes a task",
      .paper =
          "Sun, Wei, Wu, Shi, He, Ma, Xie, Yang: SVFit: Parameter-Efficient Fine-Tuning of Large Pre-Trained Models "
          "Using Singular Values, 2024, arXiv 2409.05926",
      .params = kParams,
      .needs = {},
      .baseline = false,
      .example = "pith factorize svfit MODEL --calib task.txt --delta task.safetensors -o adapted.pith",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
