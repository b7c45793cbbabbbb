#include "engine/assemble.h"

#include <array>
#include <cmath>
#include <optional>

#include "base/half.h"
#include "represent/dense.h"
#include "represent/grid.h"
#include "tensor/parallel.h"

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

namespace {

// What is coded of such a grid: its codes, and the logarithms of row and column steps around their means.
struct Coded {
  std::vector<int16_t> values;
  int64_t rows = 0, cols = 0;
  int offset = 0;
};
using Parts = std::array<Coded, 3>;
using Classes = std::array<CodeClasses, 3>;

Parts parts_of(const Grid& grid) {
  const RowColField& field = row_col_steps(grid);
  Parts parts;
  parts[0].rows = grid.rows(), parts[0].cols = grid.cols();
  parts[0].values = all_codes(*grid.codes());
  for (size_t axis = 0; axis < 2; ++axis) {
    const auto logs = axis == 0 ? field.row_log() : field.col_log();
    Coded& part = parts[1 + axis];
    double sum = 0;
    for (const uint8_t log : logs) sum += log / field.grain();
    part.offset = static_cast<int>(std::lround(sum / static_cast<double>(logs.size())));
    for (const uint8_t log : logs) part.values.push_back(static_cast<int16_t>(log / field.grain() - part.offset));
    part.rows = 1;
    part.cols = static_cast<int64_t>(logs.size());
  }
  return parts;
}

Classes count_parts(const Parts& parts, CodeModelBuilder& builder) {
  Classes classes;
  for (size_t k = 0; k < parts.size(); ++k) {
    const Coded& p = parts[k];
    classes[k] = fit_classes(p.values.data(), p.rows, p.cols);
    builder.count(p.values.data(), p.rows, p.cols, classes[k]);
  }
  return classes;
}

NodePtr encode(const Grid& grid, const Classes& classes, const CodeModelBuilder& builder) {
  const Parts parts = parts_of(grid);
  std::array<CodesPtr, 3> coded;
  for (size_t k = 0; k < parts.size(); ++k)
    coded[k] = builder.encode(parts[k].values.data(), parts[k].rows, parts[k].cols, classes[k]);
  const RowColField& field = row_col_steps(grid);
  const FieldPtr steps =
      must(RowColField::make(field.base(), field.grain(), {coded[1], parts[1].offset}, {coded[2], parts[2].offset}));
  return must(Grid::make(coded[0], {}, steps));
}

}  // namespace

bool count_codes(const Node& node, CodeModelBuilder& builder) {
  const Grid* grid = row_col_grid(node);
  if (grid != nullptr) count_parts(parts_of(*grid), builder);
  return grid != nullptr;
}

NodeSource source_of(const NodeMap& nodes) {
  return [&nodes](const std::string& name) {
    const auto at = nodes.find(name);
    return at == nodes.end() ? NodePtr() : at->second;
  };
}

Model assemble(const Model& source, const NodeSource& fitted, const NodeKeeper& keep) {
  Model out = source;
  out.plan_json.clear();
  out.report_json.clear();
  const auto node_of = [&](const ModelTensor& tensor) {
    NodePtr node = fitted ? fitted(tensor.name) : nullptr;
    return node != nullptr ? node : tensor.node;
  };
  CodeModelBuilder builder;
  std::vector<std::optional<Classes>> classes(out.tensors.size());  // of what is entropy-coded
  const auto count = static_cast<int64_t>(out.tensors.size());
  parallel_tasks(count, [&](int64_t i) {
    ModelTensor& tensor = out.tensors[static_cast<size_t>(i)];
    const NodePtr node = node_of(tensor);
    if (const Grid* grid = row_col_grid(*node))
      classes[static_cast<size_t>(i)] = count_parts(parts_of(*grid), builder);
    else
      tensor.node = node == tensor.node && tensor.shape.size() == 1 ? compact_dense(*node) : node;
  });
  builder.finish();
  parallel_tasks(count, [&](int64_t i) {
    ModelTensor& tensor = out.tensors[static_cast<size_t>(i)];
    if (!classes[static_cast<size_t>(i)]) return;
    const NodePtr node = node_of(tensor);
    NodePtr coded = encode(*row_col_grid(*node), *classes[static_cast<size_t>(i)], builder);
    tensor.node = keep ? keep(tensor.name, std::move(coded)) : coded;
  });
  return out;
}

}  // namespace pith
