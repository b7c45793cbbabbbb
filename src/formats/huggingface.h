// A Hugging Face model folder: config.json, weights in one or several safetensors files, tokenizer.json,
// tokenizer_config.json, generation_config.json.
#pragma once

#include <pith/result.h>

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/limits.h"
#include "formats/dtype.h"
#include "formats/lm_config.h"
#include "formats/safetensors.h"
#include "formats/tokenizer_spec.h"

namespace pith {

/// An open folder. Weights stay in the mapped files.
struct HfModel {
  std::string path;
  LmConfig config;
  TokenizerSpec tokenizer;  ///< kind none when the folder has no tokenizer.json
  ShardedSafetensors weights;
  std::string prefix, replaced;  ///< stored names begin with `prefix` where canonical ones begin with `replaced`

  /// A tensor by its canonical name. open_huggingface has checked that all of expected_tensors(config) are there.
  std::optional<ShardedSafetensors::Found> find(std::string_view canonical) const;
};

/// `path`: a folder, or a single .safetensors file with config.json beside it. Only headers are read; every tensor that
/// the configuration asks for must be there in its shape, as F64, F32, F16 or BF16.
Result<HfModel> open_huggingface(const std::string& path, const Limits& limits);

/// Writes a folder that transformers loads: the parts go to a temporary folder beside it, which is renamed at the end.
/// `rows(spec, r0, r1, out)` gives fp32 values of rows of the tensors of expected_tensors(config), in order, some rows
/// at a time (a vector is one row). `type`: f16, bf16 or f32. An existing folder is replaced only with `overwrite`, and
/// only when it has a config.json. `more` may write other files into the temporary folder that it is given.
Status write_huggingface(const std::string& folder, const LmConfig& config, const TokenizerSpec& tokenizer, DType type,
                         const std::function<Status(const TensorSpec&, int64_t r0, int64_t r1, float* out)>& rows,
                         bool overwrite, const std::function<Status(const std::string& folder)>& more = {});

/// The same with weights of any layout: `write_weights` writes model.safetensors at the path it is given; `type` is
/// what config.json says of plain tensors; the members of `more_config` (quantization_config) are added to config.json.
Status write_huggingface_folder(const std::string& folder, const LmConfig& config, const TokenizerSpec& tokenizer,
                                DType type, const nlohmann::json& more_config,
                                const std::function<Status(const std::string& file)>& write_weights, bool overwrite);

}  // namespace pith
