#include <nlohmann/json.hpp>

#include "formats/json_text.h"
#include "formats/tokenizer_spec.h"
#include "fuzz.h"
#include "runtime/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pith;  // NOLINT(google-build-using-namespace)
  const auto json = parse_json(fuzz_text(data, size), "tokenizer.json", Limits{});
  if (!json.ok()) return 0;
  auto spec = tokenizer_from_hf(*json, nullptr, nullptr, Limits{});
  if (!spec.ok()) return 0;
  auto packed = unpack_tokenizer(pack_tokenizer(*spec), Limits{});
  if (!packed.ok()) __builtin_trap();  // what was read must survive its own compact form
  const auto tokenizer = Tokenizer::create(std::move(*packed));
  if (!tokenizer.ok()) return 0;
  const auto ids = (*tokenizer).encode("The quick  brown fox\n\xc3\xbc \xff 12", {.parse_special = true});
  if (ids.ok()) fuzz_use((*tokenizer).decode(*ids));
  return 0;
}
