#include <gtest/gtest.h>

#include "engine/fit_samples.h"
#include "maths/wsvd.h"
#include "represent/combine.h"
#include "represent/grid.h"
#include "represent/low_rank.h"

namespace pith {
namespace {

using test::bits_a_weight;
using test::correlated;
using test::decoded;
using test::fit;
using test::weights_like;

double plain_error(const Tensor& w, const Tensor& approximation) {
  return (w - approximation).to(at::kDouble).pow(2).sum().item<double>();
}

struct Case {
  Tensor w = weights_like(96, 128, 1);
  Moments m = correlated(128, 2);
  Tensor lq(const std::string& options) const { return decoded(*fit("lq-lora", "fisher=false," + options, w, m)); }
};

TEST(LqLora, BeatsTheGridAloneAndASvdOfItsResidual) {
  const Case c;
  for (const std::string bits : {"2", "3"}) {
    const std::string grid = "stat-bits=0,bits=" + bits;
    const Tensor alone = c.lq(grid + ",rank=0");
    for (const int rank : {4, 16}) {
      const std::string r = ",rank=" + std::to_string(rank);
      const LowRankFit svd = wsvd(c.w - alone, {}, {}, rank);
      const double one_shot = plain_error(c.w, alone.to(at::kDouble) + at::mm(svd.a, svd.b));
      const double error = plain_error(c.w, c.lq(grid + r));
      EXPECT_LT(one_shot, plain_error(c.w, alone));
      EXPECT_LT(error, 0.99 * one_shot) << bits << " bits, rank " << rank;
      EXPECT_LE(error, plain_error(c.w, c.lq(grid + ",iterations=1" + r)));
    }
  }
}

TEST(LqLora, RankZeroIsTheGridAlone) {
  const Case c;
  EXPECT_TRUE(c.lq("rank=0,stat-bits=0").equal(decoded(*fit("rtn", "grid=nf,clip=none,bits=3,group=32", c.w, c.m))));
}

TEST(LqLora, FisherMovesErrorsToWhereTheyCostLess) {
  const Case c;
  FitJob job;
  job.name = "w", job.weight = c.w, job.inputs = &c.m;
  job.row_fisher = at::exp(at::randn({96}, test::generator(3), at::kFloat) * 2).to(at::kDouble);
  const auto loss = [&](const std::string& options) {
    return predicted_loss(job, *find_fit("lq-lora")->run(job, test::options_of(*find_method("lq-lora"), options)));
  };
  EXPECT_LT(loss("bits=2"), 0.95 * loss("bits=2,fisher=false"));
}

TEST(LqLora, CountsGridAndFactors) {
  const Case c;
  const NodePtr node = fit("lq-lora", "bits=3,group=32,stat-bits=4,rank=8", c.w, c.m);
  const double factors = 16.0 * 8 * (96 + 128) / (96 * 128);
  EXPECT_NEAR(bits_a_weight(*node), 3 + 4.0 / 32 + 32.0 / (16 * 32) + factors, 0.02);
  const auto& sum = static_cast<const Sum&>(*node);
  EXPECT_EQ(sum.terms()[0]->kind(), "grid");
  EXPECT_EQ(static_cast<const LowRank&>(*sum.terms()[1]).rank(), 8);
}

}  // namespace
}  // namespace pith
