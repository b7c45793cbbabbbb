#include "fuzz.h"
#include "input.h"
#include "plan/plan_file.h"

namespace pith {

int fuzz_plan(const uint8_t* data, size_t size) {
  const Limits limits;
  const auto any = [](const MethodSpec&) { return Status(); };
  const auto plan = parse_plan(input_text(data, size), limits, any);
  if (!plan.ok()) return 0;
  const auto again = parse_plan(print_plan(*plan), limits, any);
  require(again.ok() && *again == *plan && again->hash() == plan->hash());
  return 0;
}

}  // namespace pith

PITH_FUZZ_TARGET(fuzz_plan)
