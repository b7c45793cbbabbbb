#include "fuzz.h"
#include "plan/plan_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pith;  // NOLINT(google-build-using-namespace)
  const auto any_method = [](const MethodSpec&) { return Status{}; };
  const auto plan = parse_plan(fuzz_text(data, size), Limits{}, any_method);
  if (!plan.ok()) return 0;
  const auto again = parse_plan(print_plan(*plan), Limits{}, any_method);
  if (!again.ok() || !(*again == *plan)) __builtin_trap();  // print is no inverse of parse
  return 0;
}
