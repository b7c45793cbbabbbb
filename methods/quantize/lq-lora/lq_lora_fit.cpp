// The alternation of `lq-lora`; see lq_lora.cpp for the formulas.
#include <algorithm>
#include <limits>

#include "engine/fit.h"
#include "engine/grid_options.h"
#include "maths/grid_fit.h"
#include "maths/wsvd.h"
#include "represent/combine.h"
#include "represent/low_rank.h"
#include "tensor/parallel.h"

namespace pith {
namespace {

// Entries that the text never moved still count, or the low-rank part would be blind to them.
constexpr double kFloor = 1e-3;

Tensor floored(const Tensor& information) {
  const Tensor f = information.to(at::kDouble);
  const double mean = f.mean().item<double>();
  return mean > 0 ? f.clamp_min(kFloor * mean) : at::ones_like(f);
}

NodePtr run(const FitJob& job, const Options& options) {
  const OneThread one;
  const Tensor weight = usable_weight(job);
  const int64_t rows = weight.size(0), cols = weight.size(1);
  const int64_t rank = std::min(options.integer("rank"), std::min(rows, cols));
  const GridSpec spec{.shape = GridShape::nf,
                      .bits = static_cast<unsigned>(options.integer("bits")),
                      .group = options.integer("group"),
                      .stat_bits = static_cast<unsigned>(options.integer("stat-bits")),
                      .stat_group = std::stoi(options.text("stat-group"))};
  const auto round = [&](const Tensor& w) {
    const Tensor values = w.to(at::kFloat).contiguous();
    GridBuilder grid(rows, cols, spec, largest_size(values));
    grid.round_all(values.const_data_ptr<float>());
    return grid.build();
  };
  if (rank == 0) return round(weight);

  Tensor left, right;
  if (options.flag("fisher")) {
    if (job.row_fisher.defined()) left = floored(job.row_fisher);
    if (knows_inputs(job)) right = floored(input_squares(job));
  }
  const auto low_rank = [&](const Tensor& residual) {
    const LowRankFit fit = wsvd_random(residual, left, right, rank, job.seed, job.name);
    return must(LowRank::make(dense_node(fit.a), dense_node(fit.b)));
  };
  const auto error = [&](const Tensor& residual) {
    Tensor squares = residual.to(at::kDouble).pow(2);
    if (left.defined()) squares = squares * left.unsqueeze(1);
    if (right.defined()) squares = squares * right;
    return squares.sum().item<double>();
  };

  NodePtr grid, path;
  double best = std::numeric_limits<double>::infinity();
  Tensor quantised = at::zeros_like(weight);
  for (int64_t i = 0; i < options.integer("iterations"); ++i) {
    const NodePtr low = low_rank(weight - quantised), coarse = round(weight - decoded(*low));
    quantised = decoded(*coarse);
    const double now = error(weight - quantised - decoded(*low));
    if (!(now < best)) break;
    best = now, grid = coarse, path = low;
  }
  // The best for the grid that stays; rounding of the factors may leave it a hair behind the one there is.
  const Tensor residual = weight - decoded(*grid);
  if (const NodePtr last = low_rank(residual); error(residual - decoded(*last)) < best) path = last;
  return must(Sum::make({grid, path}));
}

}  // namespace

const Fit& lq_lora_fit() {
  static const Fit fit{"lq-lora", run};
  return fit;
}

}  // namespace pith
