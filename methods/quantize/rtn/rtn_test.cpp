#include <gtest/gtest.h>

#include "engine/fit_samples.h"

namespace pith {
namespace {

TEST(Rtn, NeedsCalibrationOnlyWhereInputsWeightTheErrors) {
  const Method& method = *find_method("rtn");
  EXPECT_FALSE(needs_of(method, test::options_of(method, "")).moments);
  EXPECT_TRUE(needs_of(method, test::options_of(method, "clip=act")).moments);
}

TEST(Rtn, MoreBitsAndSmallerGroupsLoseLess) {
  const Tensor w = test::weights_like(32, 128, 1);
  const Moments m = test::correlated(128, 2);
  double before = 1e300;
  for (const char* options : {"bits=2,group=0", "bits=2,group=32", "bits=3,group=32", "bits=4,group=32", "bits=8"}) {
    const double error = test::output_error(w, *test::fit("rtn", options, w, m), m);
    EXPECT_LT(error, before) << options;
    before = error;
  }
}

}  // namespace
}  // namespace pith
