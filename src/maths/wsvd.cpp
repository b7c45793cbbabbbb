#include "maths/wsvd.h"

#include <algorithm>
#include <string>
#include <tuple>

#include "maths/linalg.h"
#include "tensor/parallel.h"

namespace pith {
namespace {

// A metric's root and its pseudo-inverse, applied to one side of a matrix.
struct Metric {
  Tensor root, inverse;  // undefined: identity; vector: diagonal; else a matrix

  Metric(const Tensor& m, int64_t size, const std::string& what, double floor) {
    if (!m.defined()) return;
    if (m.size(0) != size || m.dim() > 2)
      throw Failure(
          bug_error(what + ": metric of size " + std::to_string(m.size(0)) + ", expected " + std::to_string(size)));
    if (m.dim() == 1) {
      const Tensor d = m.to(at::kDouble);
      if (!d.ge(0).all().item<bool>() || !at::isfinite(d).all().item<bool>())
        throw Failure(data_error(what + ": a diagonal metric must be finite and not negative"));
      root = d.sqrt();
      inverse = at::where(d.gt(0), at::where(d.gt(0), d, at::ones_like(d)).rsqrt(), at::zeros_like(d));
    } else {
      SquareRoot s = square_root(m, floor, what);
      root = s.root;
      inverse = s.inverse;
    }
  }
};

Tensor from_left(const Tensor& m, const Tensor& x) {
  if (!m.defined()) return x;
  return m.dim() == 1 ? m.unsqueeze(1) * x : at::mm(m, x);
}

Tensor from_right(const Tensor& x, const Tensor& m) {
  if (!m.defined()) return x;
  return m.dim() == 1 ? x * m.unsqueeze(0) : at::mm(x, m);
}

constexpr int64_t kOversampling = 10;
constexpr int kPowerIterations = 2;

using Svd = std::tuple<Tensor, Tensor, Tensor>;

Svd random_svd(const Tensor& m, int64_t rank, uint64_t seed) {
  const int64_t width = std::min(rank + kOversampling, std::min(m.size(0), m.size(1)));
  const auto basis = [](const Tensor& x) { return std::get<0>(at::linalg_qr(x)); };
  Tensor q = basis(at::mm(m, at::randn({m.size(1), width}, at::detail::createCPUGenerator(seed), at::kDouble)));
  for (int i = 0; i < kPowerIterations; ++i) q = basis(at::mm(m, basis(at::mm(m.t(), q))));
  auto [u, s, vh] = at::linalg_svd(at::mm(q.t(), m), /*full_matrices=*/false);
  return {at::mm(q, u), s.narrow(0, 0, rank), vh};
}

template <class Decompose>
LowRankFit weighted(const Tensor& w, const Tensor& left, const Tensor& right, int64_t rank, const std::string& what,
                    double floor, const Decompose& decompose) {
  const at::NoGradGuard no_grad;
  const OneThread one;  // LAPACK's blocking, and so its rounding, depends on the number of threads
  if (w.dim() != 2) throw Failure(bug_error(what + ": expected a matrix"));
  const int64_t most = std::min(w.size(0), w.size(1));
  if (rank < 0 || rank > most)
    throw Failure(
        user_error(what + ": rank " + std::to_string(rank) + " is not between 0 and " + std::to_string(most)));
  const Tensor full = w.to(at::kDouble);
  if (!at::isfinite(full.sum()).item<bool>()) throw Failure(data_error(what + ": holds NaN or infinity"));
  const Metric l(left, w.size(0), what, floor), r(right, w.size(1), what, floor);
  auto [u, s, vh] = decompose(from_right(from_left(l.root, full), r.root));
  const Tensor half = s.narrow(0, 0, rank).sqrt();
  LowRankFit fit;
  fit.a = from_left(l.inverse, u.narrow(1, 0, rank) * half);
  fit.b = from_right(half.unsqueeze(1) * vh.narrow(0, 0, rank), r.inverse);
  fit.spectrum = s;
  return fit;
}

}  // namespace

LowRankFit wsvd(const Tensor& w, const Tensor& left, const Tensor& right, int64_t rank, const std::string& what,
                double floor) {
  return weighted(w, left, right, rank, what, floor,
                  [](const Tensor& m) -> Svd { return at::linalg_svd(m, /*full_matrices=*/false); });
}

LowRankFit wsvd_random(const Tensor& w, const Tensor& left, const Tensor& right, int64_t rank, uint64_t seed,
                       const std::string& what, double floor) {
  return weighted(w, left, right, rank, what, floor, [&](const Tensor& m) { return random_svd(m, rank, seed); });
}

}  // namespace pith
