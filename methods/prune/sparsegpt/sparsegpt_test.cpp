#include <gtest/gtest.h>

#include "engine/fit_samples.h"
#include "represent/sparse.h"

namespace pith {
namespace {

using test::bits_a_weight;
using test::correlated;
using test::decoded;
using test::fit;
using test::output_error;
using test::weights_like;

TEST(SparseGpt, NothingPrunedIsTheInput) {
  const Tensor w = weights_like(20, 60, 1).to(at::kHalf).to(at::kFloat).contiguous();
  const Moments m = correlated(60, 2);
  EXPECT_TRUE(at::equal(decoded(*fit("sparsegpt", "sparsity=0", w, m)), w));
  EXPECT_TRUE(at::equal(decoded(*fit("sparsegpt", "pattern=4\\:4", w, m)), w));
  EXPECT_EQ(decoded(*fit("sparsegpt", "sparsity=1", w, m)).abs().max().item<float>(), 0);
}

TEST(SparseGpt, EveryGroupKeepsItsNumber) {
  const Tensor w = weights_like(33, 64, 3);
  const Moments m = correlated(64, 4);
  for (const auto& [text, n, groups] :
       {std::tuple<const char*, int, int>{"pattern=2\\:4", 2, 4}, {"pattern=1\\:8", 1, 8}}) {
    const Tensor kept = decoded(*fit("sparsegpt", text, w, m)).ne(0).reshape({33, -1, groups}).sum(-1);
    EXPECT_EQ(kept.max().item<int64_t>(), n) << text;
    EXPECT_EQ(kept.min().item<int64_t>(), n) << text;
  }
  const double share = decoded(*fit("sparsegpt", "sparsity=0.7", w, m)).ne(0).to(at::kDouble).mean().item<double>();
  EXPECT_NEAR(share, 0.3, 0.005);
}

TEST(SparseGpt, RoundingJointlyBeatsRoundingAfterwards) {
  for (uint64_t seed = 0; seed < 3; ++seed) {
    const Tensor w = weights_like(64, 128, seed);
    const Moments m = correlated(128, seed + 50);
    const NodePtr joint = fit("sparsegpt", "pattern=2\\:4,bits=3,group=32", w, m);
    const NodePtr pruned = fit("sparsegpt", "pattern=2\\:4", w, m);
    // Afterwards: the values that stayed, to nearest on the same grid.
    const auto& nmask = static_cast<const NMask&>(*pruned);
    const Tensor values = decoded(*nmask.values());
    const NodePtr after = must(NMask::make(2, 4, nmask.patterns(), fit("rtn", "bits=3,group=32", values, m)));
    EXPECT_DOUBLE_EQ(bits_a_weight(*joint), bits_a_weight(*after));
    EXPECT_DOUBLE_EQ(bits_a_weight(*joint), (3 + 32.0 / 32) / 2 + 0.75);
    EXPECT_LT(output_error(w, *joint, m), output_error(w, *after, m));
  }
}

TEST(SparseGpt, BitsWithoutAPatternAreRefused) {
  EXPECT_THROW(fit("sparsegpt", "bits=4", weights_like(4, 8, 1), correlated(8, 1)), Failure);
  EXPECT_THROW(fit("sparsegpt", "pattern=2\\:4", weights_like(4, 10, 1), correlated(10, 1)), Failure);
}

}  // namespace
}  // namespace pith
