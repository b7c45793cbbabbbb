#include "runtime/cache_samples.h"

namespace pith::test {
namespace {

TEST(AdaSnapKv, HeadsWithMoreGoodTokensGetMore) {
  const std::vector<KvEntries> heads{head_of({}, {9, 8, 7, 6, 5, 4, 0, 0}), head_of({}, {3, 0, 0, 0, 0, 0, 0, 0})};
  const auto kept = select("ada-snapkv:window=1,kernel=1,floor=0.34", heads, 4);  // 3 each outside the window
  EXPECT_EQ(kept[0].keep, (Kept{0, 1, 2, 3, 4, 7}));
  EXPECT_EQ(kept[1].keep, (Kept{0, 7}));
  const auto even = select("ada-snapkv:window=1,kernel=1,floor=1", heads, 4);
  EXPECT_EQ(even[0].keep.size(), 4u);
  EXPECT_EQ(even[1].keep.size(), 4u);
}

}  // namespace
}  // namespace pith::test
