// q8: keys and values in 8 bits and one fp16 scale for 32 channels of a token, rotated by a Hadamard matrix first, as
// llama.cpp does for its q8_0 cache: outlier channels are spread over all, and queries and results are rotated instead
// of what is stored. Bits a number: 8 + 16/32.
#include "runtime/cache.h"
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"window", ParamType::integer, "32", 0, 65536, "", "newest tokens that stay in fp16"},
    {"rotate", ParamType::boolean, "true", 0, 0, "", "Hadamard rotation before rounding"},
};

}  // namespace

const KvMethod& q8_cache() {
  static const KvMethod method{"q8",
                               [](const Options& options) -> Result<KvStage> { return scaled_codes(8, options); }};
  return method;
}

const Method& q8_method() {
  static const Method method{
      .name = "q8",
      .family = "cache",
      .title = "8 bits and a scale for 32 channels, Hadamard-rotated (llama.cpp's q8_0)",
      .paper = "",
      .params = kParams,
      .needs = {},
      .baseline = true,
      .example = "pith generate MODEL --cache q8 -p @long.txt",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
