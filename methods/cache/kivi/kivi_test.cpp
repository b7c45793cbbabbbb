#include "runtime/cache_samples.h"

namespace pith::test {
namespace {

TEST(Kivi, CountsItsScales) {
  // Keys: 64 codes and, for 32 tokens, an fp16 pair a channel. Values: 64 codes and two pairs.
  EXPECT_EQ(stage_of("kivi:bits=4").format->bytes_per_token({64, 64}), 32 + 64 * 4 / 32.0 + 32 + 2 * 4);
  EXPECT_EQ(stage_of("kivi:bits=2,group=64,value-group=64").format->bytes_per_token({64, 64}), 16 + 4 + 16 + 4);
  EXPECT_EQ(stage_of("kivi:bits=4,value-bits=2").format->values.bits, 2);
  EXPECT_EQ(stage_of("kivi").format->group(), 32);
}

}  // namespace
}  // namespace pith::test
