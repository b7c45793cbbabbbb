#include "fuzz.h"
#include "plan/options.h"
#include "runtime/method.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pith;  // NOLINT(google-build-using-namespace)
  const std::string_view text = fuzz_text(data, size);
  fuzz_use(parse_allow(text));
  for (const Method* method : all_methods()) {
    const auto options = Options::parse(text, method->params);
    if (!options.ok()) continue;
    const auto again = Options::parse((*options).print(), method->params);
    if (!again.ok() || (*again).print() != (*options).print()) __builtin_trap();  // print is no inverse of parse
  }
  return 0;
}
