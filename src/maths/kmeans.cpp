#include "maths/kmeans.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tensor/parallel.h"

namespace pith {
namespace {

size_t at_(int64_t i) { return static_cast<size_t>(i); }

double distance(const float* a, const float* b, int64_t width) {
  double sum = 0;
  for (int64_t j = 0; j < width; ++j) {
    const double d = static_cast<double>(a[j]) - b[j];
    sum += d * d;
  }
  return sum;
}

// Different values come first, so that no two centres begin as one as long as there are enough of them.
std::vector<int64_t> first_points(const float* x, const float* w, int64_t n, int64_t width, int64_t k, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const Tensor order = at::randperm(n, generator, at::kLong);
  std::vector<int64_t> all(order.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>() + n);
  if (w != nullptr) std::stable_partition(all.begin(), all.end(), [&](int64_t i) { return w[i] > 0; });
  std::vector<int64_t> sorted(at_(n));
  std::iota(sorted.begin(), sorted.end(), 0);
  const auto less = [&](int64_t a, int64_t b) {
    return std::lexicographical_compare(x + a * width, x + (a + 1) * width, x + b * width, x + (b + 1) * width);
  };
  std::vector<int64_t> place(at_(n));
  for (int64_t i = 0; i < n; ++i) place[at_(all[at_(i)])] = i;
  std::sort(sorted.begin(), sorted.end(),
            [&](int64_t a, int64_t b) { return less(a, b) || (!less(b, a) && place[at_(a)] < place[at_(b)]); });
  std::vector<uint8_t> repeated(at_(n), 0);
  for (int64_t i = 1; i < n; ++i)
    repeated[at_(sorted[at_(i)])] =
        !less(sorted[at_(i - 1)], sorted[at_(i)]) && !less(sorted[at_(i)], sorted[at_(i - 1)]);
  std::stable_partition(all.begin(), all.end(), [&](int64_t i) { return repeated[at_(i)] == 0; });
  all.resize(at_(k));
  return all;
}

struct Search {
  const float* x;
  const float* w;  // null: all 1
  int64_t n, width;
  Tensor points;

  double weight(int64_t i) const { return w != nullptr ? w[i] : 1.0; }

  // The nearest centre by fp32 products, taken when it is nearer than the old one in fp64. Returns the loss.
  double assign(const Tensor& centres, std::vector<int32_t>& codes, std::vector<double>& apart, bool first) const {
    const int64_t k = centres.size(0), rows = std::clamp<int64_t>((int64_t{1} << 22) / k, 16, 4096);
    const float* c = centres.const_data_ptr<float>();
    const Tensor half_squares = (centres * centres).sum(1) * 0.5f, turned = centres.t().contiguous();
    parallel_tasks((n + rows - 1) / rows, [&](int64_t task) {
      const int64_t i0 = task * rows, count = std::min(rows, n - i0);
      const Tensor nearest = (half_squares - at::mm(points.narrow(0, i0, count), turned)).argmin(1);
      const int64_t* found = nearest.const_data_ptr<int64_t>();
      for (int64_t i = i0; i < i0 + count; ++i) {
        const auto proposed = static_cast<int32_t>(found[i - i0]);
        const double d = distance(x + i * width, c + proposed * width, width);
        const double old = first ? d : distance(x + i * width, c + codes[at_(i)] * width, width);
        if (first || d < old) codes[at_(i)] = proposed;
        apart[at_(i)] = std::min(d, old);
      }
    });
    double loss = 0;
    for (int64_t i = 0; i < n; ++i) loss += weight(i) * apart[at_(i)];
    return loss;
  }

  // Weighted means; an empty centre goes to the worst served point that no other empty centre took.
  Tensor means(const std::vector<int32_t>& codes, const std::vector<double>& apart, const Tensor& before) const {
    const int64_t k = before.size(0);
    std::vector<double> sum(at_(k * width), 0.0), mass(at_(k), 0.0);
    for (int64_t i = 0; i < n; ++i) {
      const double weight_i = weight(i);
      double* to = sum.data() + codes[at_(i)] * width;
      for (int64_t j = 0; j < width; ++j) to[j] += weight_i * x[i * width + j];
      mass[at_(codes[at_(i)])] += weight_i;
    }
    Tensor centres = before.clone();
    float* c = centres.data_ptr<float>();
    std::vector<int64_t> empty;
    for (int64_t e = 0; e < k; ++e) {
      if (mass[at_(e)] == 0) {
        empty.push_back(e);
        continue;
      }
      for (int64_t j = 0; j < width; ++j) c[e * width + j] = static_cast<float>(sum[at_(e * width + j)] / mass[at_(e)]);
    }
    if (empty.empty()) return centres;
    std::vector<int64_t> worst(at_(n));
    std::iota(worst.begin(), worst.end(), 0);
    const auto moved = static_cast<int64_t>(empty.size());
    std::partial_sort(worst.begin(), worst.begin() + moved, worst.end(), [&](int64_t a, int64_t b) {
      const double la = weight(a) * apart[at_(a)], lb = weight(b) * apart[at_(b)];
      return la > lb || (la == lb && a < b);
    });
    for (int64_t e = 0; e < moved; ++e) {
      const int64_t point = worst[at_(e)];
      if (weight(point) * apart[at_(point)] == 0) break;
      std::copy_n(x + point * width, width, c + empty[at_(e)] * width);
    }
    return centres;
  }
};

}  // namespace

KMeans kmeans(const Tensor& points, const Tensor& weights, int64_t k, int64_t rounds, uint64_t seed,
              const std::string& what) {
  if (points.dim() != 2 || points.size(0) == 0 || points.size(1) == 0 || points.scalar_type() != at::kFloat)
    throw Failure(bug_error(what + ": k-means takes an fp32 matrix of points"));
  const int64_t n = points.size(0), width = points.size(1);
  if (k < 1 || k > n)
    throw Failure(user_error(what + ": a codebook of " + std::to_string(k) + " entries for " + std::to_string(n) +
                             " points; take fewer entries"));
  if (weights.defined() && (weights.numel() != n || weights.scalar_type() != at::kFloat))
    throw Failure(bug_error(what + ": k-means takes one fp32 weight for each point"));
  const Tensor x = points.contiguous(), w = weights.defined() ? weights.contiguous() : Tensor();
  if (!x.isfinite().all().item<bool>() || (w.defined() && !(w.isfinite().all() & w.ge(0).all()).item<bool>()))
    throw Failure(data_error(what + ": a point or weight of k-means is not a finite number"));
  const Search search{x.const_data_ptr<float>(), w.defined() ? w.const_data_ptr<float>() : nullptr, n, width, x};

  KMeans best;
  best.codes.assign(at_(n), 0);
  best.centres = at::empty({k, width}, at::kFloat);
  const auto start = first_points(search.x, search.w, n, width, k, seed);
  for (int64_t e = 0; e < k; ++e)
    std::copy_n(search.x + start[at_(e)] * width, width, best.centres.data_ptr<float>() + e * width);
  std::vector<double> apart(at_(n));
  best.losses.push_back(search.assign(best.centres, best.codes, apart, true));
  std::vector<int32_t> codes = best.codes;
  for (int64_t round = 0; round < rounds && best.losses.back() > 0; ++round) {
    const Tensor centres = search.means(codes, apart, best.centres);
    const double loss = search.assign(centres, codes, apart, false);
    // Means lower the loss but for their rounding to fp32; where that decides, it is over.
    if (!(loss < best.losses.back())) break;
    const double gain = best.losses.back() - loss;
    best.centres = centres, best.codes = codes;
    best.losses.push_back(loss);
    if (gain < 1e-6 * loss) break;
  }
  return best;
}

}  // namespace pith
