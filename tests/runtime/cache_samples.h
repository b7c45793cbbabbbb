// Heads with given scores, for tests of policies that need no model.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "runtime/cache.h"
#include "runtime/method.h"

namespace pith::test {

/// Keys are one-hot in channel `position % 4`, values the position; sums as given.
inline KvEntries head_of(const std::vector<float>& mass, const std::vector<float>& recent) {
  KvEntries e;
  e.mass = mass;
  e.recent = recent;
  const size_t n = std::max(mass.size(), recent.size());
  for (size_t i = 0; i < n; ++i) {
    e.positions.push_back(static_cast<int32_t>(i));
    for (size_t d = 0; d < 4; ++d) {
      e.keys.push_back(d == i % 4 ? 1.0f : 0.0f);
      e.values.push_back(static_cast<float>(i));
    }
  }
  return e;
}

inline KvStage stage_of(const std::string& text) {
  const MethodSpec spec = split_spec(text);
  for (const KvMethod* m : all_kv_methods()) {
    if (m->name != spec.method) continue;
    const auto options = Options::parse(spec.options, find_method(m->name)->params);
    EXPECT_TRUE(options.ok()) << options.error().message;
    auto stage = m->make(*options);
    EXPECT_TRUE(stage.ok()) << stage.error().message;
    return std::move(stage).value();
  }
  ADD_FAILURE() << "no cache method " << text;
  return {};
}

inline std::vector<KvSelection> select(const std::string& text, const std::vector<KvEntries>& heads, int64_t budget) {
  const KvStage stage = stage_of(text);
  const KvLayerView view{0, heads[0].size(), {4, 4}, heads, [](int64_t, int32_t, float*) {}};
  auto chosen = stage.policy->select(view, budget);
  EXPECT_TRUE(chosen.ok()) << chosen.error().message;
  return std::move(chosen).value();
}

using Kept = std::vector<int32_t>;

}  // namespace pith::test
