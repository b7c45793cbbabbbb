#include "represent/low_rank.h"

#include <fmt/format.h>

#include <algorithm>

#include "represent/json_read.h"

namespace pith {

using nlohmann::json;

LowRank::LowRank(NodePtr u, NodePtr v, NodePtr mean)
    : Node(u->rows(), v->cols()), u_(std::move(u)), v_(std::move(v)), mean_(std::move(mean)) {}

Result<NodePtr> LowRank::make(NodePtr u, NodePtr v, NodePtr mean) {
  if (u == nullptr || v == nullptr) return bug_error("low_rank: a factor is missing");
  PITH_TRY(check_shape(u->rows(), v->cols(), "low_rank"));
  if (u->cols() != v->rows())
    return data_error(fmt::format("low_rank: factors {} x {} and {} x {} do not fit together", u->rows(), u->cols(),
                                  v->rows(), v->cols()));
  if (mean != nullptr && (mean->rows() != 1 || mean->cols() != u->rows()))
    return data_error(fmt::format("low_rank: mean is {} x {}, expected 1 x {}", mean->rows(), mean->cols(), u->rows()));
  return NodePtr(new LowRank(std::move(u), std::move(v), std::move(mean)));
}

Result<NodePtr> LowRank::parse(const json& j, const ParseContext& context, uint32_t depth) {
  PITH_ASSIGN(NodePtr u, json_node(j, "u", context, depth));
  PITH_ASSIGN(NodePtr v, json_node(j, "v", context, depth));
  NodePtr mean;
  if (j.contains("mean")) {
    PITH_ASSIGN(mean, json_node(j, "mean", context, depth));
  }
  return make(std::move(u), std::move(v), std::move(mean));
}

void LowRank::decode_rank(int64_t r0, int64_t r1, int64_t rank, float* out) const {
  const int64_t n = r1 - r0, full = u_->cols();
  std::vector<float> u(static_cast<size_t>(n * full));
  u_->decode_rows(r0, r1, u.data());
  std::fill_n(out, n * cols_, 0.0f);
  // Some rows of V at a time; for each output row the sum runs over k = 0 … rank-1 in order, whatever the pieces.
  const int64_t step = std::min(rows_at_once(cols_), std::max<int64_t>(rank, 1));
  std::vector<float> v(static_cast<size_t>(step * cols_));
  for (int64_t k0 = 0; k0 < rank; k0 += step) {
    const int64_t k1 = std::min(k0 + step, rank);
    v_->decode_rows(k0, k1, v.data());
    for (int64_t r = 0; r < n; ++r)
      for (int64_t k = k0; k < k1; ++k) {
        const float a = u[static_cast<size_t>(r * full + k)];
        const float* row = v.data() + (k - k0) * cols_;
        float* to = out + r * cols_;
        for (int64_t c = 0; c < cols_; ++c) to[c] += a * row[c];
      }
  }
}

BitReport LowRank::bits() const {
  BitReport report;
  report.factors = u_->bits().total() + v_->bits().total();
  if (mean_) report.scales = mean_->bits().total();
  return report;
}

std::vector<NodePtr> LowRank::children() const {
  std::vector<NodePtr> all = {u_, v_};
  if (mean_) all.push_back(mean_);
  return all;
}

json LowRank::serialize(const std::string& prefix, SectionSink& sink) const {
  json j = {{"node", "low_rank"}};
  j["u"] = u_->serialize(prefix + ".u", sink);
  j["v"] = v_->serialize(prefix + ".v", sink);
  if (mean_) j["mean"] = mean_->serialize(prefix + ".mean", sink);
  return j;
}

std::string LowRank::describe() const {
  return fmt::format("low rank {}({}, {}{})", rank(), u_->describe(), v_->describe(), mean_ ? ", mean" : "");
}

Result<NodePtr> Prefix::make(NodePtr child, int64_t rank) {
  const auto* low_rank = dynamic_cast<const LowRank*>(child.get());
  if (low_rank == nullptr) return data_error("prefix: the child is not a low_rank node");
  if (rank < 0 || rank > low_rank->rank())
    return data_error(fmt::format("prefix: rank {}, expected 0 to {}", rank, low_rank->rank()));
  return NodePtr(new Prefix(std::move(child), rank));
}

Result<NodePtr> Prefix::parse(const json& j, const ParseContext& context, uint32_t depth) {
  PITH_ASSIGN(NodePtr child, json_node(j, "child", context, depth));
  PITH_ASSIGN(const int64_t rank, json_int(j, "rank", 0, int64_t{1} << 40));
  return make(std::move(child), rank);
}

json Prefix::serialize(const std::string& prefix, SectionSink& sink) const {
  return {{"node", "prefix"}, {"rank", rank_}, {"child", child_->serialize(prefix, sink)}};
}

std::string Prefix::describe() const { return fmt::format("rank {} of {}", rank_, child_->describe()); }

}  // namespace pith
