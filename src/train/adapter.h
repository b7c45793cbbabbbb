// Trains numbers on which some weights of a model depend, the rest frozen (singular values, adapters, low-rank
// factors).
//
//   loss = mean over tokens of -log p(next token)
//        + features * mean over blocks and channels of (what comes out of the block - what comes out of the base's)^2
//        + penalty(parameters);   AdamW, linear warm-up and decay
// Every so many steps the model is judged on the validation tokens; the best numbers so far are the result. The same
// bytes come out for any number of threads, and from a checkpoint on.
#pragma once

#include <cstdint>
#include <functional>

#include "base/progress.h"
#include "nets/lm.h"

namespace pith {

struct Adapter {
  TensorMap parameters;  ///< start values, fp32
  /// The weights that depend on them, by canonical name and in their shapes; differentiable in `parameters`. `step` is
  /// that of the training, -1 when the model is judged.
  std::function<TensorMap(const TensorMap& parameters, int64_t step)> weights;
  /// What is added to the loss for the numbers themselves; empty: nothing.
  std::function<Tensor(const TensorMap& parameters)> penalty;
};

struct AdapterOptions {
  int64_t steps = 200, batch = 8;     ///< sequences a step
  double rate = 5e-3, warmup = 0.06;  ///< learning rate at its peak; share of the steps until then
  double features = 0;                ///< weight of the blocks' outputs
  double decay = 0, beta1 = 0.9, beta2 = 0.999;
  int64_t looks = 10;  ///< times that the model is judged
  uint64_t seed = 0;
  /// Takes all that a later run needs to go on, [n] fp32; `saved` gives it back. Empty: no checkpoints.
  std::function<void(const Tensor& state)> save;
  Tensor saved;
};

struct AdapterTrained {
  TensorMap parameters;              ///< the best ones; the start values when nothing got better
  double before = 0, after = 0;      ///< -log p(next token) on the validation tokens, nats
  int64_t best_step = 0, steps = 0;  ///< done; fewer than asked when it diverged
  bool diverged = false;
};

/// train: [n, length], validation: [m, length] int64. Throws Failure on empty texts and when `progress` asks to stop (a
/// checkpoint is saved first).
AdapterTrained train_adapter(const LmWeights& base, const Adapter& adapter, const Tensor& train,
                             const Tensor& validation, const AdapterOptions& options,
                             Progress& progress = quiet_progress());

}  // namespace pith
