// Dense linear algebra in fp64 that several methods share. The bits do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "maths/moments.h"
#include "tensor/tensor.h"

namespace pith {

/// U with U^T U = (H + damp * mean(diag H) * I)^-1, U upper triangular: the factor that GPTQ walks along.
struct InverseFactor {
  Tensor upper;               ///< [n, n] fp64, zero below the diagonal
  std::vector<int64_t> dead;  ///< columns that calibration never saw (H_jj = 0): their weights may become zero
  double damp = 0;            ///< what was needed in the end (>= the asked one)
};

/// H: [n, n] symmetric positive semi-definite, any float type. A dead column gets the mean diagonal as its H_jj, so
/// that it neither disturbs its neighbours nor is compensated by them. When the factorisation fails, damp grows
/// tenfold, up to 1; then, or when H holds NaN or infinity, throws Failure naming `what`.
InverseFactor upper_inverse_factor(const Tensor& h, double damp = 0.01, const std::string& what = "matrix");
/// The same of E[x x^T], without making that matrix: beside `moments`, memory holds the result only. Computed, and
/// left, on `device`.
InverseFactor upper_inverse_factor(const Moments& moments, double damp = 0.01, const std::string& what = "matrix",
                                   at::Device device = at::kCPU);

/// 1 / U_jj^2 of an upper factor [n, n], in fp32: what an error of column j costs the walk along it.
std::vector<float> inverse_squared_diagonal(const Tensor& upper);

/// Symmetric square root of a covariance and its inverse, from its eigenvectors.
struct SquareRoot {
  Tensor root;       ///< C^(1/2) = Q sqrt(l) Q^T, [n, n] fp64; its null space stays null
  Tensor inverse;    ///< pseudo-inverse of `root`
  Tensor values;     ///< eigenvalues, ascending, [n]
  int64_t rank = 0;  ///< eigenvalues above the floor
};

/// Eigenvalues at most max(l) * n * floor are taken as zero (their directions never occur in the data), so the inverse
/// stays finite. `floor` defaults to the resolution of fp32, in which the products were formed.
SquareRoot square_root(const Tensor& c, double floor = 1.1920929e-07, const std::string& what = "matrix");

}  // namespace pith
