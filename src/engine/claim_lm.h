// What claims on language models share: a small float model with its texts, block by block compression with the
// compressed prefix, and perplexity measured by the runtime that users run.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/threads.h"
#include "engine/calibrate.h"
#include "engine/claim.h"
#include "engine/fit.h"
#include "nets/lm.h"
#include "represent/model.h"
#include "train/distill.h"

namespace pith {

/// A model folder with calib.txt and test.txt beside the weights (else the built-in texts), cut into sequences.
class ClaimLm {
 public:
  /// The folder of `run`, or testdata/lm-s below the working folder or $PITH_HOME. Throws Failure when there is none.
  /// `test_sequences` of `length` tokens are scored.
  ClaimLm(const ClaimRun& run, int64_t length, int64_t test_sequences);

  const Model& model() const { return model_; }
  const LmConfig& config() const { return model_.config; }
  int64_t length() const { return length_; }
  /// [sequences, length] tokens at seeded places of the calibration text.
  Tensor calibration(uint64_t seed, int64_t sequences) const;
  /// What the model itself does on that text: moments of all inputs and, from the first sequences, Fisher information.
  std::unique_ptr<Statistics> statistics(const Tensor& text, int64_t fisher_sequences, uint64_t seed) const;
  /// Perplexity on the test text with some matrices replaced; every token but the first of a sequence is scored.
  double perplexity(const NodeMap& replaced) const;
  /// The same of another model with this one's tokenizer.
  double perplexity_of(const Model& model) const;
  /// The same beside the mean KL to the model itself, nats a token.
  struct Loss {
    double ppl = 0, kl = 0;
  };
  Loss loss(const NodeMap& replaced) const;
  /// The model with fp32 tensors of these names in place of its own (planted weights).
  void replace(const TensorMap& tensors);
  const LmWeights& weights() const { return *weights_; }
  ThreadPool& pool() const { return pool_; }
  Progress& progress() const { return progress_; }

 private:
  Model model_;
  std::unique_ptr<LmWeights> weights_;
  std::vector<int32_t> calibration_, test_;
  int64_t length_;
  Progress& progress_;
  mutable ThreadPool pool_;
};

/// What is made of one matrix; called from several threads.
using FitRule = std::function<NodePtr(const FitJob& job)>;
struct FitBlocksOptions {
  NodeMap base = {};   ///< fills FitJob::base
  bool cross = false;  ///< fill FitJob::cross, and go input after input, as `compress` to GGUF does
};
/// Compresses all block matrices in network order; inputs come from the blocks compressed so far. Without `cross` the
/// statistics of a block are taken once, with the block's own weights as they were.
NodeMap fit_blocks(const ClaimLm& lm, const Tensor& calibration, const FitRule& rule,
                   const FitBlocksOptions& options = {});

/// Compresses every block matrix by itself, with the float model's statistics; null: without any.
NodeMap fit_alone(const ClaimLm& lm, const Statistics* statistics, const FitRule& rule);

/// A .pith file of the model with these nodes, in bytes.
uint64_t file_bytes(const ClaimLm& lm, const NodeMap& nodes);

/// The same blocks (and norms) tuned towards the model by `options` within the bytes of before; the last `judges`
/// sequences of the text teach nothing and choose the best state.
struct TunedBlocks {
  NodeMap nodes;          ///< all of them, moved or not
  double validation = 0;  ///< KL on the sequences that judged
};
TunedBlocks tune_blocks(const ClaimLm& lm, const NodeMap& nodes, const Tensor& text, int64_t judges,
                        DistillOptions options);

/// The fit that a spec names: "gptq:bits=3,group=40".
NodePtr fit_spec(const std::string& spec, const FitJob& job);

/// What a method for whole models makes of `from`, or of the claim's model: make_model(lm, "modegpt:ratio=0.3", …).
Model make_model(const ClaimLm& lm, const std::string& spec, const Tensor& calibration, uint64_t seed,
                 const Model* from = nullptr);
/// Bits of a model's block matrices for each weight that those of the claim's model have.
double block_bits(const ClaimLm& lm, const Model& model);

/// Bits a weight over all these matrices, everything counted.
double mean_bits(const NodeMap& nodes);

}  // namespace pith
