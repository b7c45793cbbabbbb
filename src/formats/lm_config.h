// What a decoder-only language model is, independent of the file it came from. One struct covers the Llama block and
// its relatives; a network (src/nets, src/runtime) reads nothing else.
//
// Canonical tensor names are those of Hugging Face Llama ("model.embed_tokens.weight",
// "model.layers.3.self_attn.q_proj.weight", "model.layers.3.mlp.gate_proj.weight", "model.norm.weight",
// "lm_head.weight"); a mixture of experts has "model.layers.3.block_sparse_moe.gate.weight" and
// "model.layers.3.block_sparse_moe.experts.2.w1.weight" (w1 gate, w3 up, w2 down) as Mixtral. Matrices are
// [out, in]. q and k rows are in Hugging Face order (rotate-half RoPE); readers of GGUF undo llama.cpp's permutation.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace pith {

enum class Activation : uint8_t { silu, gelu_tanh };

struct RopeScaling {
  enum class Kind : uint8_t { none, linear, llama3 };
  Kind kind = Kind::none;
  double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
  int64_t original_context = 0;

  bool operator==(const RopeScaling&) const = default;
};

/// Widths inside one layer that was made narrower than the others.
struct LayerShape {
  int64_t intermediate = 0;  ///< MLP channels (of each expert)
  int64_t key_dim = 0;       ///< channels of each query and key head; scores are scaled by head_dim all the same
  int64_t value_dim = 0;     ///< channels of each value head
  /// [kv_heads][key_dim / 2]: which of the head_dim / 2 rotations turns each pair of channels of a key head and of the
  /// query heads that it serves, ascending. Empty: all of them, and key_dim is head_dim.
  std::vector<std::vector<int32_t>> rope_pairs;

  bool operator==(const LayerShape&) const = default;
};

struct LmConfig {
  std::string architecture = "llama";  ///< llama mistral qwen2 qwen3 smollm3 gemma2 gemma3 mixtral
  std::string name;                    ///< human name when the file has one
  int64_t hidden = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate = 0, vocab = 0, context = 0;
  double norm_eps = 1e-5;
  double rope_theta = 10000;
  double rope_theta_local = 0;  ///< Gemma 3: base of sliding layers; 0 = same as rope_theta
  RopeScaling rope_scaling;
  Activation activation = Activation::silu;
  bool tied_embeddings = false;
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool qk_norm = false;                 ///< RMSNorm on each head of q and k before RoPE (Qwen3, Gemma 3)
  bool norm_plus_one = false;           ///< Gemma: gain is 1 + w (GGUF files already hold 1 + w: readers subtract)
  bool post_norms = false;              ///< Gemma 2/3: norms after attention and after the MLP as well
  double embedding_scale = 1;           ///< Gemma: sqrt(hidden)
  double attention_scale = 0;           ///< 0 = 1/sqrt(head_dim)
  double attention_softcap = 0;         ///< Gemma 2: c * tanh(s / c); 0 = off
  double logit_softcap = 0;             ///< Gemma 2; 0 = off
  int64_t sliding_window = 0;           ///< 0 = off
  std::vector<uint8_t> sliding_layers;  ///< one flag a layer; empty = all layers slide when sliding_window > 0
  std::vector<uint8_t> no_rope_layers;  ///< SmolLM3: one flag a layer that has no RoPE; empty = none
  int64_t experts = 0, experts_per_token = 0;  ///< 0 = dense MLP
  bool norm_expert_weights = true;             ///< renormalise the chosen experts' weights to sum 1 (Mixtral)
  std::vector<LayerShape> layer_shapes;        ///< one a layer; empty: intermediate and head_dim everywhere

  bool slides(int64_t layer) const {
    return sliding_window > 0 && (sliding_layers.empty() || sliding_layers[static_cast<size_t>(layer)] != 0);
  }
  bool has_rope(int64_t layer) const {
    return no_rope_layers.empty() || no_rope_layers[static_cast<size_t>(layer)] == 0;
  }
  int64_t mlp_width(int64_t layer) const {
    return layer_shapes.empty() ? intermediate : layer_shapes[static_cast<size_t>(layer)].intermediate;
  }
  int64_t key_dim(int64_t layer) const {
    return layer_shapes.empty() ? head_dim : layer_shapes[static_cast<size_t>(layer)].key_dim;
  }
  int64_t value_dim(int64_t layer) const {
    return layer_shapes.empty() ? head_dim : layer_shapes[static_cast<size_t>(layer)].value_dim;
  }
  /// The rotations of a layer's key heads; null when all are in place.
  const std::vector<std::vector<int32_t>>* rope_pairs(int64_t layer) const {
    if (layer_shapes.empty() || layer_shapes[static_cast<size_t>(layer)].rope_pairs.empty()) return nullptr;
    return &layer_shapes[static_cast<size_t>(layer)].rope_pairs;
  }
  bool operator==(const LmConfig&) const = default;
};

/// The configuration with these widths, one a layer; in its plain form where all layers are alike and heads whole.
/// `intermediate` becomes the widest.
LmConfig with_shapes(LmConfig config, std::vector<LayerShape> shapes);

/// From the config.json of a Hugging Face folder; names the key when something is missing or not supported.
Result<LmConfig> lm_config_from_hf(const nlohmann::json& config);
/// The inverse, as far as the architecture's config.json can say it; layer_shapes go into a key of Pith's own, which
/// only Pith reads (transformers has one width for all layers).
nlohmann::json lm_config_to_hf(const LmConfig& config);

/// Names and shapes of all tensors of a model with this configuration, in canonical order.
struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
};
std::vector<TensorSpec> expected_tensors(const LmConfig& config);

/// Refuses sizes that cannot be (zero, negative, heads no multiple of kv_heads, …), naming the field.
Status check_config(const LmConfig& config);

}  // namespace pith
