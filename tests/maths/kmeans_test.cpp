#include "maths/kmeans.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace pith {
namespace {

Tensor normal(int64_t n, int64_t width, uint64_t seed) {
  at::Generator g = at::detail::createCPUGenerator(seed);
  return at::randn({n, width}, g, at::kFloat);
}

double loss_of(const Tensor& points, const Tensor& weights, const KMeans& found) {
  double sum = 0;
  for (int64_t i = 0; i < points.size(0); ++i) {
    const Tensor d = points[i].to(at::kDouble) - found.centres[found.codes[static_cast<size_t>(i)]].to(at::kDouble);
    sum += (weights.defined() ? weights[i].item<double>() : 1.0) * (d * d).sum().item<double>();
  }
  return sum;
}

TEST(KMeans, LossNeverRisesAndIsWhatItSays) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const Tensor x = normal(700, 4, seed), w = normal(700, 1, seed + 50).flatten().abs();
    for (const Tensor& weights : {Tensor(), w}) {
      const KMeans found = kmeans(x, weights, 32, 100, seed);
      ASSERT_GT(found.losses.size(), 3u);
      for (size_t i = 1; i < found.losses.size(); ++i) EXPECT_LT(found.losses[i], found.losses[i - 1]);
      EXPECT_NEAR(loss_of(x, weights, found), found.losses.back(), 1e-9 * found.losses.back());
      EXPECT_LT(found.losses.back(), 0.9 * found.losses.front());
    }
  }
}

// Nobody is nearer to another centre, and every centre is the mean of its points: a fixed point of Lloyd's rounds.
TEST(KMeans, EndsWherePointsAndCentresAgree) {
  const Tensor x = normal(300, 3, 7);
  const KMeans found = kmeans(x, {}, 12, 1000, 7);
  Tensor sums = at::zeros({12, 3}, at::kDouble), counts = at::zeros({12}, at::kDouble);
  for (int64_t i = 0; i < 300; ++i) {
    const int64_t code = found.codes[static_cast<size_t>(i)];
    const Tensor d = (found.centres - x[i]).to(at::kDouble);
    const Tensor all = (d * d).sum(1);
    EXPECT_LE(all[code].item<double>(), all.min().item<double>() * (1 + 1e-5));
    sums[code] += x[i].to(at::kDouble);
    counts[code] += 1;
  }
  EXPECT_GT(counts.min().item<double>(), 0);
  EXPECT_LT((sums / counts.unsqueeze(1) - found.centres).abs().max().item<double>(), 2e-3);
}

TEST(KMeans, AsManyEntriesAsPointsLeaveNothing) {
  const Tensor x = normal(40, 5, 3);
  EXPECT_EQ(kmeans(x, {}, 40, 10, 1).losses.back(), 0);
  // As many as different points, however often they come.
  const Tensor repeated = at::cat({x, x, x.narrow(0, 0, 7)});
  EXPECT_EQ(kmeans(repeated, {}, 40, 10, 2).losses.back(), 0);
  EXPECT_EQ(kmeans(repeated, {}, 60, 10, 2).losses.back(), 0);
}

TEST(KMeans, PointsWithoutWeightDoNotMatter) {
  const Tensor x = normal(60, 2, 4), far = normal(60, 2, 5) * 100;
  const Tensor w = at::cat({at::ones({60}, at::kFloat), at::zeros({60}, at::kFloat)});
  const KMeans found = kmeans(at::cat({x, far}), w, 60, 10, 1);
  EXPECT_EQ(found.losses.back(), 0);
}

TEST(KMeans, OneEntryIsTheMean) {
  const Tensor x = normal(100, 3, 8);
  EXPECT_LT((kmeans(x, {}, 1, 10, 1).centres[0] - x.mean(0)).abs().max().item<float>(), 1e-6);
}

TEST(KMeans, SameBitsForAnyThreads) {
  const Tensor x = normal(20000, 8, 9);
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const KMeans one = kmeans(x, {}, 64, 20, 3);
  at::set_num_threads(2);
  const KMeans two = kmeans(x, {}, 64, 20, 3);
  at::set_num_threads(before);
  EXPECT_EQ(one.codes, two.codes);
  EXPECT_TRUE(at::equal(one.centres, two.centres));
  EXPECT_NE(kmeans(x, {}, 64, 20, 4).codes, one.codes) << "the seed decides nothing";
}

TEST(KMeans, RefusesWhatMakesNoSense) {
  const auto kind = [](const Tensor& x, int64_t k) {
    try {
      kmeans(x, {}, k, 5, 1, "layer.7");
    } catch (const Failure& failure) {
      EXPECT_NE(failure.error().message.find("layer.7"), std::string::npos);
      return failure.error().kind;
    }
    ADD_FAILURE() << "taken";
    return ErrorKind::bug;
  };
  EXPECT_EQ(kind(normal(5, 2, 1), 6), ErrorKind::user);
  Tensor x = normal(5, 2, 1);
  x[2][1] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(kind(x, 2), ErrorKind::data);
}

}  // namespace
}  // namespace pith
