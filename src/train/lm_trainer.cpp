#include "train/lm_trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/file.h"
#include "base/hash.h"
#include "formats/safetensors.h"
#include "train/losses.h"
#include "train/optimizer.h"

namespace pith {
namespace {

uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// What a checkpoint belongs to: everything that decides the run's result but not how far it goes at a time.
std::string run_key(const LmConfig& config, const TensorMap& start, const Tensor& tokens, const LmTrainOptions& o) {
  Hasher hasher;
  hasher.add(weights_of(config, start)->content_hash());
  hasher.add(std::as_bytes(std::span(tokens.const_data_ptr<int64_t>(), static_cast<size_t>(tokens.numel()))));
  hasher.add(fmt::format("{} {} {} {} {} {} {} {} {} {} {} {}", o.steps, o.batch, o.context, o.rate, o.floor, o.warmup,
                         o.decay, o.clip, o.seed, o.bf16, o.teacher_share, o.temperature));
  if (o.teacher != nullptr) hasher.add(o.teacher->content_hash());
  return hasher.hex();
}

void save_checkpoint(const std::string& path, const TensorMap& weights, const AdamW& optimizer,
                     const std::string& key) {
  TensorMap all = optimizer.state();
  for (const auto& [name, w] : weights) all["w." + name] = w;
  std::vector<SafetensorsDecl> decls;
  for (const auto& [name, t] : all) decls.push_back({name, DType::f32, t.sizes().vec()});
  auto writer = must(SafetensorsWriter::create(path, decls, {{"step", std::to_string(optimizer.steps())}, {"run", key}},
                                               /*overwrite=*/true));
  for (const auto& [name, t] : all) {
    const Tensor flat = t.detach().to(at::kCPU).contiguous();
    must(writer.write(std::as_bytes(std::span(flat.const_data_ptr<float>(), static_cast<size_t>(flat.numel())))));
  }
  must(writer.finish());
}

void load_checkpoint(const std::string& path, TensorMap& weights, AdamW& optimizer, const std::string& key) {
  const at::NoGradGuard no_grad;
  const auto file = must(SafetensorsFile::open(path, {}));
  const auto& metadata = file.metadata();
  const auto run = metadata.find("run"), step = metadata.find("step");
  if (run == metadata.end() || step == metadata.end() || run->second != key) {
    throw Failure(user_error(path + " belongs to another run (other data, options or seed); delete it to begin anew"));
  }
  TensorMap all;
  for (const auto& entry : file.entries()) {
    const Bytes data = file.data(entry);
    if (entry.type != DType::f32) throw Failure(data_error(path + ": tensor '" + entry.name + "' should be F32"));
    Tensor t = at::empty(entry.shape, at::kFloat);
    std::memcpy(t.data_ptr<float>(), data.data(), data.size());
    all[entry.name] = t;
  }
  for (auto& [name, w] : weights) {
    const auto found = all.find("w." + name);
    if (found == all.end() || found->second.sizes() != w.sizes()) {
      throw Failure(data_error(path + ": no weight '" + name + "' of the right shape; delete the file to begin anew"));
    }
    w.copy_(found->second);
  }
  optimizer.restore(all, std::stoll("0" + step->second));
}

}  // namespace

TensorMap initial_weights(const LmConfig& config, uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  TensorMap out;
  for (const TensorSpec& spec : expected_tensors(config)) {
    const bool gain = spec.name.find("norm") != std::string::npos;
    if (gain) {
      out[spec.name] = config.norm_plus_one ? at::zeros(spec.shape) : at::ones(spec.shape);
    } else if (spec.shape.size() < 2) {
      out[spec.name] = at::zeros(spec.shape);
    } else {
      const bool residual = spec.name.find("o_proj") != std::string::npos ||
                            spec.name.find("down_proj") != std::string::npos ||
                            spec.name.find(".w2.") != std::string::npos;
      const double scale = residual ? 0.02 / std::sqrt(2.0 * static_cast<double>(config.layers)) : 0.02;
      out[spec.name] = at::randn(spec.shape, generator) * scale;
    }
  }
  return out;
}

LmTrained train_lm(const LmConfig& config, const TensorMap& start, const Tensor& tokens, const LmTrainOptions& o,
                   Progress& progress) {
  must(check_config(config));
  const int64_t count = tokens.numel();
  if (o.steps < 1 || o.batch < 1 || o.context < 2)
    throw Failure(user_error("steps, batch and context must be positive"));
  if (count < o.context + 2) {
    throw Failure(user_error(fmt::format("{} tokens are too few for a context of {}", count, o.context)));
  }
  if (tokens.min().item<int64_t>() < 0 || tokens.max().item<int64_t>() >= config.vocab) {
    throw Failure(user_error(fmt::format("tokens must be in 0 .. {}", config.vocab - 1)));
  }
  const at::Device device(o.device);
  TensorMap weights;
  for (const TensorSpec& spec : expected_tensors(config)) {
    const auto found = start.find(spec.name);
    if (found == start.end()) throw Failure(user_error("no start value for '" + spec.name + "'"));
    weights[spec.name] = found->second.detach().to(device, at::kFloat, /*non_blocking=*/false, /*copy=*/true);
    weights[spec.name].requires_grad_(true);
  }
  AdamW optimizer(weights, {.decay = o.decay});
  const std::string key = o.checkpoint.empty() ? "" : run_key(config, start, tokens, o);
  if (!o.checkpoint.empty() && file_exists(o.checkpoint)) load_checkpoint(o.checkpoint, weights, optimizer, key);

  const auto net = weights_of(config, weights);
  std::vector<LmBlock> blocks;
  for (int64_t layer = 0; layer < config.layers; ++layer) blocks.push_back(LmBlock::load(*net, layer, device));
  const LmContext context = make_context(config, o.context, device);
  std::vector<double> recent;
  while (optimizer.steps() < o.steps) {
    const int64_t step = optimizer.steps();
    Tensor batch = at::empty({o.batch, o.context + 1}, at::kLong);
    for (int64_t b = 0; b < o.batch; ++b) {
      const uint64_t draw = mix(mix(o.seed) ^ static_cast<uint64_t>(step * o.batch + b));
      const auto at_token = static_cast<int64_t>(draw % static_cast<uint64_t>(count - o.context));
      batch[b].copy_(tokens.view({-1}).narrow(0, at_token, o.context + 1));
    }
    const Tensor there = batch.to(device);
    if (o.bf16) {  // a rounded copy of each matrix for this step; gradients flow back into the fp32 one
      for (LmBlock& block : blocks) {
        for (const LmLinear& l : block.linears()) {
          if (!l.router) block.set_weight(l.name, weights.at(l.name).to(at::kBFloat16));
        }
      }
    }
    const Tensor input = there.narrow(1, 0, o.context), target = there.narrow(1, 1, o.context);
    const Tensor logits = lm_logits(config, weights, blocks, context, input, o.bf16);
    Tensor loss = next_token_loss(logits, target);
    const double value = loss.item<double>();
    if (o.teacher != nullptr) {
      Tensor wanted;
      {
        const at::NoGradGuard no_grad;
        wanted = lm_logits(*o.teacher, input.to(at::kCPU)).to(device);
      }
      loss = loss * (1 - o.teacher_share) + distillation_loss(logits, wanted, o.temperature) * o.teacher_share;
    }
    if (!std::isfinite(value)) {
      throw Failure(user_error(fmt::format("loss at step {} is not finite; lower the learning rate", step)));
    }
    loss.backward();
    clip_gradients(optimizer.parameters(), o.clip);
    optimizer.step(cosine_rate(step, o.warmup, o.steps, o.rate, o.floor));
    optimizer.zero_grad();
    recent.push_back(value);
    const std::string unit = fmt::format("step {}, loss {:.3f}", step + 1, value);
    const bool go_on = progress.step({"train", unit, static_cast<uint64_t>(step + 1), static_cast<uint64_t>(o.steps)});
    const bool due = (step + 1) % o.checkpoint_every == 0 || step + 1 == o.steps || !go_on;
    if (due && !o.checkpoint.empty()) save_checkpoint(o.checkpoint, weights, optimizer, key);
    if (!go_on) throw Failure(user_error("training was stopped"));
  }
  LmTrained out;
  for (const auto& [name, w] : weights) out.weights[name] = w.detach().to(at::kCPU);
  const size_t last = std::max<size_t>(1, recent.size() / 10);
  for (size_t i = recent.size() - std::min(last, recent.size()); i < recent.size(); ++i) {
    out.last_loss += recent[i] / static_cast<double>(std::min(last, recent.size()));
  }
  return out;
}

}  // namespace pith
