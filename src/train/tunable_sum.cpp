// Products of two factors, and sums with them (lq-lora, eora), as the tuner sees them.
#include <span>
#include <utility>
#include <vector>

#include "represent/combine.h"
#include "represent/dense.h"
#include "represent/low_rank.h"
#include "train/tunable_kinds.h"

namespace pith {
namespace {

Tensor decoded(const Node& node, at::Device device) {
  const Tensor values = at::empty({node.rows(), node.cols()});
  node.decode_rows(0, node.rows(), values.data_ptr<float>());
  return values.to(device);
}

/// A factor and the type in which a file holds it.
struct Factor {
  Tensor value;
  DType type;

  Factor(const Node& node, at::Device device)
      : value(decoded(node, device).requires_grad_(true)), type(static_cast<const Dense&>(node).type()) {}
  Tensor held() const { return as_stored(value, type); }
  NodePtr node() const {
    const Tensor v = value.detach().to(at::kCPU).contiguous();
    return must(Dense::from(type, v.size(0), v.size(1), {v.const_data_ptr<float>(), static_cast<size_t>(v.numel())}));
  }
};

class TunableLowRank final : public Tunable {
 public:
  TunableLowRank(const LowRank& node, at::Device device)
      : u_(*node.u(), device), v_(*node.v(), device), mean_(node.mean()) {}

  Tensor values() const override { return at::mm(u_.held(), v_.held()); }
  NodePtr node() const override { return must(LowRank::make(u_.node(), v_.node(), mean_)); }
  /// A rate of its own, whatever a factor's size: one that begins at zero (LoRA's) has none.
  std::vector<Continuous> continuous() const override {
    const Tensor one = at::ones({}, u_.value.options());
    return {{u_.value, one}, {v_.value, one}};
  }

 private:
  Factor u_, v_;
  NodePtr mean_;
};

class TunableSum final : public Tunable {
 public:
  struct Term {
    NodePtr node;
    Tensor fixed;                     ///< what it decodes to, when it stays
    std::unique_ptr<Tunable> moving;  ///< else null
    Tensor values() const { return moving ? moving->values() : fixed; }
  };
  explicit TunableSum(std::vector<Term> terms) : terms_(std::move(terms)) {
    for (const Term& term : terms_)
      if (coded_ == nullptr && term.moving && term.moving->codes().defined()) coded_ = term.moving.get();
  }

  Tensor values() const override {
    Tensor sum = terms_[0].values();
    for (size_t i = 1; i < terms_.size(); ++i) sum = sum + terms_[i].values();
    return sum;
  }
  NodePtr node() const override {
    std::vector<NodePtr> nodes;
    for (const Term& term : terms_) nodes.push_back(term.moving ? term.moving->node() : term.node);
    return must(Sum::make(std::move(nodes)));
  }
  std::vector<Continuous> continuous() const override {
    std::vector<Continuous> all;
    for (const Term& term : terms_)
      if (term.moving)
        for (Continuous& c : term.moving->continuous()) all.push_back(std::move(c));
    return all;
  }
  Tensor codes() const override { return coded_ != nullptr ? coded_->codes() : Tensor(); }
  int64_t group() const override { return coded_ != nullptr ? coded_->group() : 1; }
  Tensor unit() const override { return coded_ != nullptr ? coded_->unit() : Tensor(); }
  double bits() const override { return coded_ != nullptr ? coded_->bits() : 0; }
  void project(const Tensor& target, double price) override {
    if (coded_ == nullptr) return;
    const at::NoGradGuard no_grad;
    // What the coded term has to be; exactly what it is where the sum is what is asked for.
    const Tensor now = coded_->values();
    coded_->project(now + (target - values()), price);
  }

 private:
  std::vector<Term> terms_;
  Tunable* coded_ = nullptr;
};

}  // namespace

std::unique_ptr<Tunable> tunable_low_rank(const Node& node, at::Device device) {
  const auto* product = dynamic_cast<const LowRank*>(&node);
  if (product == nullptr || product->rank() == 0) return nullptr;
  for (const NodePtr& factor : {product->u(), product->v()}) {
    const auto* dense = dynamic_cast<const Dense*>(factor.get());
    if (dense == nullptr) return nullptr;
    if (dense->type() != DType::f16 && dense->type() != DType::bf16 && dense->type() != DType::f32) return nullptr;
  }
  return std::make_unique<TunableLowRank>(*product, device);
}

std::unique_ptr<Tunable> tunable_sum(const Node& node, const CodePrices& prices, at::Device device) {
  const auto* sum = dynamic_cast<const Sum*>(&node);
  if (sum == nullptr) return nullptr;
  std::vector<TunableSum::Term> terms;
  bool any = false;
  for (const NodePtr& child : sum->terms()) {
    TunableSum::Term term{child, {}, tunable(*child, prices, device)};
    if (!term.moving) term.fixed = decoded(*child, device);
    any = any || term.moving != nullptr;
    terms.push_back(std::move(term));
  }
  if (!any) return nullptr;
  return std::make_unique<TunableSum>(std::move(terms));
}

}  // namespace pith
