#include "runtime/cache_samples.h"

namespace pith::test {
namespace {

TEST(SnapKv, KeepsPassagesThatTheLastQueriesLookAt) {
  const std::vector<KvEntries> heads{head_of({}, {0, 0, 0, 9, 0, 0, 0, 0, 5, 0, 0, 0})};
  EXPECT_EQ(select("snapkv:window=2,kernel=3", heads, 5)[0].keep, (Kept{2, 3, 4, 10, 11}));
  EXPECT_EQ(select("snapkv:window=2,kernel=1", heads, 4)[0].keep, (Kept{3, 8, 10, 11}));
  EXPECT_EQ(stage_of("snapkv:window=7").policy->wants().recent, 7);
}

}  // namespace
}  // namespace pith::test
