#include "runtime/cache_samples.h"

namespace pith::test {
namespace {

TEST(Sinks, KeepsTheFirstAndTheNewest) {
  const std::vector<KvEntries> heads{head_of(std::vector<float>(20, 1.0f), {})};
  EXPECT_EQ(select("sinks:sinks=2", heads, 5)[0].keep, (Kept{0, 1, 17, 18, 19}));
  EXPECT_EQ(select("sinks:sinks=0", heads, 3)[0].keep, (Kept{17, 18, 19}));
  EXPECT_EQ(stage_of("sinks:sinks=2").policy->always_kept(), 2);
}

}  // namespace
}  // namespace pith::test
