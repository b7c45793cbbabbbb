#include <gtest/gtest.h>

#include "engine/fit_samples.h"

namespace pith {
namespace {

TEST(Wanda, ASmallWeightOnALoudInputStays) {
  const Tensor w = at::tensor({0.1f, 1.0f, 0.5f, 0.3f}).unsqueeze(0).contiguous();
  Moments m;
  m.add(at::tensor({20.0f, 1.0f, 1.0f, 1.0f}).unsqueeze(0));  // scores 2, 1, 0.5, 0.3
  const Tensor kept = test::decoded(*test::fit("wanda", "pattern=2\\:4", w, m)).ne(0);
  EXPECT_TRUE(at::equal(kept, at::tensor({1, 1, 0, 0}).to(at::kBool).unsqueeze(0)));
}

TEST(Wanda, EqualInputsMakeItMagnitude) {
  const Tensor w = test::weights_like(8, 32, 2);
  Moments m;
  m.add(at::eye(32, at::kFloat));
  EXPECT_TRUE(at::equal(test::decoded(*test::fit("wanda", "sparsity=0.6", w, m)),
                        test::decoded(*test::fit("magnitude", "sparsity=0.6", w, m))));
}

}  // namespace
}  // namespace pith
