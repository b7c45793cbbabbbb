#include "maths/moments.h"

#include <gtest/gtest.h>

#include <limits>

namespace pith {
namespace {

Tensor random_inputs(int64_t tokens, int64_t width, uint64_t seed) {
  at::Generator g = at::detail::createCPUGenerator(seed);
  return at::randn({tokens, width}, g, at::TensorOptions().dtype(at::kFloat));
}

double gap(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

TEST(Moments, EqualTheDirectSums) {
  for (const int64_t width : {1, 5, 255, 256, 257, 600}) {
    const Tensor x = random_inputs(90, width, 3);
    Moments m;
    m.add(x.narrow(0, 0, 40).view({2, 20, width}));
    m.add(x.narrow(0, 40, 50));
    const Tensor d = x.to(at::kDouble);
    EXPECT_EQ(m.count(), 90);
    EXPECT_LT(gap(m.second(), at::mm(d.t(), d) / 90.0), 1e-6) << width;
    EXPECT_EQ(gap(m.second(), m.second().t()), 0);
    EXPECT_LT(gap(m.mean(), d.mean(0)), 1e-12);
    EXPECT_LT(gap(m.mean_abs(), d.abs().mean(0)), 1e-12);
    EXPECT_EQ(gap(m.max_abs(), x.abs().amax(0)), 0);
  }
}

// fp32 sums would lose the second batch: 1e8 + 1 = 1e8.
TEST(Moments, SumsAreInDoublePrecision) {
  Moments m;
  m.add(at::full({1, 1}, 1e4f));
  for (int i = 0; i < 1000; ++i) m.add(at::full({1, 1}, 1.0f));
  EXPECT_DOUBLE_EQ(m.second().item<double>() * 1001, 1e8 + 1000);
}

TEST(Moments, MergeEqualsOnePass) {
  const Tensor x = random_inputs(60, 300, 8);
  Moments all, a, b;
  all.add(x.narrow(0, 0, 25));
  all.add(x.narrow(0, 25, 35));
  a.add(x.narrow(0, 0, 25));
  b.add(x.narrow(0, 25, 35));
  b.add(at::empty({0, 300}));  // no tokens: no change
  Moments merged;
  merged.merge(a);
  merged.merge(b);
  EXPECT_EQ(gap(merged.second(), all.second()), 0);
  EXPECT_EQ(merged.count(), 60);
  const Moments copy =
      Moments::from_panels(merged.count(), merged.panels(), merged.sum(), merged.sum_abs(), merged.max_abs());
  EXPECT_EQ(gap(copy.second(), all.second()), 0);
  EXPECT_EQ(gap(copy.diagonal(), all.second().diagonal()), 0);
  const Moments again = Moments::from_sums(60, all.sum_outer(), all.sum(), all.sum_abs(), all.max_abs());
  EXPECT_EQ(gap(again.second(), all.second()), 0);
  Moments small = all;
  small.compact();
  EXPECT_LT(gap(small.second(), all.second()), 1e-6);
  EXPECT_GT(gap(small.second(), all.second()), 0);
  EXPECT_EQ(small.panels()[0].scalar_type(), at::kFloat);
  EXPECT_EQ(all.panels()[0].scalar_type(), at::kDouble);
}

TEST(Moments, RefusesBrokenInput) {
  Moments m(4);
  EXPECT_THROW(m.add(at::zeros({2, 5})), Failure);
  EXPECT_THROW(m.add(at::full({2, 4}, std::numeric_limits<float>::quiet_NaN())), Failure);
  EXPECT_THROW(m.add(at::full({2, 4}, std::numeric_limits<float>::infinity())), Failure);
  EXPECT_EQ(m.count(), 0);
  EXPECT_THROW(Moments::from_panels(1, {}, at::zeros({4}), at::zeros({4}), at::zeros({4})), Failure);
}

}  // namespace
}  // namespace pith
