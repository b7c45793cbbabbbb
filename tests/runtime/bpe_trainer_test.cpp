#include "runtime/bpe_trainer.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "runtime/tokenizer.h"

namespace pith {
namespace {

BpeTrainerOptions small(int64_t vocab) {
  BpeTrainerOptions options;
  options.vocab = vocab;
  return options;
}

// By hand: "aa" 4 times (overlaps count), then what the counts say, ties by the smaller ids.
TEST(BpeTrainer, MergesTheMostFrequentPair) {
  const auto spec = train_bpe("abab abab cd cd cd", small(258 + 4));
  ASSERT_TRUE(spec.ok()) << spec.error().message;
  using Merge = std::pair<std::string, std::string>;
  // Pieces: "abab", " abab", " cd" three times. ab 4; " c" 3, cd 3: the smaller left id is that of the space.
  const std::vector<Merge> want = {{"a", "b"}, {"\u0120", "c"}, {"\u0120c", "d"}, {"ab", "ab"}};
  EXPECT_EQ((*spec).merges, want);
  EXPECT_EQ((*spec).tokens.size(), 262u);
  EXPECT_EQ((*spec).bos, 0);
  EXPECT_EQ((*spec).eos, 1);
}

TEST(BpeTrainer, SameTextSameTokenizerAndNoByteLost) {
  const auto text = read_text(PITH_SOURCE_DIR "/testdata/tokenizer/chat.json", 1u << 20);
  ASSERT_TRUE(text.ok());
  const auto one = train_bpe(*text, small(800)), two = train_bpe(*text, small(800));
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_EQ((*one).merges, (*two).merges);
  EXPECT_EQ((*one).tokens.size(), 800u);
  const auto tokenizer = Tokenizer::create(*one);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  const std::string probe = *text + "\xff\xfe é😀\n";
  const auto ids = (*tokenizer).encode(probe);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ((*tokenizer).decode(*ids), probe);
  EXPECT_LT((*ids).size() * 2, probe.size());  // it compresses
  // A larger vocabulary goes on from the smaller one.
  const auto more = train_bpe(*text, small(900));
  ASSERT_TRUE(more.ok());
  EXPECT_TRUE(std::equal((*one).merges.begin(), (*one).merges.end(), (*more).merges.begin()));
}

TEST(BpeTrainer, EndsWhenThereIsNothingToMerge) {
  const auto spec = train_bpe("ab", small(5000));
  ASSERT_TRUE(spec.ok());
  EXPECT_TRUE((*spec).merges.empty());  // a pair that occurs once is not worth a token
  EXPECT_TRUE(train_bpe("", small(300)).ok());
  EXPECT_FALSE(train_bpe("ab", small(100)).ok());
  BpeTrainerOptions bad = small(300);
  bad.splits.push_back({.pattern = "(", .prefix = {}});
  EXPECT_FALSE(train_bpe("ab", bad).ok());
}

}  // namespace
}  // namespace pith
