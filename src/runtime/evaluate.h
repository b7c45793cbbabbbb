// Measuring a language model on text: perplexity, and distance to a reference model, chunk by chunk.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <span>

#include "base/progress.h"
#include "base/threads.h"
#include "runtime/lm.h"

namespace pith {

struct EvalOptions {
  int64_t context = 512;     ///< tokens of a chunk
  int64_t max_chunks = 0;    ///< 0 = all whole chunks of the text
  bool full_window = false;  ///< score all tokens of a chunk; false: the second half, as llama-perplexity does
  int32_t bos = -1;          ///< replaces the first token of each chunk, as llama.cpp does; -1 = leave it
};

struct PerplexityResult {
  double ppl = 0;
  double ppl_error = 0;  ///< one standard error
  double nll = 0;        ///< mean, in nats
  int64_t tokens = 0;    ///< scored
  int64_t chunks = 0;
};

/// Perplexity of `tokens` cut into chunks of `context`; a rest shorter than a chunk is left out.
Result<PerplexityResult> perplexity(const Lm& model, std::span<const int32_t> tokens, const EvalOptions& options,
                                    ThreadPool& pool, Progress& progress);

struct ComparisonResult {
  PerplexityResult model, reference;
  double ratio = 0;    ///< ppl of the model / ppl of the reference
  double mean_kl = 0;  ///< KL(reference || model), nats a token
  double mean_kl_error = 0;
  double max_kl = 0;
  double same_top = 0;  ///< share of tokens with the same most probable continuation
  double same_top_error = 0;
};

/// Both models read the same chunks; nothing but sums is kept. The vocabularies must be equal.
Result<ComparisonResult> compare(const Lm& model, const Lm& reference, std::span<const int32_t> tokens,
                                 const EvalOptions& options, ThreadPool& pool, Progress& progress);

}  // namespace pith
