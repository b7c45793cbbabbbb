#include "train/adapter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/hash.h"
#include "tensor/parallel.h"
#include "train/losses.h"
#include "train/optimizer.h"
#include "train/rounds.h"

namespace pith {
namespace {

class AdapterTrainer {
 public:
  AdapterTrainer(const LmWeights& base, const Adapter& adapter, const Tensor& train, const Tensor& validation,
                 const AdapterOptions& options, Progress& progress)
      : adapter_(adapter),
        o_(options),
        progress_(progress),
        config_(base.config()),
        train_(train),
        validation_(validation),
        context_(make_context(config_, train.size(1) - 1)),
        now_(leaves(adapter.parameters)),
        optimizer_(now_, {.beta1 = o_.beta1, .beta2 = o_.beta2, .decay = o_.decay}),
        rounds_(train.size(0), options.seed) {
    for (int64_t layer = 0; layer < config_.layers; ++layer) blocks_.push_back(LmBlock::load(base, layer));
    for (const std::string& name :
         {std::string("model.embed_tokens.weight"), std::string("model.norm.weight"), head_name(config_)})
      if (!ends_.contains(name)) ends_[name] = base.tensor(name);
    out_.parameters = copies(now_);
  }

  AdapterTrained run() {
    if (o_.saved.defined())
      restore(o_.saved);
    else
      out_.before = out_.after = judge();
    const int64_t every = std::max<int64_t>(1, o_.steps / std::max<int64_t>(1, o_.looks));
    while (out_.steps < o_.steps && !out_.diverged) {
      const double loss = step();
      ++out_.steps;
      if (!std::isfinite(loss) || loss > 2 * out_.before + 1) {
        out_.diverged = true;
        progress_.note(fmt::format("training diverged at step {} (loss {:.4g}); the best numbers so far are kept",
                                   out_.steps, loss));
      } else if (out_.steps % every == 0 || out_.steps == o_.steps) {
        if (const double found = judge(); found < out_.after) {
          out_.after = found, out_.best_step = out_.steps;
          out_.parameters = copies(now_);
        }
      }
      const std::string unit = fmt::format("step {}, loss {:.4f}, best {:.4f}", out_.steps, loss, out_.after);
      const bool go_on =
          progress_.step({"train", unit, static_cast<uint64_t>(out_.steps), static_cast<uint64_t>(o_.steps)});
      if (o_.save && (!go_on || out_.steps % every == 0)) o_.save(state());
      if (!go_on) throw Failure(user_error("stopped; the same command continues from here"));
    }
    return std::move(out_);
  }

 private:
  static TensorMap copies(const TensorMap& from) {
    TensorMap out;
    for (const auto& [name, t] : from) out[name] = t.detach().clone();
    return out;
  }
  static TensorMap leaves(const TensorMap& from) {
    TensorMap out;
    for (const auto& [name, t] : from) out[name] = t.detach().to(at::kFloat).clone().requires_grad_(true);
    return out;
  }

  /// The mean loss of some sequences; with `gradients`, those of the weights are added to it. One sequence is one task,
  /// and sums are taken in their order.
  double loss(const Tensor& tokens, const TensorMap& weights, TensorMap* gradients) const {
    const int64_t n = tokens.size(0), wave = std::max(1, at::get_num_threads());
    double total = 0;
    for (int64_t first = 0; first < n; first += wave) {
      const int64_t count = std::min(wave, n - first);
      std::vector<double> losses(static_cast<size_t>(count));
      std::vector<TensorMap> own(static_cast<size_t>(count));
      parallel_tasks(count, [&](int64_t k) {
        std::vector<LmBlock> blocks = blocks_;  // shares all tensors
        TensorMap& mine = own[static_cast<size_t>(k)];
        for (const auto& [name, w] : weights) {
          mine[name] = gradients != nullptr ? w.detach().requires_grad_(true) : w;
          for (LmBlock& block : blocks)
            if (block.weights().contains(name)) block.set_weight(name, mine[name]);
        }
        const Tensor text = tokens.narrow(0, first + k, 1);
        const bool features = gradients != nullptr && o_.features > 0;
        const Seen seen = forward(blocks, text.narrow(1, 0, text.size(1) - 1), features);
        Tensor sum = next_token_loss(seen.logits, text.narrow(1, 1, text.size(1) - 1));
        losses[static_cast<size_t>(k)] = sum.item<double>() / static_cast<double>(n);
        if (gradients == nullptr) return;
        if (features) sum = sum + seen.apart * o_.features;
        (sum / static_cast<double>(n)).backward();
      });
      const at::NoGradGuard no_grad;
      for (int64_t k = 0; k < count; ++k) {
        total += losses[static_cast<size_t>(k)];
        if (gradients == nullptr) continue;
        for (auto& [name, w] : own[static_cast<size_t>(k)]) {
          if (!w.grad().defined()) continue;  // an expert that no token chose
          Tensor& sum = (*gradients)[name];
          sum = sum.defined() ? sum.add_(w.grad()) : w.grad();
        }
      }
    }
    return total;
  }

  struct Seen {
    Tensor logits;
    Tensor apart;  ///< mean square of the blocks' outputs less those of the base's; undefined when not asked for
  };
  Seen forward(const std::vector<LmBlock>& blocks, const Tensor& tokens, bool features) const {
    Tensor x = at::embedding(ends_.at("model.embed_tokens.weight"), tokens);
    if (config_.embedding_scale != 1) x = x * config_.embedding_scale;
    Tensor y = x, apart;
    for (size_t i = 0; i < blocks.size(); ++i) {
      x = blocks[i].forward(x, context_);
      if (!features) continue;
      {
        const at::NoGradGuard no_grad;
        y = blocks_[i].forward(y, context_);
      }
      const Tensor here = (x - y).square().mean() / static_cast<double>(blocks.size());
      apart = apart.defined() ? apart + here : here;
    }
    x = rms_norm(config_, x, ends_.at("model.norm.weight"));
    return {soft_cap(at::linear(x, ends_.at(head_name(config_))), config_.logit_softcap), apart};
  }

  TensorMap weights(int64_t step) const {
    const OneThread one;
    return adapter_.weights(now_, step);
  }

  double judge() const {
    const at::NoGradGuard no_grad;
    return loss(validation_, weights(-1), nullptr);
  }

  double step() {
    const TensorMap moved = weights(out_.steps);
    TensorMap gradients;
    const double value = loss(train_.index_select(0, rounds_.places(out_.steps, o_.batch)), moved, &gradients);
    if (!std::isfinite(value)) return value;
    const OneThread one;
    if (adapter_.penalty) adapter_.penalty(now_).backward();
    for (const auto& [name, g] : gradients) moved.at(name).backward(g);
    // Linear from 0 to the rate, and linear down to 0.
    const auto t = static_cast<double>(out_.steps), all = static_cast<double>(o_.steps);
    const double warm = std::max(1.0, o_.warmup * all);
    optimizer_.step(o_.rate * std::min((t + 1) / warm, (all - t) / std::max(1.0, all - warm)));
    optimizer_.zero_grad();
    return value;
  }

  // ---- checkpoint: steps, losses, numbers, their best, the optimiser's moments, one behind the other

  void each_tensor(const std::function<void(Tensor& value)>& see) {
    for (auto& [name, t] : now_) see(t);
    for (auto& [name, t] : out_.parameters) see(t);
    for (auto& [name, t] : moments_) see(t);
  }
  Tensor state() {
    moments_ = optimizer_.state();
    std::vector<Tensor> all{
        at::tensor(std::vector<double>{static_cast<double>(out_.steps), static_cast<double>(out_.best_step)})
            .to(at::kFloat)};
    // Losses keep all their bits as two numbers each.
    for (const double v : {out_.before, out_.after}) {
      const auto high = static_cast<float>(v);
      all.push_back(at::tensor(std::vector<double>{high, v - static_cast<double>(high)}).to(at::kFloat));
    }
    each_tensor([&](Tensor& t) { all.push_back(t.detach().reshape({-1})); });
    return at::cat(all);
  }
  void restore(const Tensor& saved) {
    const at::NoGradGuard no_grad;
    moments_ = optimizer_.state();
    int64_t expected = 6;
    each_tensor([&](Tensor& t) { expected += t.numel(); });
    if (saved.numel() != expected) throw Failure(data_error("the checkpoint of the training is of another run"));
    const Tensor all = saved.to(at::kFloat).contiguous();
    const float* v = all.const_data_ptr<float>();
    out_.steps = static_cast<int64_t>(v[0]), out_.best_step = static_cast<int64_t>(v[1]);
    out_.before = static_cast<double>(v[2]) + static_cast<double>(v[3]);
    out_.after = static_cast<double>(v[4]) + static_cast<double>(v[5]);
    int64_t at = 6;
    each_tensor([&](Tensor& t) {
      t.copy_(all.narrow(0, at, t.numel()).view_as(t));
      at += t.numel();
    });
    optimizer_.restore(moments_, out_.steps);
  }

  const Adapter& adapter_;
  const AdapterOptions& o_;
  Progress& progress_;
  const LmConfig config_;
  Tensor train_, validation_;
  LmContext context_;
  std::vector<LmBlock> blocks_;
  TensorMap ends_, now_, moments_;
  AdamW optimizer_;
  Rounds rounds_;
  AdapterTrained out_;
};

}  // namespace

AdapterTrained train_adapter(const LmWeights& base, const Adapter& adapter, const Tensor& train,
                             const Tensor& validation, const AdapterOptions& options, Progress& progress) {
  if (options.steps < 1 || options.batch < 1) throw Failure(user_error("steps and batch must be positive"));
  if (train.size(0) < 1 || validation.size(0) < 1 || train.size(1) < 2 || validation.size(1) != train.size(1))
    throw Failure(user_error("training needs sequences of at least two tokens, one to learn from and one to judge by"));
  return AdapterTrainer(base, adapter, train, validation, options, progress).run();
}

}  // namespace pith
