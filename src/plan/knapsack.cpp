#include "plan/knapsack.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/checked.h"
#include "plan/size.h"

// How it works. Both questions are "least cost within a weight limit": cost = loss and weight = bytes, or the other way
// round. Bytes below 2^53 are exact as doubles.
//  1. Options that another option of the unit beats in weight and cost are dropped.
//  2. The linear relaxation: from the lightest choice, take the steps along each unit's lower convex hull in the order
//     of cost saved per weight. The first step that does not fit gives the price `lambda` of a unit of weight, and the
//     Lagrangian bound L = sum of min(cost + lambda weight) - lambda limit. The choice before that step is the "base".
//  3. Relative to the base, option j of a unit has a reduced cost r >= 0, and every solution costs exactly
//     L + sum of r + lambda (limit - its weight). The gap to a good solution is small, so few options have an r that
//     fits into it: the core.
//  4. Units are opened in the order of their smallest r. A state is a choice for the opened units, the others stay at
//     their base; so each state within the limit is a solution. States that another state beats in weight and cost,
//     or whose bound reaches the best known cost, are dropped. When none can improve, the best known is optimal.

namespace pith {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr uint64_t kMaxBytes = 1ull << 52;

struct Option {
  double weight = 0, cost = 0;
  int index = 0;       // in the caller's list
  double reduced = 0;  // reduced cost
};
using Unit = std::vector<Option>;

/// What is left after dominance: weights rise, costs fall. Of equals the first in the caller's order stays.
Unit prune(Unit options) {
  std::stable_sort(options.begin(), options.end(), [](const Option& a, const Option& b) {
    return a.weight != b.weight ? a.weight < b.weight : a.cost < b.cost;
  });
  Unit out;
  for (const Option& o : options)
    if (out.empty() || o.cost < out.back().cost) out.push_back(o);
  return out;
}

/// Positions of the corners of the lower convex hull; the first and the last option are always among them.
std::vector<size_t> hull(const Unit& unit) {
  std::vector<size_t> h;
  for (size_t i = 0; i < unit.size(); ++i) {
    while (h.size() >= 2) {
      const Option &a = unit[h[h.size() - 2]], &b = unit[h.back()], &c = unit[i];
      // b is above the line from a to c, or on it
      if ((b.cost - a.cost) * (c.weight - a.weight) < (c.cost - a.cost) * (b.weight - a.weight)) break;
      h.pop_back();
    }
    h.push_back(i);
  }
  return h;
}

/// One step along a unit's hull.
struct Step {
  size_t unit = 0, from = 0, to = 0;
  double weight = 0, saved = 0;
};

/// Steps of all units, best saving per weight first; of equals the earlier unit, and within a unit in hull order.
std::vector<Step> hull_steps(const std::vector<Unit>& units) {
  std::vector<Step> steps;
  for (size_t u = 0; u < units.size(); ++u) {
    const auto h = hull(units[u]);
    for (size_t i = 1; i < h.size(); ++i)
      steps.push_back({u, h[i - 1], h[i], units[u][h[i]].weight - units[u][h[i - 1]].weight,
                       units[u][h[i - 1]].cost - units[u][h[i]].cost});
  }
  std::stable_sort(steps.begin(), steps.end(),
                   [](const Step& a, const Step& b) { return a.saved * b.weight > b.saved * a.weight; });
  // Rounding may have swapped two nearly parallel steps of one unit; put each unit's steps into hull order.
  std::vector<std::vector<Step>> own(units.size());
  for (const Step& s : steps) own[s.unit].push_back(s);
  for (auto& list : own)
    std::sort(list.begin(), list.end(), [](const Step& a, const Step& b) { return a.from < b.from; });
  std::vector<size_t> next(units.size());
  for (Step& s : steps) s = own[s.unit][next[s.unit]++];
  return steps;
}

struct Solved {
  std::vector<size_t> at;  // position in each pruned unit
  double lower_bound = 0;
  bool optimal = false;
};

/// A partial choice: opened units as a linked list in the arena.
struct State {
  double weight = 0, cost = 0;
  double reduced = 0;  // sum of r over opened units
  uint32_t node = 0;   // arena index; 0 = nothing opened away from the base
};
struct ArenaNode {
  uint32_t parent;
  uint32_t unit;
  uint32_t option;
};

class Solver {
 public:
  Solver(const std::vector<Unit>& units, double limit, uint64_t max_states)
      : units_(units), limit_(limit), max_states_(std::min<uint64_t>(max_states, 1u << 31)) {}

  Solved run() {
    relax();
    if (!open_) return {base_, base_cost_, true};  // the base is the best of each unit: nothing can be better
    polish();
    reduce();
    search();
    return {std::move(best_), lower_bound_, optimal_};
  }

 private:
  /// Least-cost choice of the relaxation before the split, lambda, and the bound.
  void relax() {
    base_.assign(units_.size(), 0);
    double weight = 0;
    for (const Unit& u : units_) weight += u[0].weight;
    const auto steps = hull_steps(units_);
    size_t s = 0;
    for (; s < steps.size() && weight + steps[s].weight <= limit_; ++s) {
      weight += steps[s].weight;
      base_[steps[s].unit] = steps[s].to;
    }
    open_ = s < steps.size();
    base_weight_ = base_cost_ = 0;
    for (size_t u = 0; u < units_.size(); ++u) {
      base_weight_ += units_[u][base_[u]].weight;
      base_cost_ += units_[u][base_[u]].cost;
    }
    if (!open_) return;
    lambda_ = steps[s].saved / steps[s].weight;
    bound_ = base_cost_ - lambda_ * (limit_ - base_weight_);
    // A first solution: later steps that still fit, unit by unit in order.
    best_ = base_;
    double used = base_weight_;
    best_cost_ = base_cost_;
    std::vector<char> blocked(units_.size(), 0);
    for (; s < steps.size(); ++s) {
      const Step& step = steps[s];
      if (blocked[step.unit] || used + step.weight > limit_) {
        blocked[step.unit] = 1;
        continue;
      }
      used += step.weight;
      best_cost_ -= step.saved;
      best_[step.unit] = step.to;
    }
    best_weight_ = used;
    double scale = 0;
    for (const Unit& u : units_) scale += std::max(std::abs(u.front().cost), std::abs(u.back().cost));
    tolerance_ = 1e-13 * scale;
  }

  /// Improves the first solution by single changes: the largest saving that fits, as long as there is one.
  void polish() {
    for (size_t round = 0; round < 4 * units_.size(); ++round) {
      double saving = tolerance_;
      size_t unit = 0, option = 0;
      for (size_t u = 0; u < units_.size(); ++u)
        for (size_t j = best_[u] + 1; j < units_[u].size(); ++j) {  // heavier ones cost less
          if (best_weight_ - units_[u][best_[u]].weight + units_[u][j].weight > limit_) break;
          const double s = units_[u][best_[u]].cost - units_[u][j].cost;
          if (s > saving) saving = s, unit = u, option = j;
        }
      if (saving <= tolerance_) break;
      best_weight_ += units_[unit][option].weight - units_[unit][best_[unit]].weight;
      best_cost_ -= saving;
      best_[unit] = option;
    }
  }

  /// Reduced costs; options that cannot be part of a better solution leave the core.
  void reduce() {
    const double gap = best_cost_ - bound_ - tolerance_;
    for (size_t u = 0; u < units_.size(); ++u) {
      const Option& b = units_[u][base_[u]];
      CoreUnit core;
      core.unit = u;
      for (size_t j = 0; j < units_[u].size(); ++j) {
        const Option& o = units_[u][j];
        const double r = std::max(0.0, (o.cost - b.cost) + lambda_ * (o.weight - b.weight));
        if (j == base_[u] || r >= gap) continue;
        core.options.push_back({j, o.weight - b.weight, o.cost - b.cost, r});
        core.least = std::min(core.least, r);
      }
      if (!core.options.empty()) core_.push_back(std::move(core));
    }
    std::stable_sort(core_.begin(), core_.end(),
                     [](const CoreUnit& a, const CoreUnit& b) { return a.least < b.least; });
    // For the units not yet opened: cheapest change, and cheapest reduced cost per byte of change up and down.
    const size_t n = core_.size();
    least_.assign(n + 1, kInfinity);
    up_.assign(n + 1, kInfinity);
    down_.assign(n + 1, kInfinity);
    for (size_t i = n; i-- > 0;) {
      least_[i] = std::min(least_[i + 1], core_[i].least);
      up_[i] = up_[i + 1];
      down_[i] = down_[i + 1];
      for (const CoreOption& o : core_[i].options) {
        if (o.weight > 0) up_[i] = std::min(up_[i], o.reduced / o.weight);
        if (o.weight < 0) down_[i] = std::min(down_[i], o.reduced / -o.weight);
      }
    }
  }

  /// Least cost that any completion of `s` can have when units from `next` on are not opened yet.
  double state_bound(const State& s, size_t next) const {
    const double slack = limit_ - s.weight;
    double more;
    if (slack >= 0) {
      const double changed = std::max(least_[next], slack * std::min(lambda_, up_[next]));
      more = std::min(lambda_ * slack, changed);
    } else {
      more = std::max(least_[next], -slack * down_[next]);
    }
    return bound_ + s.reduced + more;
  }

  void search() {
    arena_.push_back({0, 0, 0});
    std::vector<State> states = {{base_weight_, base_cost_, 0, 0}}, grown, merged;
    for (size_t i = 0; i < core_.size() && !states.empty(); ++i) {
      // Sorted by weight; each option gives a shifted copy, merged one after the other.
      grown = states;
      for (const CoreOption& o : core_[i].options) {
        std::vector<State> shifted;
        for (const State& s : states) {
          State t{s.weight + o.weight, s.cost + o.cost, s.reduced + o.reduced, s.node};
          if (state_bound(t, i + 1) >= best_cost_ - tolerance_ &&
              !(t.weight <= limit_ && t.cost < best_cost_ - tolerance_))
            continue;
          if (arena_.size() >= max_arena()) return stop(states, i);
          arena_.push_back({s.node, static_cast<uint32_t>(core_[i].unit), static_cast<uint32_t>(o.position)});
          t.node = static_cast<uint32_t>(arena_.size() - 1);
          shifted.push_back(t);
        }
        merged.clear();
        merged.reserve(grown.size() + shifted.size());
        std::merge(grown.begin(), grown.end(), shifted.begin(), shifted.end(), std::back_inserter(merged),
                   [](const State& a, const State& b) {
                     return a.weight != b.weight ? a.weight < b.weight : a.cost < b.cost;
                   });
        grown.clear();
        double least = kInfinity;
        for (const State& s : merged)
          if (s.cost < least) {
            least = s.cost;
            grown.push_back(s);
          }
      }
      for (const State& s : grown)
        if (s.weight <= limit_ && s.cost < best_cost_ - tolerance_) take(s);
      states.clear();
      for (const State& s : grown)
        if (state_bound(s, i + 1) < best_cost_ - tolerance_) states.push_back(s);
      if (states.size() > max_states_) return stop(states, i + 1);
    }
    optimal_ = true;
    lower_bound_ = best_cost_;
  }

  size_t max_arena() const { return std::min<uint64_t>(8 * max_states_ + 1024, 0xfffffff0u); }

  /// Too many states: what is known so far, honestly.
  void stop(const std::vector<State>& states, size_t next) {
    lower_bound_ = best_cost_;
    for (const State& s : states) lower_bound_ = std::min(lower_bound_, state_bound(s, next));
    optimal_ = false;
  }

  void take(const State& s) {
    best_ = base_;
    for (uint32_t n = s.node; n != 0; n = arena_[n].parent) best_[arena_[n].unit] = arena_[n].option;
    best_cost_ = s.cost;
    best_weight_ = s.weight;
  }

  struct CoreOption {
    size_t position;
    double weight, cost, reduced;  // relative to the base
  };
  struct CoreUnit {
    size_t unit = 0;
    double least = kInfinity;
    std::vector<CoreOption> options;
  };

  const std::vector<Unit>& units_;
  const double limit_;
  const uint64_t max_states_;
  std::vector<size_t> base_, best_;
  double base_weight_ = 0, base_cost_ = 0, best_weight_ = 0, best_cost_ = 0;
  double lambda_ = 0, bound_ = 0, tolerance_ = 0, lower_bound_ = 0;
  bool open_ = false, optimal_ = false;
  std::vector<CoreUnit> core_;
  std::vector<double> least_, up_, down_;
  std::vector<ArenaNode> arena_;
};

/// Checks the numbers and turns the units into options with (weight, cost) by `swap`.
Result<std::vector<Unit>> load(std::span<const KnapsackUnit> units, bool bytes_are_weight) {
  std::vector<Unit> out;
  out.reserve(units.size());
  uint64_t total = 0;
  for (size_t u = 0; u < units.size(); ++u) {
    Unit unit;
    uint64_t largest = 0;
    for (size_t j = 0; j < units[u].size(); ++j) {
      const KnapsackItem& item = units[u][j];
      if (std::isnan(item.loss) || item.loss == -kInfinity)
        return bug_error(fmt::format("unit {} option {}: the predicted loss is {}", u, j, item.loss));
      if (item.loss == kInfinity) continue;
      const double bytes = static_cast<double>(item.bytes);
      largest = std::max(largest, item.bytes);
      unit.push_back(
          {bytes_are_weight ? bytes : item.loss, bytes_are_weight ? item.loss : bytes, static_cast<int>(j), 0});
    }
    if (unit.empty()) return user_error(fmt::format("unit {}: none of its {} options can be used", u, units[u].size()));
    const auto sum = checked_add(total, largest);
    if (!sum || *sum > kMaxBytes) return user_error("the options take more than 4 PB in all");
    total = *sum;
    out.push_back(prune(std::move(unit)));
  }
  return out;
}

KnapsackAnswer answer(std::span<const KnapsackUnit> units, const std::vector<Unit>& pruned, const Solved& solved,
                      bool bytes_are_weight) {
  KnapsackAnswer out;
  for (size_t u = 0; u < units.size(); ++u) {
    const int index = pruned[u][solved.at[u]].index;
    out.choice.push_back(index);
    out.bytes += units[u][static_cast<size_t>(index)].bytes;
    out.loss += units[u][static_cast<size_t>(index)].loss;
  }
  out.optimal = solved.optimal;
  const double reached = bytes_are_weight ? out.loss : static_cast<double>(out.bytes);
  out.lower_bound = solved.optimal ? reached : std::min(reached, solved.lower_bound);
  return out;
}

}  // namespace

Result<KnapsackAnswer> best_for_bytes(std::span<const KnapsackUnit> units, uint64_t budget, uint64_t max_states) {
  PITH_ASSIGN(const auto pruned, load(units, true));
  double smallest = 0, largest = 0;
  for (const Unit& u : pruned) smallest += u.front().weight, largest += u.back().weight;
  if (static_cast<double>(budget) < smallest)
    return user_error(fmt::format("a budget of {} bytes is too small: the options allow {} ({} bytes) to {} ({} bytes)",
                                  budget, print_size(static_cast<uint64_t>(smallest)), static_cast<uint64_t>(smallest),
                                  print_size(static_cast<uint64_t>(largest)), static_cast<uint64_t>(largest)));
  const double limit = static_cast<double>(std::min(budget, kMaxBytes));
  return answer(units, pruned, Solver(pruned, limit, max_states).run(), true);
}

Result<KnapsackAnswer> best_for_loss(std::span<const KnapsackUnit> units, double max_loss, uint64_t max_states) {
  if (std::isnan(max_loss)) return user_error("the loss limit is not a number");
  PITH_ASSIGN(const auto pruned, load(units, false));
  double smallest = 0, largest = 0, scale = 0;
  for (const Unit& u : pruned) {
    smallest += u.front().weight;
    largest += u.back().weight;
    scale += std::max(std::abs(u.front().weight), std::abs(u.back().weight));
  }
  const double limit = std::min(max_loss, scale * 2 + 1) + 1e-12 * scale;  // sums of doubles round
  if (limit < smallest)
    return user_error(fmt::format("a loss of at most {:.4g} cannot be reached: the options allow {:.4g} to {:.4g}",
                                  max_loss, smallest, largest));
  return answer(units, pruned, Solver(pruned, limit, max_states).run(), false);
}

Result<KnapsackRange> knapsack_range(std::span<const KnapsackUnit> units) {
  PITH_ASSIGN(const auto pruned, load(units, true));
  KnapsackRange range;
  for (const Unit& u : pruned) {
    range.smallest_bytes += static_cast<uint64_t>(u.front().weight);
    range.largest_bytes += static_cast<uint64_t>(u.back().weight);
    range.largest_loss += u.front().cost;
    range.smallest_loss += u.back().cost;
  }
  return range;
}

Result<std::vector<CurvePoint>> budget_curve(std::span<const KnapsackUnit> units, size_t max_points) {
  PITH_ASSIGN(const auto pruned, load(units, true));
  double weight = 0, cost = 0;
  for (const Unit& u : pruned) weight += u.front().weight, cost += u.front().cost;
  std::vector<CurvePoint> all = {{static_cast<uint64_t>(weight), cost}};
  for (const Step& s : hull_steps(pruned)) {
    weight += s.weight;
    cost -= s.saved;
    all.push_back({static_cast<uint64_t>(weight), cost});
  }
  if (all.size() <= std::max<size_t>(max_points, 2)) return all;
  // Evenly spaced in bytes: steps at the cheap end are tiny and many.
  std::vector<CurvePoint> out = {all.front()};
  const double first = static_cast<double>(all.front().bytes), span = static_cast<double>(all.back().bytes) - first;
  for (size_t i = 1; i + 1 < all.size(); ++i) {
    const double wanted = first + span * static_cast<double>(out.size()) / static_cast<double>(max_points - 1);
    if (out.size() + 1 < max_points && static_cast<double>(all[i].bytes) >= wanted) out.push_back(all[i]);
  }
  out.push_back(all.back());
  return out;
}

}  // namespace pith
