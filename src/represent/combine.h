// Nodes made of other nodes.
#pragma once

#include "represent/arrays.h"
#include "represent/node.h"
#include "represent/sparse.h"

namespace pith {

enum class Axis : uint8_t { rows, cols };

/// Two or more matrices of one shape, added in order.
class Sum final : public Node {
 public:
  static Result<NodePtr> make(std::vector<NodePtr> terms);
  static Result<NodePtr> parse(const nlohmann::json& j, const ParseContext& context, uint32_t depth);

  const std::vector<NodePtr>& terms() const { return terms_; }

  std::string_view kind() const override { return "sum"; }
  void decode_rows(int64_t r0, int64_t r1, float* out) const override;
  BitReport bits() const override;
  std::vector<NodePtr> children() const override { return terms_; }
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  explicit Sum(std::vector<NodePtr> terms);
  std::vector<NodePtr> terms_;
};

/// A matrix some of whose entries are replaced (not added to) by those of a sparse one.
class Override final : public Node {
 public:
  /// `sparse` must be a Csr of the same shape.
  static Result<NodePtr> make(NodePtr base, NodePtr sparse);
  static Result<NodePtr> parse(const nlohmann::json& j, const ParseContext& context, uint32_t depth);

  const NodePtr& base() const { return base_; }
  const Csr& sparse() const { return static_cast<const Csr&>(*sparse_); }

  std::string_view kind() const override { return "override"; }
  void decode_rows(int64_t r0, int64_t r1, float* out) const override;
  BitReport bits() const override;
  std::vector<NodePtr> children() const override { return {base_, sparse_}; }
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  Override(NodePtr base, NodePtr sparse);
  NodePtr base_, sparse_;
};

/// The child's columns (or rows) put elsewhere: this[:, order[j]] = child[:, j], or this[order[i], :] = child[i, :].
/// With W[:, order] quantised as the child (order = columns by importance), this is W again, and y = W x is
/// child * x[order].
class Permuted final : public Node {
 public:
  static Result<NodePtr> make(NodePtr child, Axis axis, IndexArray order);
  static Result<NodePtr> from(NodePtr child, Axis axis, std::span<const uint32_t> order);
  static Result<NodePtr> parse(const nlohmann::json& j, const ParseContext& context, uint32_t depth);

  const NodePtr& child() const { return child_; }
  Axis axis() const { return axis_; }
  const IndexArray& order() const { return order_; }
  /// inverse()[order()[i]] = i.
  std::span<const uint32_t> inverse() const { return inverse_; }

  std::string_view kind() const override { return "permuted"; }
  void decode_rows(int64_t r0, int64_t r1, float* out) const override;
  BitReport bits() const override;
  std::vector<NodePtr> children() const override { return {child_}; }
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  Permuted(NodePtr child, Axis axis, IndexArray order, std::vector<uint32_t> inverse);
  NodePtr child_;
  Axis axis_;
  IndexArray order_;
  std::vector<uint32_t> inverse_;
};

/// Each row (or column) of the child times a finite number, f16, bf16 or f32.
class Scaled final : public Node {
 public:
  static Result<NodePtr> make(NodePtr child, Axis axis, FloatArray scales);
  static Result<NodePtr> parse(const nlohmann::json& j, const ParseContext& context, uint32_t depth);

  const NodePtr& child() const { return child_; }
  Axis axis() const { return axis_; }
  const FloatArray& scales() const { return scales_; }

  std::string_view kind() const override { return "scaled"; }
  void decode_rows(int64_t r0, int64_t r1, float* out) const override;
  BitReport bits() const override;
  std::vector<NodePtr> children() const override { return {child_}; }
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  Scaled(NodePtr child, Axis axis, FloatArray scales);
  NodePtr child_;
  Axis axis_;
  FloatArray scales_;
};

/// A point on a straight line over depth: base + t * slope.
class DepthLine final : public Node {
 public:
  static Result<NodePtr> make(NodePtr base, NodePtr slope, float t);
  static Result<NodePtr> parse(const nlohmann::json& j, const ParseContext& context, uint32_t depth);

  const NodePtr& base() const { return base_; }
  const NodePtr& slope() const { return slope_; }
  float t() const { return t_; }

  std::string_view kind() const override { return "depth_line"; }
  void decode_rows(int64_t r0, int64_t r1, float* out) const override;
  BitReport bits() const override;
  std::vector<NodePtr> children() const override { return {base_, slope_}; }
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  DepthLine(NodePtr base, NodePtr slope, float t);
  NodePtr base_, slope_;
  float t_;
};

/// The child's weights, and the wish that the kernel multiplies with int8 activations: input columns in which some
/// |x| >= threshold stay in high precision (LLM.int8). threshold 0 = no such columns. Nothing is stored for it.
class DynamicInt8 final : public Node {
 public:
  static Result<NodePtr> make(NodePtr child, float threshold);
  static Result<NodePtr> parse(const nlohmann::json& j, const ParseContext& context, uint32_t depth);

  const NodePtr& child() const { return child_; }
  float threshold() const { return threshold_; }

  std::string_view kind() const override { return "dynamic_int8"; }
  void decode_rows(int64_t r0, int64_t r1, float* out) const override { child_->decode_rows(r0, r1, out); }
  BitReport bits() const override { return child_->bits(); }
  std::vector<NodePtr> children() const override { return {child_}; }
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  DynamicInt8(NodePtr child, float threshold);
  NodePtr child_;
  float threshold_;
};

}  // namespace pith
