#include "represent/combine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "represent/json_read.h"

namespace pith {

using nlohmann::json;

static Status same_shape(const Node& a, const Node& b, std::string_view what) {
  if (a.rows() == b.rows() && a.cols() == b.cols()) return {};
  return data_error(
      fmt::format("{}: {} x {} and {} x {} do not fit together", what, a.rows(), a.cols(), b.rows(), b.cols()));
}

static std::string_view axis_name(Axis axis) { return axis == Axis::rows ? "rows" : "cols"; }

static Result<Axis> json_axis(const json& j) {
  PITH_ASSIGN(const std::string name, json_text(j, "axis"));
  if (name == "rows") return Axis::rows;
  if (name == "cols") return Axis::cols;
  return data_error(fmt::format("'axis' is '{}', expected rows or cols", name));
}

// Calls body(first, last, rows) for pieces of [r0, r1) with `node` decoded into a scratch buffer.
template <class Body>
static void decode_pieces(const Node& node, int64_t r0, int64_t r1, Body body) {
  const int64_t step = std::min(rows_at_once(node.cols()), r1 - r0);
  if (step <= 0) return;
  std::vector<float> scratch(static_cast<size_t>(step * node.cols()));
  for (int64_t first = r0; first < r1; first += step) {
    const int64_t last = std::min(first + step, r1);
    node.decode_rows(first, last, scratch.data());
    body(first, last, scratch.data());
  }
}

// ---- Sum ----------------------------------------------------------------------------------------

Sum::Sum(std::vector<NodePtr> terms) : Node(terms[0]->rows(), terms[0]->cols()), terms_(std::move(terms)) {}

Result<NodePtr> Sum::make(std::vector<NodePtr> terms) {
  if (terms.size() < 2 || terms.size() > 64)
    return data_error(fmt::format("sum: {} terms, expected 2 to 64", terms.size()));
  for (const NodePtr& term : terms) {
    if (term == nullptr) return bug_error("sum: a term is missing");
    PITH_TRY(same_shape(*terms[0], *term, "sum"));
  }
  return NodePtr(new Sum(std::move(terms)));
}

Result<NodePtr> Sum::parse(const json& j, const ParseContext& context, uint32_t depth) {
  const auto it = j.find("terms");
  if (it == j.end() || !it->is_array() || it->size() > 64)
    return data_error("sum: 'terms' is not an array of at most 64");
  std::vector<NodePtr> terms;
  for (const json& term : *it) {
    PITH_ASSIGN(NodePtr node, parse_node_at(term, context, depth + 1).context(fmt::format("term {}", terms.size())));
    terms.push_back(std::move(node));
  }
  return make(std::move(terms));
}

void Sum::decode_rows(int64_t r0, int64_t r1, float* out) const {
  terms_[0]->decode_rows(r0, r1, out);
  for (size_t t = 1; t < terms_.size(); ++t)
    decode_pieces(*terms_[t], r0, r1, [&](int64_t first, int64_t last, const float* rows) {
      float* to = out + (first - r0) * cols_;
      for (int64_t i = 0; i < (last - first) * cols_; ++i) to[i] += rows[i];
    });
}

BitReport Sum::bits() const {
  BitReport report;
  for (const NodePtr& term : terms_) report += term->bits();
  return report;
}

json Sum::serialize(const std::string& prefix, SectionSink& sink) const {
  json terms = json::array();
  for (size_t t = 0; t < terms_.size(); ++t)
    terms.push_back(terms_[t]->serialize(fmt::format("{}.{}", prefix, t), sink));
  return {{"node", "sum"}, {"terms", std::move(terms)}};
}

std::string Sum::describe() const {
  std::string text = "sum(";
  for (const NodePtr& term : terms_) text += (&term == terms_.data() ? "" : ", ") + term->describe();
  return text + ")";
}

// ---- Override -----------------------------------------------------------------------------------

Override::Override(NodePtr base, NodePtr sparse)
    : Node(base->rows(), base->cols()), base_(std::move(base)), sparse_(std::move(sparse)) {}

Result<NodePtr> Override::make(NodePtr base, NodePtr sparse) {
  if (base == nullptr || sparse == nullptr) return bug_error("override: base or sparse part missing");
  if (dynamic_cast<const Csr*>(sparse.get()) == nullptr)
    return data_error("override: the sparse part is not a csr node");
  PITH_TRY(same_shape(*base, *sparse, "override"));
  return NodePtr(new Override(std::move(base), std::move(sparse)));
}

Result<NodePtr> Override::parse(const json& j, const ParseContext& context, uint32_t depth) {
  PITH_ASSIGN(NodePtr base, json_node(j, "base", context, depth));
  PITH_ASSIGN(NodePtr sparse, json_node(j, "sparse", context, depth));
  return make(std::move(base), std::move(sparse));
}

void Override::decode_rows(int64_t r0, int64_t r1, float* out) const {
  base_->decode_rows(r0, r1, out);
  sparse().write_over(r0, r1, out);
}

BitReport Override::bits() const {
  BitReport report = base_->bits();
  return report += sparse_->bits();
}

json Override::serialize(const std::string& prefix, SectionSink& sink) const {
  json j = {{"node", "override"}};
  j["base"] = base_->serialize(prefix + ".base", sink);
  j["sparse"] = sparse_->serialize(prefix + ".sparse", sink);
  return j;
}

std::string Override::describe() const {
  return fmt::format("override({}, {})", base_->describe(), sparse_->describe());
}

// ---- Permuted -----------------------------------------------------------------------------------

Permuted::Permuted(NodePtr child, Axis axis, IndexArray order, std::vector<uint32_t> inverse)
    : Node(child->rows(), child->cols()),
      child_(std::move(child)),
      axis_(axis),
      order_(std::move(order)),
      inverse_(std::move(inverse)) {}

Result<NodePtr> Permuted::make(NodePtr child, Axis axis, IndexArray order) {
  if (child == nullptr) return bug_error("permuted: no child");
  const int64_t n = axis == Axis::rows ? child->rows() : child->cols();
  if (order.size() != n || n > int64_t{0xffffffff})
    return data_error(fmt::format("permuted: order of {} for {} {}", order.size(), n, axis_name(axis)));
  constexpr uint32_t kFree = 0xffffffff;
  std::vector<uint32_t> inverse(static_cast<size_t>(n), kFree);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t to = order[i];
    if (to >= static_cast<uint64_t>(n) || inverse[to] != kFree)
      return data_error(fmt::format("permuted: place {} is {}, which is {}; this is no permutation", i, to,
                                    to >= static_cast<uint64_t>(n) ? "outside" : "taken"));
    inverse[to] = static_cast<uint32_t>(i);
  }
  return NodePtr(new Permuted(std::move(child), axis, std::move(order), std::move(inverse)));
}

Result<NodePtr> Permuted::from(NodePtr child, Axis axis, std::span<const uint32_t> order) {
  const auto largest = static_cast<uint32_t>(order.empty() ? 0 : order.size() - 1);
  for (const uint32_t v : order)
    if (v > largest) return bug_error(fmt::format("permuted: {} in an order of {}", v, order.size()));
  return make(std::move(child), axis, IndexArray::from(order, largest));
}

Result<NodePtr> Permuted::parse(const json& j, const ParseContext& context, uint32_t depth) {
  PITH_ASSIGN(const Axis axis, json_axis(j));
  PITH_ASSIGN(NodePtr child, json_node(j, "child", context, depth));
  const int64_t n = axis == Axis::rows ? child->rows() : child->cols();
  PITH_ASSIGN(IndexArray order, json_indices(j, "order", n, context));
  return make(std::move(child), axis, std::move(order));
}

void Permuted::decode_rows(int64_t r0, int64_t r1, float* out) const {
  if (axis_ == Axis::rows) {
    // Runs of neighbouring child rows are decoded together.
    for (int64_t r = r0; r < r1;) {
      const int64_t from = inverse_[static_cast<size_t>(r)];
      int64_t n = 1;
      while (r + n < r1 && inverse_[static_cast<size_t>(r + n)] == from + n) ++n;
      child_->decode_rows(from, from + n, out);
      out += n * cols_;
      r += n;
    }
    return;
  }
  decode_pieces(*child_, r0, r1, [&](int64_t first, int64_t last, const float* rows) {
    for (int64_t r = first; r < last; ++r, rows += cols_, out += cols_)
      for (int64_t c = 0; c < cols_; ++c) out[c] = rows[inverse_[static_cast<size_t>(c)]];
  });
}

BitReport Permuted::bits() const {
  BitReport report = child_->bits();
  report.permutation += order_.stored_bits();
  return report;
}

json Permuted::serialize(const std::string& prefix, SectionSink& sink) const {
  json j = {{"node", "permuted"}, {"axis", axis_name(axis_)}, {"order", prefix + ".order"}};
  sink.add(prefix + ".order", order_.type(), {order_.size()}, order_.bytes());
  j["child"] = child_->serialize(prefix + ".child", sink);
  return j;
}

std::string Permuted::describe() const { return fmt::format("permuted {}({})", axis_name(axis_), child_->describe()); }

// ---- Scaled -------------------------------------------------------------------------------------

Scaled::Scaled(NodePtr child, Axis axis, FloatArray scales)
    : Node(child->rows(), child->cols()), child_(std::move(child)), axis_(axis), scales_(std::move(scales)) {}

Result<NodePtr> Scaled::make(NodePtr child, Axis axis, FloatArray scales) {
  if (child == nullptr) return bug_error("scaled: no child");
  const int64_t n = axis == Axis::rows ? child->rows() : child->cols();
  if (scales.size() != n)
    return data_error(fmt::format("scaled: {} scales for {} {}", scales.size(), n, axis_name(axis)));
  if (scales.type() != DType::f16 && scales.type() != DType::bf16 && scales.type() != DType::f32)
    return data_error(fmt::format("scaled: type {}, expected F16, BF16 or F32", dtype_name(scales.type())));
  if (const int64_t bad = scales.first_non_finite(); bad >= 0)
    return data_error(fmt::format("scaled: scale {} is not finite", bad));
  return NodePtr(new Scaled(std::move(child), axis, std::move(scales)));
}

Result<NodePtr> Scaled::parse(const json& j, const ParseContext& context, uint32_t depth) {
  PITH_ASSIGN(const Axis axis, json_axis(j));
  PITH_ASSIGN(NodePtr child, json_node(j, "child", context, depth));
  const int64_t n = axis == Axis::rows ? child->rows() : child->cols();
  PITH_ASSIGN(FloatArray scales, json_floats(j, "scales", n, context));
  return make(std::move(child), axis, std::move(scales));
}

void Scaled::decode_rows(int64_t r0, int64_t r1, float* out) const {
  child_->decode_rows(r0, r1, out);
  if (axis_ == Axis::rows) {
    for (int64_t r = r0; r < r1; ++r, out += cols_) {
      const float s = scales_.at(r);
      for (int64_t c = 0; c < cols_; ++c) out[c] *= s;
    }
    return;
  }
  std::vector<float> s(static_cast<size_t>(cols_));
  scales_.read(0, cols_, s.data());
  for (int64_t r = r0; r < r1; ++r, out += cols_)
    for (int64_t c = 0; c < cols_; ++c) out[c] *= s[static_cast<size_t>(c)];
}

BitReport Scaled::bits() const {
  BitReport report = child_->bits();
  report.scales += scales_.stored_bits();
  return report;
}

json Scaled::serialize(const std::string& prefix, SectionSink& sink) const {
  json j = {{"node", "scaled"}, {"axis", axis_name(axis_)}, {"scales", prefix + ".scales"}};
  sink.add(prefix + ".scales", scales_.type(), {scales_.size()}, scales_.bytes());
  j["child"] = child_->serialize(prefix + ".child", sink);
  return j;
}

std::string Scaled::describe() const { return fmt::format("scaled {}({})", axis_name(axis_), child_->describe()); }

// ---- DepthLine ----------------------------------------------------------------------------------

DepthLine::DepthLine(NodePtr base, NodePtr slope, float t)
    : Node(base->rows(), base->cols()), base_(std::move(base)), slope_(std::move(slope)), t_(t) {}

Result<NodePtr> DepthLine::make(NodePtr base, NodePtr slope, float t) {
  if (base == nullptr || slope == nullptr) return bug_error("depth_line: base or slope missing");
  PITH_TRY(same_shape(*base, *slope, "depth_line"));
  if (!std::isfinite(t)) return data_error("depth_line: t is not finite");
  return NodePtr(new DepthLine(std::move(base), std::move(slope), t));
}

Result<NodePtr> DepthLine::parse(const json& j, const ParseContext& context, uint32_t depth) {
  PITH_ASSIGN(const float t, json_float(j, "t"));
  PITH_ASSIGN(NodePtr base, json_node(j, "base", context, depth));
  PITH_ASSIGN(NodePtr slope, json_node(j, "slope", context, depth));
  return make(std::move(base), std::move(slope), t);
}

void DepthLine::decode_rows(int64_t r0, int64_t r1, float* out) const {
  base_->decode_rows(r0, r1, out);
  decode_pieces(*slope_, r0, r1, [&](int64_t first, int64_t last, const float* rows) {
    float* to = out + (first - r0) * cols_;
    for (int64_t i = 0; i < (last - first) * cols_; ++i) to[i] += t_ * rows[i];
  });
}

BitReport DepthLine::bits() const {
  BitReport report = base_->bits();
  return report += slope_->bits();
}

json DepthLine::serialize(const std::string& prefix, SectionSink& sink) const {
  json j = {{"node", "depth_line"}, {"t", t_}};
  j["base"] = base_->serialize(prefix + ".base", sink);
  j["slope"] = slope_->serialize(prefix + ".slope", sink);
  return j;
}

std::string DepthLine::describe() const {
  return fmt::format("line {:.3g}({}, {})", t_, base_->describe(), slope_->describe());
}

// ---- DynamicInt8 --------------------------------------------------------------------------------

DynamicInt8::DynamicInt8(NodePtr child, float threshold)
    : Node(child->rows(), child->cols()), child_(std::move(child)), threshold_(threshold) {}

Result<NodePtr> DynamicInt8::make(NodePtr child, float threshold) {
  if (child == nullptr) return bug_error("dynamic_int8: no child");
  if (!std::isfinite(threshold) || threshold < 0)
    return data_error(fmt::format("dynamic_int8: threshold {}, expected a finite number >= 0", threshold));
  return NodePtr(new DynamicInt8(std::move(child), threshold));
}

Result<NodePtr> DynamicInt8::parse(const json& j, const ParseContext& context, uint32_t depth) {
  PITH_ASSIGN(const float threshold, json_float(j, "threshold"));
  PITH_ASSIGN(NodePtr child, json_node(j, "child", context, depth));
  return make(std::move(child), threshold);
}

json DynamicInt8::serialize(const std::string& prefix, SectionSink& sink) const {
  return {{"node", "dynamic_int8"}, {"threshold", threshold_}, {"child", child_->serialize(prefix, sink)}};
}

std::string DynamicInt8::describe() const {
  return fmt::format("int8 activations{}({})",
                     threshold_ > 0 ? fmt::format(" below {:.3g}", threshold_) : std::string(), child_->describe());
}

}  // namespace pith
