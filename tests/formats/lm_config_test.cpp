#include "formats/lm_config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "formats/gguf_model.h"
#include "formats/json_text.h"

namespace pith {
namespace {

using json = nlohmann::json;

json base_config(const std::string& type) {
  json c = {{"model_type", type},       {"hidden_size", 64},        {"num_hidden_layers", 6},
            {"num_attention_heads", 4}, {"num_key_value_heads", 2}, {"head_dim", 16},
            {"intermediate_size", 96},  {"vocab_size", 100},        {"max_position_embeddings", 512},
            {"rms_norm_eps", 1e-5}};
  if (type == "mixtral") c["num_local_experts"] = 4;
  if (type == "gemma2" || type == "gemma3_text") c["query_pre_attn_scalar"] = 16, c["sliding_window"] = 32;
  if (type == "mistral") c["sliding_window"] = 128;
  return c;
}

const std::vector<std::string> kTypes = {"llama", "mistral", "mixtral", "qwen2",
                                         "qwen3", "smollm3", "gemma2",  "gemma3_text"};

// A GGUF file in memory with the metadata of a configuration and empty tensors of the right shapes.
Result<GgufFile> as_gguf(const LmConfig& c) {
  PITH_ASSIGN(auto metadata, gguf_metadata_from_config(c));
  PITH_ASSIGN(auto layout, gguf_layout(c));
  std::vector<GgufDecl> decls;
  for (auto& e : layout) decls.push_back({e.name, GgmlType::f32, e.shape});
  const std::string path = testing::TempDir() + "/config.gguf";
  PITH_ASSIGN(auto writer, GgufWriter::create(path, metadata, decls, true));
  for (auto& e : layout) {
    uint64_t n = 4;
    for (int64_t d : e.shape) n *= static_cast<uint64_t>(d);
    std::vector<std::byte> data(n);
    if (e.name == "rope_freqs.weight") {
      const auto f = rope_freq_factors(c);
      std::memcpy(data.data(), f.data(), n);
    }
    PITH_TRY(writer.write(data));
  }
  PITH_TRY(writer.finish());
  return GgufFile::open(path, {});
}

TEST(LmConfig, EveryArchitectureSurvivesConfigJson) {
  for (const auto& type : kTypes) {
    auto c = lm_config_from_hf(base_config(type));
    ASSERT_TRUE(c.ok()) << type << ": " << c.error().message;
    const json again = lm_config_to_hf(*c);
    auto d = lm_config_from_hf(again);
    ASSERT_TRUE(d.ok()) << type << ": " << d.error().message;
    EXPECT_EQ(*c, *d) << type;
    EXPECT_EQ(again, lm_config_to_hf(*d)) << type;
  }
}

TEST(LmConfig, EveryArchitectureSurvivesGguf) {
  for (const auto& type : kTypes)
    for (int variant = 0; variant < 3; ++variant) {
      json j = base_config(type);
      if (variant == 1) j["rope_scaling"] = {{"type", "linear"}, {"factor", 8.0}};
      if (variant == 2) {
        if (type.starts_with("gemma")) continue;  // llama.cpp's Gemma has no such factors
        j["rope_theta"] = 500000.0;
        j["rope_scaling"] = {{"rope_type", "llama3"},
                             {"factor", 32.0},
                             {"low_freq_factor", 1.0},
                             {"high_freq_factor", 4.0},
                             {"original_max_position_embeddings", 8192}};
        j["tie_word_embeddings"] = true;
      }
      auto c = lm_config_from_hf(j);
      ASSERT_TRUE(c.ok()) << type << ": " << c.error().message;
      auto file = as_gguf(*c);
      ASSERT_TRUE(file.ok()) << type << ": " << file.error().message;
      auto d = lm_config_from_gguf(*file);
      ASSERT_TRUE(d.ok()) << type << ": " << d.error().message;
      EXPECT_EQ(*c, *d) << type << ' ' << lm_config_to_hf(*d).dump(1);
    }
}

LmConfig narrowed(const std::string& type) {
  LmConfig c = *lm_config_from_hf(base_config(type));
  std::vector<LayerShape> shapes(static_cast<size_t>(c.layers), {c.intermediate, c.head_dim, c.head_dim, {}});
  shapes[0] = {c.intermediate - 8, 4, 5, std::vector<std::vector<int32_t>>(static_cast<size_t>(c.kv_heads), {1, 3})};
  return with_shapes(std::move(c), std::move(shapes));
}

TEST(LmConfig, LayersOfTheirOwnWidthSurviveConfigJson) {
  for (const std::string type : {"llama", "qwen2", "mixtral"}) {
    const LmConfig c = narrowed(type);
    ASSERT_TRUE(check_config(c).ok()) << check_config(c).error().message;
    const auto d = lm_config_from_hf(lm_config_to_hf(c));
    ASSERT_TRUE(d.ok()) << d.error().message;
    EXPECT_EQ(c, *d);
    for (const auto& spec : expected_tensors(c)) {
      const int64_t rows = spec.shape[0];
      if (spec.name == "model.layers.0.self_attn.q_proj.weight") {
        EXPECT_EQ(rows, c.heads * 4);
      } else if (spec.name == "model.layers.0.self_attn.o_proj.weight") {
        EXPECT_EQ(spec.shape[1], c.heads * 5);
      } else if (spec.name == "model.layers.1.self_attn.q_proj.weight") {
        EXPECT_EQ(rows, c.heads * c.head_dim);
      }
    }
    const auto gguf = gguf_metadata_from_config(c);  // llama.cpp has no such heads
    ASSERT_FALSE(gguf.ok());
    EXPECT_EQ(gguf.error().kind, ErrorKind::user);
    EXPECT_NE(gguf.error().message.find("layer 0"), std::string::npos) << gguf.error().message;
  }
}

TEST(LmConfig, MlpsOfTheirOwnWidthSurviveGgufAndEqualOnesArePlain) {
  const LmConfig whole = *lm_config_from_hf(base_config("llama"));
  std::vector<LayerShape> shapes(static_cast<size_t>(whole.layers), {40, whole.head_dim, whole.head_dim, {}});
  const LmConfig alike = with_shapes(whole, shapes);
  EXPECT_TRUE(alike.layer_shapes.empty());
  EXPECT_EQ(alike.intermediate, 40);
  shapes[0].intermediate = 48;
  const LmConfig differ = with_shapes(whole, shapes);
  const auto file = as_gguf(differ);
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(*file->metadata().get_string("general.architecture"), "deci");
  const auto back = lm_config_from_gguf(*file);
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(*back, differ);
  LmConfig other = *lm_config_from_hf(base_config("qwen2"));
  other = with_shapes(other, [&] {
    std::vector<LayerShape> s(static_cast<size_t>(other.layers), {40, other.head_dim, other.head_dim, {}});
    s[0].intermediate = 48;
    return s;
  }());
  EXPECT_FALSE(gguf_metadata_from_config(other).ok());
}

TEST(LmConfig, ImpossibleWidthsAreRefusedNamingTheLayer) {
  const auto refused = [](const std::function<void(LayerShape&)>& change) {
    LmConfig c = narrowed("llama");
    change(c.layer_shapes[0]);
    const Status status = check_config(c);
    ASSERT_FALSE(status.ok());
    EXPECT_NE(status.error().message.find("layer 0"), std::string::npos) << status.error().message;
  };
  refused([](LayerShape& s) { s.intermediate = 0; });
  refused([](LayerShape& s) { s.intermediate = 1 << 20; });
  refused([](LayerShape& s) { s.value_dim = 1 << 20; });
  refused([](LayerShape& s) { s.key_dim = 3; });
  refused([](LayerShape& s) { s.rope_pairs.clear(); });
  refused([](LayerShape& s) { s.rope_pairs.pop_back(); });
  refused([](LayerShape& s) { s.rope_pairs[0] = {1}; });
  refused([](LayerShape& s) { s.rope_pairs[0] = {3, 1}; });
  refused([](LayerShape& s) { s.rope_pairs[0] = {1, 1000}; });
  LmConfig c = narrowed("llama");
  c.layer_shapes.pop_back();
  EXPECT_FALSE(check_config(c).ok());
  json j = lm_config_to_hf(narrowed("llama"));
  j["layer_shapes"][0]["rope_pairs"] = "all";
  EXPECT_FALSE(lm_config_from_hf(j).ok());
  j["layer_shapes"] = json::array({1});
  EXPECT_FALSE(lm_config_from_hf(j).ok());
}

// Each canonical tensor has one place, places are disjoint, and the layout has room for all of them.
TEST(LmConfig, GgufLayoutHoldsEveryTensorOnce) {
  for (const auto& type : kTypes) {
    auto c = lm_config_from_hf(base_config(type));
    ASSERT_TRUE(c.ok());
    auto layout = gguf_layout(*c);
    ASSERT_TRUE(layout.ok()) << layout.error().message;
    std::map<std::string, const GgufLayoutEntry*> by_name;
    for (const auto& e : *layout) EXPECT_TRUE(by_name.emplace(e.name, &e).second) << e.name;
    std::set<std::pair<std::string, int64_t>> used;
    size_t listed = 0;
    for (const auto& spec : expected_tensors(*c)) {
      auto place = gguf_place(*c, spec.name);
      ASSERT_TRUE(place.ok()) << place.error().message;
      EXPECT_TRUE(used.emplace(place->name, place->expert).second) << spec.name;
      ASSERT_TRUE(by_name.contains(place->name)) << place->name;
      const auto& entry = *by_name[place->name];
      auto shape = entry.shape;
      if (place->expert >= 0) {
        EXPECT_EQ(entry.canonical[static_cast<size_t>(place->expert)], spec.name);
        shape.erase(shape.begin());
      } else {
        EXPECT_EQ(entry.canonical, std::vector<std::string>{spec.name});
      }
      EXPECT_EQ(shape, spec.shape) << spec.name;
      ++listed;
    }
    size_t in_layout = 0;
    for (const auto& e : *layout) in_layout += e.canonical.size();
    EXPECT_EQ(listed, in_layout) << type;
  }
}

TEST(LmConfig, RowOrderMatchesLlamaCpp) {
  // reshape(heads, 2, d / 2).swap(1, 2): head of 4 rows 0 1 2 3 becomes 0 2 1 3.
  EXPECT_EQ(gguf_row_order(8, 2), (std::vector<int64_t>{0, 2, 1, 3, 4, 6, 5, 7}));
  EXPECT_EQ(gguf_row_order(6, 1), (std::vector<int64_t>{0, 3, 1, 4, 2, 5}));
  EXPECT_EQ(gguf_row_order(3, 0), (std::vector<int64_t>{0, 1, 2}));
}

TEST(LmConfig, ReadsBothGenerationsOfRopeKeys) {
  json old_style = base_config("llama"), new_style = base_config("llama");
  const json scaling = {{"rope_type", "llama3"},
                        {"factor", 8.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 8192}};
  old_style["rope_theta"] = 500000.0;
  old_style["rope_scaling"] = scaling;
  new_style["rope_parameters"] = scaling;
  new_style["rope_parameters"]["rope_theta"] = 500000.0;
  auto a = lm_config_from_hf(old_style), b = lm_config_from_hf(new_style);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(*a, *b);
  EXPECT_EQ(a->rope_scaling.kind, RopeScaling::Kind::llama3);
  EXPECT_EQ(a->rope_theta, 500000);

  json gemma = base_config("gemma3_text");
  gemma["rope_parameters"] = {{"full_attention", {{"rope_type", "linear"}, {"factor", 8.0}, {"rope_theta", 1e6}}},
                              {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 20000.0}}}};
  auto g = lm_config_from_hf(gemma);
  ASSERT_TRUE(g.ok()) << g.error().message;
  EXPECT_EQ(g->rope_theta_local, 20000);
  EXPECT_EQ(g->rope_scaling.factor, 8);
  EXPECT_EQ(g->sliding_layers, (std::vector<uint8_t>{1, 1, 1, 1, 1, 0}));

  json whole = {
      {"model_type", "gemma3"}, {"text_config", base_config("gemma3_text")}, {"vision_config", json::object()}};
  auto w = lm_config_from_hf(whole);
  ASSERT_TRUE(w.ok()) << w.error().message;
  EXPECT_EQ(w->architecture, "gemma3");
}

TEST(LmConfig, ArchitectureRulesAreThoseOfTransformers) {
  auto smollm3 = lm_config_from_hf(base_config("smollm3"));
  ASSERT_TRUE(smollm3.ok());
  EXPECT_TRUE(smollm3->has_rope(0));
  EXPECT_FALSE(smollm3->has_rope(3));
  EXPECT_TRUE(smollm3->tied_embeddings);
  auto gemma2 = lm_config_from_hf(base_config("gemma2"));
  ASSERT_TRUE(gemma2.ok());
  EXPECT_TRUE(gemma2->slides(0));
  EXPECT_FALSE(gemma2->slides(1));
  EXPECT_EQ(gemma2->attention_softcap, 50);
  EXPECT_EQ(gemma2->logit_softcap, 30);
  EXPECT_DOUBLE_EQ(gemma2->embedding_scale, 8);
  auto qwen2 = lm_config_from_hf(base_config("qwen2"));
  ASSERT_TRUE(qwen2.ok());
  EXPECT_TRUE(qwen2->qkv_bias && !qwen2->o_bias);
  EXPECT_EQ(qwen2->sliding_window, 0);
  json odd = base_config("qwen2");
  odd["use_sliding_window"] = true, odd["sliding_window"] = 64, odd["max_window_layers"] = 4;
  auto sliding = lm_config_from_hf(odd);
  ASSERT_TRUE(sliding.ok());
  EXPECT_EQ(sliding->sliding_layers, (std::vector<uint8_t>{0, 0, 0, 0, 1, 1}));
}

TEST(LmConfig, RefusalsNameTheKey) {
  const auto refused = [](const json& j, const std::string& word) {
    auto c = lm_config_from_hf(j);
    ASSERT_FALSE(c.ok()) << word;
    EXPECT_EQ(c.error().kind, ErrorKind::data);
    EXPECT_NE(c.error().message.find(word), std::string::npos) << c.error().message;
  };
  json j = base_config("llama");
  j.erase("hidden_size");
  refused(j, "hidden_size");
  j = base_config("llama");
  j["hidden_size"] = "big";
  refused(j, "hidden_size");
  j = base_config("mamba2");
  refused(j, "mamba2");
  j = base_config("llama");
  j["num_key_value_heads"] = 3;
  refused(j, "key-value");
  j = base_config("llama");
  j["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 4.0}};
  refused(j, "yarn");
  j = base_config("llama");
  j["hidden_act"] = "relu";
  refused(j, "relu");
  j = base_config("llama");
  j["num_hidden_layers"] = int64_t{1} << 40;
  refused(j, "layers");
  j = base_config("llama");
  j["vocab_size"] = -5;
  refused(j, "vocabulary");
  j = base_config("llama");
  j["quantization_config"] = {{"quant_method", "gptq"}};
  refused(j, "quantized already");
  j = base_config("gemma2");
  j["layer_types"] = {"full_attention"};
  refused(j, "layer_types");
  refused(json::array(), "object");
  refused(json::object(), "model_type");
}

// llama.cpp's own conversion gives these for head size 64, base 500000, factor 32 (Llama 3.2 1B): first and last are
// untouched and full, and they never fall.
TEST(LmConfig, RopeFactorsRiseFromOneToFactor) {
  json j = base_config("llama");
  j["head_dim"] = 64, j["rope_theta"] = 500000.0;
  j["rope_scaling"] = {{"rope_type", "llama3"},
                       {"factor", 32.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  auto c = lm_config_from_hf(j);
  ASSERT_TRUE(c.ok());
  const auto f = rope_freq_factors(*c);
  ASSERT_EQ(f.size(), 32u);
  EXPECT_EQ(f.front(), 1);
  EXPECT_EQ(f.back(), 32);
  EXPECT_TRUE(std::is_sorted(f.begin(), f.end()));
  EXPECT_GT(std::count_if(f.begin(), f.end(), [](float v) { return v > 1 && v < 32; }), 2);
}

}  // namespace
}  // namespace pith
