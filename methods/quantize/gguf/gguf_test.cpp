// What is special to gguf: every type it offers, the walk against plain rounding, and the target correction.
#include <gtest/gtest.h>

#include <cmath>

#include "engine/fit.h"
#include "formats/ggml_blocks.h"
#include "represent/blocks.h"

namespace pith {
namespace {

struct Data {
  Tensor x, weight;
  Moments moments;
};

Data data(int64_t rows, int64_t cols, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto normal = [&](int64_t a, int64_t b) { return at::randn({a, b}, generator, at::kFloat); };
  Data d;
  const Tensor mix = at::eye(cols) + normal(cols, cols) / std::sqrt(static_cast<double>(cols));
  d.x = at::mm(normal(4 * cols, cols), mix);
  d.moments.add(d.x);
  d.weight = normal(rows, cols) * 0.04;
  return d;
}

NodePtr fit(const Data& d, const std::string& options, Tensor cross = {}) {
  FitJob job;
  job.name = "w";
  job.weight = d.weight;
  job.inputs = &d.moments;
  job.cross = std::move(cross);
  return find_fit("gguf")->run(job, must(Options::parse(options, find_method("gguf")->params)));
}

double output_error(const Tensor& x, const Tensor& target, const NodePtr& node) {
  return at::pow(target - at::mm(x, decoded(*node).t()), 2).mean().item<double>();
}

TEST(Gguf, WalkBeatsPlainRoundingInEveryType) {
  const Data d = data(48, 512, 1);
  const Tensor target = at::mm(d.x, d.weight.t());
  for (const char* type : {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"}) {
    const std::string name = std::string("type=") + type;
    const NodePtr walked = fit(d, name), plain = fit(d, name + ",compensate=false");
    EXPECT_EQ(static_cast<const Blocks&>(*walked).type(), *ggml_type_from_name(type));
    EXPECT_EQ(walked->bits().total(), plain->bits().total());
    EXPECT_LT(output_error(d.x, target, walked), 0.97 * output_error(d.x, target, plain)) << type;
  }
}

TEST(Gguf, RowsThatFitNoSuperBlockTakeTheFallback) {
  const Data d = data(16, 96, 2);
  EXPECT_EQ(static_cast<const Blocks&>(*fit(d, "type=Q4_K,fallback=Q5_0")).type(), GgmlType::q5_0);
}

TEST(Gguf, TheOrderOfTheWalkLeavesEveryWeightInItsPlace) {
  Data d = data(32, 512, 5);
  at::Generator generator = at::detail::createCPUGenerator(6);
  d.x = d.x * at::exp(2 * at::randn({512}, generator, at::kFloat));
  d.moments = Moments();
  d.moments.add(d.x);
  for (const char* type : {"Q2_K", "Q3_K", "Q6_K", "Q4_0"}) {
    const Tensor sorted = decoded(*fit(d, std::string("type=") + type));
    // Far more than rounding would show up if columns or scales of blocks were mixed up.
    const double off = at::pow(sorted - d.weight, 2).mean().item<double>() / at::pow(d.weight, 2).mean().item<double>();
    EXPECT_LT(off, 0.35) << type;
  }
}

TEST(Gguf, TargetCorrectionRepairsShiftedInputs) {
  // The compressed prefix delivers xq = x M + noise: the corrected weights come closer to the float model's outputs.
  Data d = data(64, 256, 3);
  at::Generator generator = at::detail::createCPUGenerator(4);
  const Tensor x = d.x;
  const Tensor xq = x * 0.9 + 0.3 * at::randn({x.size(0), x.size(1)}, generator, at::kFloat);
  const Tensor target = at::mm(x, d.weight.t());
  d.moments = Moments();
  d.moments.add(xq);
  const Tensor cross = at::mm(x.t().to(at::kDouble), xq.to(at::kDouble)) / static_cast<double>(x.size(0));
  const double corrected = output_error(xq, target, fit(d, "type=Q4_K", cross));
  const double plain = output_error(xq, target, fit(d, "type=Q4_K,correct=false", cross));
  EXPECT_LT(corrected, 0.95 * plain);
}

}  // namespace
}  // namespace pith
