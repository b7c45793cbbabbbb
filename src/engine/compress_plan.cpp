// How a budget becomes a choice of method and options for each matrix.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/assemble.h"
#include "engine/compressor.h"
#include "engine/gguf_types.h"
#include "engine/measure_model.h"
#include "kernels/linear.h"
#include "plan/size.h"
#include "represent/blocks.h"

namespace pith {

bool Compressor::continuous() const {
  return !gguf_ && (request_.allow.empty() || (request_.allow.size() == 1 && request_.allow[0].method == "ec" &&
                                               request_.budget.kind != Budget::Kind::none));
}

// ---- one step for all matrices (ec)
// --------------------------------------------------------------------------------------------------------------

/// The step at which a sample of the layers takes `bits_per_weight`, and what that costs.
double Compressor::pilot_step(double bits_per_weight, double* loss, double* seconds) {
  // Some blocks stand for all, some rows of embedding and head for these.
  const std::vector<size_t> sample = sample_targets();
  std::vector<size_t> blocks, ends;
  for (const size_t i : all_targets()) (targets_[i].layer < 0 ? ends : blocks).push_back(i);
  const double block_share = weights_of_targets(blocks) / weights_of_targets(sample);
  const double weights = weights_of_targets(blocks) + weights_of_targets(ends);
  const MethodSpec* like = ec_spec(request_.allow);
  double log_step = -12;  // 2^-12: about 4 bits for the models tried
  const double begin = now();
  int rounds = 0;
  for (double error = 1; rounds < 8 && std::fabs(error) >= 0.03; ++rounds) {
    const Choice choice(targets_.size(), ec_recipe(std::exp2(log_step), like));
    CodeModelBuilder in_blocks, in_ends;
    const double block_loss =
        try_units(choice, sample, 1, [&](size_t, const Node& node) { count_codes(node, in_blocks); }).total_loss();
    const double end_loss =
        try_units(choice, ends, kPilotRows, [&](size_t, const Node& node) { count_codes(node, in_ends); }).total_loss();
    const double bits = (in_blocks.estimated_bits() * block_share + in_ends.estimated_bits() * kPilotRows) / weights;
    if (loss != nullptr) *loss = block_loss * block_share + end_loss * kPilotRows;
    // One octave of step is one bit while codes are large, less when most of them are 0: a step that is far too fine is
    // left in one jump, one that is too coarse carefully.
    error = bits - bits_per_weight;
    log_step += std::clamp(error / std::clamp(bits / 3, 0.3, 1.0), -2.5, 12.0);
  }
  const double tried = weights_of_targets(sample) + weights_of_targets(ends) / kPilotRows;
  if (seconds != nullptr) *seconds = (now() - begin) / rounds * weights / tried;
  return std::exp2(log_step);
}

/// Brings a file that is nearly of the asked size there, if it can, by another step for as many matrices as that takes
/// and no more: a full pass for the last half percent would double the time. A tenth of an octave for a share f of the
/// weights costs (2 ln 2 / 10)^2 f (1 - f) / 2 of the loss more than one step for all, 0.25 % at most.
bool Compressor::mended(Done& done, double size, double log_step, const MethodSpec* like) {
  constexpr double kChange = 0.1, kBytesPerOctave = 0.9 / 8;  // a weight, where few codes are 0
  const auto target = static_cast<double>(target_bytes());
  const auto fits = [&] { return size <= target && size >= target * 0.996; };
  const Done one_step = done;
  const Choice one_choice = choice_;
  // Blocks far from each other first, so that no part of the model bears all.
  std::vector<size_t> left;
  for (const size_t i : all_targets())
    if (targets_[i].layer >= 0) left.push_back(i);
  const auto place = [&](size_t i) { return std::fmod(static_cast<double>(targets_[i].layer) * 0.6180339887, 1.0); };
  std::stable_sort(left.begin(), left.end(), [&](size_t a, size_t b) { return place(a) > place(b); });
  while (!fits()) {
    const double missing = target * 0.998 - size, change = missing < 0 ? kChange : -kChange;
    std::vector<size_t> next;
    for (double found = 0; found < std::fabs(missing); left.pop_back()) {
      if (left.empty()) {
        done = one_step, choice_ = one_choice;
        return false;
      }
      next.push_back(left.back());
      found += weights_of_targets({left.back()}) * kChange * kBytesPerOctave;
    }
    for (const size_t i : next) choice_[i] = ec_recipe(std::exp2(log_step + change), like);
    const Done again = run_units(choice_, next, "adjust");
    for (const size_t i : next) done.unit[i] = again.unit[i], done.loss[i] = again.loss[i];
    size = static_cast<double>(measure_bytes(done));
  }
  return true;
}

/// The end of a run that nothing can bring under its budget; its units are of no use to another one.
void Compressor::out_of_reach(double smallest) {
  must(work_->remove());
  throw Failure(user_error(fmt::format("a budget of {} is out of reach for this model: the smallest found is {}{}",
                                       print_size(target_bytes()), print_size(static_cast<uint64_t>(smallest)),
                                       by_ram() ? " in memory; --size budgets may go lower" : "")));
}

Compressor::Done Compressor::solve_step() {
  const MethodSpec* like = ec_spec(request_.allow);
  const bool by_loss = request_.budget.kind == Budget::Kind::loss;
  const std::vector<size_t> which = all_targets();
  const auto target = static_cast<double>(target_bytes());
  const double weights = weights_of_targets(which);

  double step = 0;
  if (by_loss) {
    // Mean KL is close to the logarithm of the perplexity ratio; the loss grows with the square of the step.
    double loss = 0;
    step = pilot_step(3.5, &loss, nullptr);
    step *= std::sqrt(std::log1p(request_.budget.value) / std::max(loss, 1e-12));
  } else {
    const double share = by_ram() ? 0.8 : 1.0;
    // What is not compressed: header, tokenizer, norms.
    Model rest = model_;
    std::erase_if(rest.tensors, [&](const ModelTensor& t) {
      return std::any_of(which.begin(), which.end(), [&](size_t i) { return targets_[i].name == t.name; });
    });
    const double others = by_ram() ? 0 : static_cast<double>(written_bytes(rest) + kReportRoom);
    step = pilot_step(std::max(0.3, (share * target * 0.998 - others) * 8 / weights), nullptr, nullptr);
  }
  stage("plan");
  // Full passes until the file fits, or nearly so: log size is close to linear in log step.
  double log_step = std::log2(step), last_log = 0, last_size = 0, best_log = 0;
  bool have_last = false, have_best = false;
  double low = -60, high = 60;  // bracket of the answer in log step
  Done best(targets_.size());
  double smallest = 1e300;
  for (int round = 0; round < 8; ++round) {
    choice_.assign(targets_.size(), ec_recipe(std::exp2(log_step), like));
    Done done = run_units(choice_, which, "quantize");
    if (by_loss) {
      const double ratio = measured_loss(model_, finished(done), request_.eval_texts, pool_, progress_);
      const double asked = request_.budget.value;
      progress_.note(fmt::format("step {:.4g}: perplexity ratio - 1 is {:.4f}, asked for at most {:.4f}",
                                 std::exp2(log_step), ratio, asked));
      if (ratio <= asked && ratio >= 0.9 * asked) return done;
      if (ratio <= asked) {
        best = std::move(done), best_log = log_step, have_best = true;
        low = std::max(low, log_step);
      } else {
        high = std::min(high, log_step);
      }
      double next = log_step + 0.5 * std::log2(0.95 * std::log1p(asked) / std::max(std::log1p(ratio), 1e-9));
      if (next <= low || next >= high) next = (low + high) / 2;
      log_step = next;
      continue;
    }
    const auto size = static_cast<double>(measure_bytes(done));
    if (!by_ram() && mended(done, size, log_step, like)) return done;
    const bool stuck = size > 0.999 * smallest && log_step > last_log;  // coarser steps do not make it smaller any more
    smallest = std::min(smallest, size);
    if (size <= target) {
      high = std::min(high, log_step);
      best = std::move(done), best_log = log_step, have_best = true;
      if (size >= target * 0.996) break;
    } else if (stuck) {
      break;
    } else {
      low = std::max(low, log_step);
    }
    const double slope =
        have_last && std::fabs(log_step - last_log) > 1e-9
            ? std::clamp((size - last_size) / (log_step - last_log), -weights / 8 * 1.2, -weights / 8 * 0.2)
            : -weights / 8 * 0.9;
    last_log = log_step, last_size = size, have_last = true;
    // Memory moves in jumps (whole bits of a tile), so a secant may point far away: small steps then.
    double next = log_step + std::clamp((target * 0.998 - size) / slope, -1.0, 1.0);
    if (next <= low || next >= high) next = low > -60 && high < 60 ? (low + high) / 2 : next;
    log_step = next;
  }
  if (!have_best && by_loss)
    throw Failure(user_error(fmt::format("a {} was not reached; ask for more", request_.budget.describe())));
  if (!have_best) out_of_reach(smallest);
  choice_.assign(targets_.size(), ec_recipe(std::exp2(best_log), like));
  return best;
}

// ---- several options (a knapsack)
// --------------------------------------------------------------------------------------------------------------

/// What a matrix takes: in memory or in the file, whichever the budget is about.
uint64_t Compressor::unit_bytes(const Node& node) const {
  CodeModelBuilder builder;
  return by_ram()                     ? planned_ram_bytes(node)
         : count_codes(node, builder) ? static_cast<uint64_t>(std::ceil(builder.estimated_bits() / 8))
                                      : (node.bits().total() + 7) / 8;
}

std::vector<Recipe> Compressor::allowed_options() {
  std::vector<Recipe> options;
  for (const MethodSpec& spec : request_.allow) {
    Recipe r = recipe(spec);
    if (spec.method == "ec" && r.options.print().find("step=") == std::string::npos) {
      // ec has a continuous size: offer a ladder of steps around the one that meets the budget alone.
      const double bits = request_.budget.kind == Budget::Kind::loss
                              ? 3.5
                              : static_cast<double>(target_bytes()) * 8 / weights_of_targets(all_targets());
      const double middle = pilot_step(bits, nullptr, nullptr);
      for (int k = -4; k <= 4; ++k) options.push_back(ec_recipe(middle * std::exp2(k * 0.5), &spec));
    } else {
      options.push_back(std::move(r));
    }
  }
  return options;
}

/// Fits every option of these targets and adds what it costs: its bytes exactly, its loss to second order.
std::vector<Compressor::Done> Compressor::measure_options(const std::vector<Recipe>& options,
                                                          const std::vector<size_t>& which, bool commit,
                                                          std::vector<KnapsackUnit>& units) {
  std::vector<Done> results;
  units.resize(which.size());
  for (const Recipe& option : options) {
    const Choice choice(targets_.size(), option);
    std::vector<uint64_t> bytes(targets_.size());
    const auto see = [&](size_t i, const Node& node) { bytes[i] = unit_bytes(node); };
    results.push_back(commit ? run_units(choice, which, "measure options", see) : try_units(choice, which, 1, see));
    for (size_t k = 0; k < which.size(); ++k) units[k].push_back({bytes[which[k]], results.back().loss[which[k]]});
  }
  return results;
}

/// Sequences of calibration text on which a single matrix is judged.
static constexpr int64_t kSensitivitySequences = 2;

/// Scales predicted losses, matrix by matrix, so that the one of its middle option is what that option costs alone.
void Compressor::scale_by_measured(const std::vector<size_t>& which, std::vector<Done>& results,
                                   std::vector<KnapsackUnit>& units) {
  const Tensor text = calibration_.tokens.slice(0, 0, kSensitivitySequences).to(at::kInt).contiguous();
  const std::span<const int32_t> tokens(text.const_data_ptr<int32_t>(), static_cast<size_t>(text.numel()));
  std::vector<std::string> names;  // of the units that keep what was found
  std::vector<size_t> middle, missing;
  std::vector<Alone> alone;
  for (size_t k = 0; k < which.size(); ++k) {
    std::vector<size_t> order(units[k].size());
    for (size_t o = 0; o < order.size(); ++o) order[o] = o;
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return units[k][a].bytes < units[k][b].bytes; });
    middle.push_back(order[order.size() / 2]);
    const Done& result = results[middle[k]];
    names.push_back("alone|" + result.unit[which[k]]);
    if (work_->has(names[k])) continue;
    missing.push_back(k);
    const Target& target = targets_[which[k]];
    alone.push_back({target.name, target.layer, [this, &result, i = which[k]] { return node_of(result, i); }});
  }
  uint64_t done = which.size() - missing.size();
  measure_alone(model_, alone, tokens, text.size(1), pool_, [&](size_t m, double kl) {
    must(work_->commit(names[missing[m]], std::as_bytes(std::span(&kl, 1))));
    return progress_.step({"sensitivity", alone[m].name, ++done, which.size()});
  });
  if (done < which.size()) throw Failure(user_error("stopped; the same command continues from here"));
  for (size_t k = 0; k < which.size(); ++k) {
    double kl = 0;
    std::memcpy(&kl, must(work_->read(names[k])).data(), sizeof kl);
    const double predicted = units[k][middle[k]].loss;
    if (!(predicted > 0) || !(kl > 0)) continue;
    for (size_t o = 0; o < units[k].size(); ++o) {
      units[k][o].loss *= kl / predicted;
      results[o].loss[which[k]] = units[k][o].loss;
    }
  }
  stage("sensitivity");
}

/// About what a file takes beside these targets.
uint64_t Compressor::overhead(const std::vector<size_t>& which) const {
  uint64_t rest = 4096 + 256 * model_.tensors.size();
  for (const ModelTensor& t : model_.tensors)
    if (std::none_of(which.begin(), which.end(), [&](size_t i) { return targets_[i].name == t.name; }))
      rest += t.node->bits().total() / 8;
  return rest;
}

Compressor::Done Compressor::solve_knapsack() {
  const std::vector<Recipe> options = allowed_options();
  const std::vector<size_t> which = all_targets();
  std::vector<KnapsackUnit> units;
  std::vector<Done> results = measure_options(options, which, true, units);
  stage("measure options");
  if (request_.measured_sensitivity) scale_by_measured(which, results, units);
  const uint64_t overhead = this->overhead(which);
  curve_ = must(budget_curve(units, 40));
  for (CurvePoint& p : curve_) p.bytes += overhead;
  const uint64_t target = target_bytes();
  const uint64_t smallest = must(knapsack_range(units)).smallest_bytes;
  if (target > 0 && target < overhead + smallest) out_of_reach(static_cast<double>(overhead + smallest));
  uint64_t allowance = target - std::min(overhead, target);
  Done done(targets_.size());
  choice_.assign(targets_.size(), options.front());
  for (int round = 0;; ++round) {
    const KnapsackAnswer answer = request_.budget.kind == Budget::Kind::loss
                                      ? must(best_for_loss(units, std::log1p(request_.budget.value)))
                                      : must(best_for_bytes(units, allowance));
    lower_bound_ = answer.lower_bound;
    for (size_t k = 0; k < which.size(); ++k) {
      const auto option = static_cast<size_t>(answer.choice[k]);
      choice_[which[k]] = options[option];
      done.unit[which[k]] = results[option].unit[which[k]];
      done.loss[which[k]] = results[option].loss[which[k]];
    }
    if (target == 0) break;
    const uint64_t size = measure_bytes(done);
    if (size <= target && static_cast<double>(size) >= static_cast<double>(target) * 0.997) break;
    if (size <= target && round > 0) break;
    if (round == 8 || (size > target && answer.bytes == smallest)) out_of_reach(static_cast<double>(size));
    // What tables and headers really take differs from the allowance for them: solve again with the difference.
    allowance = static_cast<uint64_t>(std::max<int64_t>(
        static_cast<int64_t>(smallest),
        static_cast<int64_t>(allowance) + static_cast<int64_t>(target) - static_cast<int64_t>(size) - 512));
  }
  return done;
}

// ---- block types of a GGUF
// --------------------------------------------------------------------------------------------------------------

/// Types that llama.cpp runs fast and that Pith writes, by rising size.
static constexpr GgmlType kGgufTypes[] = {GgmlType::q2_k, GgmlType::q3_k, GgmlType::iq4_nl, GgmlType::q4_0,
                                          GgmlType::q4_k, GgmlType::q4_1, GgmlType::q5_0,   GgmlType::q5_k,
                                          GgmlType::q5_1, GgmlType::q6_k, GgmlType::q8_0};

// Loss of a type on a tensor: plain rounding, its errors weighted with 1 / U_jj^2 as the walk will feel them (the
// walk's own loss is a fixed share of that, the same for all types).
Compressor::TypeOptions Compressor::measure_types(const std::vector<size_t>& which, int64_t every) {
  TypeOptions options{std::vector<KnapsackUnit>(targets_.size()),
                      std::vector<std::vector<std::optional<GgmlType>>>(targets_.size())};
  each_layer(which, "measure types", [&](size_t i, FitJob job) {
    const int64_t step = targets_[i].layer < 0 ? every : 1;
    thin_rows(job, step);
    const std::vector<float> importance = walk_importance(job);
    if (const NodePtr& now = model_.find(job.name)->node; now->kind() == "blocks") {
      options.types[i].push_back(std::nullopt);
      options.costs[i].push_back({now->bits().total() / 8, 0});
    }
    for (const GgmlType type : kGgufTypes) {
      const auto row = ggml_row_bytes(type, targets_[i].cols);
      if (!row) continue;
      options.types[i].push_back(type);
      options.costs[i].push_back({*row * static_cast<uint64_t>(targets_[i].rows),
                                  gguf_rounding_loss(job, importance, type) * static_cast<double>(step)});
    }
  });
  return options;
}

std::vector<size_t> Compressor::take_types(const TypeOptions& options, const std::vector<size_t>& which,
                                           const KnapsackAnswer& answer, Choice& choice) const {
  choice.assign(targets_.size(), recipe({"gguf", ""}));
  std::vector<size_t> changed;
  for (size_t k = 0; k < which.size(); ++k) {
    const std::optional<GgmlType> type = options.types[which[k]][static_cast<size_t>(answer.choice[k])];
    if (!type) continue;
    must(choice[which[k]].options.set("type", ggml_traits(*type).name));
    changed.push_back(which[k]);
  }
  return changed;
}

Compressor::Done Compressor::solve_gguf_types() {
  const std::vector<size_t> which = all_targets();
  const TypeOptions measured = measure_types(which, 1);
  std::vector<KnapsackUnit> units;
  for (const size_t i : which) units.push_back(measured.costs[i]);
  curve_ = must(budget_curve(units, 40));
  const uint64_t target = target_bytes();
  KnapsackAnswer answer;
  if (request_.budget.kind == Budget::Kind::loss) {
    answer = must(best_for_loss(units, std::log1p(request_.budget.value) * 2));
  } else {
    // The size of a GGUF depends on the types alone: size a file of zeros, then solve for the real allowance.
    const KnapsackRange range = must(knapsack_range(units));
    const KnapsackAnswer trial = must(best_for_bytes(units, std::max(target, range.smallest_bytes)));
    NodeMap sized;
    Bytes zeros;  // enough for the largest matrix
    for (size_t k = 0; k < which.size(); ++k) {
      const std::optional<GgmlType> type = measured.types[which[k]][static_cast<size_t>(trial.choice[k])];
      if (!type) continue;
      const Target& t = targets_[which[k]];
      const size_t bytes = *ggml_row_bytes(*type, t.cols) * static_cast<size_t>(t.rows);
      if (zeros.size() < bytes) zeros = Bytes::own(std::vector<std::byte>(bytes));
      sized[t.name] = must(Blocks::make(*type, t.rows, t.cols, zeros.slice(0, bytes)));
    }
    const uint64_t overhead = written_bytes(with_nodes(model_, sized)) - trial.bytes;
    if (target < range.smallest_bytes + overhead)
      throw Failure(user_error(
          fmt::format("a GGUF of this model cannot be smaller than {} (its rows of {} fit only some block types); "
                      "a .pith file can: give -o NAME.pith",
                      print_size(range.smallest_bytes + overhead), model_.config.hidden)));
    answer = must(best_for_bytes(units, target - overhead));
    lower_bound_ = answer.lower_bound;
    for (CurvePoint& p : curve_) p.bytes += overhead;
  }
  const std::vector<size_t> changed = take_types(measured, which, answer, choice_);
  stage("plan");
  return run_sequential(choice_, changed);
}

// ---- one method, as it is
// --------------------------------------------------------------------------------------------------------------

Compressor::Done Compressor::fixed_choice() {
  choice_.assign(targets_.size(), recipe(request_.allow.front()));
  if (!request_.ends.method.empty())
    for (size_t i = 0; i < targets_.size(); ++i)
      if (targets_[i].layer < 0) choice_[i] = recipe(request_.ends);
  return run_chosen(all_targets());
}

}  // namespace pith
