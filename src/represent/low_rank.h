// A product of two thin matrices, and the part of it that a smaller rank gives.
#pragma once

#include "represent/node.h"

namespace pith {

/// W = U V with U [rows, rank] and V [rank, cols], each a node of any kind.
/// `mean`, [1, rows], is not part of W: it is the mean of the layer's *output*, which the layer adds to U (V x) (atomic
/// feature mimicking keeps it beside the factors). decode gives U V only.
/// Decoding costs one decoding of V a call: ask for many rows at once, or multiply factor by factor.
class LowRank final : public Node {
 public:
  static Result<NodePtr> make(NodePtr u, NodePtr v, NodePtr mean = nullptr);
  static Result<NodePtr> parse(const nlohmann::json& j, const ParseContext& context, uint32_t depth);

  int64_t rank() const { return u_->cols(); }
  const NodePtr& u() const { return u_; }
  const NodePtr& v() const { return v_; }
  /// nullptr when there is none.
  const NodePtr& mean() const { return mean_; }
  /// Rows [r0, r1) of U[:, :rank] V[:rank, :].
  void decode_rank(int64_t r0, int64_t r1, int64_t rank, float* out) const;

  std::string_view kind() const override { return "low_rank"; }
  void decode_rows(int64_t r0, int64_t r1, float* out) const override { decode_rank(r0, r1, rank(), out); }
  BitReport bits() const override;
  std::vector<NodePtr> children() const override;
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  LowRank(NodePtr u, NodePtr v, NodePtr mean);
  NodePtr u_, v_, mean_;
};

/// The first `rank` columns of U and rows of V of a LowRank whose components are ordered by importance. The whole child
/// is stored, so one file serves every rank.
class Prefix final : public Node {
 public:
  /// `child` must be a LowRank; 0 <= rank <= its rank.
  static Result<NodePtr> make(NodePtr child, int64_t rank);
  static Result<NodePtr> parse(const nlohmann::json& j, const ParseContext& context, uint32_t depth);

  const NodePtr& child() const { return child_; }
  const LowRank& low_rank() const { return static_cast<const LowRank&>(*child_); }
  int64_t rank() const { return rank_; }

  std::string_view kind() const override { return "prefix"; }
  void decode_rows(int64_t r0, int64_t r1, float* out) const override { low_rank().decode_rank(r0, r1, rank_, out); }
  BitReport bits() const override { return child_->bits(); }
  std::vector<NodePtr> children() const override { return {child_}; }
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  Prefix(NodePtr child, int64_t rank) : Node(child->rows(), child->cols()), child_(std::move(child)), rank_(rank) {}
  NodePtr child_;
  int64_t rank_;
};

}  // namespace pith
