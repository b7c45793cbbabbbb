#include "plan/knapsack.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <random>

namespace pith {
namespace {

using Units = std::vector<KnapsackUnit>;

/// All choices, the slow and certain way.
template <class Visit>
void all_choices(const Units& units, Visit&& visit) {
  std::vector<size_t> at(units.size(), 0);
  while (true) {
    uint64_t bytes = 0;
    double loss = 0;
    for (size_t u = 0; u < units.size(); ++u) bytes += units[u][at[u]].bytes, loss += units[u][at[u]].loss;
    visit(bytes, loss);
    size_t u = 0;
    while (u < units.size() && ++at[u] == units[u].size()) at[u++] = 0;
    if (u == units.size()) return;
  }
}

/// kind 0: independent; 1: loss falls with bytes, noisy; 2: few distinct values, many ties; 3: loss = c 4^-bits;
/// 4: loss falls linearly with bytes (the hard, strongly correlated case).
Units random_units(std::mt19937& rng, size_t count, size_t options, int kind) {
  Units units(count);
  for (auto& unit : units) {
    const size_t n = 1 + rng() % options;
    const double c = std::exp2(static_cast<double>(rng() % 1000) / 100.0);
    const uint64_t size = 1 + rng() % 1000;
    for (size_t j = 0; j < n; ++j) {
      const double u = static_cast<double>(rng()) / 4294967296.0;
      const uint64_t bytes = rng() % 1000;
      switch (kind) {
        case 0:
          unit.push_back({bytes, u * 100});
          break;
        case 1:
          unit.push_back({bytes, (1000 - static_cast<double>(bytes)) * (0.5 + u)});
          break;
        case 2:
          unit.push_back({rng() % 5, static_cast<double>(rng() % 5)});
          break;
        case 3:
          unit.push_back({size * (j + 1), c * std::exp2(-2.0 * static_cast<double>(j)) * (0.8 + 0.4 * u)});
          break;
        default:
          unit.push_back({bytes, 2000 - static_cast<double>(bytes)});
          break;
      }
    }
  }
  return units;
}

void expect_consistent(const Units& units, const KnapsackAnswer& a) {
  ASSERT_EQ(a.choice.size(), units.size());
  uint64_t bytes = 0;
  double loss = 0;
  for (size_t u = 0; u < units.size(); ++u) {
    ASSERT_GE(a.choice[u], 0);
    ASSERT_LT(static_cast<size_t>(a.choice[u]), units[u].size());
    bytes += units[u][static_cast<size_t>(a.choice[u])].bytes;
    loss += units[u][static_cast<size_t>(a.choice[u])].loss;
  }
  EXPECT_EQ(bytes, a.bytes);
  EXPECT_DOUBLE_EQ(loss, a.loss);
}

TEST(Knapsack, TheExampleOfTheHeader) {
  const Units units = {{{10, 3}, {20, 1}}, {{10, 5}, {30, 0}}};
  const auto a = best_for_bytes(units, 40);
  ASSERT_TRUE(a.ok());
  EXPECT_EQ(a->choice, (std::vector<int>{0, 1}));
  EXPECT_EQ(a->bytes, 40u);
  EXPECT_EQ(a->loss, 3);
  EXPECT_TRUE(a->optimal);
  EXPECT_EQ(a->lower_bound, 3);
}

TEST(Knapsack, EqualsBruteForce) {
  std::mt19937 rng(1);
  int feasible = 0;
  for (int round = 0; round < 3000; ++round) {
    const Units units = random_units(rng, 1 + rng() % 6, 5, round % 5);
    const auto range = knapsack_range(units);
    ASSERT_TRUE(range.ok());
    const uint64_t budget = range->smallest_bytes / 2 + rng() % (range->largest_bytes + 2);
    const double max_loss =
        range->smallest_loss * 0.9 + static_cast<double>(rng() % 1000) / 999.0 * range->largest_loss;
    double least_loss = std::numeric_limits<double>::infinity();
    uint64_t least_bytes = ~0ull;
    all_choices(units, [&](uint64_t bytes, double loss) {
      if (bytes <= budget) least_loss = std::min(least_loss, loss);
      if (loss <= max_loss) least_bytes = std::min(least_bytes, bytes);
    });
    const auto a = best_for_bytes(units, budget);
    ASSERT_EQ(a.ok(), std::isfinite(least_loss));
    if (a.ok()) {
      ++feasible;
      expect_consistent(units, *a);
      EXPECT_LE(a->bytes, budget);
      EXPECT_TRUE(a->optimal);
      EXPECT_NEAR(a->loss, least_loss, 1e-9 * (1 + least_loss)) << "round " << round;
    }
    const auto b = best_for_loss(units, max_loss);
    ASSERT_EQ(b.ok(), least_bytes != ~0ull) << "round " << round;
    if (b.ok()) {
      expect_consistent(units, *b);
      EXPECT_LE(b->loss, max_loss * (1 + 1e-9));
      EXPECT_EQ(b->bytes, least_bytes) << "round " << round;
    }
  }
  EXPECT_GT(feasible, 1500);
}

TEST(Knapsack, LargeCasesAreFastAndProved) {
  std::mt19937 rng(2);
  for (int kind : {0, 1, 2, 3}) {
    Units units = random_units(rng, 500, 30, kind);
    const auto range = knapsack_range(units);
    for (int tenth = 1; tenth < 10; tenth += 2) {
      const uint64_t budget = range->smallest_bytes + (range->largest_bytes - range->smallest_bytes) * tenth / 10;
      const auto began = std::chrono::steady_clock::now();
      const auto a = best_for_bytes(units, budget);
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
      ASSERT_TRUE(a.ok());
      expect_consistent(units, *a);
      EXPECT_LE(a->bytes, budget);
      EXPECT_TRUE(a->optimal) << "kind " << kind << " tenth " << tenth;
      EXPECT_LT(seconds, 5) << "kind " << kind << " tenth " << tenth;
      // The dual finds the same corner: no fewer bytes reach this loss.
      const auto b = best_for_loss(units, a->loss);
      ASSERT_TRUE(b.ok());
      EXPECT_LE(b->bytes, a->bytes);
      EXPECT_LE(b->loss, a->loss * (1 + 1e-9) + 1e-9);
    }
  }
}

TEST(Knapsack, TheBoundHoldsWhenTheSearchIsCutShort) {
  std::mt19937 rng(3);
  int cut = 0;
  for (int round = 0; round < 40; ++round) {
    const Units units = random_units(rng, 60, 12, round % 2 == 0 ? 4 : 1);
    const auto range = knapsack_range(units);
    const uint64_t budget = (range->smallest_bytes + range->largest_bytes) / 2 + rng() % 100;
    const auto quick = best_for_bytes(units, budget, 1);
    const auto full = best_for_bytes(units, budget);
    ASSERT_TRUE(quick.ok() && full.ok());
    ASSERT_TRUE(full->optimal);
    cut += !quick->optimal;
    EXPECT_LE(quick->lower_bound, full->loss * (1 + 1e-9));
    EXPECT_GE(quick->loss, full->loss * (1 - 1e-9));
    EXPECT_LE(quick->bytes, budget);
  }
  EXPECT_GT(cut, 0);  // the test would be empty otherwise
}

TEST(Knapsack, DoesNotDependOnTheOrderOfOptions) {
  std::mt19937 rng(4);
  for (int round = 0; round < 50; ++round) {
    Units units = random_units(rng, 40, 8, round % 4);
    const auto range = knapsack_range(units);
    const uint64_t budget = (range->smallest_bytes + range->largest_bytes) / 2;
    const auto a = best_for_bytes(units, budget), again = best_for_bytes(units, budget);
    for (auto& unit : units) std::shuffle(unit.begin(), unit.end(), rng);
    const auto b = best_for_bytes(units, budget);
    ASSERT_TRUE(a.ok() && b.ok() && again.ok());
    EXPECT_EQ(a->choice, again->choice);
    EXPECT_EQ(a->bytes, b->bytes);
    EXPECT_NEAR(a->loss, b->loss, 1e-9);
  }
}

TEST(Knapsack, Edges) {
  EXPECT_TRUE(best_for_bytes({}, 0)->choice.empty());
  const Units free = {{{0, 0}}, {{0, -1}, {0, -2}}};
  EXPECT_EQ(best_for_bytes(free, 0)->choice, (std::vector<int>{0, 1}));
  // Equal options: the first one. An infinite loss may not be taken.
  const Units equal = {{{5, 1}, {5, 1}, {3, std::numeric_limits<double>::infinity()}}};
  EXPECT_EQ(best_for_bytes(equal, 5)->choice, std::vector<int>{0});
  EXPECT_EQ(best_for_bytes(equal, ~0ull)->choice, std::vector<int>{0});
  EXPECT_FALSE(best_for_bytes(equal, 4).ok());
  const auto error = best_for_bytes(Units{{{10, 3}, {20, 1}}, {{10, 5}, {30, 0}}}, 19);
  ASSERT_FALSE(error.ok());
  EXPECT_EQ(error.error().kind, ErrorKind::user);
  EXPECT_NE(error.error().message.find("20 bytes"), std::string::npos) << error.error().message;
  EXPECT_NE(error.error().message.find("50 bytes"), std::string::npos) << error.error().message;
  EXPECT_FALSE(best_for_bytes(Units{{}}, 5).ok());
  EXPECT_FALSE(best_for_bytes(Units{{{1, std::nan("")}}}, 5).ok());
  EXPECT_FALSE(best_for_bytes(Units{{{~0ull, 1}}, {{~0ull, 1}}}, 5).ok());
  EXPECT_FALSE(best_for_loss(equal, 0.5).ok());
  EXPECT_FALSE(best_for_loss(equal, std::nan("")).ok());
  EXPECT_TRUE(best_for_loss(equal, std::numeric_limits<double>::infinity()).ok());
}

TEST(Knapsack, CurveFallsAndIsOptimalAtItsPoints) {
  std::mt19937 rng(5);
  const Units units = random_units(rng, 30, 6, 3);
  const auto curve = budget_curve(units, 20);
  const auto range = knapsack_range(units);
  ASSERT_TRUE(curve.ok());
  EXPECT_LE(curve->size(), 20u);
  EXPECT_GE(curve->size(), 10u);
  EXPECT_EQ(curve->front().bytes, range->smallest_bytes);
  EXPECT_EQ(curve->back().bytes, range->largest_bytes);
  EXPECT_NEAR(curve->back().loss, range->smallest_loss, 1e-9 * range->largest_loss);
  for (size_t i = 0; i < curve->size(); ++i) {
    if (i > 0) {
      EXPECT_LT((*curve)[i].loss, (*curve)[i - 1].loss);
      EXPECT_GT((*curve)[i].bytes, (*curve)[i - 1].bytes);
    }
    EXPECT_NEAR(best_for_bytes(units, (*curve)[i].bytes)->loss, (*curve)[i].loss, 1e-9 * range->largest_loss);
  }
}

}  // namespace
}  // namespace pith
