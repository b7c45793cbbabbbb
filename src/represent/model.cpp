#include "represent/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_map>

#include "base/checked.h"
#include "base/hash.h"
#include "represent/json_read.h"

namespace pith {

namespace {

// Counts what add_shared is given, once for each key; plain sections are in BitReport already.
class SharedCounter final : public SectionSink {
 public:
  void add(std::string, DType, std::vector<int64_t>, Bytes) override {}
  std::string add_shared(std::string key, DType, std::vector<int64_t>, Bytes data) override {
    if (seen_.insert(key).second) bits_ += data.size() * 8;
    return key;
  }
  uint64_t bits() const { return bits_; }

 private:
  std::set<std::string> seen_;
  uint64_t bits_ = 0;
};

// Feeds everything that would be written into a hash.
class HashingSink final : public SectionSink {
 public:
  explicit HashingSink(Hasher& hasher) : hasher_(hasher) {}
  void add(std::string name, DType type, std::vector<int64_t> shape, Bytes data) override {
    hasher_.add(name).add(dtype_name(type));
    for (const int64_t n : shape) hasher_.add(static_cast<uint64_t>(n));
    hasher_.add(data.view);
  }
  std::string add_shared(std::string key, DType type, std::vector<int64_t> shape, Bytes data) override {
    if (seen_.insert(key).second) add(key, type, std::move(shape), std::move(data));
    return key;
  }

 private:
  Hasher& hasher_;
  std::set<std::string> seen_;
};

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return text + "]";
}

}  // namespace

const ModelTensor* Model::find(std::string_view name) const {
  const auto it = std::find_if(tensors.begin(), tensors.end(), [&](const ModelTensor& t) { return t.name == name; });
  return it == tensors.end() ? nullptr : &*it;
}

Model with_nodes(Model model, const NodeMap& nodes) {
  for (ModelTensor& tensor : model.tensors)
    if (const auto at = nodes.find(tensor.name); at != nodes.end()) tensor.node = at->second;
  return model;
}

BitReport Model::bits() const {
  BitReport report;
  SharedCounter shared;
  for (const ModelTensor& tensor : tensors) {
    report += tensor.node->bits();
    (void)tensor.node->serialize(tensor.name, shared);
  }
  report.tables += shared.bits();
  return report;
}

uint64_t Model::parameters() const {
  uint64_t count = 0;
  for (const ModelTensor& tensor : tensors)
    count += static_cast<uint64_t>(tensor.node->rows()) * static_cast<uint64_t>(tensor.node->cols());
  return count;
}

std::string Model::content_hash() const {
  Hasher hasher;
  hasher.add(lm_config_to_hf(config).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  HashingSink sink(hasher);
  for (const ModelTensor& tensor : tensors) {
    hasher.add(tensor.name);
    for (const int64_t n : tensor.shape) hasher.add(static_cast<uint64_t>(n));
    const nlohmann::json tree = tensor.node->serialize(tensor.name, sink);
    hasher.add(tree.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    drop_mapped_pages(*tensor.node);
  }
  return hasher.hex();
}

Result<MatrixShape> matrix_shape(const std::vector<int64_t>& shape) {
  MatrixShape m{1, 1};
  if (shape.empty()) return data_error("a tensor without dimensions is no matrix");
  uint64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) {
    const auto product = shape[i] < 1 ? std::nullopt : checked_mul(rows, static_cast<uint64_t>(shape[i]));
    if (!product || *product > (uint64_t{1} << 40)) return data_error("shape " + shape_text(shape) + " is impossible");
    rows = *product;
  }
  m.rows = static_cast<int64_t>(rows);
  m.cols = shape.back();
  PITH_TRY(check_shape(m.rows, m.cols, "shape " + shape_text(shape)));
  return m;
}

Status check_model(const Model& model) {
  PITH_TRY(check_config(model.config));
  const std::vector<TensorSpec> expected = expected_tensors(model.config);
  std::unordered_map<std::string_view, const ModelTensor*> present;
  for (const ModelTensor& tensor : model.tensors)
    if (!present.emplace(tensor.name, &tensor).second)
      return data_error(fmt::format("tensor '{}' is there twice", tensor.name));
  for (const TensorSpec& spec : expected) {
    const auto it = present.find(spec.name);
    if (it == present.end())
      return data_error(fmt::format("tensor '{}' {} is missing (architecture {}, {} layers)", spec.name,
                                    shape_text(spec.shape), model.config.architecture, model.config.layers));
    const ModelTensor& tensor = *it->second;
    if (tensor.shape != spec.shape)
      return data_error(fmt::format("tensor '{}' has shape {}, the configuration asks for {}", spec.name,
                                    shape_text(tensor.shape), shape_text(spec.shape)));
    if (tensor.node == nullptr) return bug_error(fmt::format("tensor '{}' has no representation", spec.name));
    PITH_ASSIGN(const MatrixShape m, matrix_shape(spec.shape));
    if (tensor.node->rows() != m.rows || tensor.node->cols() != m.cols)
      return data_error(fmt::format("tensor '{}' is stored as {} x {}, expected {} x {}", spec.name,
                                    tensor.node->rows(), tensor.node->cols(), m.rows, m.cols));
    present.erase(it);
  }
  if (!present.empty()) {
    std::string_view first = present.begin()->first;  // the same one on every run
    for (const auto& [name, tensor] : present) first = std::min(first, name);
    return data_error(fmt::format("tensor '{}' is no part of architecture {}{}", first, model.config.architecture,
                                  present.size() > 1 ? fmt::format(" ({} more like it)", present.size() - 1) : ""));
  }
  return {};
}

Status check_finite(const Model& model) {
  std::vector<float> rows;
  for (const ModelTensor& tensor : model.tensors) {
    const int64_t cols = tensor.node->cols(), step = rows_at_once(cols);
    rows.resize(static_cast<size_t>(std::min(step, tensor.node->rows()) * cols));
    for (int64_t r = 0; r < tensor.node->rows(); r += step) {
      const int64_t end = std::min(r + step, tensor.node->rows());
      tensor.node->decode_rows(r, end, rows.data());
      const auto n = static_cast<size_t>((end - r) * cols);
      // One pass without branches tells whether to look closer: exponent bits all set means NaN or infinity.
      uint32_t bad = 0;
      for (size_t i = 0; i < n; ++i) bad |= (std::bit_cast<uint32_t>(rows[i]) & 0x7f800000u) == 0x7f800000u;
      if (bad == 0) continue;
      for (size_t i = 0; i < n; ++i)
        if (!std::isfinite(rows[i]))
          return data_error(fmt::format("tensor '{}' holds {} at row {}, column {}; a model must be finite",
                                        tensor.name, rows[i], r + static_cast<int64_t>(i) / cols,
                                        static_cast<int64_t>(i) % cols));
    }
    drop_mapped_pages(*tensor.node);
  }
  return {};
}

}  // namespace pith
