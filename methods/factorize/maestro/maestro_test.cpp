// maestro: cuts by importance, training of prefixes, nested files, and what it refuses.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "base/file.h"
#include "engine/compress.h"
#include "engine/model_samples.h"
#include "nets/fixture.h"
#include "represent/low_rank.h"
#include "runtime/model_file.h"
#include "train/stop_after.h"

namespace pith {
namespace {

class Maestro : public testing::Test {
 protected:
  void SetUp() override {
    model_ = test::dense_model(fixture_.config, fixture_.tensors);
    const int64_t vocab = fixture_.config.vocab;
    tokens_ = (at::arange(32, at::kLong).unsqueeze(1) * 7 + at::arange(24, at::kLong) * 2).remainder(vocab);
  }
  Model run(const std::string& options, const Model& model, Progress& progress = quiet_progress(),
            NodeMap* kept = nullptr) const {
    return test::make_model("maestro", options, model, tokens_, progress, kept).model;
  }
  double loss(const Model& model) const { return lm_nll(*weights_of(model), tokens_).mean().item<double>(); }
  static const LowRank& product(const Model& model, const std::string& name) {
    return dynamic_cast<const LowRank&>(*model.find(name)->node);
  }
  double numbers(const Model& model) const {
    double n = 0;
    for (int64_t layer = 0; layer < fixture_.config.layers; ++layer)
      for (const LmLinear& l : block_linears(fixture_.config, layer))
        n += static_cast<double>(product(model, l.name).rank() * (l.out + l.in));
    return n;
  }
  double weights() const {
    double n = 0;
    for (int64_t layer = 0; layer < fixture_.config.layers; ++layer)
      for (const LmLinear& l : block_linears(fixture_.config, layer)) n += static_cast<double>(l.out * l.in);
    return n;
  }

  const Fixture fixture_{"llama"};
  Model model_;
  Tensor tokens_;
};

TEST_F(Maestro, CutsToTheSizeAskedForAndOneGivesTheModelBack) {
  for (const double compression : {1.5, 2.0, 4.0}) {
    const Model small = run("steps=0,compression=" + std::to_string(compression), model_);
    EXPECT_LE(numbers(small), weights() / compression);
    EXPECT_GT(numbers(small), 0.97 * weights() / compression - 200);
  }
  const Model same = run("compression=1", model_);
  for (size_t i = 0; i < model_.tensors.size(); ++i) EXPECT_EQ(same.tensors[i].node, model_.tensors[i].node);
}

TEST_F(Maestro, TrainingPrefixesHelpsTheCutAndAnyThreadsGiveTheSameBytes) {
  const std::string options = "steps=16,rate=0.01,compression=2.5";
  const int threads = at::get_num_threads();
  at::set_num_threads(2);
  const Model two = run(options, model_);
  at::set_num_threads(1);
  const Model one = run(options, model_);
  at::set_num_threads(threads);
  EXPECT_EQ(two.content_hash(), one.content_hash());
  EXPECT_LT(loss(two), loss(run("steps=0,compression=2.5", model_)) - 0.02);
}

// What a larger file holds is the beginning of what training found, so it is cut again without any.
TEST_F(Maestro, FilesAreNested) {
  const Model large = run("steps=6,batch=4,rate=0.003,compression=1.3", model_);
  const Model small = run("steps=0,compression=3", large);
  EXPECT_LE(numbers(small), weights() / 3);
  for (const LmLinear& l : block_linears(fixture_.config, 0)) {
    const LowRank &whole = product(large, l.name), &part = product(small, l.name);
    const Tensor u = decoded(*whole.u()).narrow(1, 0, part.rank()), v = decoded(*whole.v()).narrow(0, 0, part.rank());
    EXPECT_TRUE(at::equal(u, decoded(*part.u()))) << l.name;
    EXPECT_TRUE(at::equal(v, decoded(*part.v()))) << l.name;
  }
}

TEST_F(Maestro, TheLassoEmptiesTails) {
  const auto tails = [&](const std::string& lambda) {
    const Model m = run("steps=10,batch=4,rate=0.01,compression=1.2,sampler=none,lambda=" + lambda, model_);
    double share = 0;  // of the last third of directions in the norm of U
    for (const LmLinear& l : block_linears(fixture_.config, 0)) {
      const Tensor u = decoded(*product(m, l.name).u());
      const int64_t third = u.size(1) / 3;
      share += (u.narrow(1, u.size(1) - third, third).norm() / u.norm()).item<double>();
    }
    return share;
  };
  EXPECT_LT(tails("0.01"), tails("0"));
}

TEST_F(Maestro, AStoppedRunGoesOnToTheSameResult) {
  const std::string options = "steps=6,batch=4,rate=0.003";
  const Model whole = run(options, model_);
  test::StopAfter stop(3);
  NodeMap kept;
  EXPECT_THROW(run(options, model_, stop, &kept), Failure);
  EXPECT_EQ(run(options, model_, quiet_progress(), &kept).content_hash(), whole.content_hash());
}

TEST_F(Maestro, SizeIsKeptAndOutOfReachIsSaid) {
  const auto folder = std::filesystem::temp_directory_path() / ("pith-maestro-test-" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  CompressRequest r = test::lm_s_request(folder, "small.pith", "maestro", "steps=2,batch=2");
  r.budget = {Budget::Kind::size, 2'500'000};
  compress(r);
  EXPECT_LE(std::filesystem::file_size(r.output), 2'500'000u);
  EXPECT_GT(std::filesystem::file_size(r.output), 2'400'000u);
  r.output = (folder / "smaller.pith").string();
  r.budget.value = 400'000;
  EXPECT_NE(test::refusal([&] { compress(r); }).find("one direction"), std::string::npos);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace pith
