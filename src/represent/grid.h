// Integer codes on a scaled grid: w = scale * (level(code) - zero).
#pragma once

#include "represent/codes.h"
#include "represent/field.h"
#include "represent/node.h"

namespace pith {

/// level(code) is the code itself (uniform grid) or an entry of a table (NF4, custom); scale and zero are fields, zero
/// may be absent (0). Example: 4-bit RTN in groups of 32 is PackedCodes(4, offset 0), two AffineFields of group 32.
class Grid final : public Node {
 public:
  /// `levels` empty: uniform. Else codes must lie in [0, levels.size()). The shape is that of `codes`.
  static Result<NodePtr> make(CodesPtr codes, std::vector<float> levels, FieldPtr scale, FieldPtr zero = nullptr);
  static Result<NodePtr> parse(const nlohmann::json& j, const ParseContext& context, uint32_t depth);

  const CodesPtr& codes() const { return codes_; }
  bool uniform() const { return levels_.empty(); }
  std::span<const float> levels() const { return levels_; }
  const FieldPtr& scale() const { return scale_; }
  /// nullptr when the grid has no zero.
  const FieldPtr& zero() const { return zero_; }

  std::string_view kind() const override { return "grid"; }
  void decode_rows(int64_t r0, int64_t r1, float* out) const override;
  BitReport bits() const override;
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  Grid(CodesPtr codes, std::vector<float> levels, FieldPtr scale, FieldPtr zero);
  CodesPtr codes_;
  std::vector<float> levels_;
  FieldPtr scale_, zero_;
};

/// The grid when `node` is a uniform one without zeros whose steps are products of row and column steps (ec's, the kind
/// that is entropy-coded in files); else null.
const Grid* row_col_grid(const Node& node);
/// The steps of such a grid.
inline const RowColField& row_col_steps(const Grid& grid) { return static_cast<const RowColField&>(*grid.scale()); }

/// The 2^bits levels of NormalFloat: quantiles of the normal distribution scaled to [-1, 1], with an exact 0
/// (bits 2 to 8; NF4 of QLoRA for bits = 4).
std::vector<float> normal_float_levels(unsigned bits);

}  // namespace pith
