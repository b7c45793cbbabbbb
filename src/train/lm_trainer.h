// Trains a decoder-only language model of src/nets on one long run of tokens.
#pragma once

#include <cstdint>
#include <string>

#include "base/progress.h"
#include "nets/lm.h"

namespace pith {

struct LmTrainOptions {
  int64_t steps = 1000, batch = 16, context = 256;
  double rate = 3e-3, floor = 3e-4;  ///< learning rate at its peak and at the end
  int64_t warmup = 100;
  double decay = 0.1, clip = 1.0;
  uint64_t seed = 1;
  std::string device = "cpu";          ///< or "cuda"
  bool bf16 = false;                   ///< products in bf16; weights, sums and the optimiser stay fp32
  std::string checkpoint;              ///< file; empty = none. A run that finds it goes on from it
  int64_t checkpoint_every = 200;      ///< steps
  const LmWeights* teacher = nullptr;  ///< distil from it: loss = (1 - share) next-token + share KL
  double teacher_share = 0.5, temperature = 1;
};

/// Random weights: matrices N(0, 0.02^2), those that write into the residual stream divided by sqrt(2 layers); gains 1
/// (0 where the configuration adds 1); biases 0. The same seed gives the same weights.
TensorMap initial_weights(const LmConfig& config, uint64_t seed);

struct LmTrained {
  TensorMap weights;     ///< fp32 on the CPU
  double last_loss = 0;  ///< mean of the last tenth of the steps done in this call, nats a token
};

/// Weights after options.steps steps from `start` on `tokens` [n] int64. Batches are drawn at random places, by seed
/// and step. Throws Failure on too few tokens, tokens outside the vocabulary, a checkpoint of another run, a loss that
/// is not finite, and when `progress` asks to stop (the checkpoint is written first).
LmTrained train_lm(const LmConfig& config, const TensorMap& start, const Tensor& tokens, const LmTrainOptions& options,
                   Progress& progress = quiet_progress());

}  // namespace pith
