#include <gtest/gtest.h>

#include "engine/fit_samples.h"
#include "maths/wsvd.h"
#include "represent/combine.h"
#include "represent/low_rank.h"

namespace pith {
namespace {

using test::bits_a_weight;
using test::correlated;
using test::decoded;
using test::fit;
using test::output_error;
using test::weights_like;

struct Case {
  Tensor w = weights_like(48, 96, 1);
  Moments m = correlated(96, 2);
  NodePtr base = fit("rtn", "bits=3,group=32", w, m);
};

TEST(Eora, NoOtherPathOfThatRankDoesBetterOnTheCalibrationText) {
  const Case c;
  double before = output_error(c.w, *c.base, c.m);
  for (const std::string rank : {"1", "4", "16"}) {
    const double eora = output_error(c.w, *fit("eora", "rank=" + rank, c.w, c.m, c.base), c.m);
    const double act = output_error(c.w, *fit("eora", "metric=act,rank=" + rank, c.w, c.m, c.base), c.m);
    const double svd = output_error(c.w, *fit("eora", "metric=svd,rank=" + rank, c.w, c.m, c.base), c.m);
    EXPECT_LE(eora, act * 1.0001) << rank;
    EXPECT_LE(eora, svd * 1.0001) << rank;
    EXPECT_LT(eora, before);
    before = eora;
    // Eckart-Young: what is left is the tail of the spectrum, up to the rounding of the factors to fp16.
    const Tensor difference = (c.w - decoded(*c.base)).to(at::kDouble);
    const Tensor spectrum = wsvd(difference, {}, c.m.second(), std::stoi(rank)).spectrum;
    const double tail =
        spectrum.narrow(0, std::stoi(rank), spectrum.size(0) - std::stoi(rank)).pow(2).sum().item<double>();
    EXPECT_NEAR(eora, tail, 1e-4 * tail);
  }
}

TEST(Eora, FullRankGivesTheOriginalBack) {
  const Case c;
  EXPECT_LT((decoded(*fit("eora", "rank=48,metric=svd", c.w, c.m, c.base)) - c.w).abs().max().item<float>(), 1e-3);
}

TEST(Eora, RankZeroIsTheBaseItself) {
  const Case c;
  EXPECT_EQ(fit("eora", "rank=0", c.w, c.m, c.base), c.base);
}

TEST(Eora, BudgetInBitsIsKeptAndUsed) {
  const Tensor w = weights_like(256, 256, 3);
  const Moments m = correlated(256, 4);
  const NodePtr base = fit("rtn", "bits=3,group=64", w, m);
  for (const std::string bits : {"16", "8", "4"}) {
    const NodePtr node = fit("eora", "rank-budget=0.5,factor-bits=" + bits, w, m, base);
    const double extra = bits_a_weight(*node) - bits_a_weight(*base);
    EXPECT_LE(extra, 0.5) << bits;
    EXPECT_GT(extra, 0.35) << bits;
  }
}

TEST(Eora, FewerBitsForTheFactorsBuyMoreRank) {
  const Tensor w = weights_like(256, 256, 5);
  const Moments m = correlated(256, 6);
  const NodePtr base = fit("rtn", "bits=2,group=64", w, m);
  const double none = output_error(w, *base, m);
  const double r16 = output_error(w, *fit("eora", "rank=16", w, m, base), m);
  const double r8 = output_error(w, *fit("eora", "rank=16,factor-bits=8", w, m, base), m);
  const double r4 = output_error(w, *fit("eora", "rank=16,factor-bits=4", w, m, base), m);
  EXPECT_NEAR(r8, r16, 0.02 * (none - r16));
  EXPECT_NEAR(r4, r16, 0.25 * (none - r16));
}

TEST(Eora, RefusesWhatDoesNotBelongTogether) {
  const Case c;
  const auto message = [&](auto run) {
    try {
      run();
    } catch (const Failure& failure) {
      return failure.error().message;
    }
    return std::string("accepted");
  };
  EXPECT_NE(message([&] { fit("eora", "", c.w, c.m); }).find("layers.0.test"), std::string::npos);
  EXPECT_NE(message([&] { fit("eora", "", weights_like(47, 96, 1), c.m, c.base); }).find("47 x 96"), std::string::npos);
  Moments silent;
  silent.add(at::zeros({10, 96}, at::kFloat));
  EXPECT_NE(message([&] { fit("eora", "", c.w, silent, c.base); }).find("layers.0.test"), std::string::npos);
}

}  // namespace
}  // namespace pith
