// Models in and out of files: Hugging Face folders, safetensors, GGUF, `.pith`.
#pragma once

#include <pith/result.h>

#include <functional>
#include <string>
#include <vector>

#include "base/limits.h"
#include "represent/model.h"

namespace pith {

enum class ModelKind : uint8_t { gguf, safetensors, hf_folder, pith };

/// What a path holds, from its first bytes and names (not from its extension).
Result<ModelKind> sniff(const std::string& path);

/// Opens a model of any kind. Weights stay in the file (mapped); nothing is decoded. GGUF blocks become Blocks nodes,
/// plain numbers Dense nodes; llama.cpp's order of q and k rows, its stacked experts and its Gemma norms (1 + w) are
/// turned back into the canonical form. The result passes check_model.
Result<Model> open_model(const std::string& path, const Limits& limits = {});

/// A `.pith` file in memory; `label` stands in error messages.
Result<Model> parse_pith(Bytes file, const std::string& label, const Limits& limits = {});

/// One file with everything: trees, configuration, tokenizer, plan, report, checksums.
Status write_pith(const Model& model, const std::string& path, bool overwrite);
/// The exact size of that file, in bytes.
Result<uint64_t> pith_model_bytes(const Model& model);

/// A GGUF that stock llama.cpp runs. Blocks are written as they are, Dense as F32, F16 or BF16, norms and biases as F32
/// whatever they are; any other node is an error that names the tensor.
Status write_gguf_model(const Model& model, const std::string& path, bool overwrite);
/// The exact size of that file, in bytes.
Result<uint64_t> gguf_model_bytes(const Model& model);

/// A Hugging Face folder (config.json, model.safetensors, tokenizer.json, …) with every tensor decoded to `dtype`
/// (f32, f16 or bf16). `more` may write other files into the temporary folder that it is given.
Status write_hf_folder(const Model& model, const std::string& path, DType dtype, bool overwrite,
                       const std::function<Status(const std::string& folder)>& more = {});

/// One thing that was looked at.
struct Check {
  std::string name;  ///< "checksums", "trees", "sizes add up"
  bool passed = false;
  std::string detail;  ///< what was counted, or what is wrong
};

/// All invariants of a model file, each with its verdict; an unreadable file fails the first check.
std::vector<Check> verify_model(const std::string& path, const Limits& limits = {});

}  // namespace pith
