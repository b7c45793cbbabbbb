#include "maths/grid_fit.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/half.h"
#include "maths/leave_one_out.h"
#include "represent/grid.h"

namespace pith {
namespace {

Tensor random_matrix(int64_t rows, int64_t cols, uint64_t seed, double size = 0.05) {
  at::Generator g = at::detail::createCPUGenerator(seed);
  return at::randn({rows, cols}, g, at::kFloat) * size;
}

double squared_error(const Tensor& w, const Node& node, const Tensor& importance = {}) {
  const std::vector<float> values = decode_all(node);
  const Tensor q = at::from_blob(const_cast<float*>(values.data()), {node.rows(), node.cols()}, at::kFloat);
  const Tensor e = (w - q).to(at::kDouble).pow(2);
  return (importance.defined() ? e * importance : e).sum().item<double>();
}

NodePtr rounded(const Tensor& w, const GridSpec& spec, std::vector<float> importance = {}) {
  GridBuilder grid(w.size(0), w.size(1), spec, w.abs().max().item<float>(), std::move(importance));
  grid.round_all(w.const_data_ptr<float>());
  return grid.build();
}

TEST(GridFit, RoundEvenIsTheIeeeRounding) {
  for (const float x : {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 0.49999997f, 3.0f, -7.5000005f, 254.5f, 100000.5f})
    EXPECT_EQ(round_even(x), std::nearbyint(x)) << x;
}

TEST(GridFit, WhatTheWalkSeesIsWhatTheNodeDecodes) {
  const Tensor w = random_matrix(37, 75, 1);
  for (const GridShape shape : {GridShape::asym, GridShape::sym, GridShape::nf})
    for (const unsigned bits : {2u, 3u, 4u, 8u})
      for (const int64_t group : {0, 16, 20, 7})
        for (const unsigned stat_bits : {0u, 3u, 6u}) {
          GridBuilder grid(37, 75, {shape, bits, group, true, stat_bits, 16}, 0.3f);
          std::vector<float> seen(37 * 75);
          for (int64_t row0 = 0; row0 < 37; row0 += 16)
            for (int64_t col = 0; col < 75; ++col) {
              const int64_t n = std::min<int64_t>(16, 37 - row0);
              if (col % grid.group() == 0)
                grid.begin_group(row0, n, col, std::min(grid.group(), 75 - col),
                                 w.const_data_ptr<float>() + row0 * 75 + col, 75);
              for (int64_t r = row0; r < row0 + n; ++r)
                seen[static_cast<size_t>(r * 75 + col)] = grid.quantize(r, col, w[r][col].item<float>());
            }
          EXPECT_EQ(decode_all(*grid.build()), seen) << "bits " << bits << " group " << group << " stat " << stat_bits;
        }
}

TEST(GridFit, EveryWeightGoesToItsNearestLevel) {
  const Tensor w = random_matrix(16, 64, 2);
  for (const GridShape shape : {GridShape::asym, GridShape::sym, GridShape::nf}) {
    const NodePtr node = rounded(w, {shape, 3, 16, true, 0, 16});
    const auto& grid = static_cast<const Grid&>(*node);
    const std::vector<float> values = decode_all(*node);
    float scale[4], zero[4] = {};
    for (int64_t r = 0; r < 16; ++r) {
      grid.scale()->row(r, scale);
      if (grid.zero()) grid.zero()->row(r, zero);
      for (int64_t c = 0; c < 64; ++c) {
        const double x = w[r][c].item<double>();
        double nearest = 1e9;
        const auto [low, high] = grid.codes()->range();
        for (int code = low; code <= high; ++code) {
          const double level = grid.uniform() ? code : grid.levels()[static_cast<size_t>(code)];
          nearest = std::min(nearest, std::fabs(x - scale[c / 16] * (level - zero[c / 16])));
        }
        EXPECT_NEAR(std::fabs(x - values[static_cast<size_t>(r * 64 + c)]), nearest, 1e-6);
      }
    }
  }
}

TEST(GridFit, SearchNeverLosesAgainstTheExtremes) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    Tensor w = random_matrix(32, 96, seed);
    w[3][5] = 1.0f;  // an outlier, which a search should clip or pay for
    std::vector<float> importance(96);
    for (size_t i = 0; i < 96; ++i) importance[i] = 0.1f + static_cast<float>(i % 7);
    const Tensor weights = at::tensor(at::ArrayRef<float>(importance)).to(at::kDouble);
    for (const GridShape shape : {GridShape::asym, GridShape::sym, GridShape::nf})
      for (const unsigned bits : {2u, 3u, 4u, 6u, 8u}) {
        const double plain = squared_error(w, *rounded(w, {shape, bits, 32, false, 0, 16}));
        const double searched = squared_error(w, *rounded(w, {shape, bits, 32, true, 0, 16}));
        EXPECT_LE(searched, plain * 1.00001);
        if (bits <= 3) {
          EXPECT_LT(searched, 0.95 * plain);
        }
        EXPECT_LE(squared_error(w, *rounded(w, {shape, bits, 32, true, 0, 16}, importance), weights),
                  squared_error(w, *rounded(w, {shape, bits, 32, false, 0, 16}), weights) * 1.00001);
      }
  }
}

TEST(GridFit, ExtremesAreHit) {
  const float w[] = {-0.3f, 0.1f, 0.4f, 0.0f};
  const GridParams p = extremes_grid(w, 4, 7);
  EXPECT_NEAR(p.scale * (0 - p.zero), -0.3f, 1e-6);
  EXPECT_NEAR(p.scale * (7 - p.zero), 0.4f, 1e-6);
  const float positive[] = {0.5f, 0.5f};
  const GridParams q = extremes_grid(positive, 2, 7);
  EXPECT_FLOAT_EQ(q.scale * (7 - q.zero), 0.5f);
  const float none[] = {0, 0, 0};
  EXPECT_EQ(extremes_grid(none, 3, 7).scale, 0);
}

TEST(GridFit, ExactValuesStayExact) {
  // Multiples of a power of two on an 8-bit grid of the right size come back bit for bit.
  Tensor w = at::arange(-128, 128, at::kFloat).reshape({16, 16}) / 256;
  const Tensor row = at::arange(-128, 128, at::kFloat).unsqueeze(0) / 256;
  EXPECT_EQ(squared_error(row, *rounded(row, {GridShape::sym, 8, 0, false, 0, 16})), 0);
  EXPECT_EQ(squared_error(at::zeros_like(w), *rounded(at::zeros_like(w), {GridShape::asym, 3, 4, true, 3, 16})), 0);
}

TEST(GridFit, SecondLevelErrsByHalfAStep) {
  const std::vector<float> values{0.010f, 0.013f, 0.02f, 0.011f, 0.0f, 0.018f};
  const std::vector<uint8_t> used{1, 1, 1, 1, 0, 1};
  std::vector<uint16_t> codes(6);
  std::vector<float> decoded(6);
  const SecondLevel level = second_level(values, used, 3, codes.data(), decoded.data());
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_LT(codes[i], 8);
    EXPECT_EQ(decoded[i], level.scale * (static_cast<float>(codes[i]) - level.zero));
    if (used[i]) {
      EXPECT_NEAR(decoded[i], values[i], 0.5 * (0.02 - 0.010) / 7 + 1e-4 * values[i]);
    }
  }
  // Equal values stay what they are, to fp16.
  const std::vector<float> equal(4, 0.0123f);
  const std::vector<uint8_t> all(4, 1);
  second_level(equal, all, 3, codes.data(), decoded.data());
  EXPECT_EQ(decoded[2], half_to_float(float_to_half(0.0123f)));
}

TEST(GridFit, BitsAreThoseOfTheHeadComments) {
  const Tensor w = random_matrix(64, 256, 3);
  const auto bits = [&](const GridSpec& spec) { return rounded(w, spec)->bits().total() / (64.0 * 256.0); };
  EXPECT_DOUBLE_EQ(bits({GridShape::asym, 4, 64, false, 0, 16}), 4 + 32.0 / 64);
  EXPECT_DOUBLE_EQ(bits({GridShape::sym, 4, 64, false, 0, 16}), 4 + 16.0 / 64);
  EXPECT_DOUBLE_EQ(bits({GridShape::asym, 3, 16, false, 3, 16}), 3 + 6.0 / 16 + 64.0 / 256);
  EXPECT_DOUBLE_EQ(bits({GridShape::nf, 4, 64, false, 0, 16}), 4 + 16.0 / 64);  // a model shares the levels
}

// ---- leave one out
// -----------------------------------------------------------------------------------------------------

double total_error(const std::vector<float>& w, const std::vector<float>& diagonal, GridParams p, float levels,
                   size_t without) {
  double sum = 0;
  for (size_t j = 0; j < w.size(); ++j) {
    if (j == without) continue;
    const float c = std::nearbyint(std::clamp(w[j] / p.scale + p.zero, 0.0f, levels));
    const double e = (static_cast<double>(p.scale) * (c - p.zero) - w[j]) / diagonal[j];
    sum += e * e;
  }
  return sum;
}

TEST(LeaveOneOut, EqualsFittingEveryGroupWithoutEachWeight) {
  int marked_anywhere = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const Tensor t = random_matrix(1, 16, seed, 1.0);
    std::vector<float> w(t.const_data_ptr<float>(), t.const_data_ptr<float>() + 16);
    if (seed % 3 == 0) w[static_cast<size_t>(seed % 16)] *= 8;
    if (seed % 5 == 0) w[2] = w[9];  // ties
    std::vector<float> diagonal(16);
    for (size_t j = 0; j < 16; ++j) diagonal[j] = 0.5f + 0.1f * static_cast<float>(j);
    const float threshold = 0.15f;
    std::vector<uint8_t> marked(16);
    std::vector<float> scratch;
    leave_one_out(w.data(), diagonal.data(), 16, 7, threshold, marked.data(), scratch);
    const double all = total_error(w, diagonal, extremes_grid(w.data(), 16, 7), 7, 99);
    for (size_t i = 0; i < 16; ++i) {
      std::vector<float> rest = w;
      rest.erase(rest.begin() + static_cast<long>(i));
      const double gain = all - total_error(w, diagonal, extremes_grid(rest.data(), 15, 7), 7, i);
      if (std::fabs(gain - threshold) < 1e-4) continue;  // either side is right
      EXPECT_EQ(marked[i] != 0, gain > threshold) << "seed " << seed << " weight " << i << " gain " << gain;
      marked_anywhere += marked[i];
    }
  }
  EXPECT_GT(marked_anywhere, 50);
}

}  // namespace
}  // namespace pith
