// The budget solver: one option for each unit, least total loss under a byte budget, or least bytes under a loss limit.
// This is the multiple-choice knapsack; the answer is proved optimal or comes with a lower bound (design.md section 4).
//
// Example: units {{10 B, loss 3}, {20 B, loss 1}} and {{10 B, loss 5}, {30 B, loss 0}}, budget 40 B: the second option
// twice needs 50 B; first + second costs loss 3 at 40 B, second + first loss 6 at 30 B. The answer is {0, 1}.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <span>
#include <vector>

namespace pith {

struct KnapsackItem {
  uint64_t bytes = 0;
  double loss = 0;  ///< any finite number; infinity marks an option that may not be taken
};
/// The options of one unit, in the caller's order.
using KnapsackUnit = std::vector<KnapsackItem>;

struct KnapsackAnswer {
  std::vector<int> choice;  ///< index of the option of each unit
  uint64_t bytes = 0;       ///< sum over the chosen options
  double loss = 0;          ///< the same
  /// No choice within the limit has a smaller loss (best_for_bytes) or fewer bytes (best_for_loss) than this.
  double lower_bound = 0;
  bool optimal = false;  ///< proved, up to rounding of sums of doubles (1e-12 relative)
};

/// Least loss with at most `budget` bytes. Among answers of equal loss: fewer bytes; the same input gives the same
/// answer. When nothing fits, the error says the possible range. `max_states` bounds memory (about 40 bytes each) and
/// time; when it is hit the best answer found and its bound come back with optimal = false.
Result<KnapsackAnswer> best_for_bytes(std::span<const KnapsackUnit> units, uint64_t budget,
                                      uint64_t max_states = 1'000'000);

/// Fewest bytes with a total loss of at most `max_loss`.
Result<KnapsackAnswer> best_for_loss(std::span<const KnapsackUnit> units, double max_loss,
                                     uint64_t max_states = 1'000'000);

/// The sizes that can be asked for: all options smallest, and all options of least loss.
struct KnapsackRange {
  uint64_t smallest_bytes = 0, largest_bytes = 0;
  double smallest_loss = 0, largest_loss = 0;  ///< at largest_bytes and at smallest_bytes
};
Result<KnapsackRange> knapsack_range(std::span<const KnapsackUnit> units);

/// The size-loss curve: choices that are optimal for their own size (corners of the linear relaxation), by rising
/// bytes, thinned to at most `max_points` with both ends kept.
struct CurvePoint {
  uint64_t bytes = 0;
  double loss = 0;
};
Result<std::vector<CurvePoint>> budget_curve(std::span<const KnapsackUnit> units, size_t max_points);

}  // namespace pith
