// Random matrices of the kinds that the CUDA kernels multiply, for their tests and their bench.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/half.h"
#include "represent/codebook.h"
#include "represent/combine.h"
#include "represent/grid.h"

namespace pith::test {

template <class T>
T value_or_exit(Result<T> result) {
  if (result.ok()) return std::move(result).value();
  std::fprintf(stderr, "%s\n", result.error().message.c_str());
  std::exit(70);
}

class CudaNodes {
 public:
  explicit CudaNodes(uint64_t seed) : state_(seed * 2 + 1) {}

  double uniform() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return (static_cast<double>(state_ >> 11) + 0.5) * 0x1p-53;
  }
  double normal() { return std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307179586 * uniform()); }
  std::vector<uint16_t> halves(int64_t n, double scale) {
    std::vector<uint16_t> v(static_cast<size_t>(n));
    for (auto& h : v) h = float_to_half(static_cast<float>(scale * normal()));
    return v;
  }

  /// Codes centred on 0 when there are no zeros, as symmetric grids have them.
  NodePtr grid(int64_t rows, int64_t cols, unsigned bits, int64_t group, bool zeros) {
    return value_or_exit(
        Grid::make(codes(rows, cols, bits, zeros ? 0 : -(1 << (bits - 1))), {}, field(rows, cols, group, 0.01f, 0.02f),
                   zeros ? field(rows, cols, group, 0.0f, static_cast<float>((1 << bits) - 1)) : nullptr));
  }
  /// What spqr makes: groups of 16, 3-bit statistics over 16 rows, outliers, columns in another order.
  NodePtr spqr(int64_t rows, int64_t cols, unsigned bits, double outliers, bool permuted) {
    const int64_t groups = (cols + 15) / 16, tiles = (rows + 15) / 16;
    const auto statistics = [&](double scale, double zero) {
      std::vector<float> v;
      for (int64_t i = 0; i < 2 * tiles * groups; ++i)
        v.push_back(half_to_float(
            float_to_half(static_cast<float>((i < tiles * groups ? scale : zero) * (1 + 0.3 * uniform())))));
      return value_or_exit(TwoLevelField::make(cols, 16, 16, codes(rows, groups, 3, 0),
                                               value_or_exit(FloatArray::from(DType::f16, v, "statistics"))));
    };
    NodePtr node =
        value_or_exit(Grid::make(codes(rows, cols, bits, 0), {}, statistics(0.002, -4), statistics(0.6, -1)));
    if (outliers > 0) {
      std::vector<uint32_t> start{0}, columns;
      std::vector<float> values;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c)
          if (uniform() < outliers)
            columns.push_back(static_cast<uint32_t>(c)), values.push_back(static_cast<float>(0.3 * normal()));
        start.push_back(static_cast<uint32_t>(columns.size()));
      }
      node = value_or_exit(Override::make(node, value_or_exit(Csr::from(rows, cols, start, columns, values))));
    }
    if (!permuted) return node;
    std::vector<uint32_t> order(static_cast<size_t>(cols));
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<uint32_t>(i);
    for (size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[static_cast<size_t>(uniform() * static_cast<double>(i))]);
    return value_or_exit(Permuted::from(node, Axis::cols, order));
  }
  /// AQLM's: sums of entries of `books` books of 2^bits vectors of 8, a scale a row.
  NodePtr codebook(int64_t rows, int64_t cols, int64_t books, unsigned bits) {
    const int64_t groups = (cols + 7) / 8, entries = int64_t{1} << bits;
    std::vector<float> values(static_cast<size_t>(books * entries * 8)), scales(static_cast<size_t>(rows));
    for (float& v : values) v = static_cast<float>(0.02 * normal());
    for (float& s : scales) s = static_cast<float>(0.5 + uniform());
    NodePtr node = value_or_exit(Codebook::make(cols, books, entries, 8,
                                                codes(rows, groups * books, bits, Codebook::first_code(entries)),
                                                value_or_exit(FloatArray::from(DType::f16, values, "books"))));
    return value_or_exit(Scaled::make(node, Axis::rows, value_or_exit(FloatArray::from(DType::f16, scales, "scales"))));
  }

 private:
  CodesPtr codes(int64_t rows, int64_t cols, unsigned bits, int low) {
    std::vector<int16_t> v(static_cast<size_t>(rows * cols));
    for (auto& c : v) c = static_cast<int16_t>(low + static_cast<int>(uniform() * (1 << bits)));
    return value_or_exit(PackedCodes::pack(rows, cols, bits, low, v));
  }
  FieldPtr field(int64_t rows, int64_t cols, int64_t group, float low, float high) {
    std::vector<float> v(static_cast<size_t>(rows * ((cols + group - 1) / group)));
    for (float& f : v) f = low + (high - low) * static_cast<float>(uniform());
    return value_or_exit(AffineField::from(rows, cols, group, DType::f16, v));
  }
  uint64_t state_;
};

}  // namespace pith::test
