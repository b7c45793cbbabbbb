#include "maths/linalg.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "maths/wsvd.h"

namespace pith {
namespace {

Tensor random_matrix(int64_t rows, int64_t cols, uint64_t seed) {
  at::Generator g = at::detail::createCPUGenerator(seed);
  return at::randn({rows, cols}, g, at::TensorOptions().dtype(at::kDouble));
}

double largest(const Tensor& t) { return t.abs().max().item<double>(); }

Tensor covariance(int64_t n, uint64_t seed, int64_t samples = 0) {
  const Tensor x = random_matrix(samples > 0 ? samples : 3 * n, n, seed);
  return at::mm(x.t(), x) / static_cast<double>(x.size(0));
}

// U^T U must be the inverse, and U upper triangular; sizes below, at and above the panel width.
TEST(UpperInverseFactor, InvertsForEverySize) {
  for (const int64_t n : {1, 2, 17, 255, 256, 257, 600}) {
    const Tensor h = covariance(n, 7 + static_cast<uint64_t>(n));
    const InverseFactor f = upper_inverse_factor(h, 0.01);
    const Tensor damped = h + at::eye(n, at::kDouble) * (0.01 * h.diagonal().mean().item<double>());
    EXPECT_LT(largest(at::mm(at::mm(f.upper.t(), f.upper), damped) - at::eye(n, at::kDouble)), 1e-9) << n;
    EXPECT_EQ(largest(f.upper.tril(-1)), 0) << n;
    EXPECT_GT(f.upper.diagonal().min().item<double>(), 0) << n;
    EXPECT_EQ(f.damp, 0.01);
    EXPECT_TRUE(f.dead.empty());
  }
}

// A column that was never seen must not change the factor of the others.
TEST(UpperInverseFactor, DeadColumnsStayApart) {
  Tensor h = covariance(20, 3);
  const Tensor small = at::cat({h.narrow(0, 0, 5), h.narrow(0, 6, 14)}, 0);
  const Tensor without = at::cat({small.narrow(1, 0, 5), small.narrow(1, 6, 14)}, 1);
  h.narrow(0, 5, 1).zero_();
  h.narrow(1, 5, 1).zero_();
  const InverseFactor f = upper_inverse_factor(h, 0.01);
  ASSERT_EQ(f.dead, std::vector<int64_t>{5});
  EXPECT_EQ(largest(f.upper.narrow(0, 5, 1).narrow(1, 6, 14)), 0);
  EXPECT_EQ(largest(f.upper.narrow(0, 0, 5).narrow(1, 5, 1)), 0);
  const InverseFactor g = upper_inverse_factor(without, 0.01);
  EXPECT_LT(largest(f.upper.narrow(0, 6, 14).narrow(1, 6, 14) - g.upper.narrow(0, 5, 14).narrow(1, 5, 14)), 1e-12);
  // All dead: an identity of some scale, no division by zero.
  EXPECT_EQ(upper_inverse_factor(at::zeros({4, 4}, at::kDouble)).dead.size(), 4u);
}

// Rank 1 without damping cannot be inverted: damping must come by itself, and be reported.
TEST(UpperInverseFactor, DampingGrowsUntilItWorks) {
  const Tensor x = at::ones({8, 1}, at::kDouble);
  const InverseFactor f = upper_inverse_factor(at::mm(x, x.t()), 0.0);
  EXPECT_GT(f.damp, 0);
  EXPECT_TRUE(at::isfinite(f.upper).all().item<bool>());
}

TEST(UpperInverseFactor, OfMomentsIsThatOfTheirMatrix) {
  for (const int64_t n : {5, 256, 700}) {
    Moments m;
    m.add(random_matrix(2 * n, n, 6).to(at::kFloat));
    EXPECT_TRUE(at::equal(upper_inverse_factor(m).upper, upper_inverse_factor(m.second()).upper)) << n;
    m.compact();
    EXPECT_TRUE(at::equal(upper_inverse_factor(m).upper, upper_inverse_factor(m.second()).upper)) << n;
  }
}

TEST(LinearAlgebra, SameBitsForAnyNumberOfThreads) {
  const Tensor h = covariance(700, 4), w = random_matrix(40, 700, 9);
  Tensor factor, root, a;
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    const Tensor f = upper_inverse_factor(h).upper, r = square_root(h).root, l = wsvd(w, {}, h, 5).a;
    if (threads > 1) {
      EXPECT_TRUE(at::equal(f, factor));
      EXPECT_TRUE(at::equal(r, root));
      EXPECT_TRUE(at::equal(l, a));
    }
    factor = f, root = r, a = l;
  }
  at::set_num_threads(2);
}

TEST(UpperInverseFactor, RefusesBrokenInput) {
  Tensor h = covariance(4, 1);
  h[1][2] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(upper_inverse_factor(h), Failure);
  EXPECT_THROW(upper_inverse_factor(at::eye(4, at::kDouble) * -1.0), Failure);
  EXPECT_THROW(upper_inverse_factor(at::zeros({3, 4}, at::kDouble)), Failure);
  Tensor indefinite = at::eye(4, at::kDouble);
  indefinite[0][1] = 100.0;
  indefinite[1][0] = 100.0;
  EXPECT_THROW(upper_inverse_factor(indefinite), Failure);
}

TEST(SquareRoot, RootAndPseudoInverse) {
  const Tensor c = covariance(30, 5, /*samples=*/12);  // rank 12
  const SquareRoot s = square_root(c);
  EXPECT_EQ(s.rank, 12);
  EXPECT_LT(largest(at::mm(s.root, s.root) - c), 1e-10);
  EXPECT_LT(largest(at::mm(at::mm(s.root, s.inverse), s.root) - s.root), 1e-9);
}

// Eckart-Young: the error is the spectrum's tail, and no other matrix of that rank does better.
TEST(Wsvd, ErrorIsTheTailOfTheSpectrum) {
  const Tensor w = random_matrix(14, 22, 1), c = covariance(22, 2), l = at::rand({14}, at::kDouble) + 0.1;
  const Tensor root = square_root(c).root;
  for (const int64_t rank : {0, 1, 5, 13, 14}) {
    const LowRankFit f = wsvd(w, l, c, rank);
    auto error = [&](const Tensor& approx) {
      return (l.sqrt().unsqueeze(1) * at::mm(w - approx, root)).square().sum().item<double>();
    };
    const double tail = f.spectrum.narrow(0, rank, 14 - rank).square().sum().item<double>();
    EXPECT_NEAR(error(at::mm(f.a, f.b)), tail, 1e-9 * (1 + tail));
    for (uint64_t seed = 0; seed < 5 && rank > 0; ++seed) {
      const Tensor a = f.a + 0.05 * random_matrix(14, rank, 100 + seed), b = f.b + 0.05 * random_matrix(rank, 22, seed);
      EXPECT_GT(error(at::mm(a, b)), tail);
    }
    EXPECT_GE(error(at::mm(wsvd(w, {}, {}, rank).a, wsvd(w, {}, {}, rank).b)), tail - 1e-9);
  }
}

TEST(Wsvd, RandomisedIsCloseToTheExactOne) {
  const Tensor w = random_matrix(60, 100, 4), c = covariance(100, 5), l = at::rand({60}, at::kDouble) + 0.1;
  const Tensor root = square_root(c).root;
  const auto error = [&](const LowRankFit& f) {
    return (l.sqrt().unsqueeze(1) * at::mm(w - at::mm(f.a, f.b), root)).square().sum().item<double>();
  };
  for (const int64_t rank : {1, 8, 32, 60}) {
    const LowRankFit exact = wsvd(w, l, c, rank), random = wsvd_random(w, l, c, rank, 7);
    EXPECT_EQ(random.spectrum.size(0), rank);
    EXPECT_GE(error(random), error(exact) * (1 - 1e-9) - 1e-12);
    EXPECT_LE(error(random), error(exact) * 1.03 + 1e-9) << rank;
    EXPECT_TRUE(random.a.equal(wsvd_random(w, l, c, rank, 7).a));
  }
}

TEST(Wsvd, FullRankGivesTheMatrixBack) {
  const Tensor w = random_matrix(9, 6, 4);
  for (const Tensor& right : {Tensor(), covariance(6, 8), at::rand({6}, at::kDouble) + 0.5}) {
    const LowRankFit f = wsvd(w, {}, right, 6);
    EXPECT_LT(largest(at::mm(f.a, f.b) - w), 1e-9);
  }
}

TEST(Wsvd, RefusesBrokenInput) {
  const Tensor w = random_matrix(9, 6, 4);
  EXPECT_THROW(wsvd(w, {}, {}, 7), Failure);
  EXPECT_THROW(wsvd(w, {}, {}, -1), Failure);
  EXPECT_THROW(wsvd(w, {}, at::ones({5}, at::kDouble), 2), Failure);
  EXPECT_THROW(wsvd(w, -at::ones({9}, at::kDouble), {}, 2), Failure);
  EXPECT_THROW(wsvd(w * std::numeric_limits<double>::infinity(), {}, {}, 2), Failure);
}

}  // namespace
}  // namespace pith
