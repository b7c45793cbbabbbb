// A fit turns one weight matrix into a representation tree. It sees statistics, never the model or the file.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "maths/moments.h"
#include "plan/options.h"
#include "represent/node.h"
#include "runtime/method.h"
#include "tensor/tensor.h"

namespace pith {

/// One matrix and what is known about it. Tensors are fp32 on the CPU.
struct FitJob {
  std::string name;                 ///< "model.layers.3.mlp.down_proj.weight"
  Tensor weight;                    ///< [out, in]
  const Moments* inputs = nullptr;  ///< second moments of the inputs; null when the method needs none
  /// The walk's factor of `inputs` at a damping, when somebody keeps it; empty: it is made anew.
  std::function<Tensor(double damp)> factor;
  Tensor cross;                  ///< E[x_float x_compressed^T], [in, in]; undefined when not collected
  Tensor row_fisher;             ///< G, [out]: mean squared gradient at each output; undefined when not collected
  at::Device device = at::kCPU;  ///< where large sums may be taken; what is made of them comes to the CPU
  NodePtr base;                  ///< what an earlier method made of this matrix (EoRA); null otherwise
  uint64_t seed = 0;
};

struct ModelFit;  // engine/model_fit.h

/// The tensor half of a method: `const Fit& <name>_fit()` in methods/<family>/<name>/<name>_fit.cpp.
struct Fit {
  std::string_view name;
  /// Throws Failure naming the tensor when the input makes no sense (NaN, wrong shape, singular beyond repair). Null
  /// when the method works on whole models.
  NodePtr (*run)(const FitJob& job, const Options& options);
  const ModelFit* whole = nullptr;
};

std::span<const Fit* const> all_fits();
const Fit* find_fit(std::string_view name);

/// The weight as fp32 on the CPU, contiguous, the fit's own to change. Throws Failure naming the tensor when it is no
/// matrix, is empty, or holds NaN or infinity.
Tensor usable_weight(const FitJob& job);
/// True when something is known about the layer's inputs. Throws Failure when it is of another width than the weight.
bool knows_inputs(const FitJob& job);
/// H = E[x x^T], [in, in] fp64, and its diagonal, [in] fp64. Throw Failure naming the tensor when there are none, no
/// input was seen, or the width is not that of the weight.
Tensor input_moments(const FitJob& job);
/// U with U^T U = (H + damp mean(diag H) I)^-1 (maths/linalg.h), [in, in] fp32, as gptq_walk takes it.
Tensor walk_factor(const FitJob& job, double damp);
Tensor input_squares(const FitJob& job);

/// All values of a node, [rows, cols] fp32.
Tensor decoded(const Node& node);
/// A matrix as a Dense leaf of fp16, or fp32 where fp16 is too narrow for its values.
NodePtr dense_node(const Tensor& matrix);
/// A matrix, or a vector as one row, as a Dense leaf of fp32.
NodePtr exact_node(const Tensor& values);

/// Second-order prediction of the harm: 1/2 sum over rows of G_r dW_r H dW_r^T, nats a token of mean KL when G is known
/// (engine/calibrate.h); G = 1 and H = I where unknown.
double predicted_loss(const FitJob& job, const Node& node);

}  // namespace pith
