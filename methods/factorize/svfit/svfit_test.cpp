// svfit: training of singular values, the delta's file, and what it refuses.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "base/file.h"
#include "engine/model_samples.h"
#include "formats/safetensors.h"
#include "nets/fixture.h"
#include "represent/dense.h"
#include "train/adapter.h"
#include "train/stop_after.h"

namespace pith {
namespace {

using test::refusal;

class Svfit : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("pith-svfit-test-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    model_ = test::dense_model(fixture_.config, fixture_.tensors);
    // A text with a rule that the random model does not know: every token is followed by the next but one.
    const int64_t vocab = fixture_.config.vocab;
    tokens_ = (at::arange(16, at::kLong).unsqueeze(1) * 7 + at::arange(24, at::kLong) * 2).remainder(vocab);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  ModelResult run(const std::string& options, const Model& model, Progress& progress = quiet_progress(),
                  NodeMap* kept = nullptr) const {
    return test::make_model("svfit", options, model, tokens_, progress, kept);
  }
  double loss(const Model& model) const { return lm_nll(*weights_of(model), tokens_).mean().item<double>(); }

  const Fixture fixture_{"llama"};
  std::filesystem::path folder_;
  Model model_;
  Tensor tokens_;
};

TEST_F(Svfit, LearnsTheTextTouchesOnlyItsTargetsAndAnyThreadsGiveTheSameBytes) {
  const std::string options = "steps=30,rate=0.05,targets=qkvo";
  const int threads = at::get_num_threads();
  at::set_num_threads(2);
  const Model two = run(options, model_).model;
  at::set_num_threads(1);
  const Model one = run(options, model_).model;
  at::set_num_threads(threads);
  EXPECT_EQ(two.content_hash(), one.content_hash());
  EXPECT_LT(loss(two), loss(model_) - 0.02);
  for (const ModelTensor& t : two.tensors) {
    const bool target = t.name.find("self_attn") != std::string::npos && t.name.ends_with("weight");
    EXPECT_EQ(t.node != model_.find(t.name)->node, target) << t.name;
  }
  // What moves lies along the singular vectors: U^T (W' - W) V is diagonal.
  const std::string name = "model.layers.0.self_attn.q_proj.weight";
  const Tensor w = decoded(*model_.find(name)->node).to(at::kDouble),
               after = decoded(*two.find(name)->node).to(at::kDouble);
  const auto [u, s, vt] = at::linalg_svd(w, false);
  const Tensor shift = at::mm(at::mm(u.t(), after - w), vt.t());
  const double off = (shift - at::diag(shift.diagonal())).abs().max().item<double>();
  EXPECT_LT(off, 0.02 * shift.diagonal().abs().max().item<double>());
}

TEST_F(Svfit, AStoppedRunGoesOnToTheSameResult) {
  const std::string options = "steps=20,rate=0.05";
  const Model whole = run(options, model_).model;
  test::StopAfter stop(7);
  NodeMap kept;
  EXPECT_THROW(run(options, model_, stop, &kept), Failure);
  EXPECT_EQ(kept.size(), 1u);
  EXPECT_EQ(run(options, model_, quiet_progress(), &kept).model.content_hash(), whole.content_hash());
}

TEST_F(Svfit, ADeltaMergesToTheSameModelAndIsSmall) {
  const Model trained = run("steps=20,rate=0.05,rank=5,delta=" + path("d.safetensors"), model_).model;
  EXPECT_EQ(run("from=" + path("d.safetensors"), model_).model.content_hash(), trained.content_hash());
  const auto file = must(SafetensorsFile::open(path("d.safetensors"), {}));
  uint64_t numbers = 0;
  for (const auto& e : file.entries()) numbers += e.bytes / 4;
  EXPECT_EQ(numbers, static_cast<uint64_t>(2 * 5 * 2 * fixture_.config.layers));
  EXPECT_NE(refusal([&] { run("delta=" + path("d.safetensors"), model_); }).find("exists already"), std::string::npos);

  // The same model in fp16 takes it and says so; another one does not.
  Model half = model_;
  for (ModelTensor& t : half.tensors) {
    const auto values = decode_all(*t.node);
    t.node = must(Dense::from(DType::f16, t.node->rows(), t.node->cols(), values));
  }
  const ModelResult taken = run("from=" + path("d.safetensors"), half);
  ASSERT_EQ(taken.notes.size(), 1u);
  EXPECT_NE(taken.notes[0].find("another file"), std::string::npos);
  Fixture other("llama");
  other.tensors["model.layers.1.self_attn.v_proj.weight"] *= 1.2;
  EXPECT_NE(refusal([&] {
              run("from=" + path("d.safetensors"), test::dense_model(other.config, other.tensors));
            }).find("another model"),
            std::string::npos);
  const Fixture experts("mixtral");
  EXPECT_NE(refusal([&] { run("from=" + path("d.safetensors"), test::dense_model(experts.config, experts.tensors)); }),
            "accepted");
  must(write_file(path("junk"), std::string("no delta"), false));
  EXPECT_NE(refusal([&] { run("from=" + path("junk"), model_); }), "accepted");
}

TEST_F(Svfit, RefusesWhatCannotBe) {
  EXPECT_NE(refusal([&] { run("rank=60000", model_); }).find("is above"), std::string::npos);
  EXPECT_NE(refusal([&] { run("which=bottom,rank=2,delta=" + path("b"), model_); }).find("which"), std::string::npos);
  // Directions by energy: all of them at 1, some below.
  const auto trained = [&](const std::string& options) { return run("steps=1," + options, model_).notes.back(); };
  EXPECT_NE(trained("energy=0.5"), trained("energy=1"));
}

TEST(TrainAdapter, GradientOfASingularValueIsThatOfTheFormula) {
  const Fixture f("llama");
  const auto weights = f.weights();
  const std::string name = "model.layers.0.mlp.down_proj.weight";
  const Tensor w = weights->tensor(name);
  const auto [u, s, vt] = at::linalg_svd(w, false);
  // One direction alone, and a tiny step: Adam moves it by rate against the sign of the loss's slope.
  const auto shifted = [&, u = u, vt = vt](const Tensor& by) { return w + at::outer(u.select(1, 0), vt[0]) * by; };
  const auto loss = [&](double by) {
    TensorMap changed = f.tensors;
    changed[name] = shifted(at::full({1}, by));
    return lm_nll(*weights_of(f.config, changed), f.tokens).mean().item<double>();
  };
  Adapter adapter;
  adapter.parameters["x"] = at::zeros({1}, at::kFloat);
  adapter.weights = [&](const TensorMap& p, int64_t) { return TensorMap{{name, shifted(p.at("x"))}}; };
  AdapterOptions options;
  options.steps = 1, options.batch = f.tokens.size(0), options.rate = 1e-3, options.warmup = 1;
  const AdapterTrained found = train_adapter(*weights, adapter, f.tokens, f.tokens, options);
  EXPECT_NEAR(found.before, loss(0), 1e-4);
  const double slope = (loss(1e-2) - loss(-1e-2)) / 2e-2;
  EXPECT_NEAR(found.parameters.at("x").item<double>(), slope > 0 ? -1e-3 : 1e-3, 1e-5);
  EXPECT_LT(found.after, found.before);
}

}  // namespace
}  // namespace pith
