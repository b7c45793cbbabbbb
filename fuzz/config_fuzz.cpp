#include <nlohmann/json.hpp>

#include "formats/json_text.h"
#include "formats/lm_config.h"
#include "fuzz.h"

namespace pith {

static int run(const uint8_t* data, size_t size) {
  const auto json = parse_json(fuzz_text(data, size), "input", {});
  if (!json.ok()) return 0;
  const auto config = lm_config_from_hf(*json);
  if (!config.ok()) return 0;
  require(check_config(*config).ok());
  // What was understood is written so that it is understood again.
  const auto again = lm_config_from_hf(lm_config_to_hf(*config));
  require(again.ok() && again->hidden == config->hidden && again->layers == config->layers &&
          again->sliding_window == config->sliding_window);
  if (config->layers < 64 && config->experts < 64) require(!expected_tensors(*config).empty());
  return 0;
}

}  // namespace pith

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { return pith::run(data, size); }
