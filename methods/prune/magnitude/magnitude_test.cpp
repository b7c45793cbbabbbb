#include <gtest/gtest.h>

#include "engine/fit_samples.h"

namespace pith {
namespace {

TEST(Magnitude, WeightsCompeteInTheirRowOrInTheMatrix) {
  Tensor w = test::weights_like(16, 40, 1);
  w[3].mul_(100);
  const Moments none;
  const Tensor row = test::decoded(*test::fit("magnitude", "sparsity=0.75", w, none)).ne(0).sum(1);
  EXPECT_EQ(row.min().item<int64_t>(), 10);
  EXPECT_EQ(row.max().item<int64_t>(), 10);
  const Tensor matrix = test::decoded(*test::fit("magnitude", "sparsity=0.75,scope=matrix", w, none)).ne(0).sum(1);
  EXPECT_GT(matrix[3].item<int64_t>(), 30);
  EXPECT_EQ(matrix.sum().item<int64_t>(), 160);
}

}  // namespace
}  // namespace pith
