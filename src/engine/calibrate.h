// The streaming calibrator: one pass over calibration text gives every method what it needs to know, a block at a time.
//
// Notation: tokens t = 1..N; a linear y_t = W x_t; L = sum over tokens of -log p(label_t); g_t = dL / dy_t.
//   Moments of an input    H = 1/N sum_t x_t x_t^T                      (float model, or compressed prefix, or cross)
//   Fisher of an output    G_r = 1/N sum_t g_t[r]^2
// Labels are drawn from the model itself (the true Fisher information, seeded) or are the next tokens (`empirical`).
// To second order, changing W by dW adds 1/2 sum_r G_r dW_r H dW_r^T nats a token to the mean KL (inputs and gradients
// taken as independent; an expert's H is a mean over the tokens routed to it, its G a sum over them divided by all N,
// so that the product is still right). For a row v of the head, E over labels of (p_v - y_v)^2 is p_v (1 - p_v), and
// that is what is averaged: no sampling noise (with `empirical`, (p_v - y_v)^2 itself).
//
// The backward pass is streamed: block inputs are kept on the way forward, then blocks are visited in reverse, each run
// again with gradients for its activations only. Memory holds one block, its activations for a few sequences, and two
// hidden states a token; block inputs go to a file when they exceed the allowance.
//
// The same bytes come out for any number of threads on one machine type (tensor/parallel.h), and after kill -9. On a
// GPU (the same code, one task at a time) they are the same for one kind of GPU and one libtorch.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/progress.h"
#include "maths/moments.h"
#include "nets/lm.h"
#include "tensor/tensor.h"

namespace pith {

enum class Compute : uint8_t {
  automatic,  ///< bf16 products where the CPU has them and on GPUs, else fp32
  fp32,
  bf16,
};

/// Bytes that activations may take unless told otherwise: 1 GiB; half a GiB a thread where there are more than two
/// threads, but no more than a quarter of the memory that is free.
uint64_t activation_memory();

struct CalibrationOptions {
  bool moments = true;
  int64_t fisher_sequences = 0;  ///< the first so many sequences give G; 0 = none
  bool empirical = false;        ///< labels are the next tokens instead of drawn from the model
  uint64_t seed = 0;
  Compute compute = Compute::automatic;
  at::Device device = at::kCPU;  ///< where blocks run and sums are taken; results are on the CPU
  /// Bytes that activations may take; beyond it they go to files and fewer threads work.
  uint64_t memory = activation_memory();
  std::string cache_folder;    ///< statistics are kept and found here; empty = only in memory, nothing resumes
  double commit_seconds = 20;  ///< how often the state of a running calibration is made durable in the cache folder
};

/// What is known about one block, by names of nets/lm.h.
struct BlockStatistics {
  std::map<std::string, Moments, std::less<>> inputs;     ///< by input: "attn_in"
  std::map<std::string, Tensor, std::less<>> row_fisher;  ///< by linear, [out] fp64
};

/// What is known about embedding and head.
struct EndStatistics {
  Moments head_input;       ///< of the final norm's output
  Tensor head_fisher;       ///< G of each head row, [vocab] fp64; undefined without Fisher
  Tensor token_count;       ///< occurrences in the calibration text, [vocab] int64
  Tensor embedding_fisher;  ///< by token: sum over its occurrences of the mean over channels of (dL / d embedding)^2,
                            ///< divided by N, [vocab] fp64; undefined without Fisher. Error e of row v as a lookup
                            ///< costs about 1/2 embedding_fisher[v] |e|^2 nats a token
};

/// Statistics of a whole model; blocks are read from the cache one by one when there is a cache.
class Statistics {
 public:
  virtual ~Statistics() = default;
  virtual BlockStatistics block(int64_t layer) const = 0;
  virtual EndStatistics ends() const = 0;
  virtual int64_t tokens() const = 0;          ///< calibration tokens of the moments
  virtual int64_t fisher_tokens() const = 0;   ///< of G
  virtual const std::string& key() const = 0;  ///< content hash of model, tokens and options
  /// The upper inverse factor (maths/linalg.h) of a block's input, [width, width] fp32, `moments` being block(layer)'s.
  /// Costly, so it is kept beside the statistics when they have a folder. Several threads may ask.
  virtual Tensor upper_factor(int64_t layer, const std::string& input, const Moments& moments, double damp) const = 0;
};

/// tokens: [sequences, length] int64. Throws Failure on bad tokens, no tokens, values that are not finite, an
/// unwritable cache folder, and when `progress` asks to stop.
std::unique_ptr<Statistics> calibrate(const LmWeights& weights, const Tensor& tokens, const CalibrationOptions& options,
                                      Progress& progress = quiet_progress());

/// Removes statistics that nobody will want again from the cache folder, unless another run uses them (then that one
/// does).
void forget_statistics(const std::string& cache_folder, const std::string& key);

/// Layer-sequential calibration for methods that need the compressed prefix. Two streams go through the model: X of the
/// float model and Xq of the blocks compressed so far. For each block, in order:
///   while (session.next()) {
///     auto stats = session.collect({"attn_in"}, …);  session.replace("…q_proj.weight", q);  … ;
///     stats = session.collect({"attn_out"}, …); … }                // true sequential: later inputs see earlier
///     changes
/// or one collect() for all inputs. The next next() moves both streams through the finished block.
class BlockSession {
 public:
  struct Options {
    bool prefix = true;  ///< carry Xq; false: only the float model (then prefix and cross statistics are not available)
    uint64_t memory = activation_memory();
    std::string spill_folder;  ///< for activations beyond `memory`; empty = $TMPDIR or /tmp
    Compute compute = Compute::fp32;
    at::Device device = at::kCPU;  ///< where blocks run; statistics are on the CPU, block() and compressed() there
    const LmWeights* prefix_embedding = nullptr;  ///< whose embedding Xq begins with; null = the float model's
  };
  struct Wanted {
    bool fp = true;      ///< Moments of X
    bool prefix = true;  ///< Moments of Xq
    bool cross = false;  ///< E[x xq^T]
  };
  struct InputStatistics {
    Moments fp, prefix;
    Tensor cross;  ///< [width, width] fp64; undefined when not wanted, and for experts (X and Xq may be routed apart)
  };
  struct HeadSquares {
    Tensor queries, keys;  ///< E of each channel's square after RoPE, [heads, key_dim] and [kv_heads, key_dim] fp64
  };

  BlockSession(const LmWeights& weights, const Tensor& tokens, const Options& options);
  ~BlockSession();

  /// Finishes the current block and loads the next one. False after the last.
  bool next();
  /// The float block.
  const LmBlock& block() const;
  /// The block as compressed so far.
  const LmBlock& compressed() const;
  /// Statistics of the named inputs (empty = all) with the weights as they are now.
  std::map<std::string, InputStatistics, std::less<>> collect(const std::vector<std::string>& inputs,
                                                              const Wanted& wanted);
  /// Block influence: 1 - E cos(x, block(x)) over the tokens of X, of the float block.
  double influence();
  /// What queries and keys of the compressed block are made of, on Xq.
  HeadSquares head_squares();
  /// Replaces a weight in the compressed block.
  void replace(const std::string& name, const Tensor& weight);
  /// Replaces the whole compressed block, by one of other widths inside if need be.
  void replace_block(LmBlock block);
  /// After the last block: statistics of the head's input.
  InputStatistics head_input(const Wanted& wanted);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace pith
