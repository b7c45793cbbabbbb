// Rounding to ggml's block types: nearest codes, with a search for the scales that minimise the weighted squared error.
//
// Blocks with one scale: candidates for the scale come from the largest value, each is refined by least squares and
// rounded to fp16 before its error is measured, so what is compared is what will be decoded. Super-blocks: the best
// scale of each sub-block first, then the common scale, then codes of scales and minima one step up and down, then
// least squares for the common scale, twice.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "base/half.h"
#include "formats/dtype.h"
#include "formats/ggml_blocks.h"

namespace pith {
namespace {

constexpr int kMaxSub = 32;

// A run of values with one scale: x_i is approximated by scale * level_i - low.
struct Run {
  const float* x;
  const float* w;
  int n;
};

// Levels of all codes, as the search sees them.
struct Levels {
  float low, high;  // smallest and largest level
  bool table;
};

struct Fit {
  float scale = 0, low = 0, error = INFINITY;
};

// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer (|v| < 2^22), and compilers vectorise it.
float nearest(float v) {
  constexpr float magic = 12582912.0f;
  return (v + magic) - magic;
}

float inverse(float scale) { return std::fabs(scale) < 1e-30f ? 0.0f : 1.0f / scale; }

// Nearest level of (x + low) / scale.
void round_levels(const Run& run, const Levels& levels, float scale, float low, float* out) {
  const float inv = inverse(scale), offset = low * inv;
  if (!levels.table) {
    for (int i = 0; i < run.n; ++i) {
      float v = run.x[i] * inv + offset;
      v = v < levels.low ? levels.low : v;
      v = v > levels.high ? levels.high : v;
      out[i] = nearest(v);
    }
    return;
  }
  int32_t index[kMaxSub] = {};
  float v[kMaxSub];
  for (int i = 0; i < run.n; ++i) v[i] = run.x[i] * inv;
  for (int k = 0; k < 15; ++k) {
    const float middle = 0.5f * static_cast<float>(iq4_levels[k] + iq4_levels[k + 1]);
    for (int i = 0; i < run.n; ++i) index[i] += v[i] > middle ? 1 : 0;
  }
  for (int i = 0; i < run.n; ++i) out[i] = static_cast<float>(iq4_levels[index[i]]);
}

float error_of(const Run& run, const float* levels, float scale, float low) {
  float e[4] = {};  // four sums, so that the loop vectorises in a fixed order
  for (int i = 0; i < run.n; i += 4)
    for (int k = 0; k < 4; ++k) {
      const float d = run.x[i + k] - (scale * levels[i + k] - low);
      e[k] += run.w[i + k] * d * d;
    }
  return (e[0] + e[1]) + (e[2] + e[3]);
}

// Sums of least squares for x ~ a * u - b * v; the solution is in double because large products are subtracted.
struct Normal {
  double uu = 0, uv = 0, vv = 0, xu = 0, xv = 0;
  void add(const Run& run, const float* levels, double u_scale, double v) {
    float sums[5][4] = {};  // l, l^2, x l, x, 1: each weighted, in four lanes
    for (int i = 0; i < run.n; i += 4)
      for (int k = 0; k < 4; ++k) {
        const float w = run.w[i + k], l = levels[i + k], wl = w * l, wx = w * run.x[i + k];
        sums[0][k] += wl, sums[1][k] += wl * l, sums[2][k] += wx * l, sums[3][k] += wx, sums[4][k] += w;
      }
    const auto sum = [&](int j) { return static_cast<double>((sums[j][0] + sums[j][1]) + (sums[j][2] + sums[j][3])); };
    const double l1 = sum(0), l2 = sum(1), xl = sum(2), x1 = sum(3), w1 = sum(4);
    uu += u_scale * u_scale * l2, uv += u_scale * v * l1, vv += v * v * w1, xu += u_scale * xl, xv += v * x1;
  }
  // b is kept >= 0 when `positive` (a minimum that is subtracted); without `both` only a is fitted.
  bool solve(bool both, bool positive, float& a, float& b) const {
    if (both) {
      // uu a - uv b = xu;  uv a - vv b = xv
      const double det = uv * uv - uu * vv;
      if (std::fabs(det) > 1e-9 * uu * vv) {
        const double sa = (uv * xv - vv * xu) / det, sb = (uu * xv - uv * xu) / det;
        if (!positive || sb >= 0) {
          a = static_cast<float>(sa), b = static_cast<float>(sb);
          return std::isfinite(a) && std::isfinite(b);
        }
      } else {
        return false;
      }
    }
    if (!(uu > 0)) return false;
    a = static_cast<float>(xu / uu), b = 0;
    return std::isfinite(a);
  }
};

// Best scale for x ~ scale * level. `half`: scale is stored as fp16 itself.
Fit fit_scale(const Run& run, const Levels& levels, bool half) {
  float peak = 0;
  for (int i = 0; i < run.n; ++i)
    if (std::fabs(run.x[i]) > std::fabs(peak)) peak = run.x[i];
  Fit best;
  if (peak == 0) return {0, 0, 0};
  float l[kMaxSub];
  const auto stored = [&](float v) { return half ? fp16_round(v) : v; };
  const auto consider = [&](float scale) {
    round_levels(run, levels, scale, 0, l);
    const float e = error_of(run, l, scale, 0);
    if (e < best.error) best = {scale, 0, e};
  };
  // The peak at the end of the code range, within one and a half steps: below, other values fit better; above, it is
  // clipped.
  const float step = (levels.high - levels.low) / (levels.table ? 15.0f : levels.high - levels.low);
  for (const float end : {levels.low, levels.high})
    for (int k = -7; k <= 8; ++k) {
      const float reach = end + (end < 0 ? -1.0f : 1.0f) * 0.25f * static_cast<float>(k) * step;
      if (std::fabs(reach) < 0.5f * step) continue;
      const float first = peak / reach;
      if (k == 0) consider(stored(first));
      float scale = first, none = 0;
      for (int round = 0; round < 2; ++round) {
        round_levels(run, levels, scale, 0, l);
        Normal normal;
        normal.add(run, l, 1, 0);
        if (!normal.solve(false, false, scale, none)) break;
        consider(stored(scale));
      }
    }
  return best;
}

// Best scale and minimum for x ~ scale * level - low. `positive`: low >= 0 (K types).
Fit fit_affine(const Run& run, const Levels& levels, bool half, bool positive) {
  float top = run.x[0], bottom = run.x[0];
  for (int i = 1; i < run.n; ++i) top = std::max(top, run.x[i]), bottom = std::min(bottom, run.x[i]);
  if (positive) bottom = std::min(bottom, 0.0f);
  const auto stored = [&](float v) { return half ? fp16_round(v) : v; };
  float l[kMaxSub];
  Fit best;
  const auto consider = [&](float scale, float low) {
    round_levels(run, levels, scale, low, l);
    const float e = error_of(run, l, scale, low);
    if (e < best.error) best = {scale, low, e};
  };
  consider(stored((top - bottom) / levels.high), stored(-bottom));
  if (top == bottom) return best;
  // Ranges from one code tighter to two codes wider than the values', clipped at the top, at the bottom, or at both.
  for (int k = -4; k <= 8; ++k)
    for (const float share : {0.0f, 0.5f, 1.0f}) {
      if (k == 0 && share > 0) continue;
      float scale = (top - bottom) / (levels.high + 0.25f * static_cast<float>(k));
      float low = -bottom - share * 0.25f * static_cast<float>(k) * scale;
      if (positive) low = std::max(low, 0.0f);
      for (int round = 0; round < 2; ++round) {
        round_levels(run, levels, scale, low, l);
        Normal normal;
        normal.add(run, l, 1, 1);
        if (!normal.solve(true, positive, scale, low)) break;
        consider(stored(scale), stored(low));
      }
    }
  return best;
}

void to_codes(const float* levels, int n, bool table, int16_t* codes) {
  for (int i = 0; i < n; ++i)
    codes[i] = table ? static_cast<int16_t>(std::find(iq4_levels, iq4_levels + 16, levels[i]) - iq4_levels)
                     : static_cast<int16_t>(levels[i]);
}

void round_block(const BlockShape& shape, const float* x, const float* w, BlockFields& out) {
  const Levels levels = shape.table
                            ? Levels{-127, 113, true}
                            : Levels{static_cast<float>(shape.code_low), static_cast<float>(shape.code_high), false};
  const bool affine = shape.min_high != 0;
  const int subs = shape.elements / shape.sub;
  float l[kMaxSub];
  if (subs == 1) {
    const Run run{x, w, shape.sub};
    const Fit fit = affine ? fit_affine(run, levels, true, false) : fit_scale(run, levels, true);
    out.d = fit.scale, out.dmin = fit.low;
    out.scales[0] = 1, out.mins[0] = affine;
    round_levels(run, levels, fit.scale, fit.low, l);
    to_codes(l, shape.sub, shape.table, out.codes);
    return;
  }

  Fit fits[16];
  float scale_peak = 0, min_peak = 0;
  for (int s = 0; s < subs; ++s) {
    const Run run{x + s * shape.sub, w + s * shape.sub, shape.sub};
    fits[s] = affine ? fit_affine(run, levels, false, true) : fit_scale(run, levels, false);
    if (std::fabs(fits[s].scale) > std::fabs(scale_peak)) scale_peak = fits[s].scale;
    min_peak = std::max(min_peak, fits[s].low);
  }
  // Signed scale codes reach one further on the low side; the sign of d puts the peak there.
  const float reach = static_cast<float>(affine ? shape.scale_high : shape.scale_low);
  BlockFields now;
  float best_error = INFINITY;
  // A few ways to place the largest scale code; the second lets it be clipped a little.
  for (const float stretch : {1.0f, 1.06f, 0.94f}) {
    now.d = fp16_round(scale_peak / reach / stretch);
    now.dmin = affine ? fp16_round(min_peak / static_cast<float>(shape.min_high)) : 0.0f;
    for (int s = 0; s < subs; ++s) {
      const float sc = nearest(std::clamp(fits[s].scale * inverse(now.d), -1000.0f, 1000.0f));
      const float mc = nearest(std::clamp(fits[s].low * inverse(now.dmin), 0.0f, 1000.0f));
      now.scales[s] = static_cast<int16_t>(std::clamp<int>(static_cast<int>(sc), shape.scale_low, shape.scale_high));
      now.mins[s] = static_cast<int16_t>(std::clamp<int>(static_cast<int>(mc), shape.min_low, shape.min_high));
    }
    for (int round = 0; round < 3; ++round) {
      float total = 0;
      Normal normal;
      for (int s = 0; s < subs; ++s) {
        const Run run{x + s * shape.sub, w + s * shape.sub, shape.sub};
        float best = INFINITY;
        const int sc0 = now.scales[s], mc0 = now.mins[s];
        for (int sc = std::max(sc0 - 1, shape.scale_low); sc <= std::min(sc0 + 1, shape.scale_high); ++sc)
          for (int mc = std::max(mc0 - affine, shape.min_low); mc <= std::min(mc0 + affine, shape.min_high); ++mc) {
            const float scale = now.d * static_cast<float>(sc), low = now.dmin * static_cast<float>(mc);
            round_levels(run, levels, scale, low, l);
            const float e = error_of(run, l, scale, low);
            if (e < best) best = e, now.scales[s] = static_cast<int16_t>(sc), now.mins[s] = static_cast<int16_t>(mc);
          }
        total += best;
        const float scale = now.d * static_cast<float>(now.scales[s]), low = now.dmin * static_cast<float>(now.mins[s]);
        round_levels(run, levels, scale, low, l);
        to_codes(l, shape.sub, shape.table, now.codes + s * shape.sub);
        normal.add(run, l, now.scales[s], now.mins[s]);
      }
      if (total < best_error) best_error = total, out = now;
      float d = now.d, dmin = now.dmin;
      if (!normal.solve(affine, affine, d, dmin)) break;
      d = fp16_round(d), dmin = fp16_round(dmin);
      if (d == now.d && dmin == now.dmin) break;
      now.d = d, now.dmin = dmin;
    }
  }
}

}  // namespace

void quantize_row(GgmlType type, const float* src, int64_t n, const float* importance, std::byte* dst) {
  const auto& t = ggml_traits(type);
  switch (type) {
    case GgmlType::f32:
      return from_float(DType::f32, src, n, dst);
    case GgmlType::bf16:
      return from_float(DType::bf16, src, n, dst);
    case GgmlType::f16:
      for (int64_t i = 0; i < n; ++i) {
        const float v = std::isnan(src[i]) ? src[i] : std::clamp(src[i], -65504.0f, 65504.0f);
        const uint16_t h = float_to_half(v);
        std::memcpy(dst + 2 * i, &h, 2);
      }
      return;
    default:
      break;
  }
  const BlockShape* shape = block_shape(type);
  if (shape == nullptr) std::abort();  // traits say which types are writable
  float x[256] = {}, w[256] = {};
  BlockFields fields;
  for (int64_t b = 0; b < n / shape->elements; ++b) {
    float sum = 0;
    for (int i = 0; i < shape->elements; ++i) {
      const float v = src[b * shape->elements + i];
      x[i] = std::isnan(v) ? 0.0f : std::clamp(v, -65504.0f, 65504.0f);
      const float u = importance ? importance[b * shape->elements + i] : 1.0f;
      w[i] = u > 0 && u < 1e30f ? u : 0.0f;
      sum += w[i];
    }
    // Weights matter only among themselves: bring their mean to 1, and treat "nothing matters" as "all the same".
    const float scale = sum > 0 ? static_cast<float>(shape->elements) / sum : 0.0f;
    for (int i = 0; i < shape->elements; ++i) w[i] = scale > 0 ? w[i] * scale : 1.0f;
    round_block(*shape, x, w, fields);
    pack_block(type, fields, dst + b * t.bytes);
  }
}

}  // namespace pith
