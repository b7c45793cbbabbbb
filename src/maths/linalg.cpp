#include "maths/linalg.h"

#include <algorithm>
#include <string>
#include <tuple>

#include "tensor/parallel.h"

namespace pith {
namespace {

constexpr int64_t kPanel = 256;  // columns factored at a time; the rest is matrix products

Tensor to_square(const Tensor& h, const std::string& what) {
  if (!h.defined() || h.dim() != 2 || h.size(0) != h.size(1))
    throw Failure(bug_error(what + ": expected a square matrix"));
  return h.to(at::kDouble);
}

// Lower Cholesky factor of `a`, in place. False when `a` is not positive definite.
bool cholesky_in_place(Tensor a) {
  const int64_t n = a.size(0);
  for (int64_t j = 0; j < n; j += kPanel) {
    const int64_t w = std::min(kPanel, n - j);
    auto [block, info] = at::linalg_cholesky_ex(a.narrow(0, j, w).narrow(1, j, w));
    if (info.item<int>() != 0 || !at::isfinite(block.diagonal()).all().item<bool>()) return false;
    a.narrow(0, j, w).narrow(1, j, w).copy_(block);
    const int64_t rest = n - j - w;
    if (rest == 0) break;
    Tensor below = a.narrow(0, j + w, rest).narrow(1, j, w);
    // below := below * block^-T
    below.copy_(at::linalg_solve_triangular(block, below.t().contiguous(), /*upper=*/false).t());
    for (int64_t i = 0; i < rest; i += kPanel) {  // only the lower triangle of what remains
      const int64_t h = std::min(kPanel, rest - i);
      a.narrow(0, j + w + i, h)
          .narrow(1, j + w, i + h)
          .sub_(at::mm(below.narrow(0, i, h), below.narrow(0, 0, i + h).t()));
    }
  }
  a.tril_();
  return true;
}

// Inverse of a lower triangular matrix, in place, panel by panel from the top.
void invert_lower_in_place(Tensor l) {
  const int64_t n = l.size(0);
  for (int64_t j = 0; j < n; j += kPanel) {
    const int64_t w = std::min(kPanel, n - j);
    Tensor diagonal_block = l.narrow(0, j, w).narrow(1, j, w);
    const Tensor inverse =
        at::linalg_solve_triangular(diagonal_block.contiguous(), at::eye(w, l.options()), /*upper=*/false);
    if (j > 0) {  // row block j: -inverse * L_j,0..j * (inverse of the part above)
      Tensor left = l.narrow(0, j, w).narrow(1, 0, j);
      left.copy_(at::mm(inverse, at::mm(left.contiguous(), l.narrow(0, 0, j).narrow(1, 0, j))).neg_());
    }
    diagonal_block.copy_(inverse.tril());
  }
}

}  // namespace

InverseFactor upper_inverse_factor(const Tensor& h, double damp, const std::string& what) {
  const at::NoGradGuard no_grad;
  const OneThread one;  // LAPACK's blocking, and so its rounding, depends on the number of threads
  const Tensor full = to_square(h, what);
  const int64_t n = full.size(0);
  InverseFactor result;
  if (n == 0) {
    result.upper = full.clone();
    return result;
  }
  Tensor diagonal = full.diagonal().clone().contiguous();
  if (!at::isfinite(full.sum()).item<bool>())
    throw Failure(data_error(what + ": the second moments of its inputs hold NaN or infinity"));
  const double* d = diagonal.const_data_ptr<double>();
  double sum = 0;
  for (int64_t j = 0; j < n; ++j) {
    if (d[j] < 0) throw Failure(bug_error(what + ": second moments with a negative diagonal"));
    if (d[j] == 0) result.dead.push_back(j);
    sum += d[j];
  }
  // The mean is over columns that live, so that dead ones do not weaken the damping.
  const int64_t alive = n - static_cast<int64_t>(result.dead.size());
  const double mean = alive > 0 ? sum / static_cast<double>(alive) : 1.0;
  // With P the reversal of order, P H P = L L^T gives H^-1 = U^T U with U = P L^-1 P: one factorisation, one inverse.
  for (double tried = damp;; tried = tried > 0 ? tried * 10 : 1e-6) {
    if (tried > 1)
      throw Failure(
          data_error(what + ": the second moments of its inputs stay indefinite at damping 1; are they broken?"));
    Tensor work = full.flip({0, 1});
    Tensor work_diagonal = work.diagonal();
    for (const int64_t j : result.dead) work_diagonal[n - 1 - j].fill_(mean);
    work_diagonal.add_(tried * mean);
    if (!cholesky_in_place(work)) continue;
    invert_lower_in_place(work);
    result.upper = work.flip({0, 1});
    result.damp = tried;
    return result;
  }
}

SquareRoot square_root(const Tensor& c, double floor, const std::string& what) {
  const at::NoGradGuard no_grad;
  const OneThread one;  // LAPACK's blocking, and so its rounding, depends on the number of threads
  const Tensor full = to_square(c, what);
  const int64_t n = full.size(0);
  if (!at::isfinite(full.sum()).item<bool>())
    throw Failure(data_error(what + ": the covariance holds NaN or infinity"));
  auto [values, vectors] = at::linalg_eigh((full + full.t()) * 0.5);
  const double largest = n > 0 ? values[n - 1].item<double>() : 0;
  const double limit = std::max(largest, 0.0) * static_cast<double>(n) * floor;
  const Tensor keep = values.gt(limit);
  const Tensor roots = at::where(keep, values.clamp_min(0).sqrt(), at::zeros_like(values));
  const Tensor inverse_roots =
      at::where(keep, at::where(keep, values, at::ones_like(values)).rsqrt(), at::zeros_like(values));
  SquareRoot result;
  result.root = at::mm(vectors * roots, vectors.t());
  result.inverse = at::mm(vectors * inverse_roots, vectors.t());
  result.values = values;
  result.rank = keep.sum().item<int64_t>();
  return result;
}

}  // namespace pith
