// A method that makes one model out of another: because shapes change together, or because it trains. What Fit is for a
// matrix, this is for a model.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/progress.h"
#include "nets/lm.h"
#include "plan/options.h"
#include "represent/model.h"
#include "tensor/tensor.h"
#include "train/adapter.h"

namespace pith {

struct ModelJob {
  const Model& model;
  const LmWeights& weights;      ///< of `model`
  Tensor tokens;                 ///< calibration text, [sequences, length] int64
  int64_t fisher_sequences = 0;  ///< of these, how many may give gradients
  uint64_t seed = 0;
  std::string cache_folder;  ///< of calibrate(); empty: nothing is kept
  Progress& progress = quiet_progress();
  /// Bytes that the result may take by `bytes`; 0: the method's own options decide.
  uint64_t target = 0;
  /// What a model takes, in its file or in memory, as the budget has it. Throws Failure when the format that was asked
  /// for cannot hold a model of these shapes.
  std::function<uint64_t(const Model& model)> bytes;
  /// Parts that an earlier, killed run of the same job has finished: null when there is none of that name. `keep` makes
  /// a part durable and returns it as it will be found. Both empty: nothing is kept.
  std::function<NodePtr(const std::string& part)> finished;
  std::function<NodePtr(const std::string& part, const NodePtr& node)> keep;
};

struct ModelResult {
  Model model;
  std::vector<std::string> notes;        ///< for the report
  std::optional<double> predicted_loss;  ///< nats a token
};

/// The tensor half of such a method: `Fit::whole` in methods/<family>/<name>/<name>_fit.cpp.
struct ModelFit {
  /// Throws Failure: a user's mistake that names option, matrix or layer.
  ModelResult (*run)(const ModelJob& job, const Options& options);
  /// The work in forward passes over the calibration text, for the pre-flight.
  double (*passes)(const Options& options);
};

/// Trains on the job's text, one sequence in `one_in` of which judges, from where a killed run of the same job left it.
/// Adds a note of what came out to `notes`. Throws Failure when the text is too short for both.
AdapterTrained train_on_text(const ModelJob& job, const Adapter& adapter, AdapterOptions options, int64_t one_in,
                             std::vector<std::string>& notes);

/// A model of this configuration in which changed matrices are zeros of 2 bytes each and the rest is that of `model`:
/// for sizing a result before it is made.
Model sized_like(const Model& model, const LmConfig& config);

}  // namespace pith
