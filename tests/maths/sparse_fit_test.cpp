#include "maths/sparse_fit.h"

#include <gtest/gtest.h>

#include <numeric>

namespace pith {
namespace {

TEST(SparseFit, Patterns) {
  EXPECT_EQ(parse_pattern("2:4")->n, 2);
  EXPECT_EQ(parse_pattern("16:16")->m, 16);
  EXPECT_EQ(parse_pattern("none")->n, 0);
  for (const char* bad : {"2", "0:4", "5:4", "2:17", "2:4:8", "a:b", ":", "2:", "-1:4", "222222222222:4"})
    EXPECT_FALSE(parse_pattern(bad).ok()) << bad;
}

TEST(SparseFit, KeepsTheLargestAndOfEqualOnesTheFirst) {
  const float scores[] = {1, 3, 2, 3, 3, 0};
  uint8_t mask[6];
  keep_largest(scores, 6, 2, mask);
  EXPECT_EQ(std::vector<uint8_t>(mask, mask + 6), (std::vector<uint8_t>{0, 1, 0, 1, 0, 0}));
  keep_largest(scores, 6, 0, mask);
  EXPECT_EQ(std::accumulate(mask, mask + 6, 0), 0);
  keep_largest(scores, 6, 9, mask);
  EXPECT_EQ(std::accumulate(mask, mask + 6, 0), 6);
}

TEST(SparseFit, NodesDecodeToTheMaskedMatrix) {
  at::Generator g = at::detail::createCPUGenerator(1);
  const Tensor w = at::randn({7, 24}, g, at::kFloat).to(at::kHalf).to(at::kFloat).contiguous();
  for (const SparsityPattern pattern : {SparsityPattern{0, 0}, {2, 4}, {1, 3}, {4, 8}, {8, 8}}) {
    std::vector<uint8_t> mask(7 * 24);
    const Tensor scores = w.abs();
    if (pattern.n > 0)
      keep_by_pattern(scores.const_data_ptr<float>(), 7, 24, pattern, mask.data());
    else
      keep_largest(scores.const_data_ptr<float>(), 7 * 24, 50, mask.data());
    const std::vector<float> values = decode_all(*masked_node(w, mask, pattern));
    for (size_t i = 0; i < mask.size(); ++i) EXPECT_EQ(values[i], mask[i] ? w.const_data_ptr<float>()[i] : 0.0f);
  }
}

TEST(SparseFit, TwoOfFourTakesEightAndThreeQuarters) {
  const Tensor w = at::ones({16, 64}, at::kFloat);
  std::vector<uint8_t> mask(16 * 64);
  keep_by_pattern(w.const_data_ptr<float>(), 16, 64, {2, 4}, mask.data());
  EXPECT_DOUBLE_EQ(masked_node(w, mask, {2, 4})->bits().total() / (16.0 * 64), 8.75);
}

}  // namespace
}  // namespace pith
