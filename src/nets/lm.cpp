#include "nets/lm.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <utility>

#include "tensor/parallel.h"

namespace pith {
namespace {

std::string layer_prefix(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

std::string expert_prefix(int64_t expert) { return "block_sparse_moe.experts." + std::to_string(expert) + "."; }

// Angles of rotary embedding by channel pair, in radians a position.
Tensor rope_frequencies(const LmConfig& c, double theta, bool scaled) {
  const int64_t half = c.head_dim / 2;
  Tensor out = at::empty({half}, at::kDouble);
  double* f = out.data_ptr<double>();
  const RopeScaling& s = c.rope_scaling;
  for (int64_t i = 0; i < half; ++i) {
    f[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(c.head_dim));
    if (!scaled || s.kind == RopeScaling::Kind::none) continue;
    if (s.kind == RopeScaling::Kind::linear) {
      f[i] /= s.factor;
    } else {  // llama3: long waves are stretched, short ones stay, those between are blended
      const double wave = 2 * std::numbers::pi / f[i], original = static_cast<double>(s.original_context);
      if (wave > original / s.low_freq_factor) {
        f[i] /= s.factor;
      } else if (wave > original / s.high_freq_factor) {
        const double blend = (original / wave - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
        f[i] = (1 - blend) * f[i] / s.factor + blend * f[i];
      }
    }
  }
  return out;
}

std::pair<Tensor, Tensor> rotations(const Tensor& frequencies, int64_t tokens, at::Device device) {
  const Tensor angle = at::outer(at::arange(tokens, at::kDouble), frequencies);
  const Tensor both = at::cat({angle, angle}, 1);
  return {both.cos().to(device, at::kFloat), both.sin().to(device, at::kFloat)};
}

// x: [batch, heads, tokens, key_dim]; cos, sin: [tokens, key_dim], or [heads, tokens, key_dim].
Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const int64_t half = x.size(3) / 2;
  const Tensor swapped = at::cat({x.narrow(3, half, half).neg(), x.narrow(3, 0, half)}, 3);
  return x * cos + swapped * sin;
}

// Of [tokens, head_dim] what the kept pairs of each of `heads` query or key heads turn by, [heads, tokens, key_dim].
Tensor pairs_of(const Tensor& turns, const std::vector<std::vector<int32_t>>& pairs, int64_t heads) {
  std::vector<Tensor> list;
  for (const std::vector<int32_t>& kept : pairs) {
    const Tensor half = turns.index_select(1, at::tensor(kept, at::kLong).to(turns.device()));
    list.push_back(at::cat({half, half}, 1));
  }
  return at::stack(list).repeat_interleave(heads / static_cast<int64_t>(pairs.size()), 0);
}

Tensor activate(const Tensor& x, Activation kind) {
  return kind == Activation::silu ? at::silu(x) : at::gelu(x, "tanh");
}

}  // namespace

Tensor soft_cap(const Tensor& x, double cap) { return cap > 0 ? (x / cap).tanh() * cap : x; }

Tensor rms_norm(const LmConfig& config, const Tensor& x, const Tensor& gain) {
  const Tensor scale = (x.square().mean(-1, /*keepdim=*/true) + config.norm_eps).rsqrt();
  return x * scale * (config.norm_plus_one ? gain + 1.0 : gain);
}

std::vector<LmLinear> block_linears(const LmConfig& c, int64_t layer) {
  const std::string p = layer_prefix(layer);
  const int64_t key = c.key_dim(layer), value = c.value_dim(layer), mlp = c.mlp_width(layer);
  std::vector<LmLinear> list{{p + "self_attn.q_proj.weight", "attn_in", c.heads * key, c.hidden},
                             {p + "self_attn.k_proj.weight", "attn_in", c.kv_heads * key, c.hidden},
                             {p + "self_attn.v_proj.weight", "attn_in", c.kv_heads * value, c.hidden},
                             {p + "self_attn.o_proj.weight", "attn_out", c.hidden, c.heads * value}};
  if (c.experts == 0) {
    list.push_back({p + "mlp.gate_proj.weight", "mlp_in", mlp, c.hidden});
    list.push_back({p + "mlp.up_proj.weight", "mlp_in", mlp, c.hidden});
    list.push_back({p + "mlp.down_proj.weight", "mlp_act", c.hidden, mlp});
    return list;
  }
  list.push_back({p + "block_sparse_moe.gate.weight", "mlp_in", c.experts, c.hidden, /*router=*/true});
  for (int64_t e = 0; e < c.experts; ++e) {
    const std::string name = p + expert_prefix(e), tap = "expert." + std::to_string(e);
    list.push_back({name + "w1.weight", tap + ".in", mlp, c.hidden});
    list.push_back({name + "w3.weight", tap + ".in", mlp, c.hidden});
    list.push_back({name + "w2.weight", tap + ".act", c.hidden, mlp});
  }
  return list;
}

std::vector<std::pair<std::string, int64_t>> block_inputs(const LmConfig& config, int64_t layer) {
  std::vector<std::pair<std::string, int64_t>> inputs;
  for (const LmLinear& l : block_linears(config, layer))
    if (inputs.empty() || inputs.back().first != l.input) inputs.emplace_back(l.input, l.in);
  return inputs;
}

std::vector<std::string> block_tensors(const LmConfig& config, int64_t layer) {
  const std::string prefix = layer_prefix(layer);
  std::vector<std::string> names;
  for (const TensorSpec& spec : expected_tensors(config))
    if (spec.name.compare(0, prefix.size(), prefix) == 0) names.push_back(spec.name);
  return names;
}

LmContext make_context(const LmConfig& config, int64_t tokens, at::Device device) {
  LmContext context;
  context.tokens = tokens;
  std::tie(context.cos, context.sin) = rotations(rope_frequencies(config, config.rope_theta, true), tokens, device);
  if (config.rope_theta_local > 0)
    std::tie(context.cos_local, context.sin_local) =
        rotations(rope_frequencies(config, config.rope_theta_local, false), tokens, device);
  const bool soft = config.attention_softcap > 0;
  const bool cut = config.sliding_window > 0 && tokens > config.sliding_window;
  if (soft || cut) {
    const Tensor causal = at::ones({tokens, tokens}, at::TensorOptions().dtype(at::kBool).device(device)).tril();
    if (soft) context.causal = causal;
    if (cut) context.window = causal.triu(1 - config.sliding_window);  // a token sees itself and window - 1 before it
  }
  return context;
}

LmBlock LmBlock::load(const LmWeights& weights, int64_t layer, at::Device device, at::ScalarType compute) {
  LmBlock block;
  block.config_ = weights.config();
  if (layer < 0 || layer >= block.config_.layers)
    throw Failure(bug_error("layer " + std::to_string(layer) + " of a model with " +
                            std::to_string(block.config_.layers) + " layers"));
  block.layer_ = layer;
  block.prefix_ = layer_prefix(layer);
  block.linears_ = block_linears(block.config_, layer);
  std::vector<TensorSpec> specs;
  for (TensorSpec& spec : expected_tensors(block.config_))
    if (spec.name.compare(0, block.prefix_.size(), block.prefix_) == 0) specs.push_back(std::move(spec));
  std::vector<Tensor> values(specs.size());
  parallel_tasks(static_cast<int64_t>(specs.size()), [&](int64_t i) {
    const TensorSpec& spec = specs[static_cast<size_t>(i)];
    const Tensor t = weights.tensor(spec.name);
    if (t.sizes() != at::IntArrayRef(spec.shape))
      throw Failure(data_error("tensor '" + spec.name + "' does not have the shape that the configuration asks for"));
    const auto linear = std::find_if(block.linears_.begin(), block.linears_.end(),
                                     [&](const LmLinear& l) { return l.name == spec.name && !l.router; });
    values[static_cast<size_t>(i)] = t.to(device, linear != block.linears_.end() ? compute : at::kFloat);
  });
  for (size_t i = 0; i < specs.size(); ++i) block.weights_[specs[i].name] = values[i];
  return block;
}

const Tensor& LmBlock::weight(std::string_view name) const {
  const auto found = weights_.find(name);
  if (found == weights_.end())
    throw Failure(bug_error("block " + std::to_string(layer_) + " has no tensor '" + std::string(name) + "'"));
  return found->second;
}

void LmBlock::set_weight(std::string_view name, Tensor value) {
  const auto found = weights_.find(name);
  if (found == weights_.end() || found->second.sizes() != value.sizes())
    throw Failure(bug_error("block " + std::to_string(layer_) + ": no tensor '" + std::string(name) +
                            "' of the shape of its replacement"));
  found->second = std::move(value);
}

void LmBlock::set_compute(at::ScalarType type) {
  for (const LmLinear& l : linears_)
    if (!l.router) weights_[l.name] = weights_[l.name].to(type);
}

Tensor LmBlock::linear(const std::string& name, const Tensor& x, const Taps* taps) const {
  const std::string full = prefix_ + name + ".weight";
  const Tensor& w = weight(full);
  const auto bias = weights_.find(prefix_ + name + ".bias");
  Tensor y =
      w.scalar_type() == x.scalar_type() ? at::linear(x, w) : at::linear(x.to(w.scalar_type()), w).to(at::kFloat);
  if (bias != weights_.end()) y = y + bias->second;
  if (taps != nullptr && taps->output) taps->output(full, y);
  return y;
}

Tensor LmBlock::norm(const Tensor& x, const std::string& name) const {
  return rms_norm(config_, x, weight(prefix_ + name + ".weight"));
}

namespace {
// Tells the tap about an input; true when the forward pass may end here.
bool seen(const Taps* taps, const std::string& input, const Tensor& x) {
  if (taps == nullptr) return false;
  if (taps->input) taps->input(input, x.reshape({-1, x.size(-1)}));
  return !taps->stop_after.empty() && taps->stop_after == input;
}
}  // namespace

Tensor LmBlock::attention(const Tensor& x, const LmContext& context, const Taps* taps) const {
  const LmConfig& c = config_;
  const int64_t batch = x.size(0), tokens = x.size(1);
  if (seen(taps, "attn_in", x)) return {};
  auto heads = [&](const Tensor& y, int64_t n) { return y.view({batch, tokens, n, y.size(-1) / n}).transpose(1, 2); };
  Tensor q = heads(linear("self_attn.q_proj", x, taps), c.heads);
  Tensor k = heads(linear("self_attn.k_proj", x, taps), c.kv_heads);
  const Tensor v = heads(linear("self_attn.v_proj", x, taps), c.kv_heads);
  if (c.qk_norm) {
    q = norm(q, "self_attn.q_norm");
    k = norm(k, "self_attn.k_norm");
  }
  const bool slides = c.slides(layer_);
  if (c.has_rope(layer_)) {
    const bool local = slides && context.cos_local.defined();
    const Tensor &cos = local ? context.cos_local : context.cos, &sin = local ? context.sin_local : context.sin;
    const auto* pairs = c.rope_pairs(layer_);
    const auto turned = [&](const Tensor& x, int64_t n) {
      return pairs == nullptr ? rotate(x, cos, sin) : rotate(x, pairs_of(cos, *pairs, n), pairs_of(sin, *pairs, n));
    };
    q = turned(q, c.heads);
    k = turned(k, c.kv_heads);
  }
  if (taps != nullptr && taps->rope) taps->rope(q, k);
  const double scale = c.attention_scale > 0 ? c.attention_scale : 1 / std::sqrt(static_cast<double>(c.head_dim));
  const int64_t group = c.heads / c.kv_heads;
  auto repeat = [&](const Tensor& t) { return group == 1 ? t : t.repeat_interleave(group, 1); };
  const bool cut = slides && context.window.defined();
  Tensor out;
  if (c.attention_softcap > 0) {
    const Tensor score = soft_cap(at::matmul(q, repeat(k).transpose(2, 3)) * scale, c.attention_softcap);
    const Tensor hidden = (cut ? context.window : context.causal).logical_not();
    out = at::matmul(score.masked_fill(hidden, -INFINITY).softmax(-1), repeat(v));
  } else {
    // On a GPU a block with bf16 matrices attends in bf16 too: the fused kernels have no fast fp32 form.
    const at::ScalarType type = x.is_cuda() ? weight(prefix_ + "self_attn.q_proj.weight").scalar_type() : at::kFloat;
    out = at::scaled_dot_product_attention(q.to(type), repeat(k.to(type)), repeat(v.to(type)),
                                           cut ? std::optional<Tensor>(context.window) : std::nullopt,
                                           /*dropout_p=*/0, /*is_causal=*/!cut, scale)
              .to(at::kFloat);
  }
  out = out.transpose(1, 2).reshape({batch, tokens, c.heads * c.value_dim(layer_)});
  if (seen(taps, "attn_out", out)) return {};
  return linear("self_attn.o_proj", out, taps);
}

Tensor LmBlock::mlp(const Tensor& x, const Taps* taps) const {
  if (seen(taps, "mlp_in", x)) return {};
  if (config_.experts > 0) return experts(x, taps);
  const Tensor act = activate(linear("mlp.gate_proj", x, taps), config_.activation) * linear("mlp.up_proj", x, taps);
  if (seen(taps, "mlp_act", act)) return {};
  return linear("mlp.down_proj", act, taps);
}

Tensor LmBlock::experts(const Tensor& x, const Taps* taps) const {
  const LmConfig& c = config_;
  const Tensor flat = x.reshape({-1, c.hidden});
  const Tensor chance = linear("block_sparse_moe.gate", flat, taps).softmax(-1);
  auto [weight_of, chosen] = chance.topk(c.experts_per_token, -1);
  if (c.norm_expert_weights) weight_of = weight_of / weight_of.sum(-1, /*keepdim=*/true);
  Tensor out = at::zeros_like(flat);
  for (int64_t e = 0; e < c.experts; ++e) {
    const std::string name = expert_prefix(e), tap = "expert." + std::to_string(e);
    const Tensor places = chosen.eq(e).nonzero();  // [rows, 2]: token, slot
    const Tensor token = places.select(1, 0), slot = places.select(1, 1);
    const Tensor in = flat.index_select(0, token);
    if (seen(taps, tap + ".in", in)) return {};
    const Tensor act = activate(linear(name + "w1", in, taps), c.activation) * linear(name + "w3", in, taps);
    if (seen(taps, tap + ".act", act)) return {};
    const Tensor y = linear(name + "w2", act, taps);
    const Tensor share = weight_of.index_select(0, token).gather(1, slot.unsqueeze(1));
    out = out.index_add(0, token, y * share);
  }
  return out.view_as(x);
}

Tensor LmBlock::forward(const Tensor& x, const LmContext& context, const Taps* taps) const {
  if (x.dim() != 3 || x.size(1) != context.tokens || x.size(2) != config_.hidden)
    throw Failure(bug_error("a block wants [batch, " + std::to_string(context.tokens) + ", " +
                            std::to_string(config_.hidden) + "]"));
  Tensor a = attention(norm(x, "input_layernorm"), context, taps);
  if (!a.defined()) return {};
  if (config_.post_norms) a = norm(a, "post_attention_layernorm");
  const Tensor h = x + a;
  Tensor m = mlp(norm(h, config_.post_norms ? "pre_feedforward_layernorm" : "post_attention_layernorm"), taps);
  if (!m.defined()) return {};
  if (config_.post_norms) m = norm(m, "post_feedforward_layernorm");
  return h + m;
}

std::string head_name(const LmConfig& config) {
  return config.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
}

Tensor embed(const LmWeights& weights, const Tensor& tokens) {
  const LmConfig& c = weights.config();
  const Tensor ids = tokens.to(at::kLong).contiguous();
  if (ids.numel() > 0 && (ids.min().item<int64_t>() < 0 || ids.max().item<int64_t>() >= c.vocab))
    throw Failure(data_error("a token lies outside the vocabulary of " + std::to_string(c.vocab) + " entries"));
  Tensor out = at::empty({ids.numel(), c.hidden}, at::kFloat);
  std::map<int64_t, Tensor> rows;
  const int64_t* id = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < ids.numel(); ++i) {
    Tensor& row = rows[id[i]];
    if (!row.defined()) row = weights.rows("model.embed_tokens.weight", id[i], id[i] + 1);
    out.narrow(0, i, 1).copy_(row);
  }
  if (c.embedding_scale != 1) out.mul_(static_cast<float>(c.embedding_scale));
  std::vector<int64_t> shape = ids.sizes().vec();
  shape.push_back(c.hidden);
  return out.view(shape);
}

Tensor final_norm(const LmWeights& weights, const Tensor& x) {
  return rms_norm(weights.config(), x, weights.tensor("model.norm.weight").to(x.device()));
}

Tensor lm_logits(const LmConfig& config, const TensorMap& ends, const std::vector<LmBlock>& blocks,
                 const LmContext& context, const Tensor& tokens, bool bf16) {
  Tensor x = at::embedding(ends.at("model.embed_tokens.weight"), tokens);
  if (config.embedding_scale != 1) x = x * config.embedding_scale;
  for (const LmBlock& block : blocks) x = block.forward(x, context);
  x = rms_norm(config, x, ends.at("model.norm.weight"));
  const Tensor& head = ends.at(head_name(config));
  const Tensor logits =
      bf16 ? at::linear(x.to(at::kBFloat16), head.to(at::kBFloat16)).to(at::kFloat) : at::linear(x, head);
  return soft_cap(logits, config.logit_softcap);
}

Tensor lm_logits(const LmWeights& weights, const Tensor& tokens) {
  const OneThread one;
  const LmConfig& c = weights.config();
  const LmContext context = make_context(c, tokens.size(1));
  Tensor x = embed(weights, tokens);
  for (int64_t layer = 0; layer < c.layers; ++layer) x = LmBlock::load(weights, layer).forward(x, context);
  return soft_cap(at::linear(final_norm(weights, x), weights.tensor(head_name(c))), c.logit_softcap);
}

Tensor lm_nll(const LmWeights& weights, const Tensor& tokens) {
  constexpr int64_t kVocabRows = 8192;
  const at::NoGradGuard no_grad;
  const LmConfig& c = weights.config();
  const int64_t sequences = tokens.size(0), length = tokens.size(1);
  const LmContext context = make_context(c, length);
  Tensor x = embed(weights, tokens);
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const LmBlock block = LmBlock::load(weights, layer);
    parallel_tasks(sequences, [&](int64_t s) { x[s].copy_(block.forward(x.narrow(0, s, 1), context)[0]); });
  }
  x = final_norm(weights, x);
  const Tensor targets = tokens.narrow(1, 1, length - 1).to(at::kLong);
  Tensor log_sum = at::full({sequences, length - 1}, -INFINITY, at::kDouble);
  Tensor target_logit = at::zeros({sequences, length - 1}, at::kDouble);
  for (int64_t v0 = 0; v0 < c.vocab; v0 += kVocabRows) {
    const int64_t v1 = std::min(c.vocab, v0 + kVocabRows);
    const Tensor head = weights.rows(head_name(c), v0, v1);
    parallel_tasks(sequences, [&](int64_t s) {
      const Tensor logits = soft_cap(at::linear(x[s].narrow(0, 0, length - 1), head), c.logit_softcap);
      log_sum[s].copy_(at::logaddexp(log_sum[s], logits.logsumexp(-1).to(at::kDouble)));
      const Tensor here = targets[s].ge(v0).logical_and(targets[s].lt(v1));
      const Tensor at_target = logits.gather(1, (targets[s] - v0).clamp(0, v1 - v0 - 1).unsqueeze(1)).squeeze(1);
      target_logit[s].copy_(at::where(here, at_target.to(at::kDouble), target_logit[s]));
    });
  }
  return log_sum - target_logit;
}

}  // namespace pith
