// full: every token stays as it is. What all other caches are measured against, and their identity setting.
#include "runtime/cache.h"
#include "runtime/method.h"

namespace pith {

const KvMethod& full_cache() {
  static const KvMethod method{"full", [](const Options&) -> Result<KvStage> { return KvStage{}; }};
  return method;
}

const Method& full_method() {
  static const Method method{
      .name = "full",
      .family = "cache",
      .title = "Keeps every token in fp16: the baseline",
      .paper = "",
      .params = {},
      .needs = {},
      .baseline = true,
      .example = "pith generate MODEL --cache full -p \"…\"",
      .budget_options = "",
  };
  return method;
}

}  // namespace pith
