#include <string>

#include "base/hash.h"
#include "nets/lm.h"

namespace pith {
namespace {

class ModelWeights final : public LmWeights {
 public:
  explicit ModelWeights(const Model& model) : model_(model) {}
  const LmConfig& config() const override { return model_.config; }
  bool has(std::string_view name) const override { return model_.find(name) != nullptr; }
  Tensor tensor(std::string_view name) const override {
    const ModelTensor& t = need(name);
    return decode(*t.node, 0, t.node->rows()).view(t.shape);
  }
  Tensor rows(std::string_view name, int64_t r0, int64_t r1) const override {
    const ModelTensor& t = need(name);
    if (r0 < 0 || r1 < r0 || r1 > t.node->rows())
      throw Failure(bug_error(t.name + ": rows outside of the matrix were asked for"));
    return decode(*t.node, r0, r1);
  }
  std::string content_hash() const override { return model_.content_hash(); }

 private:
  const ModelTensor& need(std::string_view name) const {
    const ModelTensor* t = model_.find(name);
    if (t == nullptr) throw Failure(data_error("the model has no tensor '" + std::string(name) + "'"));
    return *t;
  }
  static Tensor decode(const Node& node, int64_t r0, int64_t r1) {
    Tensor out = at::empty({r1 - r0, node.cols()}, at::kFloat);
    node.decode_rows(r0, r1, out.data_ptr<float>());
    if (r1 - r0 > 1) drop_mapped_pages(node);  // single rows are looked up again and again
    return out;
  }
  const Model& model_;
};

class MapWeights final : public LmWeights {
 public:
  MapWeights(LmConfig config, TensorMap tensors) : config_(std::move(config)), tensors_(std::move(tensors)) {}
  const LmConfig& config() const override { return config_; }
  bool has(std::string_view name) const override { return tensors_.find(name) != tensors_.end(); }
  Tensor tensor(std::string_view name) const override {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw Failure(data_error("the model has no tensor '" + std::string(name) + "'"));
    return found->second.to(at::kFloat);
  }
  Tensor rows(std::string_view name, int64_t r0, int64_t r1) const override {
    return tensor(name).narrow(0, r0, r1 - r0);
  }
  std::string content_hash() const override {
    Hasher hasher;
    for (const auto& spec : expected_tensors(config_)) {
      const Tensor t = tensor(spec.name).contiguous();
      hasher.add(spec.name);
      for (const int64_t n : t.sizes()) hasher.add(static_cast<uint64_t>(n));
      hasher.add(std::as_bytes(std::span(t.const_data_ptr<float>(), static_cast<size_t>(t.numel()))));
    }
    return hasher.hex();
  }

 private:
  LmConfig config_;
  TensorMap tensors_;
};

}  // namespace

std::unique_ptr<LmWeights> weights_of(const Model& model) { return std::make_unique<ModelWeights>(model); }

std::unique_ptr<LmWeights> weights_of(LmConfig config, TensorMap tensors) {
  return std::make_unique<MapWeights>(std::move(config), std::move(tensors));
}

}  // namespace pith
