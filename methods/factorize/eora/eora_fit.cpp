#include <cmath>

#include "engine/fit.h"
#include "engine/grid_options.h"
#include "maths/grid_fit.h"
#include "maths/wsvd.h"
#include "represent/combine.h"
#include "represent/field.h"
#include "represent/grid.h"
#include "represent/low_rank.h"
#include "tensor/parallel.h"

namespace pith {
namespace {

// A [r, in]: symmetric grid in groups of 128.
NodePtr quantised_rows(const Tensor& factor, unsigned bits) {
  const Tensor f = factor.to(at::kFloat).contiguous();
  GridBuilder grid(f.size(0), f.size(1), {.shape = GridShape::sym, .bits = bits, .group = 128, .search = true},
                   largest_size(f));
  grid.round_all(f.const_data_ptr<float>());
  return grid.build();
}

// B [out, r]: one scale for each component, that is, for each column.
NodePtr quantised_columns(const Tensor& factor, unsigned bits) {
  const Tensor f = factor.to(at::kFloat).t().contiguous();
  const int64_t rank = f.size(0), rows = f.size(1);
  GridBuilder grid(rank, rows, {.shape = GridShape::sym, .bits = bits, .search = true}, largest_size(f));
  grid.round_all(f.const_data_ptr<float>());
  std::vector<int16_t> codes(static_cast<size_t>(rank * rows));
  for (int64_t k = 0; k < rank; ++k)
    for (int64_t r = 0; r < rows; ++r)
      codes[static_cast<size_t>(r * rank + k)] = grid.codes()[static_cast<size_t>(k * rows + r)];
  return must(Grid::make(must(PackedCodes::pack(rows, rank, bits, -(1 << (bits - 1)), codes)), {},
                         must(AffineField::from(rows, rank, 1, grid.scale_type(), grid.scales(), true))));
}

NodePtr run(const FitJob& job, const Options& options) {
  const OneThread one;
  const Tensor weight = usable_weight(job);
  const int64_t rows = weight.size(0), cols = weight.size(1);
  if (job.base == nullptr)
    throw Failure(
        user_error(job.name + ": eora adds to a compressed matrix, and there is none; compress the model first"));
  if (job.base->rows() != rows || job.base->cols() != cols)
    throw Failure(data_error(job.name + ": the original is " + std::to_string(rows) + " x " + std::to_string(cols) +
                             ", the compressed matrix " + std::to_string(job.base->rows()) + " x " +
                             std::to_string(job.base->cols()) + "; are these files of one model?"));
  const unsigned bits = static_cast<unsigned>(std::stoi(options.text("factor-bits")));
  int64_t rank = options.integer("rank");
  if (const double budget = options.real("rank-budget"); budget > 0) {
    const double component = bits * static_cast<double>(rows + cols) +  // entries
                             (bits == 16 ? 0.0 : 16.0 * (1.0 + std::ceil(static_cast<double>(cols) / 128)));
    rank = static_cast<int64_t>(budget * static_cast<double>(rows) * static_cast<double>(cols) / component);
  }
  rank = std::min(rank, std::min(rows, cols));
  if (rank == 0) return job.base;

  const std::string& name = options.text("metric");
  Tensor metric;
  if (name == "eora") metric = input_moments(job);
  if (name == "act") {
    input_squares(job);  // refuses missing statistics, naming the tensor
    metric = job.inputs->mean_abs().pow(2);
  }
  if (metric.defined() && !metric.gt(0).any().item<bool>())
    throw Failure(user_error(job.name +
                             ": its inputs are zero on the whole calibration text, so there is nothing to fit; "
                             "use other text, or metric=svd"));
  const Tensor difference = weight.to(at::kDouble) - decoded(*job.base).to(at::kDouble);
  const LowRankFit fit = wsvd(difference, {}, metric, rank, job.name, options.real("eig-floor"));

  // Both factors of a component get the same largest entry, which keeps fp16 away from its ends.
  const Tensor size_a = fit.a.abs().amax(0), size_b = fit.b.abs().amax(1);
  const Tensor ratio =
      at::where(size_a.gt(0).logical_and(size_b.gt(0)), (size_b / size_a).sqrt(), at::ones_like(size_a));
  Tensor b = fit.a * ratio, a = fit.b / ratio.unsqueeze(1);

  NodePtr left, right;
  if (bits == 16) {
    left = dense_node(b);
    right = dense_node(a);
  } else {
    right = quantised_rows(a, bits);
    const Tensor rounded = decoded(*right).to(at::kDouble);
    Tensor weighted = rounded;
    if (metric.defined()) weighted = metric.dim() == 2 ? at::mm(rounded, metric) : rounded * metric;
    Tensor gram = at::mm(weighted, rounded.t());
    gram = gram + at::eye(rank, at::kDouble) * (1e-9 * gram.diagonal().mean().item<double>() + 1e-300);
    b = at::linalg_solve(gram, at::mm(weighted, difference.t())).t();
    left = quantised_columns(b, bits);
  }
  return must(Sum::make({job.base, must(LowRank::make(std::move(left), std::move(right)))}));
}

}  // namespace

const Fit& eora_fit() {
  static const Fit fit{"eora", run};
  return fit;
}

}  // namespace pith
