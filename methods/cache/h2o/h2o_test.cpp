#include "runtime/cache_samples.h"

namespace pith::test {
namespace {

TEST(H2o, HalfForTheNewestHalfForTheHeaviest) {
  const std::vector<KvEntries> heads{head_of({1, 9, 2, 8, 3, 7, 4, 6, 5, 0}, {})};
  EXPECT_EQ(select("h2o", heads, 4)[0].keep, (Kept{1, 3, 8, 9}));
  EXPECT_EQ(select("h2o:recent=0", heads, 4)[0].keep, (Kept{1, 3, 5, 7}));
  EXPECT_EQ(select("h2o:recent=1", heads, 2)[0].keep, (Kept{8, 9}));
  EXPECT_TRUE(stage_of("h2o").policy->wants().mass);
}

}  // namespace
}  // namespace pith::test
