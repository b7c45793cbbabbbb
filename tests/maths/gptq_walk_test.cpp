#include "maths/gptq_walk.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>

namespace pith {
namespace {

// Rounds to multiples of a step that the group's largest weight sets; remembers nothing but the steps.
struct GroupRounding {
  int64_t group, groups;
  std::vector<float> steps;
  GroupRounding(int64_t rows, int64_t cols, int64_t group_size)
      : group(group_size > 0 ? std::min(group_size, cols) : cols),
        groups((cols + group - 1) / group),
        steps(static_cast<size_t>(rows * groups)) {}
  void begin_group(int64_t row0, int64_t rows, int64_t col0, int64_t cols, const float* w, int64_t ld) {
    for (int64_t r = 0; r < rows; ++r) {
      float top = 0;
      for (int64_t c = 0; c < cols; ++c) top = std::max(top, std::fabs(w[r * ld + c]));
      steps[static_cast<size_t>((row0 + r) * groups + col0 / group)] = top > 0 ? top / 3 : 1.0f;
    }
  }
  float quantize(int64_t row, int64_t col, float w) const {
    const float step = steps[static_cast<size_t>(row * groups + col / group)];
    return std::nearbyint(w / step) * step;
  }
};

struct Plain {
  float step;
  void begin_group(int64_t, int64_t, int64_t, int64_t, const float*, int64_t) {}
  float quantize(int64_t, int64_t, float w) const { return std::nearbyint(w / step) * step; }
};

at::Generator generator(uint64_t seed) { return at::detail::createCPUGenerator(seed); }

// Correlated inputs: a random mixing of fewer sources plus noise.
Tensor random_second_moment(int64_t cols, uint64_t seed) {
  at::Generator g = generator(seed);
  const Tensor mix = at::randn({std::max<int64_t>(cols / 2, 1), cols}, g, at::kDouble);
  const Tensor x = at::mm(at::randn({4 * cols, mix.size(0)}, g, at::kDouble), mix) +
                   at::randn({4 * cols, cols}, g, at::kDouble) * 0.3;
  return at::mm(x.t(), x) / static_cast<double>(x.size(0));
}

Tensor inverse_factor(const Tensor& h, double damping) {
  const Tensor eye = at::eye(h.size(0), at::kDouble);
  const Tensor damped = h + eye * (damping * h.diagonal().mean().item<double>());
  return at::linalg_cholesky(at::linalg_solve(damped, eye), /*upper=*/true);
}

// The textbook: after each column the inverse Hessian of the remaining ones is updated explicitly (OBQ), in fp64.
Tensor textbook(const Tensor& weight, const Tensor& h, double damping, float step) {
  const int64_t rows = weight.size(0), cols = weight.size(1);
  const Tensor eye = at::eye(cols, at::kDouble);
  Tensor inverse = at::linalg_solve(h + eye * (damping * h.diagonal().mean().item<double>()), eye).contiguous();
  Tensor w = weight.to(at::kDouble).clone();
  auto wa = w.accessor<double, 2>();
  auto ia = inverse.accessor<double, 2>();
  for (int64_t j = 0; j < cols; ++j) {
    for (int64_t r = 0; r < rows; ++r) {
      const double q = std::nearbyint(static_cast<float>(wa[r][j]) / step) * step;
      const double e = (wa[r][j] - q) / ia[j][j];
      for (int64_t k = j; k < cols; ++k) wa[r][k] -= e * ia[j][k];
      wa[r][j] = q;
    }
    for (int64_t a = j + 1; a < cols; ++a)
      for (int64_t b = j + 1; b < cols; ++b) ia[a][b] -= ia[a][j] * ia[j][b] / ia[j][j];
  }
  return w;
}

TEST(GptqWalk, EqualsTheTextbookInDoublePrecision) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{3, 5}, {17, 40}, {1, 1}, {33, 70}}) {
    at::Generator g = generator(11);
    Tensor w = at::randn({rows, cols}, g, at::kFloat);
    const Tensor h = random_second_moment(cols, 5);
    const Tensor expected = textbook(w, h, 0.01, 0.5f);
    Plain policy{0.5f};
    gptq_walk(w, inverse_factor(h, 0.01), 0, policy);
    // A weight that lies on a rounding boundary may fall to the other side in fp32; then a few codes of its row differ.
    const double different = (w.to(at::kDouble) - expected).abs().gt(1e-3).to(at::kDouble).mean().item<double>();
    EXPECT_LE(different, 0.002) << rows << "x" << cols;
  }
}

TEST(GptqWalk, EqualsThePlainLoopBitForBitForAnyBlockAndThreads) {
  const int64_t rows = 37, cols = 150;
  for (const int64_t group : {0, 16, 24, 64, 128}) {
    at::Generator g = generator(3);
    const Tensor weight = at::randn({rows, cols}, g, at::kFloat);
    const Tensor factor = inverse_factor(random_second_moment(cols, 9), 0.01).to(at::kFloat).contiguous();
    // The plain loop.
    Tensor expected = weight.clone();
    GroupRounding rounding(rows, cols, group);
    std::vector<double> expected_loss(rows, 0.0);
    auto w = expected.accessor<float, 2>();
    auto u = factor.accessor<float, 2>();
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < cols; ++j) {
        if (j % rounding.group == 0) rounding.begin_group(r, 1, j, std::min(rounding.group, cols - j), &w[r][j], cols);
        const float q = rounding.quantize(r, j, w[r][j]);
        const float e = (w[r][j] - q) / u[j][j];
        expected_loss[static_cast<size_t>(r)] += static_cast<double>(e) * e;
        w[r][j] = q;
        for (int64_t k = j + 1; k < cols; ++k) w[r][k] -= e * u[j][k];
      }
    const int before = at::get_num_threads();
    for (const int threads : {1, 2})
      for (const int64_t block : {1, 7, 32, 128, 1000}) {
        at::set_num_threads(threads);
        Tensor found = weight.clone();
        GroupRounding policy(rows, cols, group);
        const std::vector<double> loss = gptq_walk(found, factor, group, policy, block);
        EXPECT_TRUE(at::equal(found, expected)) << "group " << group << " block " << block;
        EXPECT_EQ(loss, expected_loss);
      }
    at::set_num_threads(before);
  }
}

TEST(GptqWalk, IdentityFactorIsRoundingToNearest) {
  at::Generator g = generator(1);
  const Tensor weight = at::randn({20, 48}, g, at::kFloat);
  Tensor walked = weight.clone();
  Plain policy{0.25f};
  gptq_walk(walked, at::eye(48, at::kFloat), 16, policy);
  EXPECT_TRUE(at::equal(walked, at::round(weight / 0.25f) * 0.25f));
}

TEST(GptqWalk, ReturnedLossIsTheErrorInTheDampedNorm) {
  at::Generator g = generator(8);
  const int64_t cols = 60;
  const Tensor weight = at::randn({9, cols}, g, at::kFloat);
  const Tensor h = random_second_moment(cols, 2);
  Tensor walked = weight.clone();
  Plain policy{0.5f};
  const std::vector<double> loss = gptq_walk(walked, inverse_factor(h, 0.05), 0, policy);
  const Tensor error = (walked - weight).to(at::kDouble);
  const Tensor damped = h + at::eye(cols, at::kDouble) * (0.05 * h.diagonal().mean().item<double>());
  const Tensor norms = (at::mm(error, damped) * error).sum(1);
  for (int64_t r = 0; r < 9; ++r)
    EXPECT_NEAR(loss[static_cast<size_t>(r)], norms[r].item<double>(), 1e-3 * norms[r].item<double>() + 1e-6);
}

TEST(GptqWalk, BeatsRoundingToNearestInTheInputNorm) {
  int better = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    at::Generator g = generator(seed);
    const Tensor weight = at::randn({16, 64}, g, at::kFloat);
    const Tensor h = random_second_moment(64, seed + 100);
    Tensor walked = weight.clone();
    Plain policy{0.5f};
    gptq_walk(walked, inverse_factor(h, 0.01), 0, policy);
    const auto loss = [&](const Tensor& q) {
      const Tensor error = (weight - q).to(at::kDouble);
      return (at::mm(error, h) * error).sum().item<double>();
    };
    if (loss(walked) < 0.7 * loss(at::round(weight / 0.5f) * 0.5f)) ++better;
  }
  EXPECT_EQ(better, 20);
}

TEST(GptqWalk, RefusesAFactorOfTheWrongSize) {
  Tensor weight = at::zeros({2, 4}, at::kFloat);
  Plain policy{1.0f};
  EXPECT_THROW(gptq_walk(weight, at::eye(3, at::kFloat), 0, policy), Failure);
}

}  // namespace
}  // namespace pith
