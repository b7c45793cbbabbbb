#include "maths/ordered_rank.h"

#include <algorithm>
#include <queue>
#include <tuple>

namespace pith {

Tensor suffix_norms(const Tensor& x) { return (x.square().sum(0).flip(0).cumsum(0).flip(0) + 1e-12).sqrt(); }

Tensor hierarchical_lasso(const Tensor& a, const Tensor& b) {
  return suffix_norms(a).sum() + suffix_norms(b.t()).sum();
}

OrderedProduct::OrderedProduct(const Tensor& a, const Tensor& b) : out(a.size(0)), in(b.size(1)) {
  const at::NoGradGuard no_grad;
  const Tensor both = (suffix_norms(a.to(at::kDouble)) * suffix_norms(b.to(at::kDouble).t())).contiguous();
  importance.assign(both.const_data_ptr<double>(), both.const_data_ptr<double>() + both.numel());
}

int64_t OrderedProduct::rank(double least) const {
  return std::partition_point(importance.begin(), importance.end(), [&](double v) { return v >= least; }) -
         importance.begin();
}

std::vector<int64_t> nested_cut(const std::vector<OrderedProduct>& products, double numbers) {
  std::vector<int64_t> ranks;
  double total = 0;
  // Smallest first: importance a number, product; ties go to the first product.
  using Next = std::tuple<double, size_t>;
  std::priority_queue<Next, std::vector<Next>, std::greater<>> next;
  const auto offer = [&](size_t k) {
    const OrderedProduct& p = products[k];
    if (ranks[k] > 1)
      next.emplace(p.importance[static_cast<size_t>(ranks[k]) - 1] / static_cast<double>(p.out + p.in), k);
  };
  for (size_t k = 0; k < products.size(); ++k) {
    const OrderedProduct& p = products[k];
    const int64_t smaller = (p.out * p.in - 1) / (p.out + p.in);
    ranks.push_back(std::max<int64_t>(1, std::min(static_cast<int64_t>(p.importance.size()), smaller)));
    total += static_cast<double>(ranks[k] * (p.out + p.in));
    offer(k);
  }
  while (total > numbers && !next.empty()) {
    const size_t k = std::get<1>(next.top());
    next.pop();
    --ranks[k];
    total -= static_cast<double>(products[k].out + products[k].in);
    offer(k);
  }
  return ranks;
}

}  // namespace pith
