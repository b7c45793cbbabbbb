#include "runtime/generate.h"

#include <algorithm>
#include <chrono>

#include "runtime/cache.h"
#include "runtime/tokenizer.h"

namespace pith {

static double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Result<Generated> generate(const Lm& model, const Tokenizer& tokenizer, std::span<const int32_t> prompt, KvStore& kv,
                           const GenerateOptions& options, ThreadPool& pool,
                           const std::function<bool(std::string_view)>& on_text) {
  if (prompt.empty()) return user_error("the prompt has no tokens: give some text, or a model with a begin token");
  const int64_t own = model.config().context;
  const int64_t limit = options.context > 0 && (own == 0 || options.context < own) ? options.context : own;
  if (limit > 0 && kv.length() + static_cast<int64_t>(prompt.size()) > limit) {
    return user_error("the prompt is longer than the context of " + std::to_string(limit) + " tokens");
  }
  if (options.cache != nullptr) PITH_TRY(options.cache->begin(kv, static_cast<int64_t>(prompt.size())));
  Generated out;
  std::vector<float> logits;
  auto start = std::chrono::steady_clock::now();
  const auto batch = static_cast<size_t>(std::max<int64_t>(1, options.prefill_batch));
  for (size_t i = 0; i < prompt.size(); i += batch) {
    const auto piece = prompt.subspan(i, std::min(batch, prompt.size() - i));
    PITH_TRY(model.forward(piece, kv, Lm::Logits::last, logits, pool));
    if (options.cache != nullptr) PITH_TRY(options.cache->after(kv, pool));
  }
  if (options.on_prompt) PITH_TRY(options.on_prompt(kv));
  out.prefill_seconds = seconds_since(start);

  start = std::chrono::steady_clock::now();
  Sampler sampler(options.sample);
  StreamDecoder decoder(tokenizer, {.skip_special = true});
  const auto say = [&](const std::string& piece) {
    out.text += piece;
    return piece.empty() || !on_text || on_text(piece);
  };
  bool wanted = true;
  for (int64_t i = 0; i < options.max_tokens && wanted; ++i) {
    const int32_t token = sampler.next(logits);
    if (std::find(options.stop.begin(), options.stop.end(), token) != options.stop.end()) {
      out.stopped = true;
      break;
    }
    out.tokens.push_back(token);
    wanted = say(repair_utf8(decoder.push(token)));
    const bool full = limit > 0 && kv.length() >= limit;
    if (!wanted || full || i + 1 == options.max_tokens) break;
    PITH_TRY(model.forward({&token, 1}, kv, Lm::Logits::last, logits, pool));
    if (options.cache != nullptr) PITH_TRY(options.cache->after(kv, pool));
  }
  say(repair_utf8(decoder.finish()));
  out.decode_seconds = seconds_since(start);
  return out;
}

}  // namespace pith
