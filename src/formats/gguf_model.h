// A language model as GGUF says it: metadata <-> LmConfig and TokenizerSpec, tensor names and row order.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <string>
#include <vector>

#include "formats/gguf.h"
#include "formats/lm_config.h"
#include "formats/tokenizer_spec.h"

namespace pith {

/// From metadata and the list of tensors (biases, tied embeddings and head norms show only there).
Result<LmConfig> lm_config_from_gguf(const GgufFile& file);
/// `general.*` and `<arch>.*` keys that llama.cpp needs to run this configuration. File type and tokenizer not
/// included.
Result<GgufMetadata> gguf_metadata_from_config(const LmConfig& config);

Result<TokenizerSpec> tokenizer_from_gguf(const GgufMetadata& metadata, const Limits& limits);
/// Adds `tokenizer.*` keys.
Status gguf_metadata_from_tokenizer(const TokenizerSpec& spec, GgufMetadata& metadata);

/// Where a canonical tensor stands in a GGUF file, and how it differs there.
struct GgufPlace {
  std::string name;            ///< "blk.3.attn_q.weight"
  int64_t expert = -1;         ///< slice of a 3-D expert tensor; -1 = the whole tensor
  int64_t permuted_heads = 0;  ///< > 0: rows are interleaved head by head (llama, mistral, mixtral: q and k)
  bool plus_one = false;       ///< Gemma norms: the file holds 1 + w
  bool f32 = false;            ///< vectors and the router, which llama.cpp wants as F32
};
Result<GgufPlace> gguf_place(const LmConfig& config, const std::string& canonical);

/// order[i] = row of the Hugging Face matrix that is row i of the GGUF matrix (rows of blocks move as they are).
std::vector<int64_t> gguf_row_order(int64_t rows, int64_t permuted_heads);

/// Tensors of a GGUF file for this configuration, in the usual order: names and shapes, types are the caller's choice.
/// Each lists the canonical tensors it is made of: one, or all experts in turn, or none for "rope_freqs.weight", whose
/// values rope_freq_factors gives.
struct GgufLayoutEntry {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<std::string> canonical;
};
Result<std::vector<GgufLayoutEntry>> gguf_layout(const LmConfig& config);

/// Llama 3's RoPE scaling as GGUF stores it: what each of the head_dim / 2 frequencies is divided by. Empty for other
/// kinds of scaling.
std::vector<float> rope_freq_factors(const LmConfig& config);

}  // namespace pith
