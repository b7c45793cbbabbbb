#include "formats/gguf_model.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numbers>

namespace pith {
namespace {

// Architectures whose GGUF files hold q and k rows pair by pair (llama.cpp's "normal" RoPE).
bool permutes_qk(const LmConfig& c) {
  return c.architecture == "llama" || c.architecture == "mistral" || c.architecture == "mixtral" ||
         c.architecture == "smollm3";
}

// llama.cpp runs Mistral and Mixtral under the name of Llama; a Llama whose layers differ in width under that of Deci.
std::string gguf_architecture(const LmConfig& c) {
  if (!c.layer_shapes.empty()) return "deci";
  return c.architecture == "mistral" || c.architecture == "mixtral" ? "llama" : c.architecture;
}

bool is_gemma(const LmConfig& c) { return c.architecture == "gemma2" || c.architecture == "gemma3"; }

// GGUF keeps numbers as fp32; 1e-5f is meant as 1e-5, not as 9.999999747e-06.
double as_meant(double stored) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, static_cast<float>(stored));
  double v = stored;
  std::from_chars(text, end.ptr, v);
  return v;
}

// llama.cpp derives the scale of the scores from the architecture: 1/sqrt(head_dim), but hidden / heads for Gemma 27B.
double llama_cpp_attention_scale(const LmConfig& c) {
  const bool large = (c.architecture == "gemma2" && c.layers == 46) || (c.architecture == "gemma3" && c.layers == 62);
  return 1 / std::sqrt(static_cast<double>(large ? c.hidden / c.heads : c.head_dim));
}

// Of layers of their own width llama.cpp runs Llamas (as "deci") whose MLPs differ and whose heads are whole.
Status check_shapes(const LmConfig& c) {
  for (size_t i = 0; i < c.layer_shapes.size(); ++i) {
    const LayerShape& s = c.layer_shapes[i];
    if (s.key_dim != c.head_dim || s.value_dim != c.head_dim || !s.rope_pairs.empty())
      return user_error(
          "layer " + std::to_string(i) + " has heads of " + std::to_string(s.key_dim) + " key and " +
          std::to_string(s.value_dim) + " value channels of " + std::to_string(c.head_dim) +
          ", and llama.cpp wants the same whole heads in every layer; keep the .pith file, or narrow only "
          "the MLPs (modegpt: --modules mlp)");
  }
  if (!c.layer_shapes.empty() && c.architecture != "llama")
    return user_error(
        "MLPs of different width cannot be written as GGUF for architecture " + c.architecture +
        ", only for llama; keep the .pith file, or narrow all layers alike (modegpt: --allocation uniform)");
  return {};
}

int64_t default_swa_pattern(const LmConfig& c) { return c.architecture == "gemma2" ? 2 : 6; }

// Gemma's rule: layers n - 1, 2 n - 1, … see everything, the others slide.
std::vector<uint8_t> pattern_layers(int64_t layers, int64_t n) {
  std::vector<uint8_t> flags;
  for (int64_t i = 0; i < layers; ++i) flags.push_back(n == 0 || i % n < n - 1);
  return flags;
}

struct NamePair {
  std::string_view canonical, gguf;
};
// Inside a layer; ".weight" or ".bias" follows.
constexpr NamePair kLayerNames[] = {
    {"input_layernorm", "attn_norm"},
    {"self_attn.q_proj", "attn_q"},
    {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},
    {"self_attn.q_norm", "attn_q_norm"},
    {"self_attn.k_norm", "attn_k_norm"},
    {"self_attn.o_proj", "attn_output"},
    {"pre_feedforward_layernorm", "ffn_norm"},
    {"post_feedforward_layernorm", "post_ffw_norm"},
    {"mlp.gate_proj", "ffn_gate"},
    {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
    {"block_sparse_moe.gate", "ffn_gate_inp"},
};

bool take_prefix(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

std::optional<int64_t> take_number(std::string_view& text) {
  int64_t n = 0;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), n);
  if (end.ec != std::errc() || n < 0) return std::nullopt;
  text.remove_prefix(static_cast<size_t>(end.ptr - text.data()));
  return n;
}

// Llama 3's scaling, when it can be told from the factors it gave; only the published parameters are tried.
Result<RopeScaling> scaling_from_factors(const LmConfig& config, const std::vector<float>& factors) {
  LmConfig trial = config;
  trial.rope_scaling.kind = RopeScaling::Kind::llama3;
  trial.rope_scaling.factor = as_meant(*std::max_element(factors.begin(), factors.end()));
  trial.rope_scaling.low_freq_factor = 1;
  trial.rope_scaling.high_freq_factor = 4;
  if (trial.rope_scaling.factor > 0)
    for (int64_t original = 1024; original <= (1 << 20); original *= 2) {
      trial.rope_scaling.original_context = original;
      const auto made = rope_freq_factors(trial);
      if (made.size() == factors.size() && std::equal(made.begin(), made.end(), factors.begin(), [](float a, float b) {
            return std::fabs(a - b) <= 1e-3f * std::fabs(b);
          }))
        return trial.rope_scaling;
    }
  return data_error("rope_freqs.weight holds frequency factors that Llama 3's scaling does not give; not supported");
}

}  // namespace

std::vector<float> rope_freq_factors(const LmConfig& c) {
  std::vector<float> out;
  if (c.rope_scaling.kind != RopeScaling::Kind::llama3) return out;
  const auto& r = c.rope_scaling;
  const double low_wave = static_cast<double>(r.original_context) / r.low_freq_factor;
  const double high_wave = static_cast<double>(r.original_context) / r.high_freq_factor;
  for (int64_t i = 0; i < c.head_dim; i += 2) {
    const double wave =
        2 * std::numbers::pi * std::pow(c.rope_theta, static_cast<double>(i) / static_cast<double>(c.head_dim));
    if (wave < high_wave) {
      out.push_back(1);
    } else if (wave > low_wave) {
      out.push_back(static_cast<float>(r.factor));
    } else {
      const double smooth = (static_cast<double>(r.original_context) / wave - r.low_freq_factor) /
                            (r.high_freq_factor - r.low_freq_factor);
      out.push_back(static_cast<float>(1 / ((1 - smooth) / r.factor + smooth)));
    }
  }
  return out;
}

Result<LmConfig> lm_config_from_gguf(const GgufFile& file) {
  const auto& m = file.metadata();
  PITH_ASSIGN(const std::string arch, m.get_string("general.architecture"));
  if (arch != "llama" && arch != "deci" && arch != "qwen2" && arch != "qwen3" && arch != "smollm3" &&
      arch != "gemma2" && arch != "gemma3")
    return data_error("architecture \"" + arch.substr(0, 60) +
                      "\" is not supported (known: llama, deci, qwen2, qwen3, smollm3, gemma2, gemma3)");
  const std::string p = arch + ".";
  LmConfig c;
  c.architecture = arch == "deci" ? "llama" : arch;
  PITH_ASSIGN(c.name, m.get_string("general.name", ""));
  const auto size = [&](const char* key, int64_t& out) -> Status {
    PITH_ASSIGN(out, m.get_u32(p + key));
    return {};
  };
  PITH_TRY(size("embedding_length", c.hidden));
  PITH_TRY(size("block_count", c.layers));
  std::vector<int64_t> widths;  // of the MLPs, where they differ
  if (const GgufValue* list = m.find(p + "feed_forward_length");
      arch == "deci" && list != nullptr && list->type() == GgufType::array) {
    const auto numbers = list->as_i64s();
    if (!numbers || numbers->size() != static_cast<size_t>(c.layers) || numbers->empty())
      return data_error("metadata key " + p + "feed_forward_length should list " + std::to_string(c.layers) +
                        " layers");
    widths = *numbers;
    c.intermediate = *std::max_element(widths.begin(), widths.end());
  } else {
    PITH_TRY(size("feed_forward_length", c.intermediate));
  }
  PITH_TRY(size("attention.head_count", c.heads));
  PITH_TRY(size("context_length", c.context));
  PITH_ASSIGN(c.kv_heads, m.get_u32(p + "attention.head_count_kv", static_cast<uint32_t>(c.heads)));
  if (c.heads <= 0) return data_error("metadata key " + p + "attention.head_count is 0");
  PITH_ASSIGN(c.head_dim, m.get_u32(p + "attention.key_length", static_cast<uint32_t>(c.hidden / c.heads)));
  PITH_ASSIGN(const int64_t value_dim, m.get_u32(p + "attention.value_length", static_cast<uint32_t>(c.head_dim)));
  PITH_ASSIGN(const int64_t rope_dim, m.get_u32(p + "rope.dimension_count", static_cast<uint32_t>(c.head_dim)));
  if (value_dim != c.head_dim || rope_dim != c.head_dim)
    return data_error("keys of " + std::to_string(c.head_dim) + ", values of " + std::to_string(value_dim) +
                      ", RoPE on " + std::to_string(rope_dim) + ": only equal sizes are supported");
  PITH_ASSIGN(const double eps, m.get_f64(p + "attention.layer_norm_rms_epsilon"));
  c.norm_eps = as_meant(eps);
  PITH_ASSIGN(const double theta, m.get_f64(p + "rope.freq_base", 10000));
  c.rope_theta = as_meant(theta);
  PITH_ASSIGN(const std::string scaling, m.get_string(p + "rope.scaling.type", "none"));
  PITH_ASSIGN(const double factor, m.get_f64(p + "rope.scaling.factor", 1));
  if (scaling == "linear") {
    c.rope_scaling.kind = RopeScaling::Kind::linear;
    c.rope_scaling.factor = as_meant(factor);
  } else if (scaling != "none") {
    return data_error("RoPE scaling \"" + scaling.substr(0, 60) + "\" is not supported (none and linear are)");
  }

  const GgufTensor* embedding = file.find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2)
    return data_error("tensor token_embd.weight is missing or no matrix");
  c.vocab = embedding->shape[0];
  c.tied_embeddings = file.find("output.weight") == nullptr;
  c.qkv_bias = file.find("blk.0.attn_q.bias") != nullptr;
  c.o_bias = file.find("blk.0.attn_output.bias") != nullptr;
  c.mlp_bias = file.find("blk.0.ffn_gate.bias") != nullptr;
  c.qk_norm = file.find("blk.0.attn_q_norm.weight") != nullptr;
  if (file.find("blk.0.attn_qkv.weight") != nullptr)
    return data_error("q, k and v stand in one tensor (blk.0.attn_qkv.weight); convert the model without --fuse-qkv");

  PITH_ASSIGN(c.sliding_window, m.get_u32(p + "attention.sliding_window", 0));
  if (arch == "llama") {
    PITH_ASSIGN(c.experts, m.get_u32(p + "expert_count", 0));
    PITH_ASSIGN(c.experts_per_token, m.get_u32(p + "expert_used_count", 0));
    if (c.experts > 0)
      c.architecture = "mixtral";
    else if (c.sliding_window > 0)
      c.architecture = "mistral";
  }
  PITH_TRY(check_config(c));  // from here on, the number of layers can be believed
  std::vector<LayerShape> shapes;
  for (const int64_t width : widths) shapes.push_back({width, c.head_dim, c.head_dim, {}});
  c = with_shapes(std::move(c), std::move(shapes));
  if (arch == "smollm3")
    for (int64_t i = 0; i < c.layers; ++i) c.no_rope_layers.push_back((i + 1) % 4 == 0);
  if (is_gemma(c)) {
    c.activation = Activation::gelu_tanh;
    c.norm_plus_one = c.post_norms = true;
    c.embedding_scale = std::sqrt(static_cast<double>(c.hidden));
    const double scale = llama_cpp_attention_scale(c);
    if (scale != 1 / std::sqrt(static_cast<double>(c.head_dim))) c.attention_scale = scale;
    if (arch == "gemma2") {
      PITH_ASSIGN(c.attention_softcap, m.get_f64(p + "attn_logit_softcapping", 50));
      if (m.find(p + "attention.sliding_window") == nullptr) c.sliding_window = 4096;
    } else {
      PITH_ASSIGN(const double local, m.get_f64(p + "rope.freq_base_swa", 10000));
      c.rope_theta_local = as_meant(local);
    }
    PITH_ASSIGN(c.logit_softcap, m.get_f64(p + "final_logit_softcapping", arch == "gemma2" ? 30 : 0));
  }
  if (c.sliding_window > 0 && arch != "llama") {
    const GgufValue* pattern = m.find(p + "attention.sliding_window_pattern");
    if (pattern != nullptr && pattern->type() == GgufType::array) {
      const auto flags = pattern->as_i64s();
      if (!flags || flags->size() < static_cast<size_t>(c.layers))
        return data_error("metadata key " + p + "attention.sliding_window_pattern should list " +
                          std::to_string(c.layers) + " layers");
      for (int64_t i = 0; i < c.layers; ++i) c.sliding_layers.push_back((*flags)[static_cast<size_t>(i)] != 0);
    } else if (is_gemma(c) || pattern != nullptr) {
      PITH_ASSIGN(const uint32_t n,
                  m.get_u32(p + "attention.sliding_window_pattern", static_cast<uint32_t>(default_swa_pattern(c))));
      c.sliding_layers = pattern_layers(c.layers, n);
    }
  }
  if (const GgufTensor* freqs = file.find("rope_freqs.weight")) {
    if (freqs->type != GgmlType::f32 || freqs->shape.size() != 1 || freqs->shape[0] != c.head_dim / 2)
      return data_error("rope_freqs.weight should be " + std::to_string(c.head_dim / 2) + " F32 values");
    std::vector<float> factors(static_cast<size_t>(freqs->shape[0]));
    dequantize_row(GgmlType::f32, file.data(*freqs).data(), freqs->shape[0], factors.data());
    if (std::any_of(factors.begin(), factors.end(), [](float f) { return f != 1.0f; })) {
      PITH_ASSIGN(c.rope_scaling, scaling_from_factors(c, factors));
    }
  }
  PITH_TRY(check_config(c));
  return c;
}

Result<GgufMetadata> gguf_metadata_from_config(const LmConfig& c) {
  PITH_TRY(check_config(c));
  PITH_TRY(check_shapes(c));
  GgufMetadata m;
  const std::string arch = gguf_architecture(c), p = arch + ".";
  const auto u32 = [&](const char* key, int64_t v) { m.set(p + key, GgufValue::u32(static_cast<uint32_t>(v))); };
  const auto f32 = [&](const char* key, double v) { m.set(p + key, GgufValue::f32(static_cast<float>(v))); };
  m.set("general.architecture", GgufValue::string(arch));
  m.set("general.type", GgufValue::string("model"));
  if (!c.name.empty()) m.set("general.name", GgufValue::string(c.name));
  u32("block_count", c.layers);
  u32("context_length", std::min<int64_t>(c.context, UINT32_MAX));
  u32("embedding_length", c.hidden);
  if (c.layer_shapes.empty()) {
    u32("feed_forward_length", c.intermediate);
  } else {
    std::vector<uint32_t> widths;
    for (const LayerShape& s : c.layer_shapes) widths.push_back(static_cast<uint32_t>(s.intermediate));
    m.set(p + "feed_forward_length", GgufValue::u32s(widths));
  }
  u32("attention.head_count", c.heads);
  u32("attention.head_count_kv", c.kv_heads);
  u32("attention.key_length", c.head_dim);
  u32("attention.value_length", c.head_dim);
  u32("rope.dimension_count", c.head_dim);
  u32("vocab_size", c.vocab);
  f32("attention.layer_norm_rms_epsilon", c.norm_eps);
  f32("rope.freq_base", c.rope_theta);
  if (c.rope_scaling.kind == RopeScaling::Kind::linear) {
    m.set(p + "rope.scaling.type", GgufValue::string("linear"));
    f32("rope.scaling.factor", c.rope_scaling.factor);
  }
  if (c.experts > 0) {
    u32("expert_count", c.experts);
    u32("expert_used_count", c.experts_per_token);
  }
  if (c.sliding_window > 0) u32("attention.sliding_window", std::min<int64_t>(c.sliding_window, UINT32_MAX));
  if (is_gemma(c)) {
    if (c.architecture == "gemma2") {
      if (!c.tied_embeddings)
        return data_error("llama.cpp's gemma2 has no output matrix of its own; the model cannot be written as GGUF");
      f32("attn_logit_softcapping", c.attention_softcap);
      f32("final_logit_softcapping", c.logit_softcap);
    } else {
      if (c.attention_softcap > 0) return data_error("llama.cpp knows no attention softcap in gemma3");
      if (c.logit_softcap > 0) f32("final_logit_softcapping", c.logit_softcap);
      f32("rope.freq_base_swa", c.rope_theta_local > 0 ? c.rope_theta_local : c.rope_theta);
    }
    if (c.sliding_window > 0 && !c.sliding_layers.empty() &&
        c.sliding_layers != pattern_layers(c.layers, default_swa_pattern(c)))
      m.set(p + "attention.sliding_window_pattern", GgufValue::bools(c.sliding_layers));
    const double scale = c.attention_scale > 0 ? c.attention_scale : 1 / std::sqrt(static_cast<double>(c.head_dim));
    if (std::fabs(scale / llama_cpp_attention_scale(c) - 1) > 1e-6)
      return data_error("llama.cpp uses an attention scale of " + std::to_string(llama_cpp_attention_scale(c)) +
                        " for " + c.architecture + " of this size, the model needs " + std::to_string(scale) +
                        "; it cannot be written as GGUF");
  } else if (c.sliding_window > 0 && !c.sliding_layers.empty()) {
    m.set(p + "attention.sliding_window_pattern", GgufValue::bools(c.sliding_layers));
  }
  if (c.architecture == "smollm3")
    for (int64_t i = 0; i < c.layers; ++i)
      if (c.has_rope(i) == ((i + 1) % 4 == 0))
        return data_error("llama.cpp leaves out RoPE in every fourth layer of smollm3; layer " + std::to_string(i) +
                          " differs, so the model cannot be written as GGUF");
  m.set("general.quantization_version", GgufValue::u32(2));
  return m;
}

Result<GgufPlace> gguf_place(const LmConfig& c, const std::string& canonical) {
  GgufPlace place;
  std::string_view rest = canonical;
  const auto unknown = [&] {
    return data_error("tensor \"" + canonical.substr(0, 200) + "\" has no place in a GGUF file");
  };
  if (canonical == "model.embed_tokens.weight") {
    place.name = "token_embd.weight";
    return place;
  }
  if (canonical == "lm_head.weight") {
    place.name = "output.weight";
    return place;
  }
  if (canonical == "model.norm.weight") {
    place.name = "output_norm.weight";
    place.plus_one = c.norm_plus_one;
    place.f32 = true;
    return place;
  }
  if (!take_prefix(rest, "model.layers.")) return unknown();
  const auto layer = take_number(rest);
  if (!layer || !take_prefix(rest, ".")) return unknown();
  const std::string block = "blk." + std::to_string(*layer) + ".";
  if (take_prefix(rest, "block_sparse_moe.experts.")) {
    const auto expert = take_number(rest);
    if (!expert) return unknown();
    place.expert = *expert;
    if (rest == ".w1.weight") {
      place.name = block + "ffn_gate_exps.weight";
    } else if (rest == ".w2.weight") {
      place.name = block + "ffn_down_exps.weight";
    } else if (rest == ".w3.weight") {
      place.name = block + "ffn_up_exps.weight";
    } else {
      return unknown();
    }
    return place;
  }
  const size_t dot = rest.rfind('.');
  if (dot == std::string_view::npos) return unknown();
  const std::string_view part = rest.substr(0, dot), kind = rest.substr(dot + 1);
  if (kind != "weight" && kind != "bias") return unknown();
  std::string_view name;
  if (part == "post_attention_layernorm") name = c.post_norms ? "post_attention_norm" : "ffn_norm";
  for (const auto& pair : kLayerNames)
    if (pair.canonical == part) name = pair.gguf;
  if (name.empty()) return unknown();
  place.name = block + std::string(name) + "." + std::string(kind);
  const bool norm = name.ends_with("norm");
  place.plus_one = norm && c.norm_plus_one;
  place.f32 = norm || kind == "bias" || name == "ffn_gate_inp";
  if (permutes_qk(c) && part == "self_attn.q_proj") place.permuted_heads = c.heads;
  if (permutes_qk(c) && part == "self_attn.k_proj") place.permuted_heads = c.kv_heads;
  return place;
}

std::vector<int64_t> gguf_row_order(int64_t rows, int64_t permuted_heads) {
  std::vector<int64_t> order(static_cast<size_t>(rows));
  const int64_t head = permuted_heads > 0 ? rows / permuted_heads : 0;
  for (int64_t i = 0; i < rows; ++i) {
    // Row 2 j + p of a head is row p * head / 2 + j of the Hugging Face matrix.
    const int64_t in_head = head > 0 ? i % head : 0;
    order[static_cast<size_t>(i)] = head > 0 ? i - in_head + in_head % 2 * (head / 2) + in_head / 2 : i;
  }
  return order;
}

Result<std::vector<GgufLayoutEntry>> gguf_layout(const LmConfig& c) {
  std::vector<GgufLayoutEntry> out;
  if (const auto factors = rope_freq_factors(c); !factors.empty())
    out.push_back({"rope_freqs.weight", {static_cast<int64_t>(factors.size())}, {}});
  for (const auto& spec : expected_tensors(c)) {
    PITH_ASSIGN(const GgufPlace place, gguf_place(c, spec.name));
    if (place.expert <= 0) {
      GgufLayoutEntry entry{place.name, spec.shape, {}};
      if (place.expert == 0) entry.shape.insert(entry.shape.begin(), c.experts);
      out.push_back(std::move(entry));
    }
    // Experts of a layer come in turn (w1, w2, w3 of each), so the entry is one of the last three.
    for (size_t i = out.size(); i-- > 0;)
      if (out[i].name == place.name) {
        out[i].canonical.push_back(spec.name);
        break;
      }
  }
  return out;
}

}  // namespace pith
