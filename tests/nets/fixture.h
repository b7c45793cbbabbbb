// The tiny models of testdata/nets (tests/peers/make_net_fixtures.py) as tensors.
#pragma once

#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/file.h"
#include "formats/safetensors.h"
#include "nets/lm.h"

namespace pith {

inline const std::vector<std::string>& fixture_names() {
  static const std::vector<std::string> names{"llama",   "mistral", "qwen2",  "qwen3",
                                              "smollm3", "gemma2",  "gemma3", "mixtral"};
  return names;
}

inline TensorMap read_safetensors(const std::string& path) {
  const SafetensorsFile file = must(SafetensorsFile::open(path, Limits{}));
  TensorMap tensors;
  for (const SafetensorsEntry& e : file.entries()) {
    Tensor t = at::empty(e.shape, e.type == DType::i64 ? at::kLong : at::kFloat);
    std::memcpy(t.data_ptr(), file.data(e).data(), e.bytes);
    tensors.emplace(e.name, std::move(t));
  }
  return tensors;
}

inline Tensor noise(at::IntArrayRef shape, uint64_t seed = 0) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator, at::TensorOptions().dtype(at::kFloat));
}

struct Fixture {
  LmConfig config;
  TensorMap tensors;
  Tensor tokens;  // [2, 24]
  Tensor logits;  // [2, 24, vocab], from transformers

  explicit Fixture(const std::string& name) {
    const std::string folder = std::string(PITH_SOURCE_DIR) + "/testdata/nets/" + name;
    const auto json = nlohmann::json::parse(must(read_text(folder + "/config.json", 1 << 20)));
    config = must(lm_config_from_hf(json));
    tensors = read_safetensors(folder + "/model.safetensors");
    TensorMap expected = read_safetensors(folder + "/expected.safetensors");
    tokens = expected.at("tokens");
    logits = expected.at("logits");
  }
  std::unique_ptr<LmWeights> weights() const { return weights_of(config, tensors); }
};

}  // namespace pith
