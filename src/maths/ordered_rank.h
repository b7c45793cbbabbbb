// Products A B of two thin matrices whose inner directions are ordered by importance, so that any prefix is a model
// (Horvath et al., Maestro, arXiv 2308.14929).
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/tensor.h"

namespace pith {

/// The norms of what lies from each column on: norm of columns b, b + 1, … for every b. x: [n, r] -> [r].
/// Differentiable, at zero too.
Tensor suffix_norms(const Tensor& x);

/// Sum over b of the suffix norms of A's columns and of B's rows: the hierarchical group lasso that empties tails
/// first.
Tensor hierarchical_lasso(const Tensor& a, const Tensor& b);

/// A product a [out, r] b [r, in]: what cutting it at each b would take away, by its suffix norms; descending.
struct OrderedProduct {
  int64_t out = 0, in = 0;
  std::vector<double> importance;  ///< [r]

  OrderedProduct() = default;
  OrderedProduct(const Tensor& a, const Tensor& b);
  /// Directions of at least this importance.
  int64_t rank(double least) const;
};

/// Ranks at which all products together have at most `numbers` numbers (out + in a direction): direction after
/// direction goes, always the one of least importance for each number saved; at least one of every product stays. A
/// product that would not be smaller than its matrix begins at the largest rank that is.
std::vector<int64_t> nested_cut(const std::vector<OrderedProduct>& products, double numbers);

}  // namespace pith
