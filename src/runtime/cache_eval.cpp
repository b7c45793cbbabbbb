#include "runtime/cache_eval.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <utility>

#include "base/hash.h"
#include "measure/statistics.h"
#include "runtime/text_tasks.h"

namespace pith {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

constexpr int64_t kPiece = 512;  // tokens of one forward pass, as `generate` reads a prompt

// A prompt, and what is scored behind it.
struct Item {
  std::vector<int32_t> prefix, chunk, targets;
  size_t scored = 0;  // the last so many targets count
  double depth = -1;
};

Result<Item> make_item(const std::string& task, const Tokenizer& tokenizer,
                       std::span<const std::vector<int32_t>> documents, int64_t length, int64_t i,
                       const CacheEvalOptions& o) {
  const auto& document = documents[static_cast<size_t>(i) % documents.size()];
  Item item;
  std::vector<int32_t> continuation;
  if (task == "ppl") {
    const int64_t all = length + o.continuation;
    if (static_cast<int64_t>(document.size()) < all)
      return user_error(fmt::format("'ppl' at {} tokens needs texts of {}, but one has {}: give longer texts", length,
                                    all, document.size()));
    const size_t room = document.size() - static_cast<size_t>(all) + 1;
    const auto from = static_cast<int64_t>(hash64(fmt::format("ppl {} {} {}", o.seed, length, i)) % room);
    item.prefix.assign(document.begin() + from, document.begin() + from + length);
    continuation.assign(document.begin() + from + length, document.begin() + from + all);
    item.scored = continuation.size();
  } else {
    PITH_ASSIGN(TextTask made, make_text_task(task, tokenizer, document, length, i, o.items, o.seed));
    item.prefix = std::move(made.text);
    item.depth = made.depth;
    continuation = std::move(made.answer);
    item.scored = continuation.size();
    (o.ask_after ? continuation : item.prefix)
        .insert(o.ask_after ? continuation.begin() : item.prefix.end(), made.question.begin(), made.question.end());
  }
  // The last token of the prefix is fed again by nobody: it opens the chunk, so that it too sees the smaller cache.
  item.chunk.push_back(item.prefix.back());
  item.prefix.pop_back();
  item.chunk.insert(item.chunk.end(), continuation.begin(), continuation.end() - 1);
  item.targets = std::move(continuation);
  return item;
}

Status read_prefix(const Lm& lm, KvStore& kv, std::span<const int32_t> prefix, KvDriver* driver, ThreadPool& pool) {
  std::vector<float> states;
  for (size_t i = 0; i < prefix.size(); i += kPiece) {
    PITH_TRY(lm.states(prefix.subspan(i, std::min<size_t>(kPiece, prefix.size() - i)), kv, 1, states, pool));
    if (driver != nullptr) PITH_TRY(driver->after(kv, pool));
  }
  return {};
}

// One cache's sums over items.
struct Arm {
  KvDriver driver;
  CacheScore score;
  std::vector<double> kl;
  double same = 0, tokens = 0, decode_seconds = 0;
};

KvPolicy::Wants wants_of(const Arm& arm) {
  const KvPolicy* policy = arm.driver.plan().stage.policy.get();
  return policy != nullptr ? policy->wants() : KvPolicy::Wants{};
}

}  // namespace

Result<std::vector<TokenLoss>> decode_nll(const Lm& lm, KvStore& kv, std::span<const int32_t> chunk,
                                          std::span<const int32_t> targets, std::span<const float> reference,
                                          std::vector<float>& logits, ThreadPool& pool) {
  const auto vocab = static_cast<size_t>(lm.config().vocab);
  if (chunk.size() != targets.size() || (!reference.empty() && reference.size() != chunk.size() * vocab))
    return bug_error("decode_nll: chunk, targets and reference differ in length");
  PITH_TRY(lm.forward(chunk, kv, Lm::Logits::all, logits, pool));
  std::vector<TokenLoss> out(chunk.size());
  pool.parallel_for(static_cast<int64_t>(chunk.size()), [&](int64_t k) {
    const auto i = static_cast<size_t>(k);
    const std::span<const float> x = std::span(logits).subspan(i * vocab, vocab);
    const auto target = static_cast<size_t>(targets[i]);
    const size_t top = argmax(x);
    out[i].nll = negative_log_likelihood(x, target);
    out[i].right = top == target;
    if (reference.empty()) return;
    const std::span<const float> y = reference.subspan(i * vocab, vocab);
    out[i].kl = kl_divergence(y, x);
    out[i].same_top = argmax(y) == top;
  });
  return out;
}

Result<std::vector<CacheScore>> evaluate_caches(const Lm& lm, const Tokenizer& tokenizer,
                                                std::span<const std::vector<int32_t>> documents,
                                                const CacheEvalOptions& o, ThreadPool& pool, Progress& progress) {
  if (documents.empty()) return user_error("no text to make tasks from");
  if (o.items < 1) return user_error(fmt::format("{} items: at least one is needed", o.items));
  const int64_t context = lm.config().context;
  std::vector<std::string> tasks = text_task_names();
  tasks.emplace_back("ppl");
  for (const std::string& task : o.tasks) {
    if (std::find(tasks.begin(), tasks.end(), task) == tasks.end())
      return user_error(fmt::format("there is no task '{}'{}", task, did_you_mean(task, tasks)));
  }
  // Mistakes first: every plan, every length.
  std::vector<std::string> caches{"full"};
  for (const std::string& text : o.caches) {
    PITH_ASSIGN(const KvPlan plan, parse_cache(text));
    if (!plan.whole()) caches.push_back(plan.text);
  }
  for (const int64_t length : o.lengths) {
    const int64_t all = length + std::max<int64_t>(o.continuation, 64);
    if (context > 0 && all > context)
      return user_error(
          fmt::format("a prompt of {} tokens and what follows take {}, the model can hold {}", length, all, context));
    for (const std::string& text : caches) {
      PITH_ASSIGN(KvPlan plan, parse_cache(text));
      PITH_ASSIGN(const KvDriver driver, KvDriver::create(std::move(plan), lm));
      PITH_TRY(driver.check(length - 1));
    }
  }

  std::vector<CacheScore> out;
  const uint64_t steps = o.tasks.size() * o.lengths.size() * static_cast<uint64_t>(o.items);
  uint64_t step = 0;
  for (const std::string& task : o.tasks) {
    for (const int64_t length : o.lengths) {
      std::vector<Arm> arms;
      for (const std::string& text : caches) {
        PITH_ASSIGN(KvPlan plan, parse_cache(text));
        PITH_ASSIGN(KvDriver driver, KvDriver::create(std::move(plan), lm));
        Arm arm{std::move(driver), {}, {}};
        arm.score.cache = text;
        arm.score.task = task;
        arm.score.length = length;
        arms.push_back(std::move(arm));
      }
      KvPolicy::Wants all_wants;
      bool alike = true;  // one window, so that one set of notes serves everybody
      for (const Arm& arm : arms) {
        const KvPolicy::Wants wants = wants_of(arm);
        all_wants.mass = all_wants.mass || wants.mass;
        alike = alike && (wants.recent == 0 || all_wants.recent == 0 || wants.recent == all_wants.recent);
        all_wants.recent = std::max(all_wants.recent, wants.recent);
      }
      for (int64_t i = 0; i < o.items; ++i) {
        PITH_ASSIGN(const Item item, make_item(task, tokenizer, documents, length, i, o));
        std::vector<float> dense, logits;
        // Caches that keep the prompt exact while it is read share one reading. Where speed is measured, for the first
        // item only those that want the same notes of attention, so that each one's time is its own.
        struct Read {
          KvStore kv;
          double seconds;
        };
        std::map<std::pair<bool, int64_t>, Read> shared;
        const auto n = static_cast<int64_t>(item.prefix.size());
        for (Arm& arm : arms) {
          KvStore kv = lm.new_kv();
          double seconds = 0;
          if (arm.driver.plan().stage.policy == nullptr && arm.driver.plan().stage.format) {
            PITH_TRY(arm.driver.begin(kv, n));
            const auto start = std::chrono::steady_clock::now();
            PITH_TRY(read_prefix(lm, kv, item.prefix, &arm.driver, pool));
            seconds = seconds_since(start);
          } else {
            const KvPolicy::Wants wants = (i == 0 && o.decode_tokens > 0) || !alike ? wants_of(arm) : all_wants;
            const std::pair key{wants.mass, wants.recent};
            auto found = shared.find(key);
            if (found == shared.end()) {
              KvStore fresh = lm.new_kv();
              fresh.watch(
                  {wants.mass, wants.recent > 0 ? std::max<int64_t>(0, n - wants.recent) : KvWatch{}.recent_from});
              const auto start = std::chrono::steady_clock::now();
              PITH_TRY(read_prefix(lm, fresh, item.prefix, nullptr, pool));
              found = shared.emplace(key, Read{std::move(fresh), seconds_since(start)}).first;
            }
            kv = found->second.kv.copy();
            PITH_TRY(arm.driver.take_over(kv));
            PITH_TRY(arm.driver.after(kv, pool));
            if (arm.driver.plan().whole()) kv.watch({});
            seconds = found->second.seconds + arm.driver.seconds();
          }
          if (i == 0) {
            arm.score.prefill_per_second = static_cast<double>(n) / seconds;
            arm.score.policy_share = arm.driver.seconds() / seconds;
          }
          arm.score.bytes += static_cast<double>(kv.bytes());
          if (i == 0 && o.decode_tokens > 0) {
            KvStore copy = kv.copy();
            std::vector<float> next;
            int32_t token = item.chunk[0];
            const auto start = std::chrono::steady_clock::now();
            for (int64_t t = 0; t < o.decode_tokens; ++t) {
              PITH_TRY(lm.forward({&token, 1}, copy, Lm::Logits::last, next, pool));
              token = static_cast<int32_t>(argmax(next));
            }
            arm.decode_seconds = seconds_since(start);
          }
          std::vector<TokenLoss> losses;
          std::vector<float> all;
          const size_t whole = item.chunk.size(), vocab = static_cast<size_t>(lm.config().vocab);
          const size_t piece = o.piece > 0 ? static_cast<size_t>(o.piece) : whole;
          const bool is_dense = &arm == arms.data();
          if (o.piece == 0) kv.watch({});
          for (size_t at = 0; at < whole; at += piece) {
            const size_t count = std::min(piece, whole - at);
            const auto reference = std::span<const float>(dense);
            PITH_ASSIGN(
                const auto part,
                decode_nll(lm, kv, std::span(item.chunk).subspan(at, count), std::span(item.targets).subspan(at, count),
                           is_dense ? reference : reference.subspan(at * vocab, count * vocab), logits, pool));
            losses.insert(losses.end(), part.begin(), part.end());
            if (is_dense) all.insert(all.end(), logits.begin(), logits.end());
            if (o.piece > 0) PITH_TRY(arm.driver.after(kv, pool));
          }
          if (is_dense) dense = std::move(all);
          double nll = 0, kl = 0, right = 0;
          for (size_t t = losses.size() - item.scored; t < losses.size(); ++t) {
            nll += losses[t].nll;
            kl += losses[t].kl;
            right += losses[t].right ? 1 : 0;
            arm.same += losses[t].same_top || is_dense ? 1 : 0;
          }
          const auto scored = static_cast<double>(item.scored);
          arm.tokens += scored;
          arm.score.losses.push_back(nll / scored);
          arm.kl.push_back(kl / scored);
          arm.score.scores.push_back(task == "ppl" ? right / scored : right == scored ? 1.0 : 0.0);
          if (item.depth >= 0) arm.score.depths.push_back(item.depth);
        }
        if (!progress.step({"cache", fmt::format("{} at {} tokens", task, length), ++step, steps}))
          return user_error("stopped while evaluating caches");
      }
      for (Arm& arm : arms) {
        CacheScore& s = arm.score;
        const auto n = static_cast<double>(o.items);
        s.items = o.items;
        s.accuracy = mean(s.scores);
        s.nll = mean(s.losses), s.nll_error = standard_error(s.losses);
        s.kl = mean(arm.kl), s.kl_error = standard_error(arm.kl);
        s.same_top = arm.same / arm.tokens;
        s.bytes /= n;
        if (arm.decode_seconds > 0) s.decode_per_second = static_cast<double>(o.decode_tokens) / arm.decode_seconds;
        out.push_back(std::move(s));
      }
    }
  }
  return out;
}

}  // namespace pith
