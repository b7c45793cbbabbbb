#include "maths/linalg.h"

#include <algorithm>
#include <cmath>
#include <functional>
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

// Panels are independent; a GPU takes them one after the other.
void each_panel(const Tensor& matrix, int64_t panels, const std::function<void(int64_t)>& body) {
  parallel_tasks(panels, body, matrix.is_cuda() ? 1 : 0);
}

// Lower Cholesky factor of `a` (its lower triangle), in place. False when `a` is not positive definite.
bool cholesky_in_place(Tensor a) {
  const int64_t n = a.size(0);
  for (int64_t j = 0; j < n; j += kPanel) {
    const int64_t w = std::min(kPanel, n - j);
    Tensor corner = a.narrow(0, j, w).narrow(1, j, w), block;
    {
      const OneThread one;  // LAPACK's blocking, and so its rounding, depends on the number of threads
      Tensor info;
      std::tie(block, info) = at::linalg_cholesky_ex(corner);
      if (info.item<int>() != 0 || !at::isfinite(block.diagonal()).all().item<bool>()) return false;
    }
    corner.copy_(block);
    const int64_t rest = n - j - w, panels = (rest + kPanel - 1) / kPanel;
    // below := below * block^-T, by panels of rows
    const auto rows = [&](int64_t i) { return a.narrow(0, j + w + i * kPanel, std::min(kPanel, rest - i * kPanel)); };
    each_panel(a, panels, [&](int64_t i) {
      Tensor below = rows(i).narrow(1, j, w);
      below.copy_(at::linalg_solve_triangular(block, below.t().contiguous(), /*upper=*/false).t());
    });
    // What remains, its lower triangle only.
    const Tensor below = rest > 0 ? a.narrow(0, j + w, rest).narrow(1, j, w).contiguous() : Tensor();
    each_panel(a, panels, [&](int64_t i) {
      const int64_t h = std::min(kPanel, rest - i * kPanel), to = i * kPanel + h;
      rows(i).narrow(1, j + w, to).sub_(at::mm(below.narrow(0, i * kPanel, h), below.narrow(0, 0, to).t()));
    });
  }
  a.tril_();
  return true;
}

// Inverse of a lower triangular matrix, in place, by panels of rows from the top.
void invert_lower_in_place(Tensor l) {
  const int64_t n = l.size(0);
  for (int64_t j = 0; j < n; j += kPanel) {
    const int64_t w = std::min(kPanel, n - j);
    Tensor corner = l.narrow(0, j, w).narrow(1, j, w), inverse;
    {
      const OneThread one;
      inverse = at::linalg_solve_triangular(corner.contiguous(), at::eye(w, l.options()), /*upper=*/false);
    }
    if (j > 0) {  // left of the corner: -inverse * left * (the inverse of the part above), which is lower triangular
      const Tensor left = at::mm(inverse, l.narrow(0, j, w).narrow(1, 0, j)).neg_();
      each_panel(l, j / kPanel, [&](int64_t i) {
        const int64_t from = i * kPanel;
        l.narrow(0, j, w)
            .narrow(1, from, kPanel)
            .copy_(at::mm(left.narrow(1, from, j - from), l.narrow(0, from, j - from).narrow(1, from, kPanel)));
      });
    }
    corner.copy_(inverse.tril());
  }
}

// Turns a contiguous square matrix by half a turn: rows and columns in reverse order.
void reverse_in_place(Tensor& m) {
  if (m.is_cuda()) {
    m.copy_(m.flip({0, 1}));
    return;
  }
  double* p = m.data_ptr<double>();
  std::reverse(p, p + m.numel());
}

// `fill` writes H with rows and columns reversed, at least its lower triangle.
InverseFactor factor(const Tensor& diagonal, const std::function<void(Tensor&)>& fill, double damp,
                     const std::string& what, at::Device device) {
  const int64_t n = diagonal.size(0);
  InverseFactor result;
  result.damp = damp;
  result.upper = at::empty({n, n}, at::TensorOptions().dtype(at::kDouble).device(device));
  if (n == 0) return result;
  const double* d = diagonal.const_data_ptr<double>();
  double sum = 0;
  for (int64_t j = 0; j < n; ++j) {
    if (!std::isfinite(d[j])) throw Failure(data_error(what + ": the second moments of its inputs are not finite"));
    if (d[j] < 0) throw Failure(bug_error(what + ": second moments with a negative diagonal"));
    if (d[j] == 0) result.dead.push_back(j);
    sum += d[j];
  }
  // The mean is over columns that live, so that dead ones do not weaken the damping.
  const int64_t alive = n - static_cast<int64_t>(result.dead.size());
  const double mean = alive > 0 ? sum / static_cast<double>(alive) : 1.0;
  // With P the reversal of order, P H P = L L^T gives H^-1 = U^T U with U = P L^-1 P: one factorisation, one inverse.
  for (;; result.damp = result.damp > 0 ? result.damp * 10 : 1e-6) {
    if (result.damp > 1)
      throw Failure(
          data_error(what + ": the second moments of its inputs stay indefinite at damping 1; they are broken"));
    Tensor& work = result.upper;
    fill(work);
    for (const int64_t j : result.dead) work[n - 1 - j][n - 1 - j] = mean;
    work.diagonal().add_(result.damp * mean);
    if (!cholesky_in_place(work)) continue;
    invert_lower_in_place(work);
    reverse_in_place(work);
    return result;
  }
}

}  // namespace

InverseFactor upper_inverse_factor(const Tensor& h, double damp, const std::string& what) {
  const at::NoGradGuard no_grad;
  const Tensor full = to_square(h, what);
  if (!at::isfinite(full.sum()).item<bool>())
    throw Failure(data_error(what + ": the second moments of its inputs are not finite"));
  return factor(
      full.diagonal().contiguous(),
      [&](Tensor& work) {
        work.copy_(full);
        reverse_in_place(work);
      },
      damp, what, at::kCPU);
}

InverseFactor upper_inverse_factor(const Moments& moments, double damp, const std::string& what, at::Device device) {
  const at::NoGradGuard no_grad;
  return factor(
      moments.diagonal(),
      [&](Tensor& work) {
        const int64_t n = moments.width();
        const double count = static_cast<double>(moments.count() > 0 ? moments.count() : 1);
        int64_t from = 0;
        for (const Tensor& panel : moments.panels()) {  // the upper triangle of H is the lower one of its reversal
          const int64_t h = panel.size(0);
          work.narrow(0, n - from - h, h).narrow(1, 0, n - from).copy_(panel.flip({0, 1})).div_(count);
          from += h;
        }
      },
      damp, what, device);
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

std::vector<float> inverse_squared_diagonal(const Tensor& upper) {
  const Tensor diagonal = upper.diagonal().to(at::kFloat).contiguous();
  std::vector<float> out(static_cast<size_t>(diagonal.size(0)));
  for (size_t j = 0; j < out.size(); ++j) {
    const float d = diagonal.const_data_ptr<float>()[j];
    out[j] = 1 / (d * d);
  }
  return out;
}

}  // namespace pith
