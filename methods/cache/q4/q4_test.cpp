#include "runtime/cache_samples.h"

namespace pith::test {
namespace {

TEST(Q4, TakesTheBytesOfLlamaCpp) {
  const KvStage stage = stage_of("q4");
  EXPECT_TRUE(stage.format->rotated);
  // SmolLM2: 30 layers of 3 KV heads of 64 channels, keys and values.
  EXPECT_EQ(stage.format->bytes_per_token({64, 64}) * 90, 6480);
  EXPECT_FALSE(stage_of("q4:rotate=false").format->rotated);
}

}  // namespace
}  // namespace pith::test
