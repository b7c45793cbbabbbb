// A language model to read, whatever file it came from: configuration, tokenizer, and tensors under their canonical
// names as rows of fp32. Nothing is read before it is asked for.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/limits.h"
#include "formats/lm_config.h"
#include "formats/tokenizer_spec.h"

namespace pith {

class LmSource {
 public:
  struct Tensor {
    std::string name;            ///< canonical
    std::vector<int64_t> shape;  ///< slowest first, as expected_tensors says
    std::string stored_as;       ///< "F16", "Q4_K"
    uint64_t bytes = 0;          ///< in the file

    int64_t cols() const { return shape.empty() ? 1 : shape.back(); }
    int64_t rows() const {
      int64_t n = 1;
      for (size_t i = 0; i + 1 < shape.size(); ++i) n *= shape[i];
      return n;
    }
  };

  virtual ~LmSource() = default;
  virtual std::string_view format() const = 0;  ///< "gguf", "huggingface"
  virtual const std::string& path() const = 0;
  virtual const LmConfig& config() const = 0;
  virtual const TokenizerSpec& tokenizer() const = 0;  ///< kind none when the source has no tokenizer
  /// In the order of expected_tensors; all are present.
  virtual const std::vector<Tensor>& tensors() const = 0;
  virtual const Tensor* find(std::string_view name) const = 0;
  /// Rows [r0, r1) as fp32, in Hugging Face order and convention. The range must lie inside the tensor.
  virtual void read_rows(const Tensor& tensor, int64_t r0, int64_t r1, float* out) const = 0;
  uint64_t tensor_bytes() const {
    uint64_t n = 0;
    for (const auto& t : tensors()) n += t.bytes;
    return n;
  }
};

/// A Hugging Face folder, a .safetensors file with its config.json beside it, or a .gguf file.
Result<std::unique_ptr<LmSource>> open_lm(const std::string& path, const Limits& limits);

}  // namespace pith
