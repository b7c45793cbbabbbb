// What a smaller cache costs: a prefix is read, its cache made smaller, and then a continuation is scored token by
// token over what is left. (One forward pass over the whole text would show nothing: most methods read the prompt
// exactly.)
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/progress.h"
#include "base/threads.h"
#include "measure/cache_report.h"
#include "runtime/cache.h"
#include "runtime/lm.h"

namespace pith {

class Tokenizer;  // runtime/tokenizer.h

/// One scored token.
struct TokenLoss {
  double nll = 0;         ///< nats
  double kl = 0;          ///< KL(dense || this), nats; 0 without reference
  bool right = false;     ///< the target is the most probable token
  bool same_top = false;  ///< the same most probable token as with the dense cache
};

/// Feeds `chunk` to what `kv` holds and scores what follows each token: target i after chunk token i. `reference`: the
/// logits of the dense cache, [chunk][vocab]; empty: none. `logits` receives this run's.
Result<std::vector<TokenLoss>> decode_nll(const Lm& lm, KvStore& kv, std::span<const int32_t> chunk,
                                          std::span<const int32_t> targets, std::span<const float> reference,
                                          std::vector<float>& logits, ThreadPool& pool);

struct CacheEvalOptions {
  std::vector<std::string> caches;  ///< "snapkv:budget=25%"; the dense cache is always measured too
  std::vector<std::string> tasks;   ///< names of runtime/text_tasks.h, and "ppl"
  std::vector<int64_t> lengths;     ///< tokens of the prompt
  int64_t items = 10;               ///< of each task and length
  uint64_t seed = 1;
  bool ask_after = false;      ///< the question comes after the cache has been made smaller
  int64_t continuation = 128;  ///< tokens scored by "ppl"
  /// What follows the prompt is fed this many tokens at a time, and the cache made smaller after each; 0 = in one
  /// piece.
  int64_t piece = 0;
  int64_t decode_tokens = 24;  ///< generated to measure speed; 0 = not measured
};

/// Scores all caches on the same items. `documents`: tokens of real texts, none used for calibration.
Result<std::vector<CacheScore>> evaluate_caches(const Lm& lm, const Tokenizer& tokenizer,
                                                std::span<const std::vector<int32_t>> documents,
                                                const CacheEvalOptions& options, ThreadPool& pool, Progress& progress);

}  // namespace pith
