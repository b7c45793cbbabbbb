#include "formats/lm_config.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "formats/json_text.h"

namespace pith {
namespace {

using json = nlohmann::json;

// What the configuration classes of transformers assume when a key is missing from config.json.
struct Defaults {
  std::string_view type;          // model_type
  std::string_view architecture;  // LmConfig::architecture
  std::string_view hf_class;
  double rope_theta, norm_eps;
  bool tied;
  int64_t kv_heads, head_dim;  // 0: heads, hidden / heads
  int64_t sliding_window;      // 0: none
};
constexpr Defaults kDefaults[] = {
    {"llama", "llama", "LlamaForCausalLM", 10000, 1e-6, false, 0, 0, 0},
    {"mistral", "mistral", "MistralForCausalLM", 10000, 1e-6, false, 8, 0, 4096},
    {"mixtral", "mixtral", "MixtralForCausalLM", 1e6, 1e-5, false, 8, 0, 0},
    {"qwen2", "qwen2", "Qwen2ForCausalLM", 10000, 1e-6, false, 32, 0, 4096},
    {"qwen3", "qwen3", "Qwen3ForCausalLM", 10000, 1e-6, false, 32, 128, 4096},
    {"smollm3", "smollm3", "SmolLM3ForCausalLM", 2e6, 1e-6, true, 4, 0, 0},
    {"gemma2", "gemma2", "Gemma2ForCausalLM", 10000, 1e-6, true, 4, 256, 4096},
    {"gemma3_text", "gemma3", "Gemma3ForCausalLM", 1e6, 1e-6, true, 4, 256, 4096},
};

const Defaults* defaults_of(std::string_view architecture) {
  for (const auto& d : kDefaults)
    if (d.architecture == architecture) return &d;
  return nullptr;
}

Result<int64_t> required(const json& config, const char* key) {
  PITH_ASSIGN(const int64_t v, json_int(config, key, INT64_MIN));
  if (v == INT64_MIN) return data_error("key \"" + std::string(key) + "\" is missing");
  return v;
}

// `rope`: {"rope_type" or "type": …, …}, from rope_scaling (transformers 4) or rope_parameters (5).
Status read_rope(const json& rope, RopeScaling& out) {
  PITH_ASSIGN(std::string type, json_string(rope, "rope_type", ""));
  if (type.empty()) {
    PITH_ASSIGN(type, json_string(rope, "type", "default"));
  }
  if (type == "default") return {};
  if (type != "linear" && type != "llama3")
    return data_error("RoPE scaling \"" + type + "\" is not supported (default, linear and llama3 are)");
  out.kind = type == "linear" ? RopeScaling::Kind::linear : RopeScaling::Kind::llama3;
  PITH_ASSIGN(out.factor, json_number(rope, "factor", 1));
  if (out.kind == RopeScaling::Kind::llama3) {
    PITH_ASSIGN(out.low_freq_factor, json_number(rope, "low_freq_factor", 1));
    PITH_ASSIGN(out.high_freq_factor, json_number(rope, "high_freq_factor", 4));
    PITH_ASSIGN(out.original_context, required(rope, "original_max_position_embeddings"));
  }
  return {};
}

json rope_scaling_json(const RopeScaling& rope) {
  json out = {{"rope_type", rope.kind == RopeScaling::Kind::linear ? "linear" : "llama3"}, {"factor", rope.factor}};
  if (rope.kind == RopeScaling::Kind::llama3) {
    out["low_freq_factor"] = rope.low_freq_factor;
    out["high_freq_factor"] = rope.high_freq_factor;
    out["original_max_position_embeddings"] = rope.original_context;
  }
  return out;
}

bool is_gemma(const LmConfig& c) { return c.architecture == "gemma2" || c.architecture == "gemma3"; }

// One flag a layer from "layer_types", or from the architecture's rule.
Status read_sliding(const json& config, LmConfig& c, const Defaults& d) {
  PITH_ASSIGN(c.sliding_window,
              json_int(config, "sliding_window", config.contains("sliding_window") ? 0 : d.sliding_window));
  if (c.architecture == "qwen2" || c.architecture == "qwen3" || c.architecture == "smollm3") {
    PITH_ASSIGN(const bool use, json_bool(config, "use_sliding_window", false));
    if (!use) c.sliding_window = 0;
  }
  if (c.architecture == "llama") c.sliding_window = 0;
  if (c.sliding_window <= 0 || c.architecture == "mistral" || c.architecture == "mixtral") return {};
  const auto types = config.find("layer_types");
  if (types != config.end() && !types->is_null()) {
    if (!types->is_array() || types->size() != static_cast<size_t>(c.layers))
      return data_error("\"layer_types\" should list " + std::to_string(c.layers) + " layers");
    for (const auto& t : *types) {
      if (t != "sliding_attention" && t != "full_attention")
        return data_error("\"layer_types\" holds " + json_text(t).substr(0, 60) +
                          ", should hold \"sliding_attention\" or \"full_attention\"");
      c.sliding_layers.push_back(t == "sliding_attention");
    }
    return {};
  }
  int64_t first = 0, pattern = 0;
  if (is_gemma(c)) {
    PITH_ASSIGN(pattern, json_int(config, "sliding_window_pattern", c.architecture == "gemma2" ? 2 : 6));
    if (pattern < 1) return data_error("\"sliding_window_pattern\" should be at least 1");
  } else {
    PITH_ASSIGN(first, json_int(config, "max_window_layers", 28));
  }
  for (int64_t i = 0; i < c.layers; ++i) {
    bool slides = pattern > 0 ? (i + 1) % pattern != 0 : i >= first;
    if (c.architecture == "smollm3") slides = !c.has_rope(i);
    c.sliding_layers.push_back(slides);
  }
  return {};
}

// "layer_shapes", Pith's own key: one object a layer.
Status read_shapes(const json& config, LmConfig& c) {
  const auto list = config.find("layer_shapes");
  if (list == config.end() || list->is_null()) return {};
  if (!list->is_array() || list->size() != static_cast<size_t>(c.layers))
    return data_error("\"layer_shapes\" should list " + std::to_string(c.layers) + " layers");
  for (const auto& entry : *list) {
    const std::string where = "\"layer_shapes\" of layer " + std::to_string(c.layer_shapes.size());
    if (!entry.is_object()) return data_error(where + " should be an object");
    LayerShape shape;
    PITH_ASSIGN(shape.intermediate, json_int(entry, "intermediate_size", c.intermediate));
    PITH_ASSIGN(shape.key_dim, json_int(entry, "key_dim", c.head_dim));
    PITH_ASSIGN(shape.value_dim, json_int(entry, "value_dim", c.head_dim));
    if (const auto pairs = entry.find("rope_pairs"); pairs != entry.end()) {
      const Error wrong = data_error(where + ": \"rope_pairs\" should hold a list of whole numbers for each key head");
      if (!pairs->is_array() || pairs->size() > static_cast<size_t>(c.heads)) return wrong;
      for (const auto& head : *pairs) {
        if (!head.is_array() || head.size() > static_cast<size_t>(c.head_dim)) return wrong;
        std::vector<int32_t>& list_of_head = shape.rope_pairs.emplace_back();
        for (const auto& pair : head) {
          const int64_t number = pair.is_number_integer() ? pair.get<int64_t>() : -1;
          if (number < 0 || number >= c.head_dim) return wrong;
          list_of_head.push_back(static_cast<int32_t>(number));
        }
      }
    }
    c.layer_shapes.push_back(std::move(shape));
  }
  return {};
}

json shapes_json(const LmConfig& c) {
  json list = json::array();
  for (const LayerShape& shape : c.layer_shapes) {
    json entry = {
        {"intermediate_size", shape.intermediate}, {"key_dim", shape.key_dim}, {"value_dim", shape.value_dim}};
    if (!shape.rope_pairs.empty()) entry["rope_pairs"] = shape.rope_pairs;
    list.push_back(std::move(entry));
  }
  return list;
}

}  // namespace

LmConfig with_shapes(LmConfig config, std::vector<LayerShape> shapes) {
  if (!shapes.empty()) config.intermediate = 0;
  for (const LayerShape& s : shapes) config.intermediate = std::max(config.intermediate, s.intermediate);
  const bool alike = std::all_of(shapes.begin(), shapes.end(), [&](const LayerShape& s) {
    return s.intermediate == config.intermediate && s.key_dim == config.head_dim && s.value_dim == config.head_dim &&
           s.rope_pairs.empty();
  });
  if (alike) shapes.clear();
  config.layer_shapes = std::move(shapes);
  return config;
}

Result<LmConfig> lm_config_from_hf(const json& given) {
  if (!given.is_object()) return data_error("should be a JSON object");
  json config = given;
  PITH_ASSIGN(std::string type, json_string(config, "model_type", ""));
  if (type.empty()) return data_error("key \"model_type\" is missing");
  if (type == "gemma3") {
    // Picture and text together: the language model's part is inside.
    const auto text = given.find("text_config");
    if (text == given.end() || !text->is_object()) return data_error("key \"text_config\" is missing");
    config = *text;
    type = "gemma3_text";
  }
  const Defaults* d = nullptr;
  std::string known;
  for (const auto& row : kDefaults) {
    if (row.type == type) d = &row;
    known += (known.empty() ? "" : ", ") + std::string(row.type);
  }
  if (d == nullptr) return data_error("model_type \"" + type + "\" is not supported (known: " + known + ")");
  if (const auto q = given.find("quantization_config"); q != given.end() && !q->is_null())
    return data_error("the weights are quantized already (quantization_config); start from the original model");

  LmConfig c;
  c.architecture = d->architecture;
  PITH_ASSIGN(c.name, json_string(given, "_name_or_path", ""));
  const bool gemma3 = c.architecture == "gemma3";
  PITH_ASSIGN(c.hidden, required(config, "hidden_size"));
  PITH_ASSIGN(c.layers, required(config, "num_hidden_layers"));
  PITH_ASSIGN(c.intermediate, required(config, "intermediate_size"));
  if (gemma3) {  // Google's files leave these two to the class
    PITH_ASSIGN(c.heads, json_int(config, "num_attention_heads", 8));
    PITH_ASSIGN(c.vocab, json_int(config, "vocab_size", 262208));
  } else {
    PITH_ASSIGN(c.heads, required(config, "num_attention_heads"));
    PITH_ASSIGN(c.vocab, required(config, "vocab_size"));
  }
  if (c.heads <= 0 || c.layers <= 0 || c.layers > 4096)
    return data_error("num_attention_heads " + std::to_string(c.heads) + " or num_hidden_layers " +
                      std::to_string(c.layers) + " cannot be");
  // A null says "as many as heads"; a missing key leaves it to the class.
  const bool kv_given = config.contains("num_key_value_heads");
  PITH_ASSIGN(c.kv_heads,
              json_int(config, "num_key_value_heads", kv_given || d->kv_heads == 0 ? c.heads : d->kv_heads));
  PITH_ASSIGN(c.head_dim, json_int(config, "head_dim", d->head_dim == 0 ? c.hidden / c.heads : d->head_dim));
  PITH_ASSIGN(c.context, json_int(config, "max_position_embeddings", gemma3 ? 131072 : 2048));
  PITH_ASSIGN(c.norm_eps, json_number(config, "rms_norm_eps", d->norm_eps));
  PITH_ASSIGN(c.tied_embeddings, json_bool(given, "tie_word_embeddings", d->tied));
  if (config.contains("tie_word_embeddings")) {
    PITH_ASSIGN(c.tied_embeddings, json_bool(config, "tie_word_embeddings", d->tied));
  }

  PITH_ASSIGN(std::string activation, json_string(config, is_gemma(c) ? "hidden_activation" : "hidden_act", ""));
  if (activation.empty()) activation = is_gemma(c) ? "gelu_pytorch_tanh" : "silu";
  if (activation == "silu" || activation == "swish") {
    c.activation = Activation::silu;
  } else if (activation == "gelu_pytorch_tanh" || activation == "gelu_new") {
    c.activation = Activation::gelu_tanh;
  } else {
    return data_error("activation \"" + activation + "\" is not supported (silu and gelu_pytorch_tanh are)");
  }
  PITH_ASSIGN(const double rotary, json_number(config, "partial_rotary_factor", 1));
  if (rotary != 1) return data_error("partial_rotary_factor " + std::to_string(rotary) + " is not supported");

  // RoPE: keys of transformers 4, then those of 5 over them.
  PITH_ASSIGN(c.rope_theta, json_number(config, "rope_theta", d->rope_theta));
  if (gemma3) {
    PITH_ASSIGN(c.rope_theta_local, json_number(config, "rope_local_base_freq", 10000));
  }
  if (const auto rope = config.find("rope_scaling"); rope != config.end() && !rope->is_null())
    PITH_TRY(read_rope(*rope, c.rope_scaling).context("rope_scaling"));
  if (const auto rope = config.find("rope_parameters"); rope != config.end() && !rope->is_null()) {
    const json& full = rope->contains("full_attention") ? (*rope)["full_attention"] : *rope;
    PITH_TRY(read_rope(full, c.rope_scaling).context("rope_parameters"));
    PITH_ASSIGN(c.rope_theta, json_number(full, "rope_theta", c.rope_theta));
    PITH_ASSIGN(const double partial, json_number(full, "partial_rotary_factor", 1));
    if (partial != 1) return data_error("partial_rotary_factor " + std::to_string(partial) + " is not supported");
    if (gemma3 && rope->contains("sliding_attention")) {
      PITH_ASSIGN(c.rope_theta_local, json_number((*rope)["sliding_attention"], "rope_theta", c.rope_theta_local));
    }
  }

  PITH_ASSIGN(const bool attention_bias, json_bool(config, "attention_bias", false));
  if (c.architecture == "qwen2") {
    c.qkv_bias = true;
    PITH_ASSIGN(c.o_bias, json_bool(config, "attention_out_bias", false));
  } else if (c.architecture != "mistral" && c.architecture != "mixtral") {
    c.qkv_bias = attention_bias;
    // Not a key of transformers, whose files have both or none; GGUF files may have one.
    PITH_ASSIGN(c.o_bias, json_bool(config, "attention_out_bias", attention_bias));
  }
  if (c.architecture == "llama" || c.architecture == "smollm3") {
    PITH_ASSIGN(c.mlp_bias, json_bool(config, "mlp_bias", false));
  }
  c.qk_norm = c.architecture == "qwen3" || gemma3;
  if (c.architecture == "mixtral") {
    PITH_ASSIGN(c.experts, json_int(config, "num_local_experts", 8));
    PITH_ASSIGN(c.experts_per_token, json_int(config, "num_experts_per_tok", 2));
  }
  if (c.architecture == "smollm3") {
    const auto layers = config.find("no_rope_layers");
    if (layers != config.end() && !layers->is_null()) {
      // transformers' list says 1 where a layer has RoPE.
      if (!layers->is_array() || layers->size() < static_cast<size_t>(c.layers))
        return data_error("\"no_rope_layers\" should list " + std::to_string(c.layers) + " layers");
      for (int64_t i = 0; i < c.layers; ++i) c.no_rope_layers.push_back((*layers)[static_cast<size_t>(i)] == 0);
    } else {
      PITH_ASSIGN(const int64_t step, json_int(config, "no_rope_layer_interval", 4));
      if (step < 1) return data_error("\"no_rope_layer_interval\" should be at least 1");
      for (int64_t i = 0; i < c.layers; ++i) c.no_rope_layers.push_back((i + 1) % step == 0);
    }
  }
  if (is_gemma(c)) {
    c.norm_plus_one = c.post_norms = true;
    c.embedding_scale = std::sqrt(static_cast<double>(c.hidden));
    PITH_ASSIGN(const double scalar, json_number(config, "query_pre_attn_scalar", 256));
    if (!(scalar > 0)) return data_error("\"query_pre_attn_scalar\" should be above 0");
    if (scalar != static_cast<double>(c.head_dim)) c.attention_scale = 1 / std::sqrt(scalar);
    const bool two = c.architecture == "gemma2";
    const auto cap = [&](const char* key, double fallback) -> Result<double> {
      return json_number(config, key, config.contains(key) ? 0 : fallback);  // null: off
    };
    PITH_ASSIGN(c.attention_softcap, cap("attn_logit_softcapping", two ? 50 : 0));
    PITH_ASSIGN(c.logit_softcap, cap("final_logit_softcapping", two ? 30 : 0));
    PITH_ASSIGN(const bool both_ways, json_bool(config, "use_bidirectional_attention", false));
    if (both_ways) return data_error("use_bidirectional_attention is not supported");
  }
  PITH_TRY(read_sliding(config, c, *d));
  PITH_TRY(read_shapes(config, c));
  PITH_TRY(check_config(c));
  return c;
}

json lm_config_to_hf(const LmConfig& c) {
  // Keys of transformers 4; version 5 reads them too.
  const Defaults* d = defaults_of(c.architecture);
  json out;
  out["model_type"] = d ? std::string(d->type) : c.architecture;
  out["architectures"] = json::array({d ? std::string(d->hf_class) : "LlamaForCausalLM"});
  if (!c.name.empty()) out["_name_or_path"] = c.name;
  out["hidden_size"] = c.hidden;
  out["num_hidden_layers"] = c.layers;
  out["num_attention_heads"] = c.heads;
  out["num_key_value_heads"] = c.kv_heads;
  out["head_dim"] = c.head_dim;
  out["intermediate_size"] = c.intermediate;
  out["vocab_size"] = c.vocab;
  out["max_position_embeddings"] = c.context;
  out["rms_norm_eps"] = c.norm_eps;
  out["rope_theta"] = c.rope_theta;
  if (c.rope_scaling.kind != RopeScaling::Kind::none) out["rope_scaling"] = rope_scaling_json(c.rope_scaling);
  out["tie_word_embeddings"] = c.tied_embeddings;
  out[is_gemma(c) ? "hidden_activation" : "hidden_act"] =
      c.activation == Activation::silu ? "silu" : "gelu_pytorch_tanh";
  if (c.architecture != "qwen2") out["attention_bias"] = c.qkv_bias;
  if (c.o_bias != (c.qkv_bias && c.architecture != "qwen2")) out["attention_out_bias"] = c.o_bias;
  if (c.architecture == "llama" || c.architecture == "smollm3") out["mlp_bias"] = c.mlp_bias;
  if (c.architecture != "llama") out["sliding_window"] = c.sliding_window > 0 ? json(c.sliding_window) : json();
  if (c.architecture == "qwen2" || c.architecture == "qwen3" || c.architecture == "smollm3")
    out["use_sliding_window"] = c.sliding_window > 0;
  if (c.architecture == "qwen2" || c.architecture == "qwen3" || c.architecture == "smollm3" || is_gemma(c)) {
    json types = json::array();
    for (int64_t i = 0; i < c.layers; ++i) types.push_back(c.slides(i) ? "sliding_attention" : "full_attention");
    out["layer_types"] = types;
  }
  if (c.architecture == "smollm3") {
    json layers = json::array();
    for (int64_t i = 0; i < c.layers; ++i) layers.push_back(c.has_rope(i) ? 1 : 0);
    out["no_rope_layers"] = layers;
  }
  if (c.architecture == "mixtral") {
    out["num_local_experts"] = c.experts;
    out["num_experts_per_tok"] = c.experts_per_token;
  }
  if (is_gemma(c)) {
    const double scalar =
        c.attention_scale > 0 ? 1 / (c.attention_scale * c.attention_scale) : static_cast<double>(c.head_dim);
    // An integer in every known file; keep it one.
    if (std::fabs(scalar - std::round(scalar)) < 1e-6 * scalar)
      out["query_pre_attn_scalar"] = static_cast<int64_t>(std::llround(scalar));
    else
      out["query_pre_attn_scalar"] = scalar;
    out["attn_logit_softcapping"] = c.attention_softcap > 0 ? json(c.attention_softcap) : json();
    out["final_logit_softcapping"] = c.logit_softcap > 0 ? json(c.logit_softcap) : json();
    if (c.architecture == "gemma3")
      out["rope_local_base_freq"] = c.rope_theta_local > 0 ? c.rope_theta_local : c.rope_theta;
  }
  if (!c.layer_shapes.empty()) out["layer_shapes"] = shapes_json(c);
  return out;
}

std::vector<TensorSpec> expected_tensors(const LmConfig& c) {
  std::vector<TensorSpec> out;
  out.push_back({"model.embed_tokens.weight", {c.vocab, c.hidden}});
  for (int64_t i = 0; i < c.layers; ++i) {
    const int64_t key = c.key_dim(i), value = c.value_dim(i), mlp = c.mlp_width(i);
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    const auto linear = [&](const std::string& name, int64_t rows, int64_t cols, bool bias) {
      out.push_back({layer + name + ".weight", {rows, cols}});
      if (bias) out.push_back({layer + name + ".bias", {rows}});
    };
    const auto norm = [&](const std::string& name, int64_t n) { out.push_back({layer + name + ".weight", {n}}); };
    norm("input_layernorm", c.hidden);
    linear("self_attn.q_proj", c.heads * key, c.hidden, c.qkv_bias);
    linear("self_attn.k_proj", c.kv_heads * key, c.hidden, c.qkv_bias);
    linear("self_attn.v_proj", c.kv_heads * value, c.hidden, c.qkv_bias);
    if (c.qk_norm) {
      norm("self_attn.q_norm", key);
      norm("self_attn.k_norm", key);
    }
    linear("self_attn.o_proj", c.hidden, c.heads * value, c.o_bias);
    norm("post_attention_layernorm", c.hidden);
    if (c.post_norms) {
      norm("pre_feedforward_layernorm", c.hidden);
      norm("post_feedforward_layernorm", c.hidden);
    }
    if (c.experts > 0) {
      linear("block_sparse_moe.gate", c.experts, c.hidden, false);
      for (int64_t e = 0; e < c.experts; ++e) {
        const std::string expert = "block_sparse_moe.experts." + std::to_string(e) + ".";
        linear(expert + "w1", mlp, c.hidden, false);
        linear(expert + "w2", c.hidden, mlp, false);
        linear(expert + "w3", mlp, c.hidden, false);
      }
    } else {
      linear("mlp.gate_proj", mlp, c.hidden, c.mlp_bias);
      linear("mlp.up_proj", mlp, c.hidden, c.mlp_bias);
      linear("mlp.down_proj", c.hidden, mlp, c.mlp_bias);
    }
  }
  out.push_back({"model.norm.weight", {c.hidden}});
  if (!c.tied_embeddings) out.push_back({"lm_head.weight", {c.vocab, c.hidden}});
  return out;
}

static Status check_shape(const LmConfig& c, const LayerShape& shape) {
  if (shape.intermediate < 1 || shape.intermediate > c.intermediate)
    return data_error("an MLP of " + std::to_string(shape.intermediate) + ", should have 1 to " +
                      std::to_string(c.intermediate) + " channels");
  if (shape.value_dim < 1 || shape.value_dim > c.head_dim)
    return data_error("value heads of " + std::to_string(shape.value_dim) + ", should have 1 to " +
                      std::to_string(c.head_dim) + " channels");
  if (shape.key_dim < 2 || shape.key_dim > c.head_dim || shape.key_dim % 2 != 0)
    return data_error("key heads of " + std::to_string(shape.key_dim) + ", should have an even number from 2 to " +
                      std::to_string(c.head_dim) + " of channels");
  if (shape.rope_pairs.empty() && shape.key_dim != c.head_dim)
    return data_error("key heads of " + std::to_string(shape.key_dim) + " channels of " + std::to_string(c.head_dim) +
                      ", but no rope_pairs that say which");
  if (shape.key_dim != c.head_dim && c.qk_norm)
    return data_error("norms on the heads of queries and keys need all of their channels");
  if (!shape.rope_pairs.empty() && shape.rope_pairs.size() != static_cast<size_t>(c.kv_heads))
    return data_error("rope_pairs of " + std::to_string(shape.rope_pairs.size()) + " heads, should be " +
                      std::to_string(c.kv_heads));
  for (const auto& head : shape.rope_pairs) {
    bool sound = head.size() == static_cast<size_t>(shape.key_dim / 2);
    for (size_t i = 0; sound && i < head.size(); ++i)
      sound = head[i] >= 0 && head[i] < c.head_dim / 2 && (i == 0 || head[i] > head[i - 1]);
    if (!sound)
      return data_error("rope_pairs of a head should be " + std::to_string(shape.key_dim / 2) +
                        " ascending numbers below " + std::to_string(c.head_dim / 2));
  }
  return {};
}

Status check_config(const LmConfig& c) {
  if (defaults_of(c.architecture) == nullptr) return data_error("architecture \"" + c.architecture + "\" is not known");
  const auto within = [](const char* name, int64_t v, int64_t low, int64_t high) -> Status {
    if (v < low || v > high)
      return data_error(std::string(name) + " is " + std::to_string(v) + ", should be from " + std::to_string(low) +
                        " to " + std::to_string(high));
    return {};
  };
  PITH_TRY(within("hidden size", c.hidden, 1, 1 << 20));
  PITH_TRY(within("number of layers", c.layers, 1, 4096));
  PITH_TRY(within("number of heads", c.heads, 1, 1 << 16));
  PITH_TRY(within("number of key-value heads", c.kv_heads, 1, c.heads));
  PITH_TRY(within("head size", c.head_dim, 2, 1 << 16));
  PITH_TRY(within("intermediate size", c.intermediate, 1, 1 << 24));
  PITH_TRY(within("vocabulary size", c.vocab, 1, 1 << 26));
  PITH_TRY(within("context", c.context, 1, int64_t{1} << 32));
  PITH_TRY(within("sliding window", c.sliding_window, 0, int64_t{1} << 32));
  PITH_TRY(within("number of experts", c.experts, 0, 4096));
  if (c.heads % c.kv_heads != 0)
    return data_error(std::to_string(c.heads) + " heads are no multiple of " + std::to_string(c.kv_heads) +
                      " key-value heads");
  if (c.head_dim % 2 != 0) return data_error("head size " + std::to_string(c.head_dim) + " is odd; RoPE turns pairs");
  if (c.experts > 0) PITH_TRY(within("experts per token", c.experts_per_token, 1, c.experts));
  const auto flags = [&](const char* name, const std::vector<uint8_t>& v) -> Status {
    if (!v.empty() && v.size() != static_cast<size_t>(c.layers))
      return data_error(std::string(name) + " lists " + std::to_string(v.size()) + " layers of " +
                        std::to_string(c.layers));
    return {};
  };
  PITH_TRY(flags("sliding layers", c.sliding_layers));
  PITH_TRY(flags("layers without RoPE", c.no_rope_layers));
  if (!c.layer_shapes.empty() && c.layer_shapes.size() != static_cast<size_t>(c.layers))
    return data_error("shapes of " + std::to_string(c.layer_shapes.size()) + " layers of " + std::to_string(c.layers));
  for (size_t i = 0; i < c.layer_shapes.size(); ++i)
    PITH_TRY(check_shape(c, c.layer_shapes[i]).context("shape of layer " + std::to_string(i)));
  const auto number = [](const char* name, double v, bool zero_allowed) -> Status {
    if (!std::isfinite(v) || v < 0 || (v == 0 && !zero_allowed))
      return data_error(std::string(name) + " is " + std::to_string(v) + ", should be above 0");
    return {};
  };
  PITH_TRY(number("norm epsilon", c.norm_eps, true));
  PITH_TRY(number("RoPE base", c.rope_theta, false));
  PITH_TRY(number("local RoPE base", c.rope_theta_local, true));
  PITH_TRY(number("RoPE factor", c.rope_scaling.factor, false));
  PITH_TRY(number("embedding scale", c.embedding_scale, false));
  PITH_TRY(number("attention scale", c.attention_scale, true));
  PITH_TRY(number("attention softcap", c.attention_softcap, true));
  PITH_TRY(number("logit softcap", c.logit_softcap, true));
  if (c.rope_scaling.kind == RopeScaling::Kind::llama3) {
    PITH_TRY(within("RoPE original context", c.rope_scaling.original_context, 1, int64_t{1} << 32));
    PITH_TRY(number("RoPE low frequency factor", c.rope_scaling.low_freq_factor, false));
    PITH_TRY(number("RoPE high frequency factor", c.rope_scaling.high_freq_factor, false));
    if (c.rope_scaling.high_freq_factor <= c.rope_scaling.low_freq_factor)
      return data_error("RoPE high frequency factor should be above the low one");
  }
  return {};
}

}  // namespace pith
