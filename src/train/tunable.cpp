#include "train/tunable.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "formats/ggml_blocks.h"
#include "represent/blocks.h"
#include "represent/codes.h"
#include "represent/grid.h"
#include "tensor/parallel.h"
#include "train/tunable_kinds.h"

namespace pith {

Tensor as_stored(const Tensor& x, DType type) {
  if (type == DType::f32) return x;
  const at::ScalarType narrow = type == DType::bf16 ? at::kBFloat16 : at::kHalf;
  return x + (x.detach().to(narrow).to(at::kFloat) - x.detach());
}

Tensor tensor_of(const FloatArray& values, at::IntArrayRef shape, at::Device device) {
  const Tensor read = at::empty(shape);
  values.read(0, values.size(), read.data_ptr<float>());
  return read.to(device);
}

Tensor over_columns(const Tensor& x, int64_t group, int64_t cols) {
  const int64_t rows = x.size(0), groups = x.size(1);
  return x.unsqueeze(2).expand({rows, groups, group}).reshape({rows, groups * group}).narrow(1, 0, cols);
}

namespace {

Tensor as_tensor(const std::vector<int8_t>& values) {
  Tensor out = at::empty({static_cast<int64_t>(values.size())}, at::kChar);
  std::memcpy(out.data_ptr(), values.data(), values.size());
  return out;
}

Tensor as_tensor(std::span<const uint8_t> values) {
  Tensor out = at::empty({static_cast<int64_t>(values.size())}, at::kByte);
  std::memcpy(out.data_ptr(), values.data(), values.size());
  return out.to(at::kLong);
}

NodePtr packed_grid(const Tensor& codes, const FieldPtr& field) {
  const Tensor whole = codes.to(at::kCPU, at::kShort).contiguous();
  const std::span values(whole.const_data_ptr<int16_t>(), static_cast<size_t>(whole.numel()));
  return must(Grid::make(must(PackedCodes::pack(whole.size(0), whole.size(1), values)), {}, field));
}

/// Unbounded integer codes times a step for each row and column. The steps are 8-bit logarithms and stay.
class TunableEcGrid final : public Tunable {
 public:
  TunableEcGrid(const Grid& grid, const CodePrices& prices, at::Device device) : field_(grid.scale()) {
    const std::vector<int16_t> codes = all_codes(*grid.codes());
    codes_ = at::from_blob(const_cast<int16_t*>(codes.data()), {grid.rows(), grid.cols()}, at::kShort)
                 .to(at::kFloat)
                 .to(device);
    const RowColField& steps = row_col_steps(grid);
    const Tensor table = at::from_blob(const_cast<float*>(steps.steps().data()),
                                       {static_cast<int64_t>(steps.steps().size())}, at::kFloat)
                             .clone();
    const Tensor logs = as_tensor(steps.row_log()).unsqueeze(1) + as_tensor(steps.col_log()).unsqueeze(0);
    step_ = table.index_select(0, logs.flatten()).view_as(logs).to(device);
    const CodeClasses classes = fit_classes(codes.data(), grid.rows(), grid.cols());
    row_class_ = as_tensor(classes.row).to(device), col_class_ = as_tensor(classes.col).to(device);
    price_ = prices.table().to(device);
  }

  Tensor values() const override { return codes_ * step_; }
  Tensor unit() const override { return step_; }
  Tensor codes() const override { return codes_; }
  double bits() const override { return bits_of(codes_).sum(at::kDouble).item<double>(); }
  NodePtr node() const override { return packed_grid(codes_, field_); }

  void project(const Tensor& target, double price) override {
    const Tensor u = target / step_;
    const Tensor near = u.round().clamp_(-kLargest, kLargest);
    // Fewer bits lie towards zero: the only other code that can be the better one.
    const Tensor inner = near - near.sign();
    const Tensor gain = (bits_of(near) - bits_of(inner)) * price;
    const Tensor harm = ((u - inner).square() - (u - near).square()) * 0.5;
    codes_.copy_(at::where(gain > harm, inner, near));
  }

 private:
  static constexpr double kLargest = 32766;

  Tensor bits_of(const Tensor& codes) const {
    constexpr int reach = CodePrices::kReach;
    const Tensor place = (row_class_.to(at::kShort).unsqueeze(1) + col_class_.to(at::kShort).unsqueeze(0))
                                 .clamp_(0, RansModel::kClasses - 1)
                                 .to(at::kInt) *
                             (2 * reach + 1) +
                         (codes.clamp(-reach, reach) + reach).to(at::kInt);
    return price_.flatten().index_select(0, place.flatten()).view_as(codes);
  }

  FieldPtr field_;
  Tensor codes_, step_, row_class_, col_class_, price_;
};

Tensor as_half(const Tensor& x) { return as_stored(x, DType::f16); }

/// One of ggml's block types: codes, d and dmin of each block move, the scales and minima of its sub-blocks stay.
class TunableBlocks final : public Tunable {
 public:
  TunableBlocks(const Blocks& node, at::Device device) : type_(node.type()), shape_(*block_shape(node.type())) {
    const int64_t rows = node.rows(), cols = node.cols(), n = shape_.elements, subs = n / shape_.sub;
    Tensor codes = at::empty({rows, cols}), d = at::empty({rows, cols / n, 1}), dmin = at::empty({rows, cols / n, 1});
    Tensor scales = at::empty({rows, cols / n, subs}), mins = at::empty({rows, cols / n, subs});
    const auto block_bytes = static_cast<int64_t>(ggml_traits(type_).bytes);
    parallel_tasks(rows, [&](int64_t r) {
      for (int64_t b = 0; b < cols / n; ++b) {
        BlockFields f;
        unpack_block(type_, node.row_data(r) + b * block_bytes, f);
        const int64_t at = r * (cols / n) + b;
        d.data_ptr<float>()[at] = f.d, dmin.data_ptr<float>()[at] = f.dmin;
        for (int64_t i = 0; i < n; ++i) codes.data_ptr<float>()[at * n + i] = f.codes[i];
        for (int64_t s = 0; s < subs; ++s) {
          scales.data_ptr<float>()[at * subs + s] = f.scales[s];
          mins.data_ptr<float>()[at * subs + s] = f.mins[s];
        }
      }
    });
    codes_ = codes.to(device), scales_ = scales.to(device), mins_ = mins.to(device);
    d_ = d.to(device).requires_grad_(true), dmin_ = dmin.to(device).requires_grad_(true);
    if (shape_.table) {
      const Tensor levels = at::empty({16});
      for (int i = 0; i < 16; ++i) levels.data_ptr<float>()[i] = iq4_levels[i];
      levels_ = levels.to(device);
      middles_ = ((levels.slice(0, 1) + levels.slice(0, 0, -1)) / 2).to(device);
    }
  }

  Tensor values() const override {
    const Tensor level = shape_.table ? levels_.index_select(0, codes_.flatten().to(at::kLong)) : codes_;
    const Tensor x = (as_half(d_) * scales_).unsqueeze(-1) * in_blocks(level);
    return (has_min() ? x - (as_half(dmin_) * mins_).unsqueeze(-1) : x).view_as(codes_);
  }
  std::vector<Continuous> continuous() const override {
    std::vector<Continuous> all{{d_, d_.detach().abs()}};
    if (has_min()) all.push_back({dmin_, dmin_.detach().abs()});
    return all;
  }
  Tensor unit() const override {
    const double apart = shape_.table ? (iq4_levels[15] - iq4_levels[0]) / 15.0 : 1.0;
    return spread((as_half(d_.detach()) * scales_).abs() * apart);
  }
  void project(const Tensor& target, double /*price*/) override {
    const at::NoGradGuard no_grad;
    const Tensor scale = as_half(d_) * scales_;
    Tensor x = in_blocks(target);
    if (has_min()) x = x + (as_half(dmin_) * mins_).unsqueeze(-1);
    x = at::where(scale == 0, at::zeros_like(scale), 1 / scale).unsqueeze(-1) * x;
    codes_.copy_(
        (shape_.table ? at::bucketize(x, middles_).to(at::kFloat) : x.round().clamp_(shape_.code_low, shape_.code_high))
            .view_as(codes_));
  }
  Tensor codes() const override { return codes_; }

  NodePtr node() const override {
    const at::NoGradGuard no_grad;
    const int64_t rows = codes_.size(0), cols = codes_.size(1), n = shape_.elements, subs = n / shape_.sub;
    const auto host = [](const Tensor& t) { return t.detach().to(at::kCPU, at::kFloat).contiguous(); };
    const Tensor codes = host(codes_), d = host(as_half(d_)), dmin = host(as_half(dmin_)), scales = host(scales_),
                 mins = host(mins_);
    const auto block_bytes = static_cast<int64_t>(ggml_traits(type_).bytes);
    std::vector<std::byte> out(static_cast<size_t>(rows * (cols / n) * block_bytes));
    parallel_tasks(rows, [&](int64_t r) {
      for (int64_t b = 0; b < cols / n; ++b) {
        const int64_t at = r * (cols / n) + b;
        BlockFields f;
        f.d = d.const_data_ptr<float>()[at], f.dmin = dmin.const_data_ptr<float>()[at];
        for (int64_t i = 0; i < n; ++i) f.codes[i] = static_cast<int16_t>(codes.const_data_ptr<float>()[at * n + i]);
        for (int64_t s = 0; s < subs; ++s) {
          f.scales[s] = static_cast<int16_t>(scales.const_data_ptr<float>()[at * subs + s]);
          f.mins[s] = static_cast<int16_t>(mins.const_data_ptr<float>()[at * subs + s]);
        }
        pack_block(type_, f, out.data() + at * block_bytes);
      }
    });
    return must(Blocks::make(type_, rows, cols, Bytes::own(std::move(out))));
  }

 private:
  bool has_min() const { return shape_.min_high > 0; }
  /// [rows, blocks, sub-blocks, values of one]
  Tensor in_blocks(const Tensor& x) const {
    return x.reshape({scales_.size(0), scales_.size(1), scales_.size(2), shape_.sub});
  }
  /// A number of each sub-block for each of its values.
  Tensor spread(const Tensor& x) const { return x.repeat_interleave(shape_.sub, 2).view_as(codes_); }

  GgmlType type_;
  const BlockShape& shape_;
  Tensor codes_, d_, dmin_, scales_, mins_, levels_, middles_;
};

}  // namespace

CodePrices::CodePrices(const Model& model) {
  CodeModelBuilder builder;
  bool any = false;
  for (const ModelTensor& t : model.tensors)
    if (const Grid* grid = row_col_grid(*t.node)) {
      builder.add(all_codes(*grid->codes()).data(), grid->rows(), grid->cols());
      any = true;
    }
  table_ = at::zeros({RansModel::kClasses, 2 * kReach + 1});
  if (!any) return;
  builder.finish();
  for (int k = 0; k < RansModel::kClasses; ++k)
    for (int c = -kReach; c <= kReach; ++c)
      table_.data_ptr<float>()[k * (2 * kReach + 1) + c + kReach] =
          static_cast<float>(builder.model().table(k).cost(c));
}

std::unique_ptr<Tunable> tunable(const Node& node, const CodePrices& prices, at::Device device) {
  if (const Grid* grid = row_col_grid(node)) return std::make_unique<TunableEcGrid>(*grid, prices, device);
  if (node.kind() == "blocks" && block_shape(static_cast<const Blocks&>(node).type()) != nullptr)
    return std::make_unique<TunableBlocks>(static_cast<const Blocks&>(node), device);
  for (auto kind : {tunable_grid, tunable_codebook, tunable_low_rank})
    if (auto found = kind(node, device)) return found;
  return tunable_sum(node, prices, device);
}

}  // namespace pith
