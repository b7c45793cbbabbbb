// The tiny models of testdata/nets (tests/peers/make_net_fixtures.py, reference logits by transformers), torch-free.
#pragma once

#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "formats/json_text.h"
#include "formats/lm_config.h"
#include "formats/safetensors.h"
#include "represent/dense.h"
#include "represent/model.h"

namespace pith::test {

inline const std::vector<std::string>& tiny_model_names() {
  static const std::vector<std::string> names = {"llama",   "mistral", "qwen2",  "qwen3",
                                                 "smollm3", "gemma2",  "gemma3", "mixtral"};
  return names;
}

struct TinyModel {
  Model model;
  int64_t sequences = 0, length = 0;
  std::vector<int32_t> tokens;  ///< [sequences][length]
  std::vector<float> logits;    ///< [sequences][length][vocab]

  explicit TinyModel(const std::string& name) {
    const std::string folder = std::string(PITH_SOURCE_DIR) + "/testdata/nets/" + name;
    model.config = *lm_config_from_hf(*read_json(folder + "/config.json", {}));
    const SafetensorsFile weights = *SafetensorsFile::open(folder + "/model.safetensors", {});
    for (const TensorSpec& spec : expected_tensors(model.config)) {
      const SafetensorsEntry* entry = weights.find(spec.name);
      if (entry == nullptr) std::abort();
      const MatrixShape shape = *matrix_shape(spec.shape);
      model.tensors.push_back(
          {spec.name, spec.shape, *Dense::make(entry->type, shape.rows, shape.cols, weights.data(*entry))});
    }
    const SafetensorsFile expected = *SafetensorsFile::open(folder + "/expected.safetensors", {});
    const SafetensorsEntry& ids = *expected.find("tokens");
    sequences = ids.shape[0], length = ids.shape[1];
    std::vector<int64_t> wide(static_cast<size_t>(sequences * length));
    std::memcpy(wide.data(), expected.data(ids).data(), wide.size() * 8);
    tokens.assign(wide.begin(), wide.end());
    logits.resize(wide.size() * static_cast<size_t>(model.config.vocab));
    std::memcpy(logits.data(), expected.data(*expected.find("logits")).data(), logits.size() * 4);
  }
  std::span<const int32_t> sequence(int64_t s) const {
    return std::span(tokens).subspan(static_cast<size_t>(s * length), static_cast<size_t>(length));
  }
};

}  // namespace pith::test
