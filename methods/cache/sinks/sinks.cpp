// sinks: a sliding window and the first tokens (StreamingLLM; Xiao et al., arXiv 2309.17453). Models park attention
// that has nowhere to go on the first tokens; without them a window fails.
#include "runtime/cache.h"
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"budget", ParamType::text, "25%", 0, 0, "",
     "tokens of each head (256), share of all (25%), or bytes of the cache (2MB)"},
    {"sinks", ParamType::integer, "4", 0, 1024, "", "first tokens that stay"},
};

struct Sinks final : KvPolicy {
  int64_t sinks;
  explicit Sinks(int64_t n) : sinks(n) {}
  int64_t always_kept() const override { return sinks; }
  Result<std::vector<KvSelection>> select(const KvLayerView& view, int64_t budget) const override {
    std::vector<KvSelection> out;
    for (const KvEntries& head : view.heads) {
      std::vector<float> newer(static_cast<size_t>(head.size()));
      for (size_t i = 0; i < newer.size(); ++i) newer[i] = static_cast<float>(i);
      out.push_back({keep_best(newer, sinks, 0, budget), {}, {}});
    }
    return out;
  }
};

}  // namespace

const KvMethod& sinks_cache() {
  static const KvMethod method{"sinks", [](const Options& options) {
                                 return evicting(std::make_unique<Sinks>(options.integer("sinks")), options);
                               }};
  return method;
}

const Method& sinks_method() {
  static const Method method{
      .name = "sinks",
      .family = "cache",
      .title = "Keeps the newest tokens and the first few",
      .paper = "Xiao et al., Efficient Streaming Language Models with Attention Sinks, 2023, arXiv 2309.17453",
      .params = kParams,
      .needs = {},
      .baseline = true,
      .example = "pith generate MODEL --cache sinks:budget=25% -p @long.txt",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
