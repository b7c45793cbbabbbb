// h2o: heavy hitters (Zhang et al., arXiv 2306.14048). Half of the budget is the newest tokens, half those with the
// largest attention summed over all queries so far, mean over the query heads that share the KV head. The sum favours
// early tokens, which more queries have seen: that is the method.
#include "runtime/cache.h"
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"budget", ParamType::text, "25%", 0, 0, "",
     "tokens of each head (256), share of all (25%), or bytes of the cache (2MB)"},
    {"recent", ParamType::real, "0.5", 0, 1, "", "share of the budget for the newest tokens"},
};

struct HeavyHitters final : KvPolicy {
  double recent;
  explicit HeavyHitters(double share) : recent(share) {}
  Wants wants() const override { return {.mass = true, .recent = 0}; }
  int64_t always_kept() const override { return 1; }
  Result<std::vector<KvSelection>> select(const KvLayerView& view, int64_t budget) const override {
    std::vector<KvSelection> out;
    const auto window = static_cast<int64_t>(recent * static_cast<double>(budget));
    for (const KvEntries& head : view.heads) out.push_back({keep_best(head.mass, 0, window, budget), {}, {}});
    return out;
  }
};

}  // namespace

const KvMethod& h2o_cache() {
  static const KvMethod method{"h2o", [](const Options& options) {
                                 return evicting(std::make_unique<HeavyHitters>(options.real("recent")), options);
                               }};
  return method;
}

const Method& h2o_method() {
  static const Method method{
      .name = "h2o",
      .family = "cache",
      .title = "Keeps the newest tokens and those that drew most attention so far",
      .paper =
          "Zhang et al., H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models, "
          "2023, arXiv 2306.14048",
      .params = kParams,
      .needs = {},
      .baseline = true,
      .example = "pith generate MODEL --cache h2o:budget=25% -p @long.txt",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
