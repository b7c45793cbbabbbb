#include "maths/additive_code.h"

#include <gtest/gtest.h>

#include <cmath>

namespace pith {
namespace {

at::Generator generator(uint64_t seed) { return at::detail::createCPUGenerator(seed); }

AdditiveTarget some_target(int64_t rows, int64_t cols, uint64_t seed) {
  at::Generator g = generator(seed);
  const Tensor x = at::randn({3 * cols, cols}, g, at::kFloat) * at::exp(at::randn({cols}, g, at::kFloat) * 0.5) +
                   at::randn({3 * cols, 1}, g, at::kFloat);
  return {at::randn({rows, cols}, g, at::kFloat), at::mm(x.t(), x) / static_cast<double>(3 * cols)};
}

// The loss as its definition says it, in fp64.
double plain_loss(const AdditiveTarget& target, const AdditiveCode& code) {
  const Tensor d = (target.weight - code.decode()).to(at::kDouble);
  return (at::mm(d, target.h.to(at::kDouble)) * d).sum().item<double>();
}

TEST(AdditiveCode, NoStepRaisesTheLoss) {
  for (const auto& [books, entries, beam] : {std::tuple<int64_t, int64_t, int64_t>{1, 32, 1}, {2, 16, 1}, {3, 8, 4}}) {
    const AdditiveTarget target = some_target(70, 48, static_cast<uint64_t>(books));
    AdditiveCode code = residual_kmeans(target, 8, books, entries, 20, 1, "test");
    double loss = plain_loss(target, code);
    EXPECT_NEAR(target.loss(code), loss, 1e-4 * loss);
    const double start = loss;
    for (uint64_t round = 0; round < 4; ++round) {
      const auto no_worse = [&](const char* step) {
        const double now = plain_loss(target, code);
        EXPECT_LE(now, loss * (1 + 1e-6)) << step << ", round " << round;
        loss = now;
      };
      fit_books(target, code, 20);
      no_worse("books");
      fit_scales(target, code);
      no_worse("scales");
      search_codes(target, code, beam, round);
      no_worse("search");
    }
    EXPECT_LT(loss, 0.9 * start);
  }
}

// With all combinations in the beam a matrix of one group is solved: nothing among entries^books is better.
TEST(AdditiveCode, WideBeamIsBruteForceOnOneGroup) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    const AdditiveTarget target = some_target(20, 4, seed);
    AdditiveCode code = residual_kmeans(target, 4, 3, 6, 5, seed, "test");
    AdditiveCode found = code;
    search_codes(target, found, 36, seed);
    const Tensor h = target.h.to(at::kDouble);
    for (int64_t r = 0; r < 20; ++r) {
      const double scale = code.scales[r].item<double>();
      const auto loss = [&](const Tensor& sum) {
        const Tensor d = target.weight[r].to(at::kDouble) - scale * sum;
        return at::mv(h, d).mul(d).sum().item<double>();
      };
      const Tensor b = code.books.to(at::kDouble);
      double best = INFINITY;
      for (int64_t i = 0; i < 6; ++i)
        for (int64_t j = 0; j < 6; ++j)
          for (int64_t k = 0; k < 6; ++k) best = std::min(best, loss(b[0][i] + b[1][j] + b[2][k]));
      const int32_t* c = found.codes.data() + r * 3;
      EXPECT_NEAR(loss(b[0][c[0]] + b[1][c[1]] + b[2][c[2]]), best, 1e-5 * best + 1e-9) << "row " << r;
    }
  }
}

TEST(AdditiveCode, WiderBeamsAreNotWorseOverAMatrix) {
  const AdditiveTarget target = some_target(64, 64, 9);
  const AdditiveCode code = residual_kmeans(target, 8, 3, 16, 20, 1, "test");
  double before = INFINITY;
  for (const int64_t beam : {1, 4, 16}) {
    AdditiveCode found = code;
    search_codes(target, found, beam, 5);
    const double loss = plain_loss(target, found);
    EXPECT_LT(loss, before * 1.01) << beam;
    before = loss;
  }
}

// Codes of a matrix that IS such a sum: the books that made it are found again, up to fp16.
TEST(AdditiveCode, BooksOfASumAreFound) {
  AdditiveTarget target = some_target(200, 32, 11);
  AdditiveCode truth = residual_kmeans(target, 4, 1, 16, 10, 2, "test");
  target.weight = truth.decode();
  AdditiveCode code = truth;
  at::Generator g = generator(3);
  code.books = (truth.books + at::randn(truth.books.sizes(), g, at::kFloat) * 0.3).to(at::kHalf).to(at::kFloat);
  const double before = plain_loss(target, code);
  EXPECT_TRUE(fit_books(target, code, 200));
  EXPECT_LT(plain_loss(target, code), 1e-5 * before);
}

TEST(AdditiveCode, SameBitsForAnyThreads) {
  const AdditiveTarget target = some_target(300, 64, 13);
  const int before = at::get_num_threads();
  std::vector<AdditiveCode> found;
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    AdditiveCode code = residual_kmeans(target, 8, 2, 32, 20, 1, "test");
    fit_books(target, code, 10);
    fit_scales(target, code);
    search_codes(target, code, 4, 1);
    found.push_back(std::move(code));
  }
  at::set_num_threads(before);
  EXPECT_EQ(found[0].codes, found[1].codes);
  EXPECT_TRUE(at::equal(found[0].books, found[1].books));
  EXPECT_TRUE(at::equal(found[0].scales, found[1].scales));
}

TEST(AdditiveCode, NearestCodesAreBruteForceWithAWideBeamAndNeverWorseThanBefore) {
  at::Generator g = generator(3);
  const Tensor x = at::randn({50, 4}, g, at::kFloat), books = at::randn({3, 6, 4}, g, at::kFloat);
  const Tensor start = at::randint(0, 6, {50, 3}, g, at::kLong);
  const auto distance = [&](const Tensor& codes) {
    Tensor left = x;
    for (int64_t m = 0; m < 3; ++m) left = left - books[m].index_select(0, codes.select(1, m));
    return left.square().sum(1);
  };
  const Tensor present = distance(start), wide = distance(nearest_codes(x, books, start, 36));
  Tensor best = at::full({50}, INFINITY, at::kFloat);
  for (int64_t i = 0; i < 6; ++i)
    for (int64_t j = 0; j < 6; ++j)
      for (int64_t k = 0; k < 6; ++k)
        best = at::minimum(best, (x - books[0][i] - books[1][j] - books[2][k]).square().sum(1));
  EXPECT_LT((wide - best).abs().max().item<float>(), 1e-5f);
  double before = INFINITY;
  for (const int64_t beam : {1, 4, 36}) {
    const Tensor found = distance(nearest_codes(x, books, start, beam));
    EXPECT_TRUE(found.le(present).all().item<bool>());
    const double sum = found.sum().item<double>();
    EXPECT_LE(sum, before * (1 + 1e-6));
    before = sum;
  }
  EXPECT_TRUE(nearest_codes(x, books.narrow(0, 0, 1), start.narrow(1, 0, 1), 1)
                  .squeeze(1)
                  .equal((x.unsqueeze(1) - books[0]).square().sum(2).argmin(1)));
}

}  // namespace
}  // namespace pith
