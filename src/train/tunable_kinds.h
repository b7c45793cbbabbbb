// The kinds of Tunable, for tunable.cpp to choose from: one function a kind, null when the node is none of it.
#pragma once

#include <memory>

#include "represent/arrays.h"
#include "train/tunable.h"

namespace pith {

/// x as an array of this type holds it; the gradient goes through.
Tensor as_stored(const Tensor& x, DType type);
/// An array as fp32 on a device, of this shape.
Tensor tensor_of(const FloatArray& values, at::IntArrayRef shape, at::Device device);
/// Each number for `group` neighbouring columns: [rows, groups] -> [rows, cols].
Tensor over_columns(const Tensor& x, int64_t group, int64_t cols);

/// Uniform grids and grids of levels with fields of steps and zeros: codes move; steps and zeros that are plain numbers
/// (one for each row and group) too, those of two levels stay.
std::unique_ptr<Tunable> tunable_grid(const Node& node, at::Device device);
/// A Codebook, or Scaled by rows of one: codes, entries, basis and scales move.
std::unique_ptr<Tunable> tunable_codebook(const Node& node, at::Device device);
/// U V of two Dense factors: both move.
std::unique_ptr<Tunable> tunable_low_rank(const Node& node, at::Device device);
/// A Sum: each term that can be tuned is, the others stay; codes move in the first term that has any.
std::unique_ptr<Tunable> tunable_sum(const Node& node, const CodePrices& prices, at::Device device);

}  // namespace pith
