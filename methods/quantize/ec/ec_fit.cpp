// The walk of `ec`; see ec.cpp for the formulas.
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "engine/fit.h"
#include "maths/gptq_walk.h"
#include "represent/codes.h"
#include "represent/grid.h"
#include "tensor/tensor.h"

namespace pith {
namespace {

constexpr double kLogsPerOctave = 16;  // unit of RowColField
constexpr int kLogGrain = 2;           // we use eighths of an octave: 0.1 % of loss, one bit less a row
// Rows that the calibration text hardly ever moved would get absurdly wide steps: no row is rounded more than
// 2^3 times coarser than the (geometric) mean row.
constexpr double kWidestRow = 3.0;
// Inputs with a few massive values ask for very fine columns. Codes have 16 bits: when they do not suffice, the finest
// columns are made coarser, this many octaves at a time, until they do.
constexpr double kFinestColumn = 9.0, kCoarsening = 2.0;

struct RoundToStep {
  std::span<const uint8_t> row_log, col_log;
  const float* steps;  // by the sum of the two logarithms: exactly what a decoder multiplies with
  int16_t* codes;
  int64_t cols;
  float shrink;  // distance from an integer's half point that still rounds towards zero

  void begin_group(int64_t, int64_t, int64_t, int64_t, const float*, int64_t) {}
  float quantize(int64_t row, int64_t col, float w) {
    const float step = steps[row_log[static_cast<size_t>(row)] + col_log[static_cast<size_t>(col)]];
    const float x = std::fabs(w) / step;
    // The dead zone fades with the code: near zero the density falls steeply and bits are cheapest to save.
    const float half = x < 1 ? 0.5f + shrink : 0.5f + 0.5f * shrink;
    const float k = std::min(std::floor(x + 1 - half), 32767.0f);
    const float code = std::copysign(k, w);
    codes[row * cols + col] = static_cast<int16_t>(code);
    return code * step;
  }
};

// Logarithms rounded to the grain, as offsets from the smallest. base receives the smallest in octaves.
std::vector<uint8_t> quantised_logs(const std::vector<double>& octaves, double& base) {
  const double lowest = *std::min_element(octaves.begin(), octaves.end());
  base = std::round(lowest * kLogsPerOctave / kLogGrain) * kLogGrain / kLogsPerOctave;
  std::vector<uint8_t> logs;
  for (const double o : octaves) {
    const double units = std::round((o - base) * kLogsPerOctave / kLogGrain) * kLogGrain;
    logs.push_back(static_cast<uint8_t>(std::clamp(units, 0.0, 254.0)));
  }
  return logs;
}

std::vector<double> row_octaves(const FitJob& job, bool fisher) {
  const auto rows = static_cast<size_t>(job.weight.size(0));
  std::vector<double> octaves(rows, 0.0);
  if (!fisher || !job.row_fisher.defined()) return octaves;
  const Tensor g = job.row_fisher.to(at::kDouble).contiguous();
  const double* values = g.data_ptr<double>();
  double mean = 0, smallest = std::numeric_limits<double>::infinity();
  size_t seen = 0;
  for (size_t r = 0; r < rows; ++r)
    if (values[r] > 0) {
      mean += -0.5 * std::log2(values[r]);
      smallest = std::min(smallest, -0.5 * std::log2(values[r]));
      ++seen;
    }
  if (seen == 0) return octaves;
  mean /= static_cast<double>(seen);
  for (size_t r = 0; r < rows; ++r) {
    const double o = values[r] > 0 ? -0.5 * std::log2(values[r]) : mean + kWidestRow;
    octaves[r] = std::min(o, mean + kWidestRow);
  }
  return octaves;
}

/// The walk with no column more than 2^finest times finer than the mean one; null when a code does not fit 16 bits.
NodePtr walk(const FitJob& job, const Options& options, const Tensor& upper, double finest) {
  Tensor weight = usable_weight(job);
  const int64_t rows = weight.size(0), cols = weight.size(1);
  std::vector<double> column(static_cast<size_t>(cols));
  const Tensor diagonal = upper.diagonal().to(at::kDouble).contiguous();
  for (int64_t j = 0; j < cols; ++j) column[static_cast<size_t>(j)] = std::log2(diagonal.const_data_ptr<double>()[j]);
  double mean_column = 0;
  for (const double o : column) mean_column += o / static_cast<double>(cols);
  for (double& o : column) o = std::max(o, mean_column - finest);
  double row_base = 0, col_base = 0;
  const auto row_log = quantised_logs(row_octaves(job, options.flag("fisher")), row_base);
  const auto col_log = quantised_logs(column, col_base);
  const auto base = static_cast<float>(options.real("step") * std::exp2(row_base + col_base));
  const FieldPtr field = must(RowColField::make(base, row_log, col_log, kLogGrain));

  std::vector<int16_t> codes(static_cast<size_t>(rows * cols));
  RoundToStep policy{row_log,      col_log, static_cast<const RowColField&>(*field).steps().data(),
                     codes.data(), cols,    static_cast<float>(options.real("dead-zone"))};
  if (options.flag("compensate")) {
    gptq_walk(weight, upper, cols, policy);
  } else {
    const float* w = weight.const_data_ptr<float>();
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) policy.quantize(r, c, w[r * cols + c]);
  }

  const auto [lowest, highest] = std::minmax_element(codes.begin(), codes.end());
  if (*lowest == -32767 || *highest == 32767) return nullptr;  // saturated
  return must(Grid::make(must(PackedCodes::pack(rows, cols, codes)), {}, field));
}

NodePtr run(const FitJob& job, const Options& options) {
  const Tensor upper =
      knows_inputs(job) ? walk_factor(job, options.real("damp")) : at::eye(job.weight.size(1), at::kFloat);
  for (double finest = kFinestColumn; finest >= 0; finest -= kCoarsening)
    if (NodePtr node = walk(job, options, upper, finest)) return node;
  throw Failure(user_error(job.name + ": steps of " + options.text("step") +
                           " are too fine for weights of this size; raise option 'step'"));
}

}  // namespace

const Fit& ec_fit() {
  static const Fit fit{"ec", &run};
  return fit;
}

}  // namespace pith
