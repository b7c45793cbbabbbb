#include "engine/assemble.h"

#include <cmath>

#include "base/half.h"
#include "entropy/codes.h"
#include "represent/dense.h"
#include "represent/grid.h"
#include "tensor/tensor.h"

namespace pith {

NodePtr compact_dense(const Node& node) {
  const std::vector<float> values = decode_all(node);
  bool bf16 = true, f16 = true;
  for (const float v : values) {
    bf16 = bf16 && bf16_to_float(float_to_bf16(v)) == v;
    f16 = f16 && std::fabs(half_to_float(float_to_half(v)) - v) <= std::fabs(v) * 0x1p-11f;
  }
  if (!bf16 && !f16) return must(Dense::make(DType::f32, node.rows(), node.cols(), Bytes::own(values)));
  std::vector<uint16_t> stored;
  for (const float v : values) stored.push_back(bf16 ? float_to_bf16(v) : float_to_half(v));
  return must(Dense::make(bf16 ? DType::bf16 : DType::f16, node.rows(), node.cols(), Bytes::own(std::move(stored))));
}

// The grid of an `ec` tensor, or null.
static const Grid* entropy_codable(const Node* node) {
  if (node == nullptr || node->kind() != "grid") return nullptr;
  const auto* grid = static_cast<const Grid*>(node);
  return grid->uniform() && grid->zero() == nullptr && grid->scale()->kind() == "row_col" ? grid : nullptr;
}

Model assemble(const Model& source, const std::map<std::string, NodePtr, std::less<>>& fitted, ThreadPool& pool) {
  Model out = source;
  out.plan_json.clear();
  out.report_json.clear();
  // Three arrays of integers a tensor: codes, and the logarithms of row and column steps around their means.
  struct Coded {
    std::vector<int16_t> values;
    int64_t rows = 0, cols = 0;
    int offset = 0;
    CodeClasses classes;
  };
  struct Piece {
    ModelTensor* tensor;
    const Grid* grid;
    int grain = 1;
    Coded parts[3];
  };
  std::vector<Piece> pieces;
  for (ModelTensor& tensor : out.tensors) {
    const auto it = fitted.find(tensor.name);
    if (it != fitted.end())
      tensor.node = it->second;
    else if (tensor.shape.size() == 1)
      tensor.node = compact_dense(*tensor.node);
    if (const Grid* grid = entropy_codable(tensor.node.get())) pieces.push_back({&tensor, grid, 1, {}});
  }
  if (pieces.empty()) return out;

  // Two passes: count, then code. Counting adds to shared histograms, so it goes in order; the rest is spread over the
  // threads.
  const auto count = static_cast<int64_t>(pieces.size());
  pool.parallel_for(count, [&](int64_t i) {
    Piece& p = pieces[static_cast<size_t>(i)];
    const auto& field = static_cast<const RowColField&>(*p.grid->scale());
    p.grain = field.grain();
    Coded& codes = p.parts[0];
    codes = {{}, p.grid->rows(), p.grid->cols(), 0, {}};
    codes.values.resize(static_cast<size_t>(codes.rows * codes.cols));
    p.grid->codes()->read_rows(0, codes.rows, codes.values.data());
    for (int axis = 0; axis < 2; ++axis) {
      const auto logs = axis == 0 ? field.row_log() : field.col_log();
      Coded& part = p.parts[1 + axis];
      double sum = 0;
      for (const uint8_t log : logs) sum += log / p.grain;
      part.offset = static_cast<int>(std::lround(sum / static_cast<double>(logs.size())));
      for (const uint8_t log : logs) part.values.push_back(static_cast<int16_t>(log / p.grain - part.offset));
      part.rows = 1;
      part.cols = static_cast<int64_t>(logs.size());
    }
    for (Coded& part : p.parts) part.classes = fit_classes(part.values.data(), part.rows, part.cols);
  });
  CodeModelBuilder builder;
  for (const Piece& p : pieces)
    for (const Coded& part : p.parts) builder.count(part.values.data(), part.rows, part.cols, part.classes);
  builder.finish();
  pool.parallel_for(count, [&](int64_t i) {
    Piece& p = pieces[static_cast<size_t>(i)];
    CodesPtr coded[3];
    for (int k = 0; k < 3; ++k)
      coded[k] = builder.encode(p.parts[k].values.data(), p.parts[k].rows, p.parts[k].cols, p.parts[k].classes);
    const float base = static_cast<const RowColField&>(*p.grid->scale()).base();
    const FieldPtr steps =
        must(RowColField::make(base, p.grain, {coded[1], p.parts[1].offset}, {coded[2], p.parts[2].offset}));
    p.tensor->node = must(Grid::make(coded[0], {}, steps));
  });
  return out;
}

}  // namespace pith
