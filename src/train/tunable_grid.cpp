// Grids of fixed-width codes (rtn, gptq, NF of lq-lora), as the tuner sees them.
#include <algorithm>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "represent/codes.h"
#include "represent/grid.h"
#include "train/tunable_kinds.h"

namespace pith {
namespace {

/// A field of steps or zeros: plain numbers move, others stay.
struct TunableField {
  FieldPtr field;
  Tensor numbers;  ///< [rows or 1, groups]

  TunableField() = default;
  TunableField(FieldPtr source, at::Device device) : field(std::move(source)) {
    if (const AffineField* plain = affine()) {
      numbers = tensor_of(plain->values(), {plain->shared_rows() ? 1 : field->rows(), field->groups()}, device)
                    .requires_grad_(true);
      return;
    }
    const Tensor read = at::empty({field->rows(), field->groups()});
    for (int64_t r = 0; r < field->rows(); ++r) field->row(r, read.data_ptr<float>() + r * field->groups());
    numbers = read.to(device);
  }
  const AffineField* affine() const { return dynamic_cast<const AffineField*>(field.get()); }
  /// As a file holds them, one for each column.
  Tensor spread() const {
    const AffineField* plain = affine();
    const Tensor held = plain != nullptr ? as_stored(numbers, plain->values().type()) : numbers;
    return over_columns(held, field->group(), field->cols());
  }
  FieldPtr stored() const {
    const AffineField* plain = affine();
    if (plain == nullptr) return field;
    const Tensor flat = numbers.detach().to(at::kCPU).contiguous();
    return must(AffineField::from(field->rows(), field->cols(), field->group(), plain->values().type(),
                                  {flat.const_data_ptr<float>(), static_cast<size_t>(flat.numel())},
                                  plain->shared_rows()));
  }
};

class TunableGrid final : public Tunable {
 public:
  TunableGrid(const Grid& grid, at::Device device) : scale_(grid.scale(), device) {
    const std::vector<int16_t> codes = all_codes(*grid.codes());
    codes_ = at::from_blob(const_cast<int16_t*>(codes.data()), {grid.rows(), grid.cols()}, at::kShort)
                 .to(at::kFloat)
                 .to(device);
    if (grid.zero() != nullptr) zero_ = TunableField(grid.zero(), device);
    std::tie(low_, high_) = grid.codes()->range();
    if (const auto* packed = dynamic_cast<const PackedCodes*>(grid.codes().get())) width_ = packed->width();
    if (grid.uniform()) return;
    low_ = 0, high_ = static_cast<int>(grid.levels().size()) - 1;
    list_.assign(grid.levels().begin(), grid.levels().end());
    levels_ = at::tensor(list_).to(device);
    middles_ = ((levels_.slice(0, 1) + levels_.slice(0, 0, -1)) / 2).contiguous();
  }

  Tensor values() const override {
    const Tensor level =
        levels_.defined() ? levels_.index_select(0, codes_.flatten().to(at::kLong)).view_as(codes_) : codes_;
    return scale_.spread() * (zero_.field ? level - zero_.spread() : level);
  }
  std::vector<Continuous> continuous() const override {
    std::vector<Continuous> all;
    if (scale_.affine() != nullptr) all.push_back({scale_.numbers, scale_.numbers.detach().abs()});
    if (zero_.field && zero_.affine() != nullptr) all.push_back({zero_.numbers, at::ones({}, zero_.numbers.options())});
    return all;
  }
  Tensor codes() const override { return codes_; }
  Tensor unit() const override {
    const double apart = list_.size() > 1 ? (list_.back() - list_.front()) / static_cast<double>(list_.size() - 1) : 1;
    return scale_.spread().detach().abs() * apart;
  }
  void project(const Tensor& target, double /*price*/) override {
    const at::NoGradGuard no_grad;
    const Tensor scale = scale_.spread();
    Tensor x = target / scale;
    if (zero_.field) x = x + zero_.spread();
    const Tensor nearest =
        levels_.defined() ? at::bucketize(x.contiguous(), middles_).to(at::kFloat) : x.round().clamp_(low_, high_);
    codes_.copy_(at::where(scale.eq(0), codes_, nearest));
  }
  NodePtr node() const override {
    const Tensor whole = codes_.to(at::kCPU, at::kShort).contiguous();
    const std::span values(whole.const_data_ptr<int16_t>(), static_cast<size_t>(whole.numel()));
    const int64_t rows = whole.size(0), cols = whole.size(1);
    const CodesPtr codes =
        must(width_ > 0 ? PackedCodes::pack(rows, cols, width_, low_, values) : PackedCodes::pack(rows, cols, values));
    return must(Grid::make(codes, list_, scale_.stored(), zero_.field ? zero_.stored() : nullptr));
  }

 private:
  TunableField scale_, zero_;
  Tensor codes_, levels_, middles_;
  std::vector<float> list_;  ///< levels_, for the node
  int low_ = 0, high_ = 0;
  unsigned width_ = 0;  ///< bits of a packed code; 0: as many as needed
};

}  // namespace

std::unique_ptr<Tunable> tunable_grid(const Node& node, at::Device device) {
  if (node.kind() != "grid") return nullptr;
  const auto& grid = static_cast<const Grid&>(node);
  if (!std::ranges::is_sorted(grid.levels())) return nullptr;  // neighbours would not be next to each other
  return std::make_unique<TunableGrid>(grid, device);
}

}  // namespace pith
