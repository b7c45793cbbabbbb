// pela: ranks and sizes, plain SVD without training, training that resumes, a budget, and what it refuses.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "base/file.h"
#include "engine/compress.h"
#include "engine/model_samples.h"
#include "maths/wsvd.h"
#include "nets/fixture.h"
#include "represent/low_rank.h"
#include "runtime/model_file.h"
#include "train/stop_after.h"

namespace pith {
namespace {

class Pela : public testing::Test {
 protected:
  void SetUp() override {
    model_ = test::dense_model(fixture_.config, fixture_.tensors);
    const int64_t vocab = fixture_.config.vocab;
    tokens_ = (at::arange(32, at::kLong).unsqueeze(1) * 7 + at::arange(24, at::kLong) * 2).remainder(vocab);
  }
  ModelResult run(const std::string& options, Progress& progress = quiet_progress(), NodeMap* kept = nullptr) const {
    return test::make_model("pela", options, model_, tokens_, progress, kept);
  }
  double loss(const Model& model) const { return lm_nll(*weights_of(model), tokens_).mean().item<double>(); }

  const Fixture fixture_{"llama"};
  Model model_;
  Tensor tokens_;
};

TEST_F(Pela, WithoutStepsItIsTheSvdOfTheRankThatTheFormulaGives) {
  const Model svd = run("steps=0,compression=2").model;
  for (const LmLinear& l : block_linears(fixture_.config, 0)) {
    const auto* low_rank = dynamic_cast<const LowRank*>(svd.find(l.name)->node.get());
    ASSERT_NE(low_rank, nullptr) << l.name;
    const int64_t rank = l.out * l.in / (2 * (l.out + l.in));
    EXPECT_EQ(low_rank->rank(), rank) << l.name;
    EXPECT_EQ(svd.find(l.name)->node->bits().total(), static_cast<uint64_t>(16 * rank * (l.out + l.in)));
    const Tensor w = fixture_.tensors.at(l.name).to(at::kDouble),
                 after = decoded(*svd.find(l.name)->node).to(at::kDouble);
    const LowRankFit best = wsvd(w, {}, {}, rank);
    const double tail = best.spectrum.narrow(0, rank, best.spectrum.size(0) - rank).square().sum().item<double>();
    EXPECT_NEAR((w - after).square().sum().item<double>(), tail, 1e-3 * tail);
  }
}

TEST_F(Pela, CompressionOneGivesTheModelBack) {
  const Model same = run("compression=1").model;
  for (size_t i = 0; i < model_.tensors.size(); ++i) EXPECT_EQ(same.tensors[i].node, model_.tensors[i].node);
}

TEST_F(Pela, TrainingRepairsAndAnyThreadsGiveTheSameBytes) {
  const std::string options = "steps=12,rate=0.003,compression=2";
  const int threads = at::get_num_threads();
  at::set_num_threads(2);
  const Model two = run(options).model;
  at::set_num_threads(1);
  const Model one = run(options).model;
  at::set_num_threads(threads);
  EXPECT_EQ(two.content_hash(), one.content_hash());
  EXPECT_LT(loss(two), loss(run("steps=0,compression=2").model) - 0.02);
}

TEST_F(Pela, EachPartOfTheLossDoesWhatItSays) {
  const auto largest_change = [&](const Model& m) {
    double sum = 0;
    for (const LmLinear& l : block_linears(fixture_.config, 0))
      sum += (decoded(*m.find(l.name)->node) - fixture_.tensors.at(l.name)).abs().max().item<double>();
    return sum;
  };
  const std::string options = "steps=8,batch=4,rate=0.003,compression=2,";
  EXPECT_LT(largest_change(run(options + "gamma=100").model), largest_change(run(options + "gamma=0").model));
  EXPECT_LT(largest_change(run(options + "gamma=100,wp=hinge").model), largest_change(run(options + "gamma=0").model));
  const auto features = [&](const Model& m) {
    const auto weights = weights_of(m);
    Tensor x = embed(*weights, tokens_);
    const LmContext context = make_context(m.config, tokens_.size(1));
    for (int64_t layer = 0; layer < m.config.layers; ++layer) x = LmBlock::load(*weights, layer).forward(x, context);
    return x;
  };
  const auto apart = [&](const Model& m) { return (features(m) - features(model_)).square().mean().item<double>(); };
  EXPECT_LT(apart(run(options + "gamma=0,alpha=100").model), apart(run(options + "gamma=0,alpha=0").model));
}

TEST_F(Pela, AStoppedRunGoesOnToTheSameResult) {
  const std::string options = "steps=6,batch=4,rate=0.003";
  const Model whole = run(options).model;
  test::StopAfter stop(3);
  NodeMap kept;
  EXPECT_THROW(run(options, stop, &kept), Failure);
  EXPECT_EQ(run(options, quiet_progress(), &kept).model.content_hash(), whole.content_hash());
}

TEST_F(Pela, SizeFindsTheCompressionAndTheFileRuns) {
  const auto folder = std::filesystem::temp_directory_path() / ("pith-pela-test-" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  CompressRequest r = test::lm_s_request(folder, "small.pith", "pela", "steps=2,batch=2");
  r.budget = {Budget::Kind::size, 2'500'000};
  compress(r);
  EXPECT_LE(std::filesystem::file_size(r.output), 2'500'000u);
  EXPECT_GT(std::filesystem::file_size(r.output), 2'400'000u);
  for (const Check& check : verify_model(r.output)) EXPECT_TRUE(check.passed) << check.name << ": " << check.detail;
  r.output = (folder / "smaller.pith").string();
  r.budget.value = 300'000;
  EXPECT_THROW(compress(r), Failure);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace pith
