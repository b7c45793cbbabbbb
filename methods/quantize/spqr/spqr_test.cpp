#include <gtest/gtest.h>

#include "engine/fit_samples.h"
#include "maths/linalg.h"
#include "represent/combine.h"
#include "represent/grid.h"

namespace pith {
namespace {

using test::bits_a_weight;
using test::correlated;
using test::decoded;
using test::fit;
using test::output_error;
using test::weights_like;

const Override* outliers_of(const NodePtr& node) {
  const NodePtr inner = node->kind() == "permuted" ? static_cast<const Permuted&>(*node).child() : node;
  return inner->kind() == "override" ? static_cast<const Override*>(inner.get()) : nullptr;
}

TEST(Spqr, BitsAreThoseOfThePaperPlusRowCountsAndOrder) {
  const Tensor w = weights_like(64, 256, 1);
  const Moments m = correlated(256, 2);
  const NodePtr plain = fit("spqr", "outlier-threshold=0", w, m);
  // 3 + (3 + 3)/16 + 64/256, and the order: 256 columns of 8 bits for 64 rows.
  EXPECT_DOUBLE_EQ(bits_a_weight(*plain), 3 + 0.375 + 0.25 + 8.0 / 64);
  const NodePtr with = fit("spqr", "outlier-threshold=0.05", w, m);
  const Override* split = outliers_of(with);
  ASSERT_NE(split, nullptr);
  const double rho = static_cast<double>(split->sparse().entries()) / (64.0 * 256);
  EXPECT_GT(rho, 0.001);
  EXPECT_LT(rho, 0.15);
  // fp16 value and 8-bit column (256 columns), an 8-bit count a row.
  EXPECT_NEAR(bits_a_weight(*with), bits_a_weight(*plain) + rho * 24 + 8.0 / 256, 1e-9);
}

TEST(Spqr, OutliersTakeTheErrorOut) {
  const Tensor w = weights_like(64, 128, 3);
  const Moments m = correlated(128, 4);
  double before = 1e300;
  for (const char* tau : {"0", "1", "0.2", "0.05", "0.01"}) {
    const double error = output_error(w, *fit("spqr", std::string("outlier-threshold=") + tau, w, m), m);
    EXPECT_LT(error, 1.02 * before) << tau;
    before = error;
  }
  EXPECT_LT(before, 0.5 * output_error(w, *fit("spqr", "outlier-threshold=0", w, m), m));
}

TEST(Spqr, AThresholdNearZeroKeepsEveryWeight) {
  const Tensor w = weights_like(16, 48, 5).to(at::kHalf).to(at::kFloat).contiguous();
  const Moments m = correlated(48, 6);
  const Tensor q = decoded(*fit("spqr", "outlier-threshold=1e-30", w, m));
  // What is not an outlier sits exactly on the grid, so nothing ever moves.
  EXPECT_LT((q - w).abs().max().item<float>(), 1e-4);
}

TEST(Spqr, TargetBitsAreMetFromBelow) {
  const Tensor w = weights_like(64, 192, 7);
  const Moments m = correlated(192, 8);
  double before = 1e300;
  for (const double target : {3.9, 4.2, 5.0}) {
    const NodePtr node = fit("spqr", "target-bits=" + std::to_string(target), w, m);
    EXPECT_LE(bits_a_weight(*node), target);
    EXPECT_GT(bits_a_weight(*node), target - 0.06);
    const double error = output_error(w, *node, m);
    EXPECT_LT(error, before);
    before = error;
  }
  try {
    fit("spqr", "target-bits=3.1", w, m);
    ADD_FAILURE() << "3.1 bits cannot hold 3-bit codes and statistics";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.error().kind, ErrorKind::user);
    EXPECT_NE(failure.error().message.find("layers.0.test"), std::string::npos);
  }
}

TEST(Spqr, ManyBitsAndNoSecondLevelAreNearlyLossless) {
  const Tensor w = weights_like(32, 64, 9);
  const Moments m = correlated(64, 10);
  const double whole = (at::mm(w.to(at::kDouble), m.second()) * w).sum().item<double>();
  EXPECT_LT(output_error(w, *fit("spqr", "bits=8,stat-bits=0", w, m), m), 1e-5 * whole);
}

}  // namespace
}  // namespace pith
