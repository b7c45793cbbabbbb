#include <algorithm>

#include "engine/fit.h"
#include "maths/additive_code.h"

namespace pith {
namespace {

// Weight and H with columns of zeros up to whole groups.
AdditiveTarget target_of(const FitJob& job, const Options& options, int64_t width) {
  const Tensor weight = usable_weight(job);
  const int64_t rows = weight.size(0), cols = weight.size(1), padded = (cols + width - 1) / width * width;
  AdditiveTarget target{at::zeros({rows, padded}, at::kFloat), at::zeros({padded, padded}, at::kFloat)};
  target.weight.narrow(1, 0, cols).copy_(weight);
  Tensor h = target.h.narrow(0, 0, cols).narrow(1, 0, cols);
  if (options.text("norm") == "weights") {
    h.diagonal().fill_(1);
    return target;
  }
  Tensor moments = input_moments(job);
  const double mean = moments.diagonal().mean().item<double>();
  moments.diagonal().add_(options.real("damp") * mean);
  // H has no unit of its own: mean 1 keeps products far from fp32's ends.
  h.copy_(mean > 0 ? moments / mean : moments);
  return target;
}

NodePtr run(const FitJob& job, const Options& options) {
  const at::NoGradGuard no_grad;
  const int64_t cols = job.weight.defined() && job.weight.dim() == 2 ? job.weight.size(1) : 1;
  const int64_t width = std::clamp<int64_t>(options.integer("group"), 1, std::max<int64_t>(cols, 1));
  const AdditiveTarget target = target_of(job, options, width);
  const int64_t groups = target.weight.numel() / width;
  const int64_t entries = std::min(int64_t{1} << options.integer("bits"), groups);
  AdditiveCode code = residual_kmeans(target, width, options.integer("books"), entries, options.integer("clusters"),
                                      job.seed, job.name);
  double loss = target.loss(code);
  for (int64_t round = 0; round < options.integer("rounds") && loss > 0; ++round) {
    AdditiveCode next = code;
    fit_books(target, next, options.integer("steps"));
    fit_scales(target, next);
    search_codes(target, next, options.integer("beam"), job.seed + static_cast<uint64_t>(round));
    const double found = target.loss(next);
    if (!(found < loss)) break;  // each step is best in itself; only rounding can end here
    const bool enough = found > loss * (1 - options.real("tolerance"));
    code = std::move(next), loss = found;
    if (enough) break;
  }
  const Tensor codes = at::from_blob(code.codes.data(), {code.rows, code.groups * code.books_count()}, at::kInt);
  return codebook_node({.cols = cols,
                        .length = width,
                        .codes = codes,
                        .books = code.books,
                        .scales = code.scales,
                        .scales_type = code.half_scales ? DType::f16 : DType::f32});
}

}  // namespace

const Fit& aqlm_fit() {
  static const Fit fit{"aqlm", run};
  return fit;
}

}  // namespace pith
