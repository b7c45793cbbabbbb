// Fitting scalar grids to weights: w ~ scale * (level - zero) with one scale (and zero) for each row and group of
// columns. One class serves rounding to nearest, the GPTQ walk (it is a policy of maths/gptq_walk.h) and SpQR.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "formats/dtype.h"
#include "maths/gptq_walk.h"
#include "represent/node.h"
#include "tensor/tensor.h"

namespace pith {

enum class GridShape : uint8_t {
  asym,  ///< codes 0 .. 2^bits-1, scale and a real zero, both stored
  sym,   ///< codes -2^(bits-1) .. 2^(bits-1)-1, no zero; the scale's sign puts the lone extra level where it is needed
  nf,    ///< NormalFloat levels in [-1, 1], no zero
};

struct GridSpec {
  GridShape shape = GridShape::asym;
  unsigned bits = 4;        ///< 1 to 8 (nf: 2 to 8)
  int64_t group = 0;        ///< columns that share a scale; 0 = the whole row
  bool search = false;      ///< look for the range of least squared error; false = from the extremes
  unsigned stat_bits = 0;   ///< 0: fp16 scales and zeros (fp32 where fp16 is too narrow); else SpQR's two levels
  int64_t stat_group = 16;  ///< rows that share second-level statistics; a divisor of 16
};

/// One fitted grid.
struct GridParams {
  float scale = 1, zero = 0;
};

/// Rounds half to even. Exact for |x| < 2^22; larger values must be clamped before.
inline float round_even(float x) { return (x + 12582912.0f) - 12582912.0f; }

/// Asymmetric grid of `levels` + 1 codes from the extremes of n values; the range always holds 0.
/// All zeros give scale 0 (and every code decodes to 0).
GridParams extremes_grid(const float* w, int64_t n, float levels);

/// Quantises `values` (one a row) to `bits` with one min-max grid whose own scale and zero are fp16, as SpQR's second
/// level does. Values that are not `used` do not stretch the range. Writes codes, and what they decode to.
struct SecondLevel {
  float scale = 0, zero = 0;  ///< fp16 values
};
SecondLevel second_level(std::span<const float> values, std::span<const uint8_t> used, unsigned bits, uint16_t* codes,
                         float* decoded);

/// A matrix while it is being rounded: fits grids group by group, keeps codes, builds the node.
class GridBuilder {
 public:
  /// `importance`: weights of the columns' squared errors in the search, [cols], or empty. `largest`: the largest
  /// |weight|, which decides whether scales fit fp16.
  GridBuilder(int64_t rows, int64_t cols, const GridSpec& spec, float largest, std::vector<float> importance = {});

  int64_t group() const { return group_; }
  const GridSpec& spec() const { return spec_; }
  float largest_code() const { return top_; }

  /// Fits the grids of one group for up to 16 rows (row0 a multiple of 16): see gptq_walk.
  void begin_group(int64_t row0, int64_t rows, int64_t col0, int64_t cols, const float* w, int64_t ld);
  /// Sets the grids of one group from outside; `found` holds one for each of `rows` rows. Second-level statistics and
  /// rounding to the stored type happen here.
  void set_group(int64_t row0, int64_t rows, int64_t group_index, GridParams* found);

  /// Rounds w to the grid of its place, keeps the code, returns the decoded value.
  float quantize(int64_t row, int64_t col, float w) {
    const size_t g = static_cast<size_t>(row * groups_ + col / group_);
    int16_t code;
    const float value = round_to_grid(w, g, code);
    codes_[static_cast<size_t>(row * cols_ + col)] = code;
    return value;
  }
  /// The same without keeping anything.
  float rounded(int64_t row, int64_t col, float w) const {
    int16_t code;
    return round_to_grid(w, static_cast<size_t>(row * groups_ + col / group_), code);
  }

  /// Fits and rounds a whole matrix [rows, cols] without compensation, rows in parallel.
  void round_all(const float* w);

  NodePtr build() const;

  /// Codes [rows, cols] and scales [rows, groups] as they are stored, for callers that build another node from them.
  const std::vector<int16_t>& codes() const { return codes_; }
  const std::vector<float>& scales() const { return scale_; }
  DType scale_type() const { return type_; }

 private:
  float round_to_grid(float w, size_t g, int16_t& code) const {
    const float scale = scale_[g], zero = zero_[g];
    if (spec_.shape == GridShape::nf) return round_to_levels(w, scale, code);
    const float x = scale == 0 ? zero : w * inverse_[g] + zero;
    const float c = round_even(std::min(std::max(x, low_), top_));
    code = static_cast<int16_t>(c);
    return scale * (c - zero);
  }
  float round_to_levels(float w, float scale, int16_t& code) const;
  GridParams fit(const float* w, const float* importance, int64_t n) const;
  double error(const float* w, const float* importance, int64_t n, GridParams p) const;
  float stored(float v) const;

  int64_t rows_, cols_, group_, groups_;
  GridSpec spec_;
  float low_, top_;  // range of codes
  DType type_;       // of scales and zeros
  std::vector<float> importance_;
  std::vector<float> levels_, middles_;                // nf
  std::vector<float> scale_, inverse_, zero_;          // [rows, groups], as they will be decoded
  std::vector<int16_t> codes_;                         // [rows, cols]
  std::vector<uint16_t> scale_codes_, zero_codes_;     // two levels: [rows, groups]
  std::vector<SecondLevel> scale_stats_, zero_stats_;  // [stat groups, groups]
};

}  // namespace pith
