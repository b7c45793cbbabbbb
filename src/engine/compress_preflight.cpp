// What is foretold before the work begins: memory from sizes, time and loss from a sample of the blocks.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/compressor.h"
#include "engine/model_fit.h"
#include "measure/memory.h"

namespace pith {

// Original, student, codes with steps, buffer, two moments and the best so far; gradients of each thread; activations
// of a sequence a thread. (On a GPU most of it is there.)
uint64_t Compressor::tuning_memory(size_t threads) const {
  if (request_.tune_steps == 0) return 0;
  const LmConfig& c = model_.config;
  const auto each_token = static_cast<uint64_t>(6 * c.vocab + c.layers * (16 * c.hidden + 6 * c.intermediate));
  return 4 *
         (weights_count() * (9 + 2 * threads) + threads * static_cast<uint64_t>(request_.sequence_length) * each_token);
}

// The largest of four stages: activations of the calibration; the matrices of a block that are fitted at a time, with
// the statistics of the block; the embedding, which is fitted alone; and the tuning.
uint64_t Compressor::expected_memory() const {
  const auto threads = static_cast<size_t>(at::get_num_threads());
  // Either the factor is made (fp64, then fp32), or the walk has factor, weight twice, codes and packed codes.
  const auto fit = [](const Target& t) {
    const auto k = static_cast<uint64_t>(t.cols), n = static_cast<uint64_t>(t.rows) * k;
    return std::max(12 * k * k + 4 * n, 4 * k * k + 11 * n);
  };
  uint64_t ends = 0, block = 0;
  std::vector<uint64_t> fits;
  for (const Target& t : targets_) {
    if (t.layer < 0) ends = std::max(ends, fit(t));
    if (t.layer == 0) fits.push_back(fit(t));
  }
  std::sort(fits.rbegin(), fits.rend());
  for (size_t i = 0; i < std::min(threads, fits.size()); ++i) block += fits[i];
  for (const auto& [input, width] : block_inputs(model_.config, 0)) block += static_cast<uint64_t>(2 * width * width);
  const uint64_t allowance = request_.memory > 0 ? request_.memory : activation_memory();
  const auto tokens =
      static_cast<uint64_t>(request_.sequence_length * (request_.calibration_sequences + request_.fisher_sequences));
  const uint64_t activations = std::min(allowance / 2, 4 * tokens * static_cast<uint64_t>(model_.config.hidden)) +
                               std::min<uint64_t>(allowance / 2, threads << 28);
  return current_anonymous_memory() + (200ull << 20) + std::max({ends, block, activations, tuning_memory(threads)});
}

Preflight Compressor::preflight() {
  Preflight out;
  out.weights = weights_count();
  out.input_bytes = input_bytes_;
  out.target_bytes = target_bytes();
  out.smallest_bytes = static_cast<uint64_t>(static_cast<double>(out.weights) * kFewestBits / 8);
  out.peak_memory = expected_memory();
  if (only_tunes()) {
    out.method = fmt::format("{} steps of tuning", request_.tune_steps);
    return out;
  }
  const double begin = now();
  calibrate_model(4, 4);
  if (const ModelFit* method = whole()) {
    const Recipe r = recipe(request_.allow.front());
    const double read = now();
    const Tensor text = calibration_.tokens.narrow(0, 0, std::min<int64_t>(2, calibration_.tokens.size(0)));
    lm_nll(*weights_, text);
    out.seconds = (now() - read) * static_cast<double>(request_.calibration_sequences) /
                  static_cast<double>(text.size(0)) * method->passes(r.options);
    out.method = r.print();
    return out;
  }
  if (statistics_)
    out.seconds =
        (now() - begin) * static_cast<double>(request_.calibration_sequences + 3 * request_.fisher_sequences) / 16;
  if (continuous() && !plan_) {
    const double weights = weights_of_targets(all_targets());
    const double bits = out.target_bytes > 0 ? static_cast<double>(out.target_bytes) * 8 / weights : 3.5;
    double pass_seconds = 0, loss = 0;
    const double step = pilot_step(bits - 0.05, &loss, &pass_seconds);
    out.method = fmt::format("ec:step={:.3g}", step);
    out.predicted_loss = loss;
    out.seconds += 3 * pass_seconds;
  } else if (gguf_ && request_.allow.empty() && !plan_) {
    try_types(out);
  } else {
    try_methods(out);
  }
  if (!statistics_) return out;
  // Statistics of so few sequences serve nobody later.
  const std::string key = statistics_->key();
  statistics_.reset();
  forget_statistics(cache_folder(request_), key);
  return out;
}

/// Pre-flight of block types chosen for a budget: the choice for a sample of the blocks and of the rows of embedding
/// and head, and the walk on these blocks.
void Compressor::try_types(Preflight& out) {
  std::vector<size_t> sample = sample_targets(), blocks;
  for (const size_t i : all_targets()) (targets_[i].layer < 0 ? sample : blocks).push_back(i);
  const double scale = weights_of_targets(blocks) / std::max(1.0, weights_of_targets(sample_targets()));
  const TypeOptions measured = measure_types(sample, kPilotRows);
  // A sampled block stands for several: its costs count as often.
  std::vector<KnapsackUnit> units;
  for (const size_t i : sample) {
    units.push_back(measured.costs[i]);
    if (targets_[i].layer < 0) continue;
    for (KnapsackItem& option : units.back()) {
      option.bytes = static_cast<uint64_t>(static_cast<double>(option.bytes) * scale);
      option.loss *= scale;
    }
  }
  const uint64_t rest = overhead(all_targets());
  const KnapsackRange range = must(knapsack_range(units));
  const KnapsackAnswer answer =
      out.target_bytes > 0 ? must(best_for_bytes(units, std::max(range.smallest_bytes,
                                                                 out.target_bytes - std::min(rest, out.target_bytes))))
                           : must(best_for_loss(units, std::log1p(request_.budget.value) * 2));
  Choice choice;
  std::vector<size_t> walked = take_types(measured, sample, answer, choice);
  std::erase_if(walked, [&](size_t i) { return targets_[i].layer < 0; });
  double end_loss = 0;
  for (size_t k = 0; k < sample.size(); ++k)
    if (targets_[sample[k]].layer < 0) end_loss += units[k][static_cast<size_t>(answer.choice[k])].loss;
  out.method = "gguf";
  out.expected_bytes = rest + answer.bytes;
  const double begin = now();
  const Done done = try_units(choice, walked, 1, [](size_t, const Node&) {});
  out.seconds += (now() - begin) * scale;
  out.predicted_loss = done.total_loss() * scale + end_loss;
}

/// Pre-flight of methods with fixed options: each on a sample of the blocks.
void Compressor::try_methods(Preflight& out) {
  const std::vector<size_t> all = plan_ ? planned_ : all_targets();
  std::vector<size_t> sample;
  for (const size_t i : sample_targets())
    if (std::find(all.begin(), all.end(), i) != all.end()) sample.push_back(i);
  if (sample.empty()) sample = all;
  const double scale = weights_of_targets(all) / std::max(1.0, weights_of_targets(sample));
  const double begin = now();
  if (plan_ || request_.budget.kind == Budget::Kind::none) {
    const Choice choice = plan_ ? choice_ : Choice(targets_.size(), recipe(request_.allow.front()));
    std::vector<uint64_t> bytes(targets_.size());
    const Done done = try_units(choice, sample, 1, [&](size_t i, const Node& node) { bytes[i] = unit_bytes(node); });
    double sum = 0;
    for (const uint64_t b : bytes) sum += static_cast<double>(b);
    out.method = plan_ ? fmt::format("plan of {} matrices", planned_.size()) : request_.allow.front().print();
    out.expected_bytes = overhead(all) + static_cast<uint64_t>(sum * scale);
    if (statistics_ && needs().row_fisher) out.predicted_loss = done.total_loss() * scale;
  } else {
    const std::vector<Recipe> options = allowed_options();
    std::vector<KnapsackUnit> units;
    measure_options(options, sample, false, units);
    const uint64_t rest = std::min(overhead(all), out.target_bytes);
    const auto share = static_cast<uint64_t>(static_cast<double>(out.target_bytes - rest) / scale);
    const KnapsackAnswer answer =
        out.target_bytes > 0 ? must(best_for_bytes(units, std::max(must(knapsack_range(units)).smallest_bytes, share)))
                             : must(best_for_loss(units, std::log1p(request_.budget.value) / scale));
    out.method = fmt::format("the best of {} options", options.size());
    out.predicted_loss = answer.loss * scale;
  }
  out.seconds += (now() - begin) * scale;
}

}  // namespace pith
