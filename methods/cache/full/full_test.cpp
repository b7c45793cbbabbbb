#include <gtest/gtest.h>

#include "runtime/cache_samples.h"

namespace pith::test {
namespace {

TEST(Full, AddsNothingToAPlan) {
  EXPECT_TRUE(parse_cache("full")->whole());
  const auto plan = parse_cache("full;q8");
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->stage.format->keys.bits, 8);
}

}  // namespace
}  // namespace pith::test
