// kivi: keys rounded channel by channel, values token by token (Liu et al., arXiv 2402.02750). Keys have channels of
// large magnitude throughout, so a scale of their own keeps them from spoiling the rest; values have none.
//
//   x ~ d c + m,   c = 0 .. 2^b - 1,   keys: one (d, m) for `group` tokens of a channel, values: for `value-group`
//   channels of a token; both fp16. Bits a number: b + 32/group.
//
// Differs from the paper: the newest tokens stay in fp16 as a window of `window` to `window` + `group` - 1 tokens, as
// there, but groups of fewer than `group` tokens are stored too when another method has chosen the tokens.
#include "runtime/cache.h"
#include "runtime/method.h"

namespace pith {
namespace {

constexpr Param kParams[] = {
    {"bits", ParamType::choice, "4", 0, 0, "2|4|8", "bits of keys"},
    {"value-bits", ParamType::choice, "same", 0, 0, "same|2|4|8", "bits of values, if other"},
    {"group", ParamType::integer, "32", 8, 1024, "", "tokens of a channel that share a scale"},
    {"value-group", ParamType::choice, "32", 0, 0, "32|64|128", "channels of a token that share a scale"},
    {"window", ParamType::integer, "32", 0, 65536, "", "newest tokens that stay in fp16"},
};

uint8_t bits_of(const std::string& text) { return static_cast<uint8_t>(text[0] - '0'); }

}  // namespace

const KvMethod& kivi_cache() {
  static const KvMethod method{
      "kivi", [](const Options& o) -> Result<KvStage> {
        const std::string& value_bits = o.text("value-bits") == "same" ? o.text("bits") : o.text("value-bits");
        const std::string& value_group = o.text("value-group");
        KvStage stage;
        stage.format = KvFormat{KvFormat::Kind::coded,
                                false,
                                {bits_of(o.text("bits")), true, false, static_cast<uint16_t>(o.integer("group"))},
                                {bits_of(value_bits), false, false,
                                 static_cast<uint16_t>(value_group == "32"   ? 32
                                                       : value_group == "64" ? 64
                                                                             : 128)}};
        stage.window = o.integer("window");
        return stage;
      }};
  return method;
}

const Method& kivi_method() {
  static const Method method{
      .name = "kivi",
      .family = "cache",
      .title = "2 or 4 bits: keys by channel, values by token",
      .paper = "Liu et al., KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache, 2024, arXiv 2402.02750",
      .params = kParams,
      .needs = {},
      .baseline = true,
      .example = "pith generate MODEL --cache kivi:bits=2 -p @long.txt",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
