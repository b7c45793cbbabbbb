#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>

#include "base/file.h"
#include "tensor/parallel.h"
#include "train/lm_trainer.h"
#include "train/losses.h"
#include "train/optimizer.h"
#include "train/stop_after.h"

namespace pith {
namespace {

LmConfig tiny() {
  LmConfig c;
  c.hidden = 32;
  c.layers = 2;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 8;
  c.intermediate = 48;
  c.vocab = 24;
  c.context = 32;
  c.tied_embeddings = true;
  return c;
}

Tensor cycle(int64_t n) { return at::arange(n, at::kLong).remainder(12) * 2 + 1; }

std::string temporary(const char* name) { return testing::TempDir() + std::to_string(getpid()) + name; }

using test::StopAfter;

double largest_gap(const TensorMap& a, const TensorMap& b) {
  double gap = 0;
  for (const auto& [name, t] : a) gap = std::max(gap, (t - b.at(name)).abs().max().item<double>());
  return gap;
}

TEST(Train, AdamWIsItsEquations) {
  Tensor w = at::tensor({1.0, -2.0, 0.5, 3.0}, at::kDouble).view({2, 2}).requires_grad_(true);
  AdamW optimizer({{"w", w}}, {.beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-8, .decay = 0.1});
  std::vector<double> value = {1.0, -2.0, 0.5, 3.0}, m(4, 0), v(4, 0);
  for (int t = 1; t <= 5; ++t) {
    (w * w * w).sum().backward();
    optimizer.step(0.01);
    optimizer.zero_grad();
    for (size_t i = 0; i < 4; ++i) {
      const double g = 3 * value[i] * value[i];
      m[i] = 0.9 * m[i] + 0.1 * g;
      v[i] = 0.99 * v[i] + 0.01 * g * g;
      const double update = (m[i] / (1 - std::pow(0.9, t))) / (std::sqrt(v[i] / (1 - std::pow(0.99, t))) + 1e-8);
      value[i] = value[i] * (1 - 0.01 * 0.1) - 0.01 * update;
    }
  }
  for (int64_t i = 0; i < 4; ++i)
    EXPECT_NEAR(w.detach().view({-1})[i].item<double>(), value[static_cast<size_t>(i)], 1e-10);
}

TEST(Train, ScheduleAndClipping) {
  EXPECT_DOUBLE_EQ(cosine_rate(0, 10, 100, 1, 0.1), 0.1);
  EXPECT_DOUBLE_EQ(cosine_rate(9, 10, 100, 1, 0.1), 1);
  EXPECT_DOUBLE_EQ(cosine_rate(10, 10, 100, 1, 0.1), 1);
  EXPECT_NEAR(cosine_rate(55, 10, 100, 1, 0.1), 0.55, 1e-12);
  EXPECT_DOUBLE_EQ(cosine_rate(100, 10, 100, 1, 0.1), 0.1);
  Tensor a = at::ones({3}).requires_grad_(true), b = at::ones({1}).requires_grad_(true), unused = at::ones({1});
  ((a * 2).sum() + b.sum() * 2).backward();  // gradients 2, 2, 2, 2: norm 4
  EXPECT_NEAR(clip_gradients({a, b, unused}, 1.0), 4, 1e-6);
  EXPECT_NEAR(a.grad().norm().item<double>(), std::sqrt(0.75), 1e-6);
  EXPECT_NEAR(clip_gradients({a, b}, 5.0), 1, 1e-6);
}

TEST(Train, LossesAreTheirDefinitions) {
  const Tensor logits = at::randn({2, 3, 5}).to(at::kDouble), other = at::randn({2, 3, 5}).to(at::kDouble);
  const Tensor targets = at::randint(0, 5, {2, 3}, at::kLong);
  const Tensor log_p = at::log_softmax(logits, -1);
  EXPECT_NEAR(next_token_loss(logits, targets).item<double>(),
              -log_p.gather(2, targets.unsqueeze(2)).mean().item<double>(), 1e-12);
  EXPECT_NEAR(distillation_loss(logits, logits, 2).item<double>(), 0, 1e-12);
  const Tensor p = at::softmax(other / 2, -1), q = at::softmax(logits / 2, -1);
  EXPECT_NEAR(distillation_loss(logits, other, 2).item<double>(), 4 * (p * (p / q).log()).sum(-1).mean().item<double>(),
              1e-12);
}

TEST(Train, LearnsASequence) {
  const LmConfig config = tiny();
  const TensorMap start = initial_weights(config, 3);
  EXPECT_EQ(largest_gap(start, initial_weights(config, 3)), 0);
  EXPECT_GT(largest_gap(start, initial_weights(config, 4)), 0);
  LmTrainOptions options;
  options.steps = 60;
  options.batch = 4;
  options.context = 16;
  options.rate = 1e-2;
  options.warmup = 5;
  const LmTrained trained = train_lm(config, start, cycle(500), options);
  EXPECT_LT(trained.last_loss, 0.1);
  const Tensor nll = lm_nll(*weights_of(config, trained.weights), cycle(17).view({1, 17}));
  EXPECT_LT(nll.narrow(1, 2, 14).mean().item<double>(), 0.1);
  EXPECT_GT(lm_nll(*weights_of(config, start), cycle(17).view({1, 17})).mean().item<double>(), 2.5);  // log 24 = 3.2
}

TEST(Train, StopsAndGoesOnToTheSameWeights) {
  const OneThread one_thread;
  const LmConfig config = tiny();
  const TensorMap start = initial_weights(config, 3);
  LmTrainOptions options;
  options.steps = 12;
  options.batch = 2;
  options.context = 8;
  options.warmup = 3;
  options.checkpoint_every = 4;
  const TensorMap whole = train_lm(config, start, cycle(200), options).weights;
  options.checkpoint = temporary("train.safetensors");
  for (const uint64_t stop : {3u, 7u}) {
    StopAfter progress(stop);
    EXPECT_THROW(train_lm(config, start, cycle(200), options, progress), Failure);
    EXPECT_TRUE(file_exists(options.checkpoint));
  }
  EXPECT_EQ(largest_gap(train_lm(config, start, cycle(200), options).weights, whole), 0);
  // Another run's checkpoint is noticed.
  options.seed = 99;
  EXPECT_THROW(train_lm(config, start, cycle(200), options), Failure);
  std::remove(options.checkpoint.c_str());
}

TEST(Train, DistilsATeacher) {
  const LmConfig config = tiny();
  LmTrainOptions options;
  options.steps = 60;
  options.batch = 4;
  options.context = 16;
  options.rate = 1e-2;
  options.warmup = 5;
  const auto teacher = weights_of(config, train_lm(config, initial_weights(config, 3), cycle(500), options).weights);
  options.teacher = teacher.get();
  options.teacher_share = 1;
  const auto pupil = weights_of(config, train_lm(config, initial_weights(config, 8), cycle(500), options).weights);
  const at::NoGradGuard no_grad;
  const Tensor tokens = cycle(16).view({1, 16});
  EXPECT_LT(distillation_loss(lm_logits(*pupil, tokens), lm_logits(*teacher, tokens), 1).item<double>(), 0.1);
}

TEST(Train, RefusesWhatCannotBeTrained) {
  const LmConfig config = tiny();
  const TensorMap start = initial_weights(config, 1);
  LmTrainOptions options;
  options.context = 16;
  EXPECT_THROW(train_lm(config, start, cycle(10), options), Failure);
  EXPECT_THROW(train_lm(config, start, cycle(100) + 50, options), Failure);
  EXPECT_THROW(train_lm(config, {}, cycle(100), options), Failure);
  options.steps = 0;
  EXPECT_THROW(train_lm(config, start, cycle(100), options), Failure);
}

}  // namespace
}  // namespace pith
