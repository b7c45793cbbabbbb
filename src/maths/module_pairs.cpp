#include "maths/module_pairs.h"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "tensor/parallel.h"

namespace pith {
namespace {

// Lower Cholesky factor of c + damp mean(diag c) I; undefined when there is none.
Tensor cholesky(const Tensor& c, double damp) {
  const double mean = c.diagonal().mean().item<double>();
  const auto [lower, info] = at::linalg_cholesky_ex(c + at::eye(c.size(0), at::kDouble) * (damp * mean));
  return info.item<int32_t>() == 0 ? lower : Tensor();
}

// The factor at the smallest damping, from `first` in tenfold steps, with which there is one.
std::pair<Tensor, double> damped_cholesky(const Tensor& c, double first, const std::string& what) {
  if (!at::isfinite(c.sum()).item<bool>()) throw Failure(data_error(what + ": the covariance holds NaN or infinity"));
  for (double damp = first; damp <= 1; damp *= 10)
    if (Tensor lower = cholesky(c, damp); lower.defined()) return {lower, damp};
  throw Failure(user_error(what + ": its inputs are zero on the whole calibration text; use other text"));
}

Tensor indices(const std::vector<int64_t>& list) { return at::tensor(list, at::kLong); }

// From the back: tail[k] = sum of what[j], j >= k.
std::vector<double> tails(const Tensor& what) {
  const Tensor w = what.contiguous();
  std::vector<double> tail(static_cast<size_t>(w.numel()) + 1, 0);
  for (int64_t j = w.numel(); j-- > 0;)
    tail[static_cast<size_t>(j)] = tail[static_cast<size_t>(j) + 1] + w.const_data_ptr<double>()[j];
  return tail;
}

// A = C^(1/2) V^T = U S R^T and S R^T O^T = U2 S2 V2^T.
struct TwoStages {
  Tensor u, s, r, u2, s2, v2;
  TwoStages(const Tensor& value, const Tensor& output, const Tensor& root) {
    Tensor rt, v2t;
    std::tie(u, s, rt) = at::linalg_svd(at::mm(root, value.to(at::kDouble).t()), /*full_matrices=*/false);
    r = rt.t();
    std::tie(u2, s2, v2t) =
        at::linalg_svd(at::mm(s.unsqueeze(1) * rt, output.to(at::kDouble).t()), /*full_matrices=*/false);
    v2 = v2t.t();
  }
};

}  // namespace

Tensor leverage_scores(const Tensor& c, double ridge, const std::string& what) {
  const OneThread one;
  const Tensor full = c.to(at::kDouble);
  const double mean = full.diagonal().mean().item<double>();
  const Tensor ridged = full + at::eye(full.size(0), at::kDouble) * (ridge * mean);
  const auto [lower, damp] = damped_cholesky(ridged, 1e-10, what);
  // C (C + r I)^-1 = I - r (C + r I)^-1, and the diagonal of the inverse is the squared columns of L^-1.
  const Tensor inverse = at::linalg_solve_triangular(lower, at::eye(full.size(0), at::kDouble), /*upper=*/false);
  return 1 - inverse.square().sum(0) * (ridge * mean);
}

std::vector<int64_t> largest(const Tensor& scores, int64_t count) {
  const Tensor s = scores.to(at::kDouble).contiguous();
  const double* v = s.const_data_ptr<double>();
  std::vector<int64_t> order(static_cast<size_t>(s.numel()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return v[a] > v[b]; });
  order.resize(static_cast<size_t>(std::min(count, s.numel())));
  std::sort(order.begin(), order.end());
  return order;
}

Nystrom nystrom(const Tensor& reader, const Tensor& c, const std::vector<int64_t>& kept, const std::string& what) {
  const OneThread one;
  const Tensor j = indices(kept);
  const Tensor rows = c.to(at::kDouble).index_select(0, j);
  const auto [lower, damp] = damped_cholesky(rows.index_select(1, j), kNystromDamp, what);
  const Tensor right = at::mm(rows, reader.to(at::kDouble).t());  // C_J: W^T
  const Tensor half = at::linalg_solve_triangular(lower, right, /*upper=*/false);
  return {at::linalg_solve_triangular(lower.t(), half, /*upper=*/true).t(), damp};
}

// With C = L L^T in the order in which channels are kept, column j of W L is what channel j adds to the output beyond
// the channels before it.
std::vector<double> nystrom_tail(const Tensor& reader, const Tensor& c, const std::vector<int64_t>& order,
                                 const Tensor& weight, const std::string& what) {
  const OneThread one;
  const Tensor j = indices(order);
  const auto [lower, damp] = damped_cholesky(c.to(at::kDouble).index_select(0, j).index_select(1, j), 1e-10, what);
  const Tensor added = at::mm(reader.to(at::kDouble).index_select(1, j), lower);
  return tails(at::mv(added.square().t(), weight.to(at::kDouble)));
}

ValueOutput value_output(const Tensor& value, const Tensor& output, const SquareRoot& root, int64_t k) {
  const OneThread one;
  const TwoStages t(value, output, root.root);
  const Tensor u2 = t.u2.narrow(1, 0, k);
  return {at::mm(root.inverse, at::mm(t.u, u2)).t(), t.v2.narrow(1, 0, k) * t.s2.narrow(0, 0, k), t.s2};
}

// In the coordinates y = U2^T S^-1 R^T u of a value u, the output of a head is Z^T y with Z = S2 V2^T, and width k
// keeps the first k of them.
std::vector<double> value_output_tail(const Tensor& value, const Tensor& output, const SquareRoot& root,
                                      const std::vector<Tensor>& attended, const Tensor& weight) {
  const OneThread one;
  const TwoStages t(value, output, root.root);
  const Tensor seen = t.s.gt(t.s.max() * 1e-7);
  const Tensor inverse = at::where(seen, 1 / at::where(seen, t.s, at::ones_like(t.s)), at::zeros_like(t.s));
  const Tensor to_y = at::mm(t.u2.t() * inverse, t.r.t());
  const Tensor z = t.s2.unsqueeze(1) * t.v2.t();  // [d, rows of all heads]
  const auto heads = static_cast<int64_t>(attended.size());
  const int64_t rows = z.size(1) / heads, d = z.size(0);
  Tensor both = at::zeros({d, d}, at::kDouble);
  for (int64_t h = 0; h < heads; ++h) {
    const Tensor zh = z.narrow(1, h * rows, rows);
    const Tensor y = at::mm(at::mm(to_y, attended[static_cast<size_t>(h)].to(at::kDouble)), to_y.t());
    both += y * at::mm(zh * weight.to(at::kDouble), zh.t());
  }
  // Width k leaves the block of rows and columns from k on; neighbouring blocks differ by a row and a column.
  const Tensor beyond = at::triu(both, 1);
  return tails(both.diagonal() + 2 * beyond.sum(1));
}

}  // namespace pith
