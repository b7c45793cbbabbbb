#include "runtime/cache_samples.h"

namespace pith::test {
namespace {

// Keys of entries 0, 4, 8, … point the same way (head_of).
TEST(Ems, MergesIntoTheNearestCentreAndDropsWhatNoneResembles) {
  const std::vector<float> flat(12, 1.0f);
  const std::vector<KvEntries> heads{head_of(flat, {5, 0.5f, 0.4f, 0.3f, 2, 0, 0, 0, 1, 0, 0, 0})};
  const std::string plain = "ems:window=1,kernel=1,score=local,epsilon=0,gamma=4,";
  const auto kept = select(plain + "tau=0.6", heads, 3)[0];
  EXPECT_EQ(kept.keep, (Kept{0, 4, 11}));
  // Candidates in the order of their scores, gamma * 3 - 3 of them: 8 resembles 0 (the first of equals); 1, 2, 3, 5, 6
  // resemble no centre.
  ASSERT_EQ(kept.merges.size(), 1u);
  EXPECT_EQ(kept.merges[0].from, 8);
  EXPECT_EQ(kept.merges[0].into, 0);
  EXPECT_EQ(kept.weights.size(), 3u);
  EXPECT_NEAR(kept.merges[0].weight / kept.weights[0], 1.0 / 5, 1e-6);
  EXPECT_TRUE(select(plain + "tau=1", heads, 3)[0].merges.empty()) << "evict only";
  EXPECT_EQ(select("ems:window=1,kernel=1,score=local,epsilon=0,gamma=1000,tau=-1", heads, 3)[0].merges.size(), 9u)
      << "merge only";
  EXPECT_TRUE(select("ems:window=1,kernel=1,score=local,epsilon=0.9", heads, 3)[0].merges.empty())
      << "nothing near the worst centre's score is left";
}

TEST(Ems, ScoresAreFreeOfHowManyQueriesCouldSeeAKey) {
  // Each query spends 1 evenly over the keys that it sees: the sum favours early keys, the mean of sums per query less.
  std::vector<float> mass(8);
  for (size_t i = 0; i < 8; ++i) {
    for (size_t q = i; q < 8; ++q) mass[i] += 1.0f / static_cast<float>(q + 1);
  }
  mass[5] += 3;  // the heavy one
  const std::vector<KvEntries> heads{head_of(mass, std::vector<float>(8, 0.0f))};
  EXPECT_EQ(select("ems:window=1,kernel=1,score=global,tau=1", heads, 2)[0].keep, (Kept{5, 7}));
}

TEST(Ems, KeysWithoutLengthGoToTheZeroClass) {
  std::vector<KvEntries> heads{head_of(std::vector<float>(12, 1.0f), {5, 1, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0})};
  for (size_t d = 0; d < 4; ++d) heads[0].keys[8 * 4 + d] = 0;
  const auto kept = select("ems:window=1,kernel=1,score=local,epsilon=0.1,tau=-0.5", heads, 3)[0];
  ASSERT_EQ(kept.merges.size(), 1u);
  EXPECT_EQ(kept.merges[0].from, 1) << "a key of another direction is near enough here";
  EXPECT_EQ(kept.keep, (Kept{0, 4, 11}));
}

}  // namespace
}  // namespace pith::test
