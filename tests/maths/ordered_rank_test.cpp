// Ordered products: norms, the nested cut, and that training prefixes finds the singular value decomposition.
#include "maths/ordered_rank.h"

#include <gtest/gtest.h>

#include <cmath>

namespace pith {
namespace {

Tensor noise(at::IntArrayRef shape, uint64_t seed) {
  at::Generator g = at::detail::createCPUGenerator(seed);
  return at::randn(shape, g, at::kDouble);
}

TEST(OrderedRank, SuffixNormsAreThoseOfTheDefinition) {
  const Tensor x = noise({5, 4}, 1), found = suffix_norms(x);
  for (int64_t b = 0; b < 4; ++b)
    EXPECT_NEAR(found[b].item<double>(), x.narrow(1, b, 4 - b).norm().item<double>(), 1e-9);
  Tensor zero = at::zeros({5, 4}, at::kDouble).requires_grad_(true);
  suffix_norms(zero).sum().backward();
  EXPECT_TRUE(at::isfinite(zero.grad()).all().item<bool>());
}

TEST(OrderedRank, TheCutTakesTheLeastImportantNumbersFirst) {
  OrderedProduct wide, narrow;
  wide.out = 30, wide.in = 30, wide.importance = {9, 5, 3, 2, 1, 0.5};
  narrow.out = 10, narrow.in = 10, narrow.importance = {9, 4, 2, 1, 0.1, 0};
  const std::vector<OrderedProduct> both{wide, narrow};
  // The narrow one is no smaller than its matrix above rank 4.
  EXPECT_EQ(nested_cut(both, 1e9), (std::vector<int64_t>{6, 4}));
  // A number of the wide one is worth 0.5 / 60, of the narrow one 1 / 20.
  EXPECT_EQ(nested_cut(both, 6 * 60 + 4 * 20 - 1), (std::vector<int64_t>{5, 4}));
  EXPECT_EQ(nested_cut(both, 4 * 60 + 4 * 20), (std::vector<int64_t>{4, 4}));
  EXPECT_EQ(nested_cut(both, 3 * 60 + 4 * 20), (std::vector<int64_t>{3, 4}));
  EXPECT_EQ(nested_cut(both, 3 * 60 + 3 * 20), (std::vector<int64_t>{2, 4}));
  EXPECT_EQ(nested_cut(both, 0), (std::vector<int64_t>{1, 1}));
  EXPECT_EQ(wide.rank(2), 4);
  EXPECT_EQ(narrow.rank(1e-5), 5);
}

// y = W x with x uniform on the sphere: prefixes drawn at random make a b, from a random start, an SVD of W.
TEST(OrderedRank, TrainingRandomPrefixesFindsTheSvd) {
  const int64_t out = 6, in = 5, r = 5;
  const auto [u, s, vt] = at::linalg_svd(noise({out, in}, 2), false);
  const Tensor values = at::tensor(std::vector<double>{5, 3.5, 2.4, 1.6, 1}, at::kDouble);
  const Tensor w = at::mm(u * values, vt);
  Tensor a = (noise({out, r}, 3) * 0.5).requires_grad_(true), b = (noise({r, in}, 4) * 0.5).requires_grad_(true);
  at::Generator g = at::detail::createCPUGenerator(5);
  for (int step = 0; step < 6000; ++step) {
    const int64_t k = 1 + at::randint(0, r, {1}, g, at::kLong).item<int64_t>();
    // E |W x - A_k B_k x|^2 over the sphere is the squared difference up to a factor.
    const Tensor loss = (w - at::mm(a.narrow(1, 0, k), b.narrow(0, 0, k))).square().sum();
    loss.backward();
    const at::NoGradGuard no_grad;
    const double rate = 0.01 * std::min(1.0, (6000.0 - step) / 3000);
    for (Tensor* t : {&a, &b}) {
      t->sub_(t->grad(), rate);
      t->mutable_grad() = Tensor();
    }
  }
  const at::NoGradGuard no_grad;
  for (int64_t k = 1; k < r; ++k) {
    // The largest angle between the column spaces of the prefix and of the SVD's.
    const Tensor q = std::get<0>(at::linalg_qr(a.narrow(1, 0, k)));
    const Tensor cosines = std::get<1>(at::linalg_svd(at::mm(q.t(), u.narrow(1, 0, k)), false));
    EXPECT_GT(cosines.min().item<double>(), std::cos(0.05)) << k;
    const double left = (w - at::mm(a.narrow(1, 0, k), b.narrow(0, 0, k))).square().sum().item<double>();
    const double tail = values.narrow(0, k, r - k).square().sum().item<double>();
    EXPECT_NEAR(left, tail, 0.02 * tail) << k;
  }
}

}  // namespace
}  // namespace pith
