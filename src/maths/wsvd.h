// Weighted truncated SVD (README-weights, mechanism E): the best matrix of low rank, judged by what its errors do.
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace pith {

/// W ~ A B. The singular values are those of L^(1/2) W R^(1/2).
struct LowRankFit {
  Tensor a;         ///< [rows, rank] fp64
  Tensor b;         ///< [rank, cols] fp64
  Tensor spectrum;  ///< all singular values, descending, fp64; the error left is the tail's sum of squares
};

/// Minimises ||L^(1/2) (W - A B) R^(1/2)||_F over all A B of rank `rank` (Eckart-Young). `left` and `right` are
/// metrics: undefined = identity, a vector = diagonal, a matrix = symmetric positive semi-definite (the input
/// covariance). The singular values are split evenly between A and B. With a singular metric the part of W that it
/// cannot see is dropped. Throws Failure when shapes do not fit, rank is not in [0, min(rows, cols)] or a value is not
/// finite; `what` names the matrix. `floor`: which eigenvalues of a metric count as zero (square_root in linalg.h).
LowRankFit wsvd(const Tensor& w, const Tensor& left, const Tensor& right, int64_t rank,
                const std::string& what = "matrix", double floor = 1.1920929e-07);

/// The same nearly, at the cost of a few products with the matrix: a randomised SVD with 10 columns more than the rank
/// and two power iterations (Halko, Martinsson, Tropp 2011, arXiv 0909.4061). `spectrum` holds the singular values
/// found, rank of them. The same seed gives the same factors.
LowRankFit wsvd_random(const Tensor& w, const Tensor& left, const Tensor& right, int64_t rank, uint64_t seed,
                       const std::string& what = "matrix", double floor = 1.1920929e-07);

}  // namespace pith
