#include "measure/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "measure/memory.h"

namespace pith {
namespace {

TEST(Statistics, KnownValues) {
  const std::vector<double> v = {2, 4, 4, 4, 5, 5, 7, 9};
  EXPECT_DOUBLE_EQ(mean(v), 5);
  EXPECT_NEAR(standard_deviation(v), std::sqrt(32.0 / 7), 1e-12);
  EXPECT_NEAR(standard_error(v), std::sqrt(32.0 / 7 / 8), 1e-12);
  EXPECT_DOUBLE_EQ(quantile(v, 0.5), 4.5);
  EXPECT_DOUBLE_EQ(quantile(v, 0), 2);
  EXPECT_DOUBLE_EQ(quantile(v, 1), 9);
  EXPECT_TRUE(std::isnan(mean({})));
  EXPECT_EQ(standard_error(std::vector<double>{3}), 0);
  const std::vector<double> w = {1, 2, 3, 4};
  const auto d = paired_difference(v, w);
  EXPECT_EQ(d.count, 4u);
  EXPECT_DOUBLE_EQ(d.mean, 1);  // 1 2 1 0
  EXPECT_NEAR(d.error, std::sqrt(2.0 / 3 / 4), 1e-12);
  EXPECT_NEAR(perplexity(20 * std::log(7.0), 20), 7, 1e-12);
}

TEST(Statistics, SoftmaxNumbersAgreeWithTheDefinition) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal(0, 3);
  for (int round = 0; round < 100; ++round) {
    std::vector<float> a(50), b(50);
    for (auto& x : a) x = normal(rng);
    for (auto& x : b) x = normal(rng);
    double za = 0, zb = 0, kl = 0;
    for (const float x : a) za += std::exp(double{x});
    for (const float x : b) zb += std::exp(double{x});
    for (size_t i = 0; i < a.size(); ++i)
      kl += std::exp(double{a[i]}) / za * std::log(std::exp(double{a[i]}) / za / (std::exp(double{b[i]}) / zb));
    EXPECT_NEAR(kl_divergence(a, b), kl, 1e-9);
    EXPECT_NEAR(negative_log_likelihood(a, 7), -std::log(std::exp(double{a[7]}) / za), 1e-9);
    EXPECT_EQ(kl_divergence(a, a), 0);
    // Adding a constant to all logits changes nothing; large values do not overflow.
    std::vector<float> shifted = a;
    for (auto& x : shifted) x += 1024;
    EXPECT_NEAR(kl_divergence(shifted, b), kl, 1e-3);
    EXPECT_EQ(argmax(shifted), argmax(a));
  }
  const std::vector<float> huge = {1e4f, -1e4f, 0};
  EXPECT_NEAR(log_sum_exp(huge), 1e4, 1e-9);
  EXPECT_EQ(argmax(std::vector<float>{1, 3, 3, 2}), 1u);
}

TEST(Statistics, KlSummary) {
  std::vector<double> v(1000);
  for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<double>(i) / 999;
  const auto s = summarize_kl(v);
  EXPECT_EQ(s.tokens, 1000u);
  EXPECT_NEAR(s.mean, 0.5, 1e-12);
  EXPECT_NEAR(s.median, 0.5, 1e-12);
  EXPECT_NEAR(s.p99, 0.99, 1e-12);
  EXPECT_EQ(s.max, 1);
  EXPECT_EQ(summarize_kl({}).tokens, 0u);
}

TEST(Memory, SeesWhatIsTouched) {
  const uint64_t before = current_memory(), anonymous = current_anonymous_memory();
  ASSERT_GT(before, 1u << 20);
  std::vector<char> block(64 << 20, 1);
  EXPECT_GE(current_memory(), before + (60u << 20));
  EXPECT_GE(current_anonymous_memory(), anonymous + (60u << 20));
  EXPECT_GE(peak_memory(), current_memory());
  EXPECT_GT(available_memory(), 0u);
  EXPECT_EQ(block[12345], 1);
}

}  // namespace
}  // namespace pith
