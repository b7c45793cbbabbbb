// ems: evict, then merge (Li et al., arXiv 2412.08521). No code was published; constants and exact formulas are ours.
//
// Of each head's tokens j, seen by n_j queries:
//   G_j = (attention of all queries) / n_j, L_j = (attention of the last `window` queries) / `window`,
//   both divided by their mean; score_j = max(G_j, L_j), smoothed over `kernel` neighbours.
// The window stays. The best B - window others are centres; the next ones, up to gamma B in all and not below
// `epsilon` of the worst centre, are candidates; the rest is evicted. A candidate joins the centre whose key has the
// largest cosine with its own, unless that is below tau: then the "zero class" takes it, and it is dropped. A centre
// becomes the mean of its members, weighted by their scores, and keeps the attention of all of them: log(sum of scores
// / its own) is added to its score. So heads with redundant tokens merge, heads with scattered attention evict, and
// none needs to be told.
//
// Stored: B keys and values, positions, the logarithms, and two sums (fp32) that carry the scores on. After the prompt
// the same is done whenever `window` new tokens have come.
//
// Constants were set once on calibration text (SmolLM2, 64 tokens a head; KL from the dense cache). Six texts: scores
// smoothed over 7 neighbours 0.125, as they are 0.075. Four others: evicting only 0.090; merging without the logarithm
// 0.114, with it 0.094, and with keys compared as they are stored, not without their rotary position, 0.086 (a mean of
// keys from distant positions cancels).
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/ops.h"
#include "runtime/cache.h"
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"budget", ParamType::text, "10%", 0, 0, "",
     "tokens of each head (256), share of all (10%), or bytes of the cache (2MB)"},
    {"window", ParamType::integer, "32", 1, 4096, "",
     "newest tokens: they stay, and their queries are the local score"},
    {"tau", ParamType::real, "0.8", -1, 1, "", "least cosine of two keys that are merged; 1 = evict only"},
    {"gamma", ParamType::real, "4", 1, 1e6, "", "centres and candidates together, as a multiple of the budget"},
    {"epsilon", ParamType::real, "0.01", 0, 1, "",
     "candidates below this share of the worst centre's score are evicted"},
    {"score", ParamType::choice, "max", 0, 0, "max|sum|global|local",
     "how the global and the local score are combined"},
    {"kernel", ParamType::integer, "1", 1, 99, "", "neighbours over which scores are smoothed"},
    {"mass", ParamType::boolean, "true", 0, 0, "", "a centre keeps the attention of what joined it"},
    {"sim", ParamType::choice, "post", 0, 0, "pre|post", "keys are compared before or after their rotary position"},
    {"shared", ParamType::boolean, "false", 0, 0, "", "all heads of a layer keep the same tokens (for comparison)"},
};

void by_mean(std::vector<float>& v) {
  double sum = 0;
  for (const float x : v) sum += static_cast<double>(x);
  if (sum <= 0) return;
  for (float& x : v) x = static_cast<float>(static_cast<double>(x) * static_cast<double>(v.size()) / sum);
}

struct Ems final : KvPolicy {
  int64_t window, kernel;
  double tau, gamma, epsilon;
  std::string score;
  bool before_rope, shared, mass;
  explicit Ems(const Options& o)
      : window(o.integer("window")),
        kernel(o.integer("kernel")),
        tau(o.real("tau")),
        gamma(o.real("gamma")),
        epsilon(o.real("epsilon")),
        score(o.text("score")),
        before_rope(o.text("sim") == "pre"),
        shared(o.flag("shared")),
        mass(o.flag("mass")) {}

  Wants wants() const override { return {.mass = true, .recent = window, .bias = mass && tau < 1}; }
  int64_t always_kept() const override { return window; }

  std::vector<float> scores(const KvEntries& head, int64_t length) const {
    std::vector<float> global = per_query(head, length), local = head.recent;
    by_mean(global), by_mean(local);
    for (size_t i = 0; i < global.size(); ++i) {
      if (score == "max") global[i] = std::max(global[i], local[i]);
      if (score == "sum") global[i] += local[i];
    }
    return pooled(score == "local" ? local : global, kernel, false);
  }

  Result<std::vector<KvSelection>> select(const KvLayerView& view, int64_t budget) const override {
    std::vector<std::vector<float>> all;
    for (const KvEntries& head : view.heads) all.push_back(scores(head, view.length));
    if (shared) {
      for (size_t h = 1; h < all.size(); ++h) {
        for (size_t i = 0; i < std::min(all[0].size(), all[h].size()); ++i) all[0][i] += all[h][i];
      }
      for (size_t h = 1; h < all.size(); ++h) {
        if (all[h].size() == all[0].size()) all[h] = all[0];
      }
    }
    std::vector<KvSelection> out;
    for (size_t h = 0; h < view.heads.size(); ++h) out.push_back(choose(view, h, all[h], budget));
    return out;
  }

  KvSelection choose(const KvLayerView& view, size_t h, const std::vector<float>& s, int64_t budget) const {
    const KvEntries& head = view.heads[h];
    KvSelection out;
    out.keep = keep_best(s, 0, window, budget);
    const auto outside = static_cast<int32_t>(std::max<int64_t>(0, head.size() - window));
    const auto centres =
        static_cast<size_t>(std::lower_bound(out.keep.begin(), out.keep.end(), outside) - out.keep.begin());
    if (tau >= 1 || centres == 0) return out;
    float worst = std::numeric_limits<float>::infinity();
    for (size_t i = 0; i < centres; ++i) worst = std::min(worst, s[static_cast<size_t>(out.keep[i])]);

    std::vector<int32_t> rest;
    for (int32_t e = 0, i = 0; e < outside; ++e) {
      if (static_cast<size_t>(i) < centres && out.keep[static_cast<size_t>(i)] == e) {
        ++i;
      } else if (static_cast<double>(s[static_cast<size_t>(e)]) >= epsilon * static_cast<double>(worst)) {
        rest.push_back(e);
      }
    }
    const double most = gamma * static_cast<double>(budget) - static_cast<double>(out.keep.size());
    const auto candidates = static_cast<size_t>(std::clamp(most, 0.0, static_cast<double>(rest.size())));
    std::partial_sort(rest.begin(), rest.begin() + static_cast<int64_t>(candidates), rest.end(),
                      [&](int32_t a, int32_t b) {
                        const float x = s[static_cast<size_t>(a)], y = s[static_cast<size_t>(b)];
                        return x != y ? x > y : a < b;
                      });
    rest.resize(candidates);

    // Unit keys of the centres; those without length attract nothing.
    const Ops& o = ops(default_isa());
    const int64_t dim = view.width.key;
    const auto unit = [&](int32_t e, float* key) {
      std::copy_n(head.keys.begin() + e * dim, dim, key);
      if (before_rope) view.unturn(static_cast<int64_t>(h), head.positions[static_cast<size_t>(e)], key);
      const float length = std::sqrt(o.dot(key, key, dim));
      o.scale(key, dim, length > 0 ? 1 / length : 0.0f);
      return length > 0;
    };
    std::vector<float> centre(centres * static_cast<size_t>(dim)), key(static_cast<size_t>(dim));
    for (size_t i = 0; i < centres; ++i) unit(out.keep[i], centre.data() + i * static_cast<size_t>(dim));
    for (const int32_t e : rest) {
      if (!unit(e, key.data())) continue;    // no direction: the zero class
      float best = static_cast<float>(tau);  // the zero class
      int32_t into = -1;
      for (size_t i = 0; i < centres; ++i) {
        const float cosine = o.dot(key.data(), centre.data() + i * static_cast<size_t>(dim), dim);
        if (cosine > best) best = cosine, into = out.keep[i];
      }
      if (into >= 0) out.merges.push_back({e, into, s[static_cast<size_t>(e)]});
    }
    if (out.merges.empty()) return out;
    out.keep_mass = mass;
    for (const int32_t e : out.keep) out.weights.push_back(std::max(s[static_cast<size_t>(e)], 1e-20f));
    return out;
  }
};

}  // namespace

const KvMethod& ems_cache() {
  static const KvMethod method{"ems", [](const Options& options) {
                                 return evicting(std::make_unique<Ems>(options), options, options.integer("window"));
                               }};
  return method;
}

const Method& ems_method() {
  static const Method method{
      .name = "ems",
      .family = "cache",
      .title = "Evicts irrelevant tokens and merges redundant ones, head by head",
      .paper =
          "Li et al., EMS: Adaptive Evict-then-Merge Strategy for Head-wise KV Cache Compression Based on "
          "Global-Local Importance, 2024, arXiv 2412.08521",
      .params = kParams,
      .needs = {},
      .baseline = false,
      .example = "pith generate MODEL --cache ems:budget=10%,window=32 -p @long.txt",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
