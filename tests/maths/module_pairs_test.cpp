// Narrowing of pairs against what is defined or proved: optima, exact errors, exact full width.
#include "maths/module_pairs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace pith {
namespace {

Tensor noise(at::IntArrayRef shape, uint64_t seed) {
  at::Generator g = at::detail::createCPUGenerator(seed);
  return at::randn(shape, g, at::kDouble);
}

Tensor covariance(int64_t n, uint64_t seed) {
  const Tensor x = at::mm(noise({4 * n, n}, seed), noise({n, n}, seed + 1)) * at::exp(noise({n}, seed + 2) * 0.5);
  return at::mm(x.t(), x) / static_cast<double>(4 * n);
}

double error(const Tensor& difference, const Tensor& c, const Tensor& weight) {
  return ((at::mm(difference, c) * difference).sum(1) * weight).sum().item<double>();
}

// W with its columns spread out to where the kept channels stood.
Tensor spread(const Tensor& narrow, const std::vector<int64_t>& kept, int64_t n) {
  Tensor out = at::zeros({narrow.size(0), n}, at::kDouble);
  for (size_t i = 0; i < kept.size(); ++i)
    out.narrow(1, kept[i], 1).copy_(narrow.narrow(1, static_cast<int64_t>(i), 1));
  return out;
}

TEST(ModulePairs, LeverageIsThatOfTheDefinition) {
  const Tensor c = covariance(12, 1);
  const double ridge = 0.01 * c.diagonal().mean().item<double>();
  const Tensor direct = at::linalg_solve(c + at::eye(12, at::kDouble) * ridge, c).diagonal();
  EXPECT_LT((leverage_scores(c, 0.01) - direct).abs().max().item<double>(), 1e-7);
  EXPECT_EQ(largest(at::tensor(std::vector<double>{1, 5, 3, 5}), 3), (std::vector<int64_t>{1, 2, 3}));
}

TEST(ModulePairs, NystromIsTheLeastSquaresReaderAndItsTailTheErrorLeft) {
  const int64_t n = 14;
  const Tensor c = covariance(n, 2), w = noise({9, n}, 5), weight = noise({9}, 6).square();
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::swap(order[2], order[11]);
  const std::vector<double> tail = nystrom_tail(w, c, order, weight);
  for (const size_t k : {size_t{1}, size_t{5}, size_t{13}}) {
    std::vector<int64_t> kept(order.begin(), order.begin() + static_cast<int64_t>(k));
    std::sort(kept.begin(), kept.end());
    const Nystrom best = nystrom(w, c, kept);
    EXPECT_EQ(best.damp, kNystromDamp);
    const Tensor difference = w - spread(best.reader, kept, n);
    EXPECT_NEAR(error(difference, c, weight), tail[k], 1e-4 * tail[0]);
    // No other reader of these channels does better, nor does the old one.
    const double least = error(difference, c, at::ones({9}, at::kDouble));
    const Tensor other = best.reader + noise(best.reader.sizes(), 7) * 0.05;
    EXPECT_GT(error(w - spread(other, kept, n), c, at::ones({9}, at::kDouble)), least);
    const Tensor as_is = w.index_select(1, at::tensor(kept, at::kLong));
    EXPECT_GT(error(w - spread(as_is, kept, n), c, at::ones({9}, at::kDouble)), 1.05 * least);
  }
  EXPECT_EQ(tail.back(), 0);
}

TEST(ModulePairs, NystromOfAllChannelsIsTheSameReader) {
  const Tensor c = covariance(10, 3), w = noise({6, 10}, 8);
  std::vector<int64_t> all(10);
  std::iota(all.begin(), all.end(), 0);
  const Tensor ones = at::ones({6}, at::kDouble);
  EXPECT_LT(error(nystrom(w, c, all).reader - w, c, ones), 1e-8 * error(w, c, ones));
}

// A channel that is a mixture of others costs nothing when it goes, although the covariance is singular.
TEST(ModulePairs, NystromFoldsRepeatedChannelsIntoTheOthers) {
  const Tensor mix = at::cat({at::eye(8, at::kDouble), noise({2, 8}, 9)}, 0);
  const Tensor c = at::mm(at::mm(mix, covariance(8, 4)), mix.t()), w = noise({5, 10}, 10);
  std::vector<int64_t> kept(8);
  std::iota(kept.begin(), kept.end(), 0);
  const Tensor reader = nystrom(w, c, kept).reader;
  EXPECT_LT((reader - at::mm(w, mix)).abs().max().item<double>(), 1e-2);
  EXPECT_THROW(nystrom(w, at::zeros({10, 10}, at::kDouble), kept), Failure);
  EXPECT_THROW(nystrom(w, c / 0.0, kept), Failure);
}

TEST(ModulePairs, ValuesAndOutputsAreTheBestOfTheirRank) {
  const int64_t hidden = 16, d = 6, rows = 32;
  const Tensor c = covariance(hidden, 11), v = noise({d, hidden}, 12), o = noise({rows, d}, 13);
  const SquareRoot root = square_root(c);
  const Tensor ones = at::ones({rows}, at::kDouble), product = at::mm(o, v);
  for (const int64_t k : {int64_t{1}, int64_t{4}, d}) {
    const ValueOutput best = value_output(v, o, root, k);
    ASSERT_EQ(best.value.size(0), k);
    const double left = error(product - at::mm(best.output, best.value), c, ones);
    EXPECT_NEAR(left, best.spectrum.narrow(0, k, d - k).square().sum().item<double>(), 1e-8 * error(product, c, ones));
    if (k == d) continue;
    // The best pair without regard to the covariance.
    SquareRoot none;
    none.root = none.inverse = at::eye(hidden, at::kDouble);
    const ValueOutput plain = value_output(v, o, none, k);
    EXPECT_GT(error(product - at::mm(plain.output, plain.value), c, ones), left * 1.001);
  }
}

TEST(ModulePairs, TailOfValuesIsTheErrorUnderWhatHeadsRead) {
  const int64_t hidden = 16, d = 6, rows = 10;
  const SquareRoot root = square_root(covariance(hidden, 14));
  const Tensor v = noise({d, hidden}, 15), o = noise({2 * rows, d}, 16), weight = noise({rows}, 17).square();
  const std::vector<Tensor> attended{covariance(d, 18), covariance(d, 19)};
  const std::vector<double> tail = value_output_tail(v, o, root, attended, weight);
  for (const int64_t k : {int64_t{0}, int64_t{2}, int64_t{5}}) {
    const ValueOutput best = value_output(v, o, root, k);
    // The map of old values to what replaces them: V' = P V, solved for P.
    const Tensor p = at::mm(at::mm(best.value, v.t()), at::linalg_solve(at::mm(v, v.t()), at::eye(d, at::kDouble)));
    double sum = 0;
    for (int64_t h = 0; h < 2; ++h) {
      const Tensor difference = o.narrow(0, h * rows, rows) - at::mm(best.output.narrow(0, h * rows, rows), p);
      sum += error(difference, attended[static_cast<size_t>(h)], weight);
    }
    EXPECT_NEAR(tail[static_cast<size_t>(k)], sum, 1e-6 * tail[0]);
  }
}

}  // namespace
}  // namespace pith
