// Tunes a compressed model by distillation: continuous numbers by gradient, codes by PV-Tuning's way (Malinovskii et
// al. 2024, arXiv 2405.14852), the stored form and its size unchanged.
//
//   loss  = mean over tokens of KL(teacher || student)
//   P     continuous numbers (norms, biases, what a representation names): Adam
//   V     a buffer B beside each matrix W = decode(codes):  B -= rate * unit * Adam(G * unit),  G = dL / dW, then
//         codes = argmin 1/2 ((B - value) / unit)^2 + price * bits(code)
//         for the `share` of the groups of codes in which B is furthest from W (the paper's subspace; 1 = all of them,
//         plain straight-through). The buffer is the straight-through accumulator of the paper (its delta decay = 0):
//         steps far smaller than a code's distance add up until the code flips.
// The price of a bit follows the size: it rises while the codes take more bits than at the beginning and falls while
// they take less, so a file of entropy-coded codes does not grow.
//
// Every so many steps the model is judged on the validation tokens, in the form in which it would be written and within
// its budget; the best one so far is the result. The same bytes come out for any number of threads on the CPU, and
// from a checkpoint on.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "base/progress.h"
#include "formats/bytes.h"
#include "nets/lm.h"
#include "represent/model.h"

namespace pith {

struct DistillOptions {
  int64_t steps = 200, batch = 16;  ///< sequences a step
  double rate = 0.02;         ///< of codes: at most so many steps of the grid in one step of training; 0: codes stay
  double share = 1;           ///< of a matrix's groups of codes: those that may change in one step
  bool random_share = false;  ///< which ones: drawn by lot instead of the furthest from the buffer (to compare)
  double vector_rate = 1e-3;  ///< of continuous numbers
  double price = 0.06;        ///< of a bit at the beginning, in squared steps of the grid
  double beta1 = 0.9, beta2 = 0.95;
  int64_t looks = 10;  ///< times that the model is judged on the validation tokens
  uint64_t seed = 0;
  at::Device device = at::kCPU;
  /// Takes a checkpoint, which as `saved` lets another run go on from there; empty: none are made.
  std::function<void(std::span<const std::byte>)> save;
  Bytes saved;
  /// Exact size of a model with these nodes, and what it may be; empty: any size will do.
  std::function<uint64_t(const NodeMap&)> size;
  uint64_t budget = 0;
};

struct Distilled {
  NodeMap nodes;                     ///< what has changed; empty when nothing got better
  double before = 0, after = 0;      ///< mean KL on the validation tokens, nats
  int64_t best_step = 0, steps = 0;  ///< done; fewer than asked when it diverged
  bool diverged = false;
};

/// `student` has the configuration of `teacher`. train: [n, length], validation: [m, length] int64. Throws Failure when
/// nothing of the student can be tuned, and when `progress` asks to stop (a checkpoint is saved first).
Distilled distill(const LmWeights& teacher, const Model& student, const Tensor& train, const Tensor& validation,
                  const DistillOptions& options, Progress& progress = quiet_progress());

}  // namespace pith
