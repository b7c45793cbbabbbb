// Language models of a few thousand random weights, for every architecture.
#pragma once

#include <string>
#include <vector>

#include "represent/memory_sections.h"
#include "represent/model.h"

namespace pith::test {

/// All architectures of formats/lm_config.h.
inline constexpr const char* kArchitectures[] = {"llama",   "mistral", "qwen2",  "qwen3",
                                                 "smollm3", "gemma2",  "gemma3", "mixtral"};

LmConfig tiny_config(const std::string& architecture);
/// 300 tokens of byte-level BPE: letters, and pairs of letters that merges make.
TokenizerSpec tiny_tokenizer();
/// Random weights as Dense nodes of `type` (vectors around 1).
Model tiny_model(const std::string& architecture, DType type, uint64_t seed);

/// Same names, shapes and decoded bits.
void expect_same_weights(const Model& a, const Model& b);

/// A fresh folder under the system's temporary folder, removed at the end.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace pith::test
