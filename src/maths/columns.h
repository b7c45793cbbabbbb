// Orders of columns and small things that every column walk needs.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/tensor.h"

namespace pith {

/// 0, 1, 2, …
std::vector<uint32_t> natural_order(int64_t cols);
/// Columns by falling value; equal values keep their order. `values`: [cols], any float type.
std::vector<uint32_t> falling_order(const Tensor& values);
/// As an int64 tensor, for index_select.
Tensor index_tensor(const std::vector<uint32_t>& order);
/// Sets columns of a contiguous fp32 matrix to zero.
void clear_columns(Tensor& weight, const std::vector<int64_t>& columns);
/// 1 / U_jj^2 of a GPTQ factor, scaled to mean 1: what a squared error in column j costs after compensation.
std::vector<float> column_importance(const Tensor& upper);

}  // namespace pith
