// modegpt: a smaller dense model, by narrowing what lies between pairs of matrices.
// Lin, Gao, Smith, Patel, Tuli, Shen, Jin, Hsu: MoDeGPT: Modular Decomposition for Large Language Model Compression,
// ICLR 2025 (arXiv 2408.09632).
//
// Three modules a block, each by what is nonlinear in it (C: second moments of what flows, E over calibration tokens):
//   MLP (gate, up, down)  Nystrom  z = act(gate x) * up x; keep the channels J of largest leverage
//                                  [C (C + ridge mean(diag C) I)^-1]_jj;  down <- down C_:J C_JJ^-1
//   queries, keys         CR       keep the channel pairs of largest sum of sqrt(C_Q[j,j] C_K[j,j]), after RoPE
//   values, output        SVD      C^(1/2) V^T O^T truncated to rank k: the optimum for O V x (Eckart-Young)
// How much goes where, by block influence s_i = 1 - E cos(x, block_i(x)):
//   entropic  phi_i = L phi softmax(-s / eps)_i, none above `most`: maximises sum s_i (1 - phi_i) + eps sum H(phi_i)
//   solver    the exact knapsack over all widths of all modules, losses to second order with Fisher information
//
// Bits: 16 for each number of the smaller matrices; widths of each layer and the kept rotations of each key head stand
// in the configuration (a few bytes a head). Layout: Dense fp16, a configuration with layer_shapes. The result is an
// ordinary model: compress or quantize it as any other. To GGUF where heads are whole (modules=mlp), to a Hugging Face
// folder where all layers are alike too (allocation=uniform).
//
// Differs from the paper: blocks in order, each with inputs from the narrowed ones before it and the MLP behind the
// narrowed attention; RoPE's pairs stay whole, and the runtime keeps their frequencies; one J for a key head and all
// its query heads; value biases go into the output's bias, which is exact. Allocation by the solver is ours.
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"ratio", ParamType::real, "0.3", 0, 0.95, "",
     "share of the blocks' weights that goes; with --size, --ram or --bits these decide"},
    {"modules", ParamType::choice, "mlp+qk+vo", 0, 0, "mlp+qk+vo|mlp+qk|mlp+vo|qk+vo|mlp|qk|vo",
     "which modules are narrowed: MLPs, queries with keys, values with outputs"},
    {"allocation", ParamType::choice, "entropic", 0, 0, "entropic|uniform|solver",
     "how the layers share the loss of weights: by influence, all alike, or by predicted loss (needs gradients)"},
    {"eps", ParamType::real, "0.1", 0.001, 1000, "", "temperature of entropic; larger is closer to uniform"},
    {"most", ParamType::real, "0.8", 0.05, 0.95, "", "no module loses more than this share of its inner width"},
    {"multiple", ParamType::integer, "8", 1, 256, "", "MLP widths are multiples of this"},
    {"head-multiple", ParamType::integer, "4", 2, 64, "", "widths of heads are multiples of this"},
    {"ridge", ParamType::real, "0.01", 1e-6, 1, "", "ridge of the leverage scores, in mean eigenvalues"},
    {"mlp", ParamType::choice, "nystrom", 0, 0, "nystrom|select|magnitude",
     "nystrom; or its channels without the correction of down; or channels by size of their weights"},
    {"qk", ParamType::choice, "cr", 0, 0, "cr|magnitude|random", "by which scores channel pairs of heads stay"},
    {"vo", ParamType::choice, "svd", 0, 0, "svd|plain|magnitude",
     "SVD under the inputs' covariance; without it; or channels by size of their weights"},
};

}  // namespace

const Method& modegpt_method() {
  static const Method method{
      .name = "modegpt",
      .family = "factorize",
      .title = "A smaller dense model: narrower MLPs and heads, in closed form from calibration text",
      .paper =
          "Lin, Gao, Smith, Patel, Tuli, Shen, Jin, Hsu: MoDeGPT: Modular Decomposition for Large Language Model "
          "Compression, ICLR 2025, arXiv 2408.09632",
      .params = kParams,
      .needs = {},
      .baseline = false,
      .example = "pith factorize modegpt MODEL --ratio 0.3 -o small.pith",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
