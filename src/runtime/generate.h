// Generating text: prefill, then one token at a time, handing out text as soon as it is whole characters.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/threads.h"
#include "runtime/lm.h"
#include "runtime/sampler.h"

namespace pith {

class KvDriver;   // runtime/cache.h
class Tokenizer;  // runtime/tokenizer.h

struct GenerateOptions {
  SampleOptions sample;
  int64_t max_tokens = 256;
  int64_t prefill_batch = 512;  ///< tokens of one forward pass while the prompt is read
  std::vector<int32_t> stop;    ///< tokens that end the answer (not part of it)
  int64_t context = 0;          ///< tokens of prompt and answer together; 0 = the model's
  KvDriver* cache = nullptr;    ///< makes the cache smaller; null: everything stays
  /// Called when the prompt has been read and the cache made smaller.
  std::function<Status(const KvStore& kv)> on_prompt;
};

struct Generated {
  std::vector<int32_t> tokens;  ///< without the stop token
  std::string text;
  bool stopped = false;  ///< by a stop token; false: max_tokens, the context's end, or the callback
  double prefill_seconds = 0, decode_seconds = 0;
};

/// Continues `prompt`. `on_text` gets valid UTF-8 pieces (a character is never split); returning false ends it.
Result<Generated> generate(const Lm& model, const Tokenizer& tokenizer, std::span<const int32_t> prompt, KvStore& kv,
                           const GenerateOptions& options, ThreadPool& pool,
                           const std::function<bool(std::string_view)>& on_text);

}  // namespace pith
