// A Hugging Face model folder: config.json, weights in one or several safetensors files, tokenizer.json,
// tokenizer_config.json, generation_config.json.
#pragma once

#include <pith/result.h>

#include <functional>
#include <memory>
#include <string>

#include "base/limits.h"
#include "formats/dtype.h"
#include "formats/lm_config.h"
#include "formats/lm_source.h"
#include "formats/tokenizer_spec.h"

namespace pith {

/// `path`: a folder, or a single .safetensors file with config.json beside it. Only headers are read.
Result<std::unique_ptr<LmSource>> open_huggingface(const std::string& path, const Limits& limits);

/// Writes a folder that transformers loads: the parts go to a temporary folder beside it, which is renamed at the end.
/// `rows(name, r0, r1, out)` gives the fp32 values of expected_tensors(config), asked in order, some rows at a time.
/// `type`: f16, bf16 or f32. An existing folder is replaced only with `overwrite`, and only when it is a model folder.
Status write_huggingface(const std::string& folder, const LmConfig& config, const TokenizerSpec& tokenizer, DType type,
                         const std::function<Status(const TensorSpec&, int64_t r0, int64_t r1, float* out)>& rows,
                         bool overwrite);

}  // namespace pith
