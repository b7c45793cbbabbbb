#include "train/distill.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/hash.h"
#include "formats/safetensors.h"
#include "represent/dense.h"
#include "tensor/parallel.h"
#include "train/losses.h"
#include "train/optimizer.h"
#include "train/rounds.h"
#include "train/tunable.h"

namespace pith {
namespace {

/// Sequences that go through a GPU at a time.
constexpr int64_t kDeviceSequences = 16;

/// A model in memory as blocks and ends.
struct Net {
  LmConfig config;
  std::vector<LmBlock> blocks;
  TensorMap ends;
  LmContext context;
  bool bf16 = false;

  Net(const LmWeights& weights, int64_t length, at::Device device, bool bf16)
      : config(weights.config()), context(make_context(weights.config(), length, device)), bf16(bf16) {
    for (int64_t layer = 0; layer < config.layers; ++layer)
      blocks.push_back(LmBlock::load(weights, layer, device, bf16 ? at::kBFloat16 : at::kFloat));
    for (const std::string& name :
         {std::string("model.embed_tokens.weight"), std::string("model.norm.weight"), head_name(config)})
      if (ends.find(name) == ends.end()) ends[name] = weights.tensor(name).to(device);
  }

  void set(const std::string& name, const Tensor& value) {
    if (const auto end = ends.find(name); end != ends.end()) {
      end->second = value;
      return;
    }
    for (LmBlock& block : blocks)
      if (block.weights().find(name) != block.weights().end()) {
        const at::ScalarType type = block.weight(name).scalar_type();
        return block.set_weight(name, value.to(type));
      }
  }
  Tensor logits(const Tensor& tokens) const { return lm_logits(config, ends, blocks, context, tokens, bf16); }
};

/// Adam's moments of one tensor.
struct Moving {
  Tensor first, second;
};

class Distiller {
 public:
  Distiller(const LmWeights& teacher, const Model& student, const Tensor& train, const Tensor& validation,
            const DistillOptions& options, Progress& progress)
      : o_(options),
        progress_(progress),
        source_(student),
        train_(train),
        validation_(validation),
        bf16_(options.device.is_cuda() || fast_bf16()),
        teacher_(teacher, train.size(1), options.device, bf16_),
        student_(*weights_of(student), train.size(1), options.device, bf16_),
        rounds_(train.size(0), options.seed) {
    const CodePrices prices(student);
    for (const ModelTensor& t : student.tensors) {
      if (t.shape.size() == 1 && t.node->kind() == "dense") {
        vectors_[t.name] = weights_of(student)->tensor(t.name).to(o_.device).requires_grad_(true);
        moving_[t.name] = fresh(vectors_[t.name]);
      } else if (auto m = tunable(*t.node, prices, o_.device)) {
        if (o_.rate > 0 && m->codes().defined()) buffer_[t.name] = Tensor();  // filled below
        int i = 0;
        for (const Continuous& c : m->continuous()) moving_[fmt::format("{}.{}", t.name, i++)] = fresh(c.value);
        matrices_[t.name] = std::move(m);
      }
    }
    if (matrices_.empty() && vectors_.empty())
      throw Failure(
          user_error("nothing in this model can be tuned: no grids, codebooks, llama.cpp blocks or low-rank parts, and "
                     "no plain vectors"));
    for (const auto& [name, value] : values())
      if (const auto buffer = buffer_.find(name); buffer != buffer_.end()) {
        buffer->second = value.detach().clone();
        moving_[name] = fresh(value);
      }
    price_ = o_.price;
    aim_ = bits();
    if (o_.size && aim_ > 0) aim_ += 8 * (static_cast<double>(o_.budget) - static_cast<double>(o_.size(nodes())));
  }

  Distilled run() {
    if (o_.saved.size() > 0)
      load();
    else
      begin();
    const int64_t every = std::max<int64_t>(1, o_.steps / std::max<int64_t>(1, o_.looks));
    while (out_.steps < o_.steps && !out_.diverged) {
      const double loss = step();
      ++out_.steps;
      if (!std::isfinite(loss) || loss > 4 * out_.before + 1) {
        out_.diverged = true;
        progress_.note(
            fmt::format("tuning diverged at step {} (KL {:.4g}); the best model so far is kept", out_.steps, loss));
      } else if (out_.steps % every == 0 || out_.steps == o_.steps) {
        look();
      }
      const auto total = static_cast<uint64_t>(o_.steps), done = static_cast<uint64_t>(out_.steps);
      const std::string unit = fmt::format("step {}, KL {:.4f}, best {:.4f}", out_.steps, loss, out_.after);
      const bool go_on = progress_.step({"tune", unit, done, total});
      if (o_.save && (!go_on || out_.steps % every == 0)) save();
      if (!go_on) throw Failure(user_error("stopped; the same command continues from here"));
    }
    if (out_.best_step > 0) {
      const at::NoGradGuard no_grad;
      each_value("", [&](const std::string& name, Tensor& value) { value.copy_(best_.at(name)); });
      out_.nodes = nodes();
    }
    return std::move(out_);
  }

 private:
  static Moving fresh(const Tensor& like) { return {at::zeros_like(like.detach()), at::zeros_like(like.detach())}; }

  /// Calls body for each matrix, on the CPU with one thread each.
  void each_matrix(const std::function<void(int64_t i, const std::string& name, Tunable& m)>& body) const {
    std::vector<std::pair<const std::string*, Tunable*>> list;
    for (const auto& [name, m] : matrices_) list.emplace_back(&name, m.get());
    const auto one = [&](int64_t i) {
      body(i, *list[static_cast<size_t>(i)].first, *list[static_cast<size_t>(i)].second);
    };
    const auto count = static_cast<int64_t>(list.size());
    if (!o_.device.is_cuda()) return parallel_tasks(count, one);
    for (int64_t i = 0; i < count; ++i) one(i);
  }

  /// Of all matrices, differentiable in their continuous numbers where gradients are on.
  TensorMap values() const {
    TensorMap out;
    for (const auto& [name, m] : matrices_) out[name] = Tensor();  // tasks do not change the map
    each_matrix([&](int64_t, const std::string& name, Tunable& m) { out.at(name) = m.values(); });
    return out;
  }

  double bits() const {
    std::vector<double> each(matrices_.size());
    each_matrix([&](int64_t i, const std::string&, Tunable& m) { each[static_cast<size_t>(i)] = m.bits(); });
    double sum = 0;
    for (const double b : each) sum += b;
    return sum;
  }

  /// The mean KL over these sequences, with gradients of `leaves` (all weights of the student that move) added to
  /// `gradients` when there are leaves. On the CPU one sequence is one task and sums are taken in their order.
  double loss(const Tensor& tokens, const TensorMap& leaves, TensorMap& gradients) const {
    const int64_t n = tokens.size(0);
    const bool gpu = o_.device.is_cuda();
    const int64_t at_once = gpu ? std::min(n, kDeviceSequences) : 1;
    const int64_t pieces = (n + at_once - 1) / at_once;
    const auto piece = [&](int64_t i, TensorMap& grads) {
      const Tensor some = tokens.narrow(0, i * at_once, std::min(at_once, n - i * at_once)).to(o_.device);
      Tensor wanted;
      {
        const at::NoGradGuard no_grad;
        wanted = teacher_.logits(some);
      }
      const double share = static_cast<double>(some.size(0)) / static_cast<double>(n);
      if (leaves.empty()) {
        const at::NoGradGuard no_grad;
        return distillation_loss(student_.logits(some), wanted, 1).item<double>() * share;
      }
      Net mine = student_;  // shares all tensors
      TensorMap own;
      for (const auto& [name, t] : leaves) mine.set(name, own[name] = t.detach().requires_grad_(true));
      const Tensor kl = distillation_loss(mine.logits(some), wanted, 1) * share;
      kl.backward();
      for (auto& [name, t] : own) grads[name] = t.grad();
      return kl.item<double>();
    };
    const auto add = [&](TensorMap& grads) {
      for (auto& [name, g] : grads) {
        if (!g.defined()) continue;  // an expert that no token chose
        if (Tensor& sum = gradients[name]; sum.defined())
          sum.add_(g);
        else
          sum = g;
      }
    };
    double total = 0;
    if (gpu) {
      for (int64_t i = 0; i < pieces; ++i) {
        TensorMap grads;
        total += piece(i, grads);
        add(grads);
      }
      return total;
    }
    const int64_t wave = std::max(1, at::get_num_threads());
    for (int64_t first = 0; first < pieces; first += wave) {
      const int64_t count = std::min(wave, pieces - first);
      std::vector<TensorMap> grads(static_cast<size_t>(count));
      std::vector<double> losses(static_cast<size_t>(count));
      parallel_tasks(
          count, [&](int64_t k) { losses[static_cast<size_t>(k)] = piece(first + k, grads[static_cast<size_t>(k)]); });
      const at::NoGradGuard no_grad;
      for (int64_t k = 0; k < count; ++k) {
        total += losses[static_cast<size_t>(k)];
        add(grads[static_cast<size_t>(k)]);
      }
    }
    return total;
  }

  /// Adam's direction for gradient g, about 1 in size.
  Tensor direction(const std::string& name, const Tensor& g, double beta1) {
    Moving& m = moving_.at(name);
    const auto t = static_cast<double>(out_.steps + 1);
    m.first.mul_(beta1).add_(g, 1 - beta1);
    m.second.mul_(o_.beta2).addcmul_(g, g, 1 - o_.beta2);
    const Tensor size = (m.second / (1 - std::pow(o_.beta2, t))).sqrt_().add_(1e-20);
    return (m.first / (1 - std::pow(beta1, t))).div_(size);
  }

  /// The buffer for the groups of codes that are to move, and what is there for the others.
  Tensor moved_share(const Tunable& m, const Tensor& buffer, int64_t matrix) const {
    const Tensor now = m.values();
    const int64_t rows = now.size(0), cols = now.size(1), width = m.group(), groups = (cols + width - 1) / width;
    Tensor far = at::zeros({rows, groups * width}, now.options());
    far.narrow(1, 0, cols).copy_((buffer - now).square());
    far = far.view({rows, groups, width}).sum(2);
    if (o_.random_share)
      far =
          at::rand({rows, groups}, at::detail::createCPUGenerator(hash64(
                                       "share", o_.seed * 1000003 + static_cast<uint64_t>(out_.steps * 4096 + matrix))))
              .to(now.device());
    const auto count = static_cast<int64_t>(std::ceil(o_.share * static_cast<double>(far.numel())));
    const Tensor least = std::get<0>(far.flatten().topk(std::max<int64_t>(count, 1))).amin();
    const Tensor moves = far.ge(least).unsqueeze(2).expand({rows, groups, width}).reshape({rows, groups * width});
    return at::where(moves.narrow(1, 0, cols), buffer, now);
  }

  double step() {
    TensorMap leaves = values(), gradients;
    for (const auto& [name, v] : vectors_) leaves[name] = v;
    const double kl = loss(train_.index_select(0, rounds_.places(out_.steps, o_.batch)), leaves, gradients);
    if (!std::isfinite(kl)) return kl;
    const double warmth = cosine_rate(out_.steps, std::max<int64_t>(1, o_.steps / 20), o_.steps, 1, 0);
    each_matrix([&](int64_t i, const std::string& name, Tunable& m) {
      const auto g = gradients.find(name);
      if (g == gradients.end()) return;
      const std::vector<Continuous> numbers = m.continuous();
      // Continuous numbers inside a representation get their gradient through its values.
      if (!numbers.empty()) leaves.at(name).backward(g->second);
      const at::NoGradGuard no_grad;
      int c = 0;
      for (const Continuous& x : numbers) {
        x.value.sub_(direction(fmt::format("{}.{}", name, c++), x.value.grad(), 0.9) * x.size, o_.vector_rate * warmth);
        x.value.mutable_grad() = Tensor();
      }
      const auto buffer = buffer_.find(name);
      if (buffer == buffer_.end()) return;
      const Tensor unit = m.unit();
      buffer->second.sub_(direction(name, g->second * unit, o_.beta1) * unit, o_.rate * warmth);
      m.project(o_.share < 1 ? moved_share(m, buffer->second, i) : buffer->second, price_);
    });
    const at::NoGradGuard no_grad;
    for (auto& [name, v] : vectors_)
      if (const auto g = gradients.find(name); g != gradients.end())
        v.sub_(direction(name, g->second, 0.9), o_.vector_rate * warmth);
    if (aim_ > 0) price_ = std::clamp(price_ * std::exp(std::min(0.1, 10 * (bits() / aim_ - 1))), 1e-3, 10.0);
    return kl;
  }

  // ---- what the model is, as it would be written
  // ----------------------------------------------------------------------

  static NodePtr stored(const ModelTensor& t, const Tensor& value) {
    const DType was = static_cast<const Dense&>(*t.node).type();
    const Tensor flat = value.detach().to(at::kCPU).contiguous();
    return must(Dense::from(was == DType::f32 ? DType::f32 : DType::f16, 1, flat.numel(),
                            std::span(flat.const_data_ptr<float>(), static_cast<size_t>(flat.numel()))));
  }

  /// Codes and continuous numbers: what the nodes are made of.
  void each_value(const std::string& prefix, const std::function<void(const std::string& name, Tensor& value)>& see) {
    for (auto& [name, m] : matrices_) {
      if (Tensor codes = m->codes(); codes.defined()) see(prefix + name, codes);
      int i = 0;
      for (Continuous& c : m->continuous()) see(fmt::format("{}{}.{}", prefix, name, i++), c.value);
    }
    for (auto& [name, v] : vectors_) see(prefix + name, v);
  }

  void keep_best() {
    each_value("", [&](const std::string& name, Tensor& value) { best_[name] = value.detach().clone(); });
  }

  NodeMap nodes() const {
    NodeMap out;
    for (const auto& [name, m] : matrices_) out[name] = m->node();
    for (const auto& [name, v] : vectors_) out[name] = stored(*source_.find(name), v);
    return out;
  }

  /// KL on the validation tokens.
  double judge() {
    for (const auto& [name, value] : values()) student_.set(name, value.detach());
    for (const auto& [name, v] : vectors_) {
      const NodePtr node = stored(*source_.find(name), v);
      Tensor value = at::empty_like(v, at::kCPU).detach();
      node->decode_rows(0, 1, value.data_ptr<float>());
      student_.set(name, value.to(o_.device));
    }
    TensorMap none;
    return loss(validation_, {}, none);
  }

  void begin() {
    out_.before = judge();
    const bool fits = !o_.size || o_.size(nodes()) <= o_.budget;
    out_.after = fits ? out_.before : std::numeric_limits<double>::infinity();
  }

  /// Brings the model under its budget, judges it, and keeps it when it is the best.
  void look() {
    const at::NoGradGuard no_grad;
    NodeMap now = nodes();
    for (int round = 0; o_.size && o_.size(now) > o_.budget; ++round) {
      if (round == 40 || buffer_.empty() || !(aim_ > 0)) return;  // no candidate: only priced codes can get smaller
      price_ = std::max(price_, 0.01) * 1.1;
      for (auto& [name, buffer] : buffer_) matrices_.at(name)->project(buffer, price_);
      now = nodes();
    }
    const double kl = judge();
    progress_.note(fmt::format("step {}: validation KL {:.5f}, was {:.5f}; bits {:.4f} of the aim, price {:.4f}",
                               out_.steps, kl, out_.before, bits() / std::max(aim_, 1.0), price_));
    if (!(kl < out_.after)) return;
    out_.after = kl, out_.best_step = out_.steps;
    keep_best();
  }

  // ---- checkpoint
  // -----------------------------------------------------------------------------------------------------

  std::string run_key() const {
    Hasher hasher;
    hasher.add(source_.content_hash());
    for (const Tensor& t : {train_, validation_})
      hasher.add(std::as_bytes(std::span(t.const_data_ptr<int64_t>(), static_cast<size_t>(t.numel()))));
    hasher.add(fmt::format("{} {} {} {} {} {} {} {} {} {} {} {} {}", o_.steps, o_.batch, o_.rate, o_.share,
                           o_.random_share, o_.vector_rate, o_.price, o_.beta1, o_.beta2, o_.looks, o_.seed,
                           o_.device.str(), o_.budget));
    return hasher.hex();
  }

  /// All that can differ between two moments of one run, by names of a checkpoint.
  void each_state(const std::function<void(const std::string& name, Tensor& value)>& see) {
    each_value("now.", see);
    for (auto& [name, b] : buffer_) see("buffer." + name, b);
    for (auto& [name, m] : moving_) {
      see("first." + name, m.first);
      see("second." + name, m.second);
    }
    for (auto& [name, b] : best_) see("best." + name, b);
  }

  void save() {
    std::map<std::string, Tensor> all;
    each_state([&](const std::string& name, Tensor& value) { all[name] = value.detach(); });
    std::vector<SafetensorsDecl> decls;
    size_t size = 0;
    for (const auto& [name, t] : all) {
      decls.push_back({name, DType::f32, t.sizes().vec()});
      size += static_cast<size_t>(t.numel()) * sizeof(float);
    }
    const std::map<std::string, std::string> notes{{"run", run_key()},
                                                   {"step", std::to_string(out_.steps)},
                                                   {"best_step", std::to_string(out_.best_step)},
                                                   {"price", fmt::format("{:a}", price_)},
                                                   {"before", fmt::format("{:a}", out_.before)},
                                                   {"after", fmt::format("{:a}", out_.after)}};
    const std::string header = must(safetensors_header(decls, notes));
    std::vector<std::byte> bytes;
    bytes.reserve(header.size() + size);
    const auto append = [&](const void* data, size_t n) {
      const auto* from = static_cast<const std::byte*>(data);
      bytes.insert(bytes.end(), from, from + n);
    };
    append(header.data(), header.size());
    for (const auto& [name, t] : all) {
      const Tensor flat = t.to(at::kCPU, at::kFloat).contiguous();
      append(flat.const_data_ptr(), static_cast<size_t>(flat.numel()) * sizeof(float));
    }
    o_.save(bytes);
  }

  void load() {
    const at::NoGradGuard no_grad;
    const SafetensorsFile file = must(SafetensorsFile::parse(o_.saved, "checkpoint", {}));
    const auto note = [&](const char* name) {
      const auto found = file.metadata().find(name);
      return found == file.metadata().end() ? std::string() : found->second;
    };
    if (note("run") != run_key())
      throw Failure(user_error("the checkpoint of the tuning belongs to other models, texts or options"));
    out_.steps = std::atoll(note("step").c_str()), out_.best_step = std::atoll(note("best_step").c_str());
    price_ = std::strtod(note("price").c_str(), nullptr);
    out_.before = std::strtod(note("before").c_str(), nullptr),
    out_.after = std::strtod(note("after").c_str(), nullptr);
    if (out_.best_step > 0) keep_best();  // makes room; filled below
    each_state([&](const std::string& name, Tensor& value) {
      const SafetensorsEntry* entry = file.find(name);
      if (entry == nullptr || entry->type != DType::f32 || value.sizes() != at::IntArrayRef(entry->shape))
        throw Failure(data_error("the checkpoint of the tuning has no tensor '" + name + "' of the right shape"));
      const Bytes data = file.data(*entry);
      Tensor read = at::empty(entry->shape, at::kFloat);
      std::memcpy(read.data_ptr<float>(), data.data(), data.size());
      value.copy_(read);
    });
  }

  const DistillOptions& o_;
  Progress& progress_;
  const Model& source_;
  Tensor train_, validation_;
  bool bf16_;
  Net teacher_, student_;
  std::map<std::string, std::unique_ptr<Tunable>, std::less<>> matrices_;
  TensorMap vectors_, buffer_, best_;
  std::map<std::string, Moving, std::less<>> moving_;
  double aim_ = 0, price_ = 0;  ///< bits that the codes may take; squared grid steps a bit
  Rounds rounds_;
  Distilled out_;
};

}  // namespace

Distilled distill(const LmWeights& teacher, const Model& student, const Tensor& train, const Tensor& validation,
                  const DistillOptions& options, Progress& progress) {
  if (options.steps < 0 || options.batch < 1) throw Failure(user_error("steps and batch must be positive"));
  if (train.size(0) < 1 || validation.size(0) < 1)
    throw Failure(user_error("tuning needs at least one sequence to learn from and one to validate on"));
  return Distiller(teacher, student, train, validation, options, progress).run();
}

}  // namespace pith
