// What is special to ec: the step alone sets size and loss, the loss follows step^2 / 12, G moves bits between rows.
#include <gtest/gtest.h>

#include <cmath>

#include "engine/assemble.h"
#include "engine/fit.h"
#include "represent/grid.h"

namespace pith {
namespace {

struct Problem {
  Moments moments;
  FitJob job;
};

Problem problem(int64_t rows, int64_t cols, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto normal = [&](int64_t a, int64_t b) { return at::randn({a, b}, generator, at::kFloat); };
  Problem p;
  const Tensor mix = at::eye(cols) + 0.3 * normal(cols, cols) / std::sqrt(static_cast<double>(cols)) * 3;
  p.moments.add(at::mm(normal(4 * cols, cols), mix));
  p.job.name = "w";
  p.job.weight = normal(rows, cols) * 0.05;
  p.job.row_fisher = at::exp(normal(rows, 1).squeeze(1)).to(at::kDouble);
  return p;
}

NodePtr fit(const Problem& p, const std::string& options) {
  FitJob job = p.job;
  job.inputs = &p.moments;
  const Options parsed = must(Options::parse(options, find_method("ec")->params));
  return find_fit("ec")->run(job, parsed);
}

double loss(const Problem& p, const Node& node) {
  FitJob job = p.job;
  job.inputs = &p.moments;
  return predicted_loss(job, node);
}

double coded_bits(const NodePtr& node) {
  Model model;
  model.tensors.push_back({"w", {node->rows(), node->cols()}, node});
  return static_cast<double>(assemble(model, {}).bits().total()) / static_cast<double>(node->rows() * node->cols());
}

TEST(Ec, LossIsStepSquaredOverTwelveAWeight) {
  const Problem p = problem(96, 128, 1);
  const NodePtr node = fit(p, "step=0.01,dead-zone=0");
  // 1/2 sum G dW H dW^T with H + damping >= H: the bound is met from below, closely at this damping.
  const double expected = 0.5 * 96 * 128 * 0.01 * 0.01 / 12;
  EXPECT_LT(loss(p, *node), 1.05 * expected);
  EXPECT_GT(loss(p, *node), 0.75 * expected);
}

TEST(Ec, HalvingTheStepCostsOneBit) {
  const Problem p = problem(256, 128, 2);
  const double coarse = coded_bits(fit(p, "step=0.004")), fine = coded_bits(fit(p, "step=0.002"));
  EXPECT_NEAR(fine - coarse, 1.0, 0.12);  // shared tables of a single small matrix are a little off
}

TEST(Ec, CompensationAndFisherEachPayAtEqualSteps) {
  const Problem p = problem(128, 128, 3);
  const double full = loss(p, *fit(p, "step=0.02"));
  EXPECT_LT(full, 0.9 * loss(p, *fit(p, "step=0.02,compensate=false")));
  // Without G rows are rounded alike; compare at the size that G's steps take.
  const double bits = coded_bits(fit(p, "step=0.02"));
  double low = -16, high = 4;
  for (int i = 0; i < 24; ++i) {
    const double middle = (low + high) / 2;
    (coded_bits(fit(p, "fisher=false,step=" + std::to_string(std::exp2(middle)))) > bits ? low : high) = middle;
  }
  EXPECT_LT(full, loss(p, *fit(p, "fisher=false,step=" + std::to_string(std::exp2(high)))));
}

TEST(Ec, AssembledTreeDecodesToTheSameValues) {
  const Problem p = problem(70, 90, 4);
  const NodePtr node = fit(p, "step=0.01");
  Model model;
  model.tensors.push_back({"w", {70, 90}, node});
  const Model coded = assemble(model, {});
  EXPECT_EQ(decode_all(*coded.tensors[0].node), decode_all(*node));
  EXPECT_LT(coded.bits().total(), node->bits().total());
}

TEST(Ec, MassiveInputKeepsCodesInRange) {
  Problem p = problem(32, 64, 5);
  Tensor x = at::randn({256, 64}, at::detail::createCPUGenerator(6), at::kFloat);
  x.select(1, 7).mul_(1e5);
  p.moments = Moments();
  p.moments.add(x);
  const NodePtr node = fit(p, "step=10");
  EXPECT_TRUE(std::isfinite(loss(p, *node)));
  for (const float v : decode_all(*node)) ASSERT_TRUE(std::isfinite(v));
}

TEST(Ec, ColumnsTooFineForSixteenBitsAreMadeCoarser) {
  // A massive input whose column would need codes beyond 16 bits at this step (seen in SmolLM2's down projections).
  Problem p = problem(32, 64, 7);
  Tensor x = at::randn({256, 64}, at::detail::createCPUGenerator(8), at::kFloat);
  x.select(1, 7).mul_(1e3);
  p.moments = Moments();
  p.moments.add(x);
  p.job.weight.select(1, 7).mul_(40);
  const NodePtr node = fit(p, "step=0.01");
  EXPECT_TRUE(std::isfinite(loss(p, *node)));
  const NodePtr nothing = fit(p, "step=1e9");  // every code is 0
  EXPECT_LT(loss(p, *node), 1e-3 * loss(p, *nothing));
}

}  // namespace
}  // namespace pith
