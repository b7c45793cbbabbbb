// Two matrices with an inner dimension between them, made narrower inside so that what the pair computes changes least
// (Lin et al., MoDeGPT, arXiv 2408.09632). Matrices are [out, in], second moments C = E[x x^T], all fp64.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "maths/linalg.h"
#include "tensor/tensor.h"

namespace pith {

/// How much each channel says that the others do not: the diagonal of C (C + ridge mean(diag C) I)^-1, [n].
Tensor leverage_scores(const Tensor& c, double ridge, const std::string& what = "matrix");

/// The `count` largest scores as ascending indices; of equal ones the first.
std::vector<int64_t> largest(const Tensor& scores, int64_t count);

/// Nystrom: the reader of z after only the channels `kept` of z are left, W' = W C_:J C_JJ^-1, which minimises
/// E|W z - W' z_J|^2. kNystromDamp times the mean diagonal is added to C_JJ (the products in C are fp32), and tenfold
/// more each time that it is singular all the same, up to the mean diagonal; then Failure.
inline constexpr double kNystromDamp = 1e-6;
struct Nystrom {
  Tensor reader;    ///< [out, kept]
  double damp = 0;  ///< what was added to the diagonal, as a share of its mean
};
Nystrom nystrom(const Tensor& reader, const Tensor& c, const std::vector<int64_t>& kept,
                const std::string& what = "matrix");

/// What that leaves of sum_r weight_r E(W z - W' z_J)_r^2 when the first k channels of `order` are kept, k = 0 .. n.
std::vector<double> nystrom_tail(const Tensor& reader, const Tensor& c, const std::vector<int64_t>& order,
                                 const Tensor& weight, const std::string& what = "matrix");

/// The best pair of inner width k in place of output(value(x)), by SVD of C^(1/2) V^T O^T: minimises
/// E|O V x - O' V' x|^2, and what is left is the sum of the squares of the singular values beyond k (Eckart-Young).
struct ValueOutput {
  Tensor value;     ///< V', [k, hidden]
  Tensor output;    ///< O', [rows, k]
  Tensor spectrum;  ///< all singular values, descending
};
/// value: [d, hidden]; output: [rows, d], all heads that read these values below each other; root: of C.
ValueOutput value_output(const Tensor& value, const Tensor& output, const SquareRoot& root, int64_t k);

/// What that leaves of sum_r weight_r E(O_h u)_r^2, summed over the heads h, when what head h reads, u = a mean of
/// values over tokens, has the second moments `attended[h]` [d, d]; k = 0 .. d. weight: [rows of one head].
std::vector<double> value_output_tail(const Tensor& value, const Tensor& output, const SquareRoot& root,
                                      const std::vector<Tensor>& attended, const Tensor& weight);

}  // namespace pith
