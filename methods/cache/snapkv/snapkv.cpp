// snapkv: what the last queries look at (Li et al., arXiv 2404.14469). A token's score is the attention of the newest
// `window` queries, mean over the query heads that share the KV head, smoothed over `kernel` neighbours so that whole
// passages stay. The window itself is kept.
#include "runtime/cache.h"
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"budget", ParamType::text, "25%", 0, 0, "",
     "tokens of each head (256), share of all (25%), or bytes of the cache (2MB)"},
    {"window", ParamType::integer, "32", 1, 4096, "", "newest tokens: they stay, and their queries choose"},
    {"kernel", ParamType::integer, "7", 1, 99, "", "neighbours over which scores are smoothed"},
    {"pool", ParamType::choice, "mean", 0, 0, "mean|max", "how they are smoothed"},
};

struct SnapKv final : KvPolicy {
  int64_t window, kernel;
  bool largest;
  explicit SnapKv(const Options& o)
      : window(o.integer("window")), kernel(o.integer("kernel")), largest(o.text("pool") == "max") {}
  Wants wants() const override { return {.mass = false, .recent = window}; }
  int64_t always_kept() const override { return window; }
  Result<std::vector<KvSelection>> select(const KvLayerView& view, int64_t budget) const override {
    std::vector<KvSelection> out;
    for (const KvEntries& head : view.heads) {
      out.push_back({keep_best(pooled(head.recent, kernel, largest), 0, window, budget), {}, {}});
    }
    return out;
  }
};

}  // namespace

const KvMethod& snapkv_cache() {
  static const KvMethod method{"snapkv", [](const Options& options) {
                                 return evicting(std::make_unique<SnapKv>(options), options, options.integer("window"));
                               }};
  return method;
}

const Method& snapkv_method() {
  static const Method method{
      .name = "snapkv",
      .family = "cache",
      .title = "Keeps what the last queries of the prompt look at",
      .paper = "Li et al., SnapKV: LLM Knows What You are Looking for Before Generation, 2024, arXiv 2404.14469",
      .params = kParams,
      .needs = {},
      .baseline = true,
      .example = "pith generate MODEL --cache snapkv:budget=25%,window=32 -p @long.txt",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
