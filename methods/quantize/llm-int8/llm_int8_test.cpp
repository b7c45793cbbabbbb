#include <gtest/gtest.h>

#include <cmath>

#include "base/half.h"
#include "engine/fit_samples.h"
#include "represent/combine.h"

namespace pith {
namespace {

using test::bits_a_weight;
using test::correlated;
using test::decoded;
using test::fit;
using test::weights_like;

TEST(LlmInt8, CodesAreAbsmaxOfEachRow) {
  Tensor w = weights_like(20, 64, 1);
  w[4].zero_();
  const Tensor q = decoded(*fit("llm-int8", "", w, Moments()));
  for (int64_t r = 0; r < 20; ++r) {
    const float top = w[r].abs().max().item<float>();
    for (int64_t c = 0; c < 64; ++c) {
      const double expected = top == 0 ? 0 : std::nearbyint(127.0 * w[r][c].item<float>() / top) * top / 127;
      EXPECT_NEAR(q[r][c].item<float>(), expected, top / 127 * 1e-3);
    }
    // The row's largest weight is met but for rounding of the scale.
    EXPECT_NEAR(q[r].abs().max().item<float>(), top, 1e-6 * top);
  }
  EXPECT_DOUBLE_EQ(bits_a_weight(*fit("llm-int8", "", w, Moments())), 8 + 32.0 / 64);
}

TEST(LlmInt8, OutlierColumnsOfTheProbeKeepFp16) {
  const Tensor w = weights_like(24, 32, 2);
  at::Generator g = test::generator(3);
  Tensor x = at::randn({200, 32}, g, at::kFloat).clamp(-4, 4);
  x[17][5] = 9.0f;  // one token is enough
  x.narrow(1, 20, 1).mul_(-3);
  x[3][20] = -7.0f;  // the test is on |x|
  Moments m;
  m.add(x);
  const Tensor q = decoded(*fit("llm-int8", "outlier-weights=fp16", w, m));
  const Tensor plain = decoded(*fit("llm-int8", "", w, m));
  for (int64_t c = 0; c < 32; ++c) {
    const bool outlier = m.max_abs()[c].item<float>() >= 6.0f;
    if (c == 5 || c == 20) {
      EXPECT_TRUE(outlier);
    }
    for (int64_t r = 0; r < 24; ++r) {
      const float expected = outlier ? half_to_float(float_to_half(w[r][c].item<float>())) : plain[r][c].item<float>();
      EXPECT_EQ(q[r][c].item<float>(), expected);
    }
  }
  // A threshold that nothing reaches, and none at all, store nothing extra.
  for (const char* options : {"outlier-weights=fp16,threshold=1000", "outlier-weights=fp16,threshold=0"})
    EXPECT_DOUBLE_EQ(bits_a_weight(*fit("llm-int8", options, w, m)), 8 + 32.0 / 32);
}

TEST(LlmInt8, TheThresholdReachesTheNode) {
  const NodePtr node = fit("llm-int8", "threshold=4.5", weights_like(4, 8, 4), Moments());
  ASSERT_EQ(node->kind(), "dynamic_int8");
  EXPECT_EQ(static_cast<const DynamicInt8&>(*node).threshold(), 4.5f);
}

}  // namespace
}  // namespace pith
