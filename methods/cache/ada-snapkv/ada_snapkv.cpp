// ada-snapkv: snapkv with one budget for the heads of a layer (Feng et al., arXiv 2407.11550). Each head keeps a floor,
// the rest goes to the best scores of all heads together: heads with scattered attention get more than those that look
// at few tokens.
#include <algorithm>
#include <numeric>

#include "runtime/cache.h"
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"budget", ParamType::text, "25%", 0, 0, "", "tokens of each head on average (256), share (25%), or bytes (2MB)"},
    {"window", ParamType::integer, "32", 1, 4096, "", "newest tokens: they stay, and their queries choose"},
    {"kernel", ParamType::integer, "7", 1, 99, "", "neighbours over which scores are smoothed"},
    {"pool", ParamType::choice, "mean", 0, 0, "mean|max", "how they are smoothed"},
    {"floor", ParamType::real, "0.2", 0, 1, "", "share of the budget that each head gets for itself"},
};

struct AdaSnapKv final : KvPolicy {
  int64_t window, kernel;
  bool largest;
  double floor;
  explicit AdaSnapKv(const Options& o)
      : window(o.integer("window")),
        kernel(o.integer("kernel")),
        largest(o.text("pool") == "max"),
        floor(o.real("floor")) {}
  Wants wants() const override { return {.mass = false, .recent = window}; }
  int64_t always_kept() const override { return window; }

  Result<std::vector<KvSelection>> select(const KvLayerView& view, int64_t budget) const override {
    const auto heads = static_cast<int64_t>(view.heads.size());
    // Budgets: the number of a head's scores among the best of all heads, above its floor.
    struct Candidate {
      float score;
      int32_t head, entry;
    };
    std::vector<std::vector<float>> scores;
    std::vector<int64_t> most(view.heads.size());
    std::vector<Candidate> all;
    const int64_t free = std::max<int64_t>(0, budget - window),
                  own = static_cast<int64_t>(floor * static_cast<double>(free));
    int64_t total = 0;
    for (int64_t h = 0; h < heads; ++h) {
      const KvEntries& head = view.heads[static_cast<size_t>(h)];
      scores.push_back(pooled(head.recent, kernel, largest));
      const int64_t outside = std::max<int64_t>(0, head.size() - window);
      std::vector<int32_t> order(static_cast<size_t>(outside));
      std::iota(order.begin(), order.end(), 0);
      const auto& s = scores.back();
      std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        const float x = s[static_cast<size_t>(a)], y = s[static_cast<size_t>(b)];
        return x != y ? x > y : a < b;
      });
      most[static_cast<size_t>(h)] = std::min(own, outside);
      total += most[static_cast<size_t>(h)];
      for (int64_t i = most[static_cast<size_t>(h)]; i < outside; ++i) {
        all.push_back({s[static_cast<size_t>(order[static_cast<size_t>(i)])], static_cast<int32_t>(h),
                       order[static_cast<size_t>(i)]});
      }
    }
    std::sort(all.begin(), all.end(), [](const Candidate& a, const Candidate& b) {
      if (a.score != b.score) return a.score > b.score;
      return a.head != b.head ? a.head < b.head : a.entry < b.entry;
    });
    for (size_t i = 0; i < all.size() && total < free * heads; ++i, ++total) ++most[static_cast<size_t>(all[i].head)];
    std::vector<KvSelection> out;
    for (size_t h = 0; h < view.heads.size(); ++h) {
      out.push_back({keep_best(scores[h], 0, window, most[h] + window), {}, {}});
    }
    return out;
  }
};

}  // namespace

const KvMethod& ada_snapkv_cache() {
  static const KvMethod method{"ada-snapkv", [](const Options& options) {
                                 return evicting(std::make_unique<AdaSnapKv>(options), options,
                                                 options.integer("window"));
                               }};
  return method;
}

const Method& ada_snapkv_method() {
  static const Method method{
      .name = "ada-snapkv",
      .family = "cache",
      .title = "SnapKV whose heads share one budget",
      .paper =
          "Feng et al., Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM "
          "Inference, 2024, arXiv 2407.11550",
      .params = kParams,
      .needs = {},
      .baseline = true,
      .example = "pith generate MODEL --cache ada-snapkv:budget=25% -p @long.txt",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
