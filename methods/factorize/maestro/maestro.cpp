// maestro: products of thin matrices trained so that any prefix of their directions is a model.
// Horvath, Laskaridis, Rajput, Wang: Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, ICML 2024
// (arXiv 2308.14929).
//
//   W ~ A B, A [out, r], B [r, in], from the SVD: A = U S^(1/2), B = S^(1/2) V^T, full rank at the beginning
//   each step one matrix, drawn by its rank, is cut to a random prefix b of its directions, all others are whole:
//   loss = -log p(next token) of that model + lambda sum over matrices and b of (|A[:, b:]| + |B[b:, :]|)
//   directions from which on |A[:, b:]| |B[b:, :]| < 1e-5 are gone (progressive shrinking)
// In the end ranks are chosen for the size asked for: the direction of least importance |A[:, b:]| |B[b:, :]| for each
// number goes, again and again. Every sixteenth sequence of the calibration text judges the model cut like that.
//
// Nested: a file made by it is cut again without training, `pith factorize maestro made.pith --steps 0 --compression
// 4`: directions of a product that is there already are taken as they are ordered. steps=0 on a plain model is the SVD
// cut by the same rule. Bits a weight: 16 r (out + in) / (out in). Layout: LowRank of two Dense fp16; a matrix whose
// product would not be smaller stays as it is only at compression 1.
//
// Differs from the paper: starts from a trained model (its fine-tuning mode), Adam instead of SGD, language models. No
// pass with the full model beside the cut one (the paper's option).
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"compression", ParamType::real, "2", 1, 64, "",
     "by how much the blocks' weights become fewer; with --size, --ram or --bits these decide"},
    {"judge", ParamType::real, "0", 0, 64, "",
     "compression at which the model is judged while it is trained, for files that will be cut again; 0 = the "
     "result's"},
    {"steps", ParamType::integer, "300", 0, 1000000, "", "steps of training; 0 = only cut"},
    {"batch", ParamType::integer, "8", 1, 4096, "", "sequences a step"},
    {"rate", ParamType::real, "0.0005", 1e-7, 1, "", "learning rate at its peak"},
    {"lambda", ParamType::real, "1e-6", 0, 1, "", "weight of the lasso over tails of directions"},
    {"lasso", ParamType::choice, "hierarchical", 0, 0, "hierarchical|plain",
     "over tails of directions, or over each direction by itself"},
    {"sampler", ParamType::choice, "layer", 0, 0, "layer|independent|none",
     "which matrices a step cuts: one, each at a place of its own, or none"},
};

}  // namespace

const Method& maestro_method() {
  static const Method method{
      .name = "maestro",
      .family = "factorize",
      .title = "Products whose directions are ordered by training: one file, models of many sizes",
      .paper =
          "Horvath, Laskaridis, Rajput, Wang: Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, "
          "ICML "
          "2024, arXiv 2308.14929",
      .params = kParams,
      .needs = {},
      .baseline = false,
      .example = "pith factorize maestro MODEL --compression 2 --steps 500 -o nested.pith",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
