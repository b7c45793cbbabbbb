// modegpt on whole models: what is redundant costs nothing when it goes, in every architecture; files, budgets,
// refusals.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "base/file.h"
#include "engine/compress.h"
#include "engine/model_samples.h"
#include "nets/fixture.h"
#include "runtime/lm.h"
#include "runtime/model_file.h"

namespace pith {
namespace {

using test::refusal;

Model model_of(const LmConfig& config, const TensorMap& tensors) { return test::dense_model(config, tensors); }

ModelResult narrow(const Model& model, const std::string& options, const Tensor& tokens) {
  return test::make_model("modegpt", options, model, tokens);
}

Tensor random_tokens(const LmConfig& config, int64_t sequences) {
  at::Generator g = test::generator(3);
  return at::randint(0, config.vocab, {sequences, 24}, g, at::kLong);
}

// Makes every third (or fourth) channel of each module worth nothing: pairs of queries and keys that are silent, values
// that are mixtures of others, MLP channels that never fire.
void plant(Fixture& f, int64_t one_in) {
  const LmConfig& c = f.config;
  const int64_t d = c.head_dim, half = d / 2, values = d / one_in;
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const std::string p = "model.layers." + std::to_string(layer) + ".";
    const auto silence = [&](const std::string& name, int64_t row) {
      f.tensors.at(p + name + ".weight")[row].zero_();
      if (f.tensors.contains(p + name + ".bias")) f.tensors.at(p + name + ".bias")[row].zero_();
    };
    for (int64_t h = 0; h < c.heads; ++h)
      for (int64_t pair = 0; pair < half / one_in; ++pair) {
        // Other pairs in other key heads, so that each keeps its own rotations.
        const int64_t at = (one_in * pair + h * c.kv_heads / c.heads) % half;
        silence("self_attn.q_proj", h * d + at), silence("self_attn.q_proj", h * d + half + at);
      }
    Tensor& v = f.tensors.at(p + "self_attn.v_proj.weight");
    for (int64_t g = 0; g < c.kv_heads; ++g)
      v.narrow(0, g * d, values)
          .copy_(at::mm(noise({values, d - values}, 7) * 0.5, v.narrow(0, g * d + values, d - values)));
    for (int64_t e = 0; e < std::max<int64_t>(1, c.experts); ++e)
      for (int64_t row = 0; row < c.intermediate; row += one_in)
        silence(c.experts == 0 ? "mlp.gate_proj" : "block_sparse_moe.experts." + std::to_string(e) + ".w1", row);
  }
}

double gap(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

class Modegpt : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(, Modegpt, testing::ValuesIn(fixture_names()), [](const auto& i) { return i.param; });

TEST_P(Modegpt, WhatSaysNothingCostsNothing) {
  Fixture f(GetParam());
  const bool thirds = f.config.head_dim % 3 == 0;
  plant(f, thirds ? 3 : 4);
  const Model model = model_of(f.config, f.tensors);
  const std::string modules = f.config.qk_norm ? "mlp+vo" : "mlp+qk+vo";
  double share = thirds ? 1.0 / 3 : 0.25;
  if (f.config.qk_norm) {  // queries and keys keep what they have
    double narrowed = 0, all = 0;
    for (const LmLinear& l : block_linears(f.config, 0)) {
      const bool whole = l.name.find("q_proj") != std::string::npos || l.name.find("k_proj") != std::string::npos;
      all += static_cast<double>(l.out * l.in), narrowed += whole ? 0 : static_cast<double>(l.out * l.in);
    }
    share *= narrowed / all;
  }
  const ModelResult result = narrow(model,
                                    "allocation=uniform,multiple=4,head-multiple=2,ridge=1e-6,modules=" + modules +
                                        ",ratio=" + std::to_string(share - 1e-5),
                                    random_tokens(f.config, 16));
  const LmConfig& c = result.model.config;
  ASSERT_TRUE(check_model(result.model).ok()) << check_model(result.model).error().message;
  const int64_t rest = thirds ? 3 : 4;
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    EXPECT_EQ(c.mlp_width(layer), f.config.intermediate * (rest - 1) / rest);
    EXPECT_EQ(c.value_dim(layer), f.config.head_dim * (rest - 1) / rest);
    EXPECT_EQ(c.key_dim(layer), f.config.qk_norm ? f.config.head_dim : f.config.head_dim * (rest - 1) / rest);
  }
  // The weights that are new are fp16, so what is left of the difference is rounding.
  const Tensor before = lm_logits(*f.weights(), f.tokens), after = lm_logits(*weights_of(result.model), f.tokens);
  EXPECT_LT(gap(before, after), 0.02 * before.std().item<double>());

  // The runtime computes the same as the nets, whole and token by token, and from a file.
  const std::string path = testing::TempDir() + "/modegpt-" + GetParam() + ".pith";
  must(write_pith(result.model, path, true));
  const Model read = must(open_model(path));
  EXPECT_EQ(read.config, c);
  ThreadPool pool(2);
  for (const bool streamed : {false, true}) {
    const auto lm = must(Lm::load(read, {.precision = Precision::exact, .kv = KvType::f32, .streamed = streamed}, pool,
                                  quiet_progress()));
    KvStore kv = lm->new_kv();
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < f.tokens.size(1); ++t) ids.push_back(static_cast<int32_t>(f.tokens[0][t].item<int64_t>()));
    std::vector<float> logits, last;
    must(lm->forward(std::span(ids).first(ids.size() - 1), kv, Lm::Logits::all, logits, pool));
    must(lm->forward(std::span(ids).last(1), kv, Lm::Logits::last, last, pool));
    logits.insert(logits.end(), last.begin(), last.end());
    const Tensor found = at::from_blob(logits.data(), after[0].sizes(), at::kFloat);
    EXPECT_LT(gap(found, after[0]), 1e-3) << streamed;
  }
}

TEST(ModegptWays, RatioZeroGivesTheModelBack) {
  const Fixture f("llama");
  const Model model = model_of(f.config, f.tensors);
  const ModelResult result = narrow(model, "ratio=0", random_tokens(f.config, 2));
  EXPECT_EQ(result.model.config, model.config);
  for (size_t i = 0; i < model.tensors.size(); ++i) EXPECT_EQ(result.model.tensors[i].node, model.tensors[i].node);
}

TEST(ModegptWays, EveryAllocationMeetsTheRatioAndAnyThreadsGiveTheSameBytes) {
  const Fixture f("llama");
  const Model model = model_of(f.config, f.tensors);
  const Tensor tokens = random_tokens(f.config, 8);
  const auto block_weights = [](const LmConfig& c) {
    double n = 0;
    for (int64_t layer = 0; layer < c.layers; ++layer)
      for (const LmLinear& l : block_linears(c, layer)) n += static_cast<double>(l.out * l.in);
    return n;
  };
  const int threads = at::get_num_threads();
  for (const std::string way : {"entropic", "uniform", "solver"}) {
    SCOPED_TRACE(way);
    const std::string options = "ratio=0.4,multiple=2,head-multiple=2,allocation=" + way;
    at::set_num_threads(2);
    const ModelResult two = narrow(model, options, tokens);
    at::set_num_threads(1);
    const ModelResult one = narrow(model, options, tokens);
    EXPECT_EQ(two.model.content_hash(), one.model.content_hash());
    const double left = block_weights(two.model.config) / block_weights(model.config);
    EXPECT_LE(left, 0.6);
    EXPECT_GT(left, 0.5);
    EXPECT_EQ(two.predicted_loss.has_value(), way == "solver");
  }
  at::set_num_threads(threads);
}

TEST(ModegptWays, RefusesWhatCannotBe) {
  const Fixture f("llama");
  const Model model = model_of(f.config, f.tensors);
  const Tensor tokens = random_tokens(f.config, 2);
  EXPECT_NE(refusal([&] { narrow(model, "ratio=0.9", tokens); }).find("most=0.8"), std::string::npos);
  EXPECT_NE(refusal([&] { narrow(model, "ratio=0.9,allocation=solver", tokens); }).find("most=0.8"), std::string::npos);
  EXPECT_NE(refusal([&] { narrow(model, "ratio=0.5,modules=qk", tokens); }).find("most=0.8"), std::string::npos);
  const Fixture normed("qwen3");
  EXPECT_NE(refusal([&] {
              narrow(model_of(normed.config, normed.tensors), "ratio=0.2", random_tokens(normed.config, 2));
            }).find("mlp+vo"),
            std::string::npos);
}

TEST(ModegptWays, SaysWhenTheTextIsTooShortForTheCovariance) {
  const Fixture f("llama");
  const Model model = model_of(f.config, f.tensors);
  const ModelResult result = narrow(model, "ratio=0.3,multiple=2,allocation=uniform", random_tokens(f.config, 1));
  int said = 0;
  for (const std::string& note : result.notes) said += note.find("singular") != std::string::npos;
  EXPECT_EQ(said, f.config.layers);
  EXPECT_TRUE(check_finite(result.model).ok());
}

// ---- the whole command, on the recipe model

class ModegptFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("pith-modegpt-test-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  CompressRequest request(const std::string& output, const std::string& options) const {
    CompressRequest r = test::lm_s_request(folder_, output, "modegpt", options);
    r.calibration_sequences = 8, r.fisher_sequences = 4;
    return r;
  }
  static std::string bytes(const std::string& path) { return must(read_text(path, 1 << 30)); }
  std::filesystem::path folder_;
};

TEST_F(ModegptFiles, SizeIsKeptAndUsedAndAKilledRunEndsWithTheSameBytes) {
  CompressRequest whole = request("whole.pith", "");
  whole.budget = {Budget::Kind::size, 3'000'000};
  const Report report = compress(whole);
  EXPECT_LE(std::filesystem::file_size(whole.output), 3'000'000u);
  EXPECT_GT(std::filesystem::file_size(whole.output), 2'850'000u);
  EXPECT_GE(report.notes.size(), 3u);
  CompressRequest cut = whole;
  cut.output = (folder_ / "cut.pith").string();
  struct Stop : Progress {
    bool step(const ProgressEvent& event) override { return event.stage != "narrow" || event.done < 3; }
  } stop;
  EXPECT_THROW(compress(cut, stop), Failure);
  compress(cut);
  EXPECT_EQ(bytes(cut.output), bytes(whole.output));
  for (const Check& check : verify_model(whole.output)) EXPECT_TRUE(check.passed) << check.name << ": " << check.detail;
}

TEST_F(ModegptFiles, ExportsWhereShapesAllowAndSaysWhyNot) {
  const auto export_hf = [&](const std::string& from) {
    return write_hf_folder(must(open_model(from)), from + "-hf", DType::f16, false);
  };
  CompressRequest plain = request("plain.pith", "modules=mlp,allocation=uniform,ratio=0.2");
  compress(plain);
  EXPECT_TRUE(must(open_model(plain.output)).config.layer_shapes.empty());
  EXPECT_TRUE(export_hf(plain.output).ok());
  EXPECT_EQ(must(open_model(plain.output + "-hf")).config.intermediate,
            must(open_model(plain.output)).config.intermediate);
  // Heads that are narrow: neither way, and a GGUF is refused before the blocks are begun.
  CompressRequest heads = request("heads.pith", "ratio=0.2");
  compress(heads);
  EXPECT_NE(export_hf(heads.output).error().message.find("modules mlp"), std::string::npos);
  heads.output = (folder_ / "heads.gguf").string();
  EXPECT_NE(refusal([&] { compress(heads); }).find("whole heads"), std::string::npos);
  // MLPs of their own width: llama.cpp runs them.
  CompressRequest mlps = request("mlps.gguf", "modules=mlp,ratio=0.2,eps=0.05");
  compress(mlps);
  const Model read = must(open_model(mlps.output));
  ASSERT_EQ(read.config.layer_shapes.size(), 5u);
  // And what came out is a model like any other.
  CompressRequest again = request("again.pith", "");
  again.input = (folder_ / "heads.pith").string();
  again.allow = {{"gptq", "bits=4,group=32"}};
  compress(again);
  EXPECT_EQ(must(open_model(again.output)).config, must(open_model(again.input)).config);
}

TEST_F(ModegptFiles, TakesNoMaxLossTuningSharesOrCompany) {
  CompressRequest r = request("x.pith", "");
  r.budget = {Budget::Kind::loss, 0.02};
  EXPECT_NE(refusal([&] { compress(r); }).find("--max-loss"), std::string::npos);
  r.budget = {};
  r.tune_steps = 10;
  EXPECT_NE(refusal([&] { compress(r); }).find("--tune"), std::string::npos);
  r.tune_steps = 0;
  r.allow.push_back({"rtn", "bits=4"});
  r.budget = {Budget::Kind::size, 3'000'000};
  EXPECT_NE(refusal([&] { compress(r); }).find("alone"), std::string::npos);
  r.allow.pop_back();
  r.budget.value = 900'000;  // far below what narrowing can reach
  EXPECT_NE(refusal([&] { compress(r); }).find("bytes in all"), std::string::npos);
}

}  // namespace
}  // namespace pith
