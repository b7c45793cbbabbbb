#include "maths/sparse_fit.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "represent/dense.h"
#include "represent/sparse.h"

namespace pith {

Result<SparsityPattern> parse_pattern(std::string_view text) {
  if (text == "none" || text.empty()) return SparsityPattern{};
  const size_t colon = text.find(':');
  const auto number = [](std::string_view digits) {
    int v = 0;
    if (digits.empty() || digits.size() > 2) return 0;
    for (const char c : digits) {
      if (c < '0' || c > '9') return 0;
      v = v * 10 + (c - '0');
    }
    return v;
  };
  SparsityPattern pattern;
  if (colon != std::string_view::npos) pattern = {number(text.substr(0, colon)), number(text.substr(colon + 1))};
  if (pattern.n < 1 || pattern.m < pattern.n || pattern.m > 16)
    return user_error("option 'pattern': expected N:M with 1 <= N <= M <= 16, such as 2:4, or none; found '" +
                      std::string(text) + "'");
  return pattern;
}

void keep_largest(const float* scores, int64_t n, int64_t keep, uint8_t* mask) {
  std::fill(mask, mask + n, uint8_t{0});
  if (keep <= 0) return;
  if (keep >= n) {
    std::fill(mask, mask + n, uint8_t{1});
    return;
  }
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::nth_element(order.begin(), order.begin() + keep - 1, order.end(), [scores](int64_t a, int64_t b) {
    return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
  });
  for (int64_t i = 0; i < keep; ++i) mask[order[static_cast<size_t>(i)]] = 1;
}

void keep_by_pattern(const float* scores, int64_t rows, int64_t cols, SparsityPattern pattern, uint8_t* mask) {
  for (int64_t i = 0; i < rows * cols; i += pattern.m) keep_largest(scores + i, pattern.m, pattern.n, mask + i);
}

DType value_type(float largest) {
  return largest == 0 || (largest <= 8192 && largest >= 0x1p-9f) ? DType::f16 : DType::f32;
}

int64_t kept_count(int64_t total, double sparsity) {
  return std::clamp<int64_t>(std::llround(static_cast<double>(total) * (1 - sparsity)), 0, total);
}

NodePtr pattern_node(int64_t rows, int64_t cols, const std::vector<uint8_t>& mask, SparsityPattern pattern,
                     NodePtr values) {
  const std::vector<uint8_t> positions = nm_patterns(pattern.n, pattern.m);
  std::vector<int16_t> rank(size_t{1} << pattern.m, 0);
  for (size_t p = 0; p * static_cast<size_t>(pattern.n) < positions.size(); ++p) {
    size_t set = 0;
    for (int k = 0; k < pattern.n; ++k)
      set |= size_t{1} << positions[p * static_cast<size_t>(pattern.n) + static_cast<size_t>(k)];
    rank[set] = static_cast<int16_t>(p);
  }
  const int64_t groups = cols / pattern.m;
  std::vector<int16_t> numbers(static_cast<size_t>(rows * groups));
  for (int64_t g = 0; g < rows * groups; ++g) {
    size_t set = 0;
    for (int k = 0; k < pattern.m; ++k)
      if (mask[static_cast<size_t>(g * pattern.m + k)]) set |= size_t{1} << k;
    numbers[static_cast<size_t>(g)] = rank[set];
  }
  const unsigned width = std::max(1u, nm_pattern_bits(pattern.n, pattern.m));
  return must(
      NMask::make(pattern.n, pattern.m, must(PackedCodes::pack(rows, groups, width, 0, numbers)), std::move(values)));
}

NodePtr masked_node(const Tensor& weight, const std::vector<uint8_t>& mask, SparsityPattern pattern) {
  const int64_t rows = weight.size(0), cols = weight.size(1);
  const float* w = weight.const_data_ptr<float>();
  const DType type = value_type(weight.abs().max().item<float>());
  if (pattern.n == 0) {
    std::vector<float> kept(mask.size());
    for (size_t i = 0; i < mask.size(); ++i) kept[i] = mask[i] ? w[i] : 0.0f;
    return must(Bitmap::from(rows, cols, kept, type));
  }
  std::vector<float> kept;
  kept.reserve(mask.size() / static_cast<size_t>(pattern.m) * static_cast<size_t>(pattern.n));
  for (size_t i = 0; i < mask.size(); ++i)
    if (mask[i]) kept.push_back(w[i]);
  return pattern_node(rows, cols, mask, pattern, must(Dense::from(type, rows, cols / pattern.m * pattern.n, kept)));
}

}  // namespace pith
