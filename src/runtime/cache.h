// Smaller KV caches: what a method decides (which tokens stay, in which form), and the driver that carries it out
// while a model reads and writes. A method never touches stored bytes; the store's formats do.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/threads.h"
#include "plan/options.h"
#include "runtime/kv_store.h"

namespace pith {

class Lm;  // runtime/lm.h

/// How much may stay: "256" tokens of each head, "25%" of the tokens seen, "2MB" of everything the store holds. Without
/// text: all.
struct KvBudget {
  enum class Kind : uint8_t { all, count, ratio, bytes };
  Kind kind = Kind::all;
  double value = 0;
  static Result<KvBudget> parse(std::string_view text);
  std::string print() const;
};

/// One layer as a policy sees it: everything its heads hold, with the sums that attention noted.
struct KvLayerView {
  int64_t layer = 0;
  int64_t length = 0;  ///< tokens seen
  KvWidths width;
  std::span<const KvEntries> heads;
  /// Takes the rotary position out of a key of a head.
  std::function<void(int64_t head, int32_t position, float* key)> unturn;
};

/// What stays of one head.
struct KvSelection {
  std::vector<int32_t> keep;  ///< entries, ascending
  /// Entry `from` is averaged into the kept entry `into` (both in the numbering before), with this weight beside the
  /// kept entry's own.
  struct Merge {
    int32_t from, into;
    float weight;
  };
  std::vector<Merge> merges;
  std::vector<float> weights;  ///< of the kept entries, where there are merges
  /// What was merged keeps its share of attention: a kept entry's score grows by log(all weights / its own).
  bool keep_mass = false;
};

/// Which tokens stay. Called when a prompt has been read and then whenever a window of new tokens has come.
class KvPolicy {
 public:
  virtual ~KvPolicy() = default;
  /// What attention has to note: sums over all queries; sums over the last so many.
  struct Wants {
    bool mass = false;
    int64_t recent = 0;
    bool bias = false;  ///< entries will have a bias: `keep_mass`
  };
  virtual Wants wants() const { return {}; }
  /// Tokens of each head that are kept whatever their score.
  virtual int64_t always_kept() const = 0;
  /// Chooses for all heads of a layer; together they may keep `budget` entries a head.
  virtual Result<std::vector<KvSelection>> select(const KvLayerView& view, int64_t budget) const = 0;
};

/// What one `--cache` method contributes.
struct KvStage {
  std::unique_ptr<KvPolicy> policy;  ///< null: keeps all tokens
  KvBudget budget;                   ///< of the policy
  std::optional<KvFormat> format;    ///< of tokens that left the window
  int64_t window = 0;                ///< newest tokens that stay as they are
};

/// A policy within options' `budget`.
Result<KvStage> evicting(std::unique_ptr<KvPolicy> policy, const Options& options, int64_t window = 0);
/// Codes of `bits` with a scale for 32 channels of a token, after options' `rotate` and `window`.
KvStage scaled_codes(uint8_t bits, const Options& options);

/// A method of the family `cache`: `const KvMethod& <name>_cache()` beside its `<name>_method()`.
struct KvMethod {
  std::string_view name;
  Result<KvStage> (*make)(const Options& options);
};
std::span<const KvMethod* const> all_kv_methods();

/// The stages of "ems:budget=10%;q4" together: at most one policy and one format. Empty text and "full" keep all.
struct KvPlan {
  std::string text;
  KvStage stage;
  bool whole() const { return stage.policy == nullptr && !stage.format; }
};
Result<KvPlan> parse_cache(std::string_view text);

/// Carries out a plan on one store.
class KvDriver {
 public:
  /// Checks the plan against the model: formats against the widths of its heads.
  static Result<KvDriver> create(KvPlan plan, const Lm& lm);

  /// The user's mistakes, before any work: a budget that has no room for what is always kept.
  Status check(int64_t prompt_tokens) const;
  /// Entries a head may keep when `tokens` were seen.
  int64_t entries(int64_t tokens) const;
  /// Bytes that the store takes while a prompt is read, at most.
  uint64_t prompt_bytes(int64_t prompt_tokens) const;

  /// Before the prompt: `kv` may hold earlier text. The prompt is read with an exact cache when there is a policy; with
  /// a format alone tokens are coded as they leave the window.
  Status begin(KvStore& kv, int64_t prompt_tokens);
  /// The same for a prompt that has just been read into `kv` with the notes that `begin` asks for, by somebody else.
  Status take_over(const KvStore& kv);
  /// After each forward pass; the prompt may also have been read by now.
  Status after(KvStore& kv, ThreadPool& pool);

  const KvPlan& plan() const { return plan_; }
  /// Seconds spent choosing and storing so far.
  double seconds() const { return seconds_; }

 private:
  KvDriver(KvPlan plan, const Lm& lm);
  KvFormat plain() const;
  KvFormat target() const;
  Status roll(KvStore& kv, ThreadPool& pool) const;
  Status compress(KvStore& kv, ThreadPool& pool) const;
  Status compress_layer(KvStore& kv, int64_t layer) const;
  KvPlan plan_;
  const Lm* lm_;
  KvShape shape_;
  KvType type_;
  int64_t prompt_end_ = 0;
  bool reading_ = false;
  double seconds_ = 0;
};

// ---- what several policies use ------------------------------------------------------------------------------------

/// Scores smoothed over `kernel` neighbours (odd): the mean, or the largest.
std::vector<float> pooled(std::span<const float> scores, int64_t kernel, bool largest);
/// The first `sinks` entries, the last `window`, and the best of the rest up to `budget` in all; of equals the earlier.
std::vector<int32_t> keep_best(std::span<const float> scores, int64_t sinks, int64_t window, int64_t budget);
/// Attention per query that could see the key: sums divided by the number of queries since then.
std::vector<float> per_query(const KvEntries& entries, int64_t length);

}  // namespace pith
