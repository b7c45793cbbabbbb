#include <gtest/gtest.h>

#include "engine/fit_samples.h"
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

TEST(Gptq, OrderIsStoredOnlyWhereGroupsMove) {
  const Tensor w = weights_like(32, 96, 1);
  const Moments m = correlated(96, 2);
  const NodePtr natural = fit("gptq", "bits=3,group=32", w, m), act = fit("gptq", "bits=3,group=32,order=act", w, m),
                fixed = fit("gptq", "bits=3,group=32,order=act,static-groups", w, m);
  EXPECT_EQ(natural->kind(), "grid");
  EXPECT_EQ(fixed->kind(), "grid");
  EXPECT_EQ(act->kind(), "permuted");
  EXPECT_EQ(bits_a_weight(*natural), 3 + 32.0 / 32);
  EXPECT_EQ(bits_a_weight(*fixed), bits_a_weight(*natural));
  EXPECT_EQ(bits_a_weight(*act), bits_a_weight(*natural) + 8.0 / 32);  // 96 columns: 8 bits each, for 32 rows
}

TEST(Gptq, UncorrelatedInputsMakeItRoundingToNearest) {
  const Tensor w = weights_like(32, 64, 3);
  Moments m(64);
  m.add(at::eye(64, at::kFloat) * 8);  // H = I
  const NodePtr gptq = fit("gptq", "bits=4,group=16", w, m), rtn = fit("rtn", "bits=4,group=16", w, m);
  EXPECT_TRUE(at::equal(decoded(*gptq), decoded(*rtn)));
}

TEST(Gptq, EightBitsAreNearlyTheOriginal) {
  const Tensor w = weights_like(48, 128, 4);
  const Moments m = correlated(128, 5);
  const double whole = (at::mm(w.to(at::kDouble), m.second()) * w).sum().item<double>();
  EXPECT_LT(output_error(w, *fit("gptq", "bits=8,group=32", w, m), m), 1e-4 * whole);
}

TEST(Gptq, DeadInputsGetNoWeight) {
  const Tensor w = weights_like(16, 40, 6);
  const Moments m = correlated(40, 7, 6);
  const Tensor q = decoded(*fit("gptq", "bits=4,group=8,grid=sym", w, m));
  EXPECT_EQ(q.narrow(1, 20, 6).abs().max().item<float>(), 0);
}

}  // namespace
}  // namespace pith
