#include <nlohmann/json.hpp>

#include "formats/json_text.h"
#include "formats/tokenizer_spec.h"
#include "fuzz.h"
#include "runtime/tokenizer.h"

namespace pith {

static int run(const uint8_t* data, size_t size) {
  const Limits limits;
  if (size > 0 && data[0] == 1) {
    const auto spec = unpack_tokenizer(std::string(fuzz_text(data + 1, size - 1)), limits);
    if (spec.ok()) (void)pack_tokenizer(*spec);
    return 0;
  }
  const auto json = parse_json(fuzz_text(data, size), "input", limits);
  if (!json.ok()) return 0;
  const auto spec = tokenizer_from_hf(*json, {}, {}, limits);
  if (!spec.ok()) return 0;
  const auto again = unpack_tokenizer(pack_tokenizer(*spec), limits);
  require(again.ok() && again->tokens == spec->tokens && again->merges == spec->merges);
  require(again->types == spec->types);
  const auto text = tokenizer_to_hf(*spec);
  (void)tokenizer_from_hf(text, tokenizer_config_to_hf(*spec), {}, limits);
  const auto tokenizer = Tokenizer::create(*spec);
  if (!tokenizer.ok()) return 0;
  const auto ids = tokenizer->encode("The quick  brown fox\n\xc3\xbc \xff 12<s>", {.parse_special = true});
  if (ids.ok()) (void)tokenizer->decode(*ids);
  return 0;
}

}  // namespace pith

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { return pith::run(data, size); }
