// q4: keys and values in 4 bits and one fp16 scale for 32 channels of a token, rotated by a Hadamard matrix first, as
// llama.cpp does for its q4_0 cache: outlier channels are spread over all, and queries and results are rotated instead
// of what is stored. Bits a number: 4 + 16/32.
#include "runtime/cache.h"
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"window", ParamType::integer, "32", 0, 65536, "", "newest tokens that stay in fp16"},
    {"rotate", ParamType::boolean, "true", 0, 0, "", "Hadamard rotation before rounding"},
};

}  // namespace

const KvMethod& q4_cache() {
  static const KvMethod method{"q4",
                               [](const Options& options) -> Result<KvStage> { return scaled_codes(4, options); }};
  return method;
}

const Method& q4_method() {
  static const Method method{
      .name = "q4",
      .family = "cache",
      .title = "4 bits and a scale for 32 channels, Hadamard-rotated (llama.cpp's q4_0)",
      .paper = "",
      .params = kParams,
      .needs = {},
      .baseline = true,
      .example = "pith generate MODEL --cache q4 -p @long.txt",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
