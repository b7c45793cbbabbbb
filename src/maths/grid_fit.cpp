#include "maths/grid_fit.h"

#include <algorithm>
#include <cmath>

#include "base/half.h"
#include "represent/field.h"
#include "represent/grid.h"

namespace pith {
namespace {

constexpr int kLanes = 8;  // independent sums, so that the compiler may use vectors and the order stays fixed

float half_rounded(float v) { return half_to_float(float_to_half(v)); }

// fp16 keeps at least 9 bits of a scale down to 2^-15 and ends at 65504.
DType type_of_scales(const GridSpec& spec, float largest) {
  const float typical = largest / static_cast<float>(1u << spec.bits);
  const float least = spec.stat_bits > 0 ? 0x1p-12f : 0x1p-15f;  // the second level's steps are smaller still
  return largest == 0 || (typical >= least && largest <= 32768.0f) ? DType::f16 : DType::f32;
}

}  // namespace

GridParams extremes_grid(const float* w, int64_t n, float levels) {
  float low = 0, high = 0;
  for (int64_t i = 0; i < n; ++i) low = std::min(low, w[i]), high = std::max(high, w[i]);
  const float scale = high / levels - low / levels;  // divided first: high - low may overflow
  if (!(scale > 0)) return {0, 0};
  return {scale, -low / scale};
}

SecondLevel second_level(std::span<const float> values, std::span<const uint8_t> used, unsigned bits, uint16_t* codes,
                         float* decoded) {
  const float top = static_cast<float>((1u << bits) - 1);
  float low = 0, high = 0;
  bool any = false;
  for (size_t i = 0; i < values.size(); ++i) {
    if (!used[i]) continue;
    low = any ? std::min(low, values[i]) : values[i];
    high = any ? std::max(high, values[i]) : values[i];
    any = true;
  }
  SecondLevel level;
  const float size = std::max(std::fabs(low), std::fabs(high));
  if (high - low <= size * 0x1p-9f) {
    // All the same to within fp16: one step of that size, and every code is 1.
    level.scale = half_rounded(0.5f * low + 0.5f * high);
    level.zero = 0;
  } else {
    level.scale = half_rounded((high - low) / top);
    if (level.scale == 0) level.scale = 0x1p-24f;
    level.zero = half_rounded(-low / level.scale);
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const float x = level.scale == 0 ? 0 : values[i] / level.scale + level.zero;
    const float code = used[i] ? round_even(std::clamp(x, 0.0f, top)) : 0.0f;
    codes[i] = static_cast<uint16_t>(code);
    decoded[i] = level.scale * (code - level.zero);
  }
  return level;
}

GridBuilder::GridBuilder(int64_t rows, int64_t cols, const GridSpec& spec, float largest, std::vector<float> importance)
    : rows_(rows),
      cols_(cols),
      group_(spec.group <= 0 ? cols : std::min(spec.group, cols)),
      groups_((cols + group_ - 1) / group_),
      spec_(spec),
      low_(0),
      top_(static_cast<float>((1u << spec.bits) - 1)),
      type_(type_of_scales(spec, largest)),
      importance_(std::move(importance)) {
  if (spec_.shape == GridShape::sym) {
    low_ = -static_cast<float>(1u << (spec.bits - 1));
    top_ = -low_ - 1;
  }
  if (type_ == DType::f32) spec_.stat_bits = 0;  // weights of a size that second-level fp16 cannot hold
  spec_.stat_group = std::min(spec_.stat_group, rows_);
  if (spec_.shape == GridShape::nf) {
    levels_ = normal_float_levels(spec.bits);
    for (size_t i = 0; i + 1 < levels_.size(); ++i) middles_.push_back(0.5f * levels_[i] + 0.5f * levels_[i + 1]);
  }
  const size_t count = static_cast<size_t>(rows_ * groups_);
  scale_.assign(count, 0.0f);
  inverse_.assign(count, 0.0f);
  zero_.assign(count, 0.0f);
  codes_.assign(static_cast<size_t>(rows_ * cols_), 0);
  if (spec_.stat_bits > 0) {
    const size_t tiles = static_cast<size_t>((rows_ + spec_.stat_group - 1) / spec_.stat_group);
    scale_codes_.assign(count, 0);
    scale_stats_.assign(tiles * static_cast<size_t>(groups_), {});
    if (spec_.shape == GridShape::asym) {
      zero_codes_.assign(count, 0);
      zero_stats_ = scale_stats_;
    }
  }
}

float GridBuilder::stored(float v) const { return type_ == DType::f16 ? half_rounded(v) : v; }

float GridBuilder::round_to_levels(float w, float scale, int16_t& code) const {
  const float x = scale == 0 ? 0 : w / scale;
  const auto at = std::upper_bound(middles_.begin(), middles_.end(), x);
  code = static_cast<int16_t>(at - middles_.begin());
  return scale * (levels_[static_cast<size_t>(code)] - 0.0f);
}

double GridBuilder::error(const float* w, const float* importance, int64_t n, GridParams p) const {
  if (spec_.shape == GridShape::nf) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      int16_t code;
      const double e = static_cast<double>(w[i]) - round_to_levels(w[i], p.scale, code);
      sum += (importance ? importance[i] : 1.0f) * e * e;
    }
    return sum;
  }
  const float inverse = p.scale == 0 ? 0 : 1 / p.scale;
  float sums[kLanes] = {};
  const auto squared = [&](int64_t i) {
    const float x = w[i] * inverse + p.zero;
    const float c = round_even(std::min(std::max(x, low_), top_));
    const float e = w[i] - p.scale * (c - p.zero);
    return e * e;
  };
  int64_t i = 0;
  if (importance) {
    for (; i + kLanes <= n; i += kLanes)
      for (int k = 0; k < kLanes; ++k) sums[k] += importance[i + k] * squared(i + k);
    for (; i < n; ++i) sums[0] += importance[i] * squared(i);
  } else {
    for (; i + kLanes <= n; i += kLanes)
      for (int k = 0; k < kLanes; ++k) sums[k] += squared(i + k);
    for (; i < n; ++i) sums[0] += squared(i);
  }
  double sum = 0;
  for (const float s : sums) sum += s;
  return sum;
}

GridParams GridBuilder::fit(const float* w, const float* importance, int64_t n) const {
  GridParams first;
  if (spec_.shape == GridShape::asym) {
    first = extremes_grid(w, n, top_);
  } else {
    float extreme = 0;
    for (int64_t i = 0; i < n; ++i)
      if (std::fabs(w[i]) > std::fabs(extreme)) extreme = w[i];
    // Uniform: the largest weight lands on the lowest code, which has no mirror image.
    first = {spec_.shape == GridShape::sym ? extreme / low_ : std::fabs(extreme), 0};
  }
  const auto rounded = [&](GridParams p) {
    // Two levels round scale and zero later, together with those of other rows.
    return spec_.stat_bits > 0 ? p : GridParams{stored(p.scale), stored(p.zero)};
  };
  first = rounded(first);
  if (!spec_.search || first.scale == 0) return first;

  GridParams best = first;
  double least = error(w, importance, n, best);
  const auto consider = [&](GridParams p) {
    p = rounded(p);
    if (!std::isfinite(p.scale) || !std::isfinite(p.zero)) return;
    const double e = error(w, importance, n, p);
    if (e < least) least = e, best = p;
  };
  // Clipping pays more the fewer levels there are.
  const float floor = spec_.bits <= 3 ? 0.4f : spec_.bits == 4 ? 0.55f : spec_.bits <= 6 ? 0.75f : 0.9f;
  const int steps = spec_.bits <= 4 ? 12 : 8;
  for (int k = 1; k <= steps; ++k) {
    const float p = 1 - (1 - floor) * static_cast<float>(k) / static_cast<float>(steps);
    consider({first.scale * p, first.zero});
  }
  // Least squares for the codes of the best range, twice.
  for (int round = 0; round < 2; ++round) {
    double h = 0, hc = 0, hcc = 0, hw = 0, hwc = 0;
    for (int64_t i = 0; i < n; ++i) {
      int16_t code;
      double level;
      if (spec_.shape == GridShape::nf) {
        round_to_levels(w[i], best.scale, code);
        level = levels_[static_cast<size_t>(code)];
      } else {
        level = round_even(std::min(std::max(w[i] / best.scale + best.zero, low_), top_));
      }
      const double a = importance ? importance[i] : 1.0f;
      h += a, hc += a * level, hcc += a * level * level, hw += a * w[i], hwc += a * level * w[i];
    }
    GridParams p;
    if (spec_.shape == GridShape::asym) {
      const double det = h * hcc - hc * hc;
      if (!(det > 1e-9 * h * hcc)) break;
      const double scale = (h * hwc - hc * hw) / det, offset = (hw * hcc - hc * hwc) / det;
      p = {static_cast<float>(scale), static_cast<float>(-offset / scale)};
    } else {
      if (!(hcc > 0)) break;
      p = {static_cast<float>(hwc / hcc), 0};
    }
    consider(p);
  }
  return best;
}

void GridBuilder::begin_group(int64_t row0, int64_t rows, int64_t col0, int64_t cols, const float* w, int64_t ld) {
  GridParams found[kWalkRows];
  const float* importance = importance_.empty() ? nullptr : importance_.data() + col0;
  for (int64_t r = 0; r < rows; ++r) found[r] = fit(w + r * ld, importance, cols);
  set_group(row0, rows, col0 / group_, found);
}

void GridBuilder::set_group(int64_t row0, int64_t rows, int64_t group_index, GridParams* found) {
  const auto at = [&](int64_t row) { return static_cast<size_t>(row * groups_ + group_index); };
  if (spec_.stat_bits == 0) {
    for (int64_t r = 0; r < rows; ++r) {
      scale_[at(row0 + r)] = stored(found[r].scale);
      zero_[at(row0 + r)] = stored(found[r].zero);
    }
  } else {
    for (int64_t first = 0; first < rows; first += spec_.stat_group) {
      const size_t n = static_cast<size_t>(std::min(spec_.stat_group, rows - first));
      float value[kWalkRows], decoded[kWalkRows];
      uint8_t used[kWalkRows];
      uint16_t code[kWalkRows];
      const size_t tile = static_cast<size_t>((row0 + first) / spec_.stat_group * groups_ + group_index);
      for (size_t r = 0; r < n; ++r) value[r] = found[first + static_cast<int64_t>(r)].scale, used[r] = value[r] != 0;
      scale_stats_[tile] = second_level({value, n}, {used, n}, spec_.stat_bits, code, decoded);
      for (size_t r = 0; r < n; ++r) {
        scale_[at(row0 + first + static_cast<int64_t>(r))] = decoded[r];
        scale_codes_[at(row0 + first + static_cast<int64_t>(r))] = code[r];
      }
      if (zero_stats_.empty()) continue;
      for (size_t r = 0; r < n; ++r) value[r] = found[first + static_cast<int64_t>(r)].zero;
      zero_stats_[tile] = second_level({value, n}, {used, n}, spec_.stat_bits, code, decoded);
      for (size_t r = 0; r < n; ++r) {
        zero_[at(row0 + first + static_cast<int64_t>(r))] = decoded[r];
        zero_codes_[at(row0 + first + static_cast<int64_t>(r))] = code[r];
      }
    }
  }
  for (int64_t r = 0; r < rows; ++r) inverse_[at(row0 + r)] = scale_[at(row0 + r)] == 0 ? 0 : 1 / scale_[at(row0 + r)];
}

void GridBuilder::round_all(const float* w) {
  const int64_t tiles = (rows_ + kWalkRows - 1) / kWalkRows;
  parallel_tasks(tiles, [&](int64_t tile) {
    const int64_t row0 = tile * kWalkRows, n = std::min(kWalkRows, rows_ - row0);
    for (int64_t col0 = 0; col0 < cols_; col0 += group_)
      begin_group(row0, n, col0, std::min(group_, cols_ - col0), w + row0 * cols_ + col0, cols_);
    for (int64_t r = row0; r < row0 + n; ++r)
      for (int64_t c = 0; c < cols_; ++c) quantize(r, c, w[r * cols_ + c]);
  });
}

NodePtr GridBuilder::build() const {
  const CodesPtr codes = must(PackedCodes::pack(rows_, cols_, spec_.bits, static_cast<int>(low_), codes_));
  const auto field = [&](const std::vector<float>& values, const std::vector<uint16_t>& stat_codes,
                         const std::vector<SecondLevel>& stats) -> FieldPtr {
    if (stats.empty()) return must(AffineField::from(rows_, cols_, group_, type_, values));
    const std::vector<int16_t> small(stat_codes.begin(), stat_codes.end());
    std::vector<uint16_t> numbers;
    numbers.reserve(2 * stats.size());
    for (const SecondLevel& s : stats) numbers.push_back(float_to_half(s.scale));
    for (const SecondLevel& s : stats) numbers.push_back(float_to_half(s.zero));
    const int64_t count = static_cast<int64_t>(numbers.size());
    return must(TwoLevelField::make(
        cols_, group_, spec_.stat_group, must(PackedCodes::pack(rows_, groups_, spec_.stat_bits, 0, small)),
        must(FloatArray::make(DType::f16, count, Bytes::own(std::move(numbers)), "stats"))));
  };
  FieldPtr scale = field(scale_, scale_codes_, scale_stats_);
  FieldPtr zero = spec_.shape == GridShape::asym ? field(zero_, zero_codes_, zero_stats_) : nullptr;
  return must(Grid::make(codes, levels_, std::move(scale), std::move(zero)));
}

}  // namespace pith
