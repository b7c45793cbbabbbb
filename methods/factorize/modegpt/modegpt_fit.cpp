#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/hash.h"
#include "engine/calibrate.h"
#include "engine/fit.h"
#include "engine/model_fit.h"
#include "maths/linalg.h"
#include "maths/module_pairs.h"
#include "plan/knapsack.h"
#include "tensor/parallel.h"

namespace pith {
namespace {

struct Asked {
  bool mlp, qk, vo;
  double ratio, eps, most, ridge;
  int64_t multiple, head_multiple;
  std::string allocation, how_mlp, how_qk, how_vo;

  explicit Asked(const Options& o)
      : ratio(o.real("ratio")),
        eps(o.real("eps")),
        most(o.real("most")),
        ridge(o.real("ridge")),
        multiple(o.integer("multiple")),
        head_multiple((o.integer("head-multiple") + 1) / 2 * 2),  // RoPE turns pairs
        allocation(o.text("allocation")),
        how_mlp(o.text("mlp")),
        how_qk(o.text("qk")),
        how_vo(o.text("vo")) {
    const std::string& modules = o.text("modules");
    mlp = modules.find("mlp") != std::string::npos;
    qk = modules.find("qk") != std::string::npos;
    vo = modules.find("vo") != std::string::npos;
  }
};

using Shapes = std::vector<LayerShape>;

Shapes shapes_of(const LmConfig& c) {
  if (!c.layer_shapes.empty()) return c.layer_shapes;
  return Shapes(static_cast<size_t>(c.layers), LayerShape{c.intermediate, c.head_dim, c.head_dim, {}});
}

// The rotations of each key head of a layer, written out.
std::vector<std::vector<int32_t>> all_pairs(const LmConfig& c, int64_t layer) {
  if (const auto* pairs = c.rope_pairs(layer)) return *pairs;
  std::vector<int32_t> whole(static_cast<size_t>(c.key_dim(layer) / 2));
  std::iota(whole.begin(), whole.end(), 0);
  return std::vector<std::vector<int32_t>>(static_cast<size_t>(c.kv_heads), whole);
}

// The configuration with other widths; where keys become narrower, the last pairs until it is known which (none take
// more digits in the file).
LmConfig narrowed(const LmConfig& c, Shapes shapes) {
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    LayerShape& s = shapes[static_cast<size_t>(layer)];
    if (s.key_dim == c.head_dim ||
        (!s.rope_pairs.empty() && s.key_dim == 2 * static_cast<int64_t>(s.rope_pairs[0].size())))
      continue;
    s.rope_pairs = all_pairs(c, layer);
    for (auto& head : s.rope_pairs) head.erase(head.begin(), head.end() - s.key_dim / 2);
  }
  return with_shapes(c, std::move(shapes));
}

int64_t block_weights(const LmConfig& c) {
  int64_t n = 0;
  for (int64_t layer = 0; layer < c.layers; ++layer)
    for (const LmLinear& l : block_linears(c, layer)) n += l.router ? 0 : l.out * l.in;
  return n;
}

// ---- how narrow

// phi_i = L phi softmax(-s / eps)_i, none above `most`: what is cut off there goes to the others.
std::vector<double> entropic(const std::vector<double>& influence, double phi, double eps, double most) {
  const double least = *std::min_element(influence.begin(), influence.end());
  std::vector<double> share(influence.size()), out(influence.size(), 0);
  for (size_t i = 0; i < share.size(); ++i) share[i] = std::exp((least - influence[i]) / eps);
  std::vector<uint8_t> full(influence.size(), 0);
  for (size_t round = 0; round <= influence.size(); ++round) {
    double left = phi * static_cast<double>(influence.size()), sum = 0;
    for (size_t i = 0; i < share.size(); ++i) {
      if (full[i] != 0)
        left -= most;
      else
        sum += share[i];
    }
    bool more = false;
    for (size_t i = 0; i < share.size(); ++i) {
      out[i] = full[i] != 0 ? most : left * share[i] / sum;
      if (full[i] == 0 && out[i] > most) full[i] = 1, more = true;
    }
    if (!more) break;
  }
  return out;
}

int64_t narrower(int64_t width, double phi, int64_t multiple) {
  const auto m = static_cast<double>(multiple);
  const auto kept = static_cast<int64_t>(std::round(static_cast<double>(width) * (1 - phi) / m)) * multiple;
  return phi <= 0 ? width : std::clamp(kept, std::min(multiple, width), width);
}

Shapes shapes_at(const LmConfig& c, const Asked& asked, const std::vector<double>& phi) {
  Shapes shapes = shapes_of(c);
  for (size_t i = 0; i < shapes.size(); ++i) {
    LayerShape& s = shapes[i];
    if (asked.mlp) s.intermediate = narrower(s.intermediate, phi[i], asked.multiple);
    if (asked.qk) s.key_dim = narrower(s.key_dim, phi[i], asked.head_multiple);
    if (asked.vo) s.value_dim = narrower(s.value_dim, phi[i], asked.head_multiple);
  }
  return shapes;
}

class Modegpt {
 public:
  Modegpt(const ModelJob& job, const Options& options)
      : job_(job), asked_(options), original_(job.model.config), config_(original_) {
    if (asked_.qk && original_.qk_norm)
      throw Failure(user_error(
          "this model norms the heads of its queries and keys, which needs all of their channels: leave them as they "
          "are, with option modules=mlp+vo"));
    // What values add whatever the input becomes a bias of the output.
    if (asked_.vo && original_.qkv_bias) original_.o_bias = true;
  }

  ModelResult run() {
    const at::NoGradGuard no_grad;
    if (asked_.ratio == 0 && job_.target == 0) return {job_.model, {"ratio 0: nothing was narrowed"}, std::nullopt};
    config_ = narrowed(original_, asked_.allocation == "solver" ? solved() : allocated());
    bool values = false;
    for (int64_t i = 0; i < config_.layers; ++i) values |= config_.value_dim(i) < original_.value_dim(i);
    if (!values) original_.o_bias = config_.o_bias = job_.model.config.o_bias;
    if (job_.bytes) job_.bytes(sized_like(job_.model, config_));  // refuses shapes that the format cannot hold
    note_widths();
    BlockSession session(job_.weights, job_.tokens, {});
    for (int64_t layer = 0; session.next(); ++layer) {
      narrow_attention(session, layer);
      narrow_mlp(session, layer);
      step("narrow", layer);
    }
    return assembled();
  }

 private:
  LayerShape shape(int64_t layer) const { return shapes_of(config_)[static_cast<size_t>(layer)]; }
  static std::string prefix(int64_t layer) { return fmt::format("model.layers.{}.", layer); }

  void step(const char* stage, int64_t layer) {
    if (!job_.progress.step({stage, fmt::format("block {}", layer), static_cast<uint64_t>(layer + 1),
                             static_cast<uint64_t>(original_.layers)}))
      throw Failure(user_error("stopped; the same command continues from here"));
  }

  // ---- allocation

  /// Bytes above what was asked for.
  int64_t over(const Shapes& shapes) const {
    const LmConfig c = narrowed(original_, shapes);
    if (job_.target > 0)
      return static_cast<int64_t>(job_.bytes(sized_like(job_.model, c))) - static_cast<int64_t>(job_.target);
    return 2 * (block_weights(c) - std::llround((1 - asked_.ratio) * static_cast<double>(block_weights(original_))));
  }
  bool fits(const Shapes& shapes) const { return over(shapes) <= 0; }

  [[noreturn]] void out_of_reach() const {
    const Shapes least =
        shapes_at(original_, asked_, std::vector<double>(static_cast<size_t>(original_.layers), asked_.most));
    throw Failure(user_error(fmt::format(
        "modegpt: asked for more than these modules can lose: with option most={} they leave {:.0f} % of the blocks' "
        "weights{}",
        asked_.most,
        100.0 * static_cast<double>(block_weights(narrowed(original_, least))) /
            static_cast<double>(block_weights(original_)),
        job_.target > 0
            ? fmt::format(", {} bytes in all", job_.bytes(sized_like(job_.model, narrowed(original_, least))))
            : "")));
  }

  // The largest model that fits, by bisection of the mean share phi that goes.
  Shapes allocated() {
    std::vector<double> influence(static_cast<size_t>(original_.layers), 0);
    if (asked_.allocation == "entropic") {
      BlockSession::Options options;
      options.prefix = false;
      BlockSession session(job_.weights, job_.tokens, options);
      for (int64_t layer = 0; session.next(); ++layer) {
        influence[static_cast<size_t>(layer)] = session.influence();
        step("influence", layer);
      }
    }
    const auto at = [&](double phi) {
      return shapes_at(original_, asked_, entropic(influence, phi, asked_.eps, asked_.most));
    };
    if (fits(at(0))) return at(0);
    if (!fits(at(asked_.most))) out_of_reach();
    double low = 0, high = asked_.most;  // too large, small enough
    for (int i = 0; i < 40; ++i) {
      const double middle = (low + high) / 2;
      (fits(at(middle)) ? high : low) = middle;
    }
    return at(high);
  }

  // Losses of all widths of all modules from the float model's statistics, and the exact knapsack over them.
  Shapes solved() {
    if (job_.fisher_sequences == 0)
      throw Failure(user_error("allocation=solver weighs losses by gradients: give --fisher-sequences above 0"));
    CalibrationOptions options;
    options.fisher_sequences = job_.fisher_sequences;
    options.seed = job_.seed;
    options.cache_folder = job_.cache_folder;
    options.compute = Compute::fp32;
    const auto statistics = calibrate(job_.weights, job_.tokens, options, job_.progress);
    struct Module {
      int64_t layer;
      int64_t LayerShape::*width;
      std::vector<int64_t> widths;
    };
    std::vector<Module> modules;
    std::vector<KnapsackUnit> units;
    const Shapes whole = shapes_of(original_);
    // Weights that go with one channel of inner width.
    const auto offer = [&](int64_t layer, int64_t LayerShape::*width, int64_t multiple, int64_t weights,
                           const std::vector<double>& tail) {
      Module m{layer, width, {}};
      KnapsackUnit unit;
      const int64_t full = whole[static_cast<size_t>(layer)].*width;
      const int64_t least = narrower(full, asked_.most, multiple);
      const int64_t step = std::max<int64_t>(multiple, (full - least) / 32 / multiple * multiple);
      for (int64_t w = full; w >= least; w = w % step != 0 ? w / step * step : w - step) {
        m.widths.push_back(w);
        unit.push_back({static_cast<uint64_t>(2 * weights * w), 0.5 * tail[static_cast<size_t>(w)]});
      }
      modules.push_back(std::move(m));
      units.push_back(std::move(unit));
    };
    for (int64_t layer = 0; layer < original_.layers; ++layer) {
      const BlockStatistics s = statistics->block(layer);
      const int64_t h = original_.hidden, heads = original_.heads + original_.kv_heads;
      if (asked_.mlp)
        offer(layer, &LayerShape::intermediate, asked_.multiple, 3 * h * std::max<int64_t>(1, original_.experts),
              mlp_tail(s, layer));
      if (asked_.qk) offer(layer, &LayerShape::key_dim, asked_.head_multiple, heads * h, key_tail(s, layer));
      if (asked_.vo) offer(layer, &LayerShape::value_dim, asked_.head_multiple, heads * h, value_tail(s, layer));
      step("losses", layer);
    }
    int64_t allowance = -over(whole);  // exact where the matrices are stored in 2 bytes now; else rounds come closer
    for (const KnapsackUnit& unit : units) allowance += static_cast<int64_t>(unit.front().bytes);
    const auto smallest = static_cast<int64_t>(must(knapsack_range(units)).smallest_bytes);
    for (int round = 0; round < 16 && allowance >= smallest; ++round) {
      const KnapsackAnswer answer = must(best_for_bytes(units, static_cast<uint64_t>(allowance)));
      Shapes shapes = whole;
      for (size_t k = 0; k < modules.size(); ++k)
        shapes[static_cast<size_t>(modules[k].layer)].*modules[k].width =
            modules[k].widths[static_cast<size_t>(answer.choice[k])];
      predicted_loss_ = answer.loss;
      const int64_t excess = over(shapes);
      if (excess <= 0) return shapes;
      allowance = static_cast<int64_t>(answer.bytes) - excess;
    }
    out_of_reach();
  }

  // Each tail: what keeping the best k channels leaves of sum over outputs of G_r E(error_r)^2, k = 0 .. width.
  std::vector<double> mlp_tail(const BlockStatistics& s, int64_t layer) const {
    std::vector<double> sum(static_cast<size_t>(original_.mlp_width(layer)) + 1, 0);
    for (const Mlp& m : mlps(layer)) {
      const Tensor c = s.inputs.at(m.act).second();
      const Tensor scores = leverage_scores(c, asked_.ridge, m.down);
      std::vector<int64_t> order(static_cast<size_t>(c.size(0)));
      std::iota(order.begin(), order.end(), 0);
      const double* v = scores.const_data_ptr<double>();
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return v[a] > v[b]; });
      const auto tail = nystrom_tail(job_.weights.tensor(m.down), c, order, s.row_fisher.at(m.down), m.down);
      for (size_t k = 0; k < sum.size(); ++k) sum[k] += tail[k];
    }
    return sum;
  }

  // A pair that is gone from queries and keys changes the scores as queries without it would: dq = -q there.
  std::vector<double> key_tail(const BlockStatistics& s, int64_t layer) const {
    const std::string q = prefix(layer) + "self_attn.q_proj";
    const int64_t dim = original_.key_dim(layer), half = dim / 2, group = original_.heads / original_.kv_heads;
    const Tensor w = job_.weights.tensor(q + ".weight").to(at::kDouble);
    const Moments& x = s.inputs.at("attn_in");
    Tensor energy = (at::mm(w, x.second()) * w).sum(1);
    if (original_.qkv_bias) {
      const Tensor b = job_.weights.tensor(q + ".bias").to(at::kDouble);
      energy = energy + b * (at::mv(w, x.mean()) * 2 + b);
    }
    const Tensor loss =
        (energy * s.row_fisher.at(q + ".weight")).view({original_.kv_heads, group, 2, half}).sum({1, 2});
    // The least of each head go first; a width takes as many pairs of every head.
    const Tensor sorted = std::get<0>(loss.sort(1, /*descending=*/true)).sum(0).contiguous();
    std::vector<double> tail(static_cast<size_t>(dim) + 1, 0);
    for (int64_t p = half; p-- > 0;) {
      const double beyond = tail[static_cast<size_t>(2 * p) + 2] + sorted.const_data_ptr<double>()[p];
      tail[static_cast<size_t>(2 * p)] = beyond;
      tail[static_cast<size_t>(2 * p) + 1] = beyond;
    }
    return tail;
  }

  std::vector<double> value_tail(const BlockStatistics& s, int64_t layer) const {
    const Tensor value = job_.weights.tensor(prefix(layer) + "self_attn.v_proj.weight");
    const std::string o = prefix(layer) + "self_attn.o_proj.weight";
    const Tensor output = job_.weights.tensor(o), attended = s.inputs.at("attn_out").second();
    const SquareRoot root = square_root(s.inputs.at("attn_in").second(), kFloor, o);
    const int64_t d = original_.value_dim(layer), group = original_.heads / original_.kv_heads;
    std::vector<double> sum(static_cast<size_t>(d) + 1, 0);
    for (int64_t g = 0; g < original_.kv_heads; ++g) {
      std::vector<Tensor> heads, moments;
      for (int64_t h = g * group; h < (g + 1) * group; ++h) {
        heads.push_back(output.narrow(1, h * d, d));
        moments.push_back(attended.narrow(0, h * d, d).narrow(1, h * d, d));
      }
      const auto tail =
          value_output_tail(value.narrow(0, g * d, d), at::cat(heads, 0), root, moments, s.row_fisher.at(o));
      for (size_t k = 0; k < sum.size(); ++k) sum[k] += std::max(0.0, tail[k]);
    }
    return sum;
  }

  void note_widths() {
    const auto list = [&](auto width, int64_t full) {
      std::string text;
      for (int64_t i = 0; i < config_.layers; ++i) text += (text.empty() ? "" : " ") + std::to_string(width(i));
      return text + " of " + std::to_string(full);
    };
    notes_.push_back("MLP channels layer by layer: " +
                     list([&](int64_t i) { return config_.mlp_width(i); }, original_.intermediate));
    notes_.push_back("key channels a head: " + list([&](int64_t i) { return config_.key_dim(i); }, original_.head_dim));
    notes_.push_back("value channels a head: " +
                     list([&](int64_t i) { return config_.value_dim(i); }, original_.head_dim));
  }

  // ---- narrowing

  // The stored parts of a layer that these names list, made by `make` (all of them, fp32 by name) when one is missing.
  template <class Make>
  TensorMap parts(const std::vector<std::string>& names, const Make& make) {
    TensorMap out;
    bool there = job_.finished != nullptr;
    for (const std::string& name : names) there = there && (nodes_[name] = job_.finished(name)) != nullptr;
    if (!there)
      for (const auto& [name, value] : make()) {
        const bool exact = value.dim() == 1 || name.ends_with("rope_pairs");
        const NodePtr node = exact ? exact_node(value) : dense_node(value);
        nodes_[name] = job_.keep ? job_.keep(name, node) : node;
      }
    for (const std::string& name : names) out[name] = decoded(*nodes_.at(name));
    return out;
  }

  // The compressed block with these tensors in place of its own and the widths of `shape`.
  void put(BlockSession& session, const TensorMap& changed, const LayerShape& shape) {
    if (changed.empty()) return;
    const int64_t layer = session.block().layer();
    TensorMap tensors = session.compressed().weights();
    if (original_.o_bias && !tensors.contains(prefix(layer) + "self_attn.o_proj.bias"))
      tensors[prefix(layer) + "self_attn.o_proj.bias"] = at::zeros({original_.hidden}, at::kFloat);
    for (const auto& [name, value] : changed) tensors[name] = name.ends_with(".bias") ? value.view({-1}) : value;
    LmConfig c = config_;
    c.layer_shapes = shapes_of(config_);
    c.layer_shapes[static_cast<size_t>(layer)] = shape;
    session.replace_block(LmBlock::load(*weights_of(std::move(c), std::move(tensors)), layer));
  }

  void narrow_attention(BlockSession& session, int64_t layer) {
    const std::string at = prefix(layer) + "self_attn.";
    const bool keys = config_.key_dim(layer) < original_.key_dim(layer);
    const bool values = config_.value_dim(layer) < original_.value_dim(layer);
    LayerShape shape = this->shape(layer);
    shape.intermediate = original_.mlp_width(layer);
    TensorMap changed;
    if (keys) {
      std::vector<std::string> names{at + "q_proj.weight", at + "k_proj.weight", at + "rope_pairs"};
      if (original_.qkv_bias) names.insert(names.end(), {at + "q_proj.bias", at + "k_proj.bias"});
      changed = parts(names, [&] { return narrow_keys(session, layer); });
      const Tensor pairs = changed.extract(at + "rope_pairs").mapped().contiguous();
      for (int64_t g = 0; g < original_.kv_heads; ++g)
        for (int64_t j = 0; j < pairs.size(1); ++j)
          shape.rope_pairs[static_cast<size_t>(g)][static_cast<size_t>(j)] =
              static_cast<int32_t>(pairs.const_data_ptr<float>()[g * pairs.size(1) + j]);
      nodes_.erase(at + "rope_pairs");
    }
    if (values) {
      std::vector<std::string> names{at + "v_proj.weight", at + "o_proj.weight"};
      if (original_.qkv_bias) names.insert(names.end(), {at + "v_proj.bias", at + "o_proj.bias"});
      changed.merge(parts(names, [&] { return narrow_values(session, layer); }));
    }
    config_.layer_shapes = shapes_of(config_);
    config_.layer_shapes[static_cast<size_t>(layer)].rope_pairs = shape.rope_pairs;
    put(session, changed, shape);
  }

  // CR: queries and keys keep the same channel pairs, and each pair its rotation.
  TensorMap narrow_keys(BlockSession& session, int64_t layer) {
    const std::string at = prefix(layer) + "self_attn.";
    const int64_t dim = original_.key_dim(layer), half = dim / 2, pairs = config_.key_dim(layer) / 2;
    const int64_t heads = original_.heads, kv = original_.kv_heads, group = heads / kv;
    const Tensor q = job_.weights.tensor(at + "q_proj.weight"), k = job_.weights.tensor(at + "k_proj.weight");
    Tensor score;  // [kv heads, channels]
    if (asked_.how_qk == "random") {
      at::Generator g = at::detail::createCPUGenerator(hash64(at, job_.seed));
      score = at::rand({kv, dim}, g, at::kDouble);
    } else {
      Tensor squares_q, squares_k;
      if (asked_.how_qk == "magnitude") {
        const auto squares = [&](const Tensor& w) { return w.to(at::kDouble).square().sum(1).view({-1, dim}); };
        squares_q = squares(q), squares_k = squares(k);
      } else {
        const BlockSession::HeadSquares found = session.head_squares();
        squares_q = found.queries, squares_k = found.keys;
      }
      score = (squares_q.view({kv, group, dim}) * squares_k.unsqueeze(1)).sqrt().sum(1);
    }
    const Tensor of_pairs = score.narrow(1, 0, half) + score.narrow(1, half, half);
    const auto before = all_pairs(original_, layer);
    Tensor turns = at::empty({kv, pairs}, at::kFloat);
    std::vector<int64_t> rows_q, rows_k;
    for (int64_t g = 0; g < kv; ++g) {
      const std::vector<int64_t> kept = largest(of_pairs[g], pairs);
      for (int64_t j = 0; j < pairs; ++j)
        turns.data_ptr<float>()[g * pairs + j] =
            static_cast<float>(before[static_cast<size_t>(g)][static_cast<size_t>(kept[static_cast<size_t>(j)])]);
      const auto rows = [&](std::vector<int64_t>& out, int64_t head) {
        for (const int64_t part : {int64_t{0}, half})
          for (const int64_t pair : kept) out.push_back(head * dim + part + pair);
      };
      rows(rows_k, g);
      for (int64_t h = g * group; h < (g + 1) * group; ++h) rows(rows_q, h);
    }
    TensorMap out{{at + "rope_pairs", turns}};
    for (const auto& [name, rows] : {std::pair("q_proj", &rows_q), std::pair("k_proj", &rows_k)}) {
      const Tensor index = at::tensor(*rows, at::kLong);
      for (const char* kind : {".weight", ".bias"})
        if (kind[1] == 'w' || original_.qkv_bias)
          out[at + name + kind] = job_.weights.tensor(at + name + kind).index_select(0, index);
    }
    return out;
  }

  // SVD of values and outputs, one key-value head with its query heads at a time.
  TensorMap narrow_values(BlockSession& session, int64_t layer) {
    const std::string at = prefix(layer) + "self_attn.";
    const int64_t d = original_.value_dim(layer), k = config_.value_dim(layer), hidden = original_.hidden;
    const int64_t heads = original_.heads, kv = original_.kv_heads, group = heads / kv;
    const Tensor value = job_.weights.tensor(at + "v_proj.weight").to(at::kDouble);
    const Tensor output = job_.weights.tensor(at + "o_proj.weight").to(at::kDouble);
    SquareRoot root;
    if (asked_.how_vo == "svd") {
      const auto found = session.collect({"attn_in"}, {.fp = false, .prefix = true, .cross = false});
      root = square_root(found.at("attn_in").prefix.second(), kFloor, at + "v_proj.weight");
      if (root.rank == 0)
        throw Failure(
            user_error(at + "v_proj.weight: its inputs are zero on the whole calibration text; use other text"));
    } else if (asked_.how_vo == "plain") {
      root.root = root.inverse = at::eye(hidden, at::kDouble);
    }
    std::vector<Tensor> values(static_cast<size_t>(kv)), outputs(static_cast<size_t>(kv));
    parallel_tasks(kv, [&](int64_t g) {
      const Tensor v = value.narrow(0, g * d, d);
      std::vector<Tensor> parts;
      for (int64_t h = g * group; h < (g + 1) * group; ++h) parts.push_back(output.narrow(1, h * d, d));
      const Tensor o = at::cat(parts, 0);  // heads below each other: [group * hidden, d]
      Tensor narrow_v, narrow_o;
      if (asked_.how_vo == "magnitude") {
        const Tensor kept = at::tensor(largest(v.square().sum(1) * o.square().sum(0), k), at::kLong);
        narrow_v = v.index_select(0, kept), narrow_o = o.index_select(1, kept);
      } else {
        ValueOutput best = value_output(v, o, root, k);
        // Both sides of a channel get the same largest entry, which keeps fp16 away from its ends.
        const Tensor size_v = best.value.abs().amax(1), size_o = best.output.abs().amax(0);
        const Tensor usable = size_v.gt(0).logical_and(size_o.gt(0));
        const Tensor ratio = at::where(usable, (size_o / size_v).sqrt(), at::ones_like(size_v));
        narrow_v = best.value * ratio.unsqueeze(1), narrow_o = best.output / ratio;
      }
      values[static_cast<size_t>(g)] = narrow_v;
      std::vector<Tensor> wide = narrow_o.split(hidden, 0);
      outputs[static_cast<size_t>(g)] = at::cat(wide, 1);  // heads beside each other again
    });
    TensorMap out{{at + "v_proj.weight", at::cat(values, 0)}, {at + "o_proj.weight", at::cat(outputs, 1)}};
    if (original_.qkv_bias) {
      // Attention weights sum to 1, so a value's bias reaches the output as it is.
      const Tensor b =
          job_.weights.tensor(at + "v_proj.bias").to(at::kDouble).view({kv, d}).repeat_interleave(group, 0);
      const Tensor added = at::mv(output, b.reshape({-1}));
      const bool had = job_.weights.has(at + "o_proj.bias");
      out[at + "o_proj.bias"] = had ? job_.weights.tensor(at + "o_proj.bias") + added : added;
      out[at + "v_proj.bias"] = at::zeros({kv * k}, at::kFloat);
    }
    return out;
  }

  // One gated MLP: that of a dense layer, or an expert's.
  struct Mlp {
    std::string gate, up, down;  ///< names of the weights
    std::string act;             ///< what down reads
  };
  std::vector<Mlp> mlps(int64_t layer) const {
    const std::string p = prefix(layer);
    if (original_.experts == 0)
      return {{p + "mlp.gate_proj.weight", p + "mlp.up_proj.weight", p + "mlp.down_proj.weight", "mlp_act"}};
    std::vector<Mlp> all;
    for (int64_t e = 0; e < original_.experts; ++e) {
      const std::string x = fmt::format("{}block_sparse_moe.experts.{}.w", p, e);
      all.push_back({x + "1.weight", x + "3.weight", x + "2.weight", fmt::format("expert.{}.act", e)});
    }
    return all;
  }
  static std::string bias_of(const std::string& weight) {
    return weight.substr(0, weight.size() - std::string_view("weight").size()) + "bias";
  }

  void narrow_mlp(BlockSession& session, int64_t layer) {
    if (config_.mlp_width(layer) == original_.mlp_width(layer)) return;
    const bool bias = original_.mlp_bias && original_.experts == 0;
    std::vector<std::string> names;
    for (const Mlp& m : mlps(layer)) {
      names.insert(names.end(), {m.gate, m.up, m.down});
      if (bias) names.insert(names.end(), {bias_of(m.gate), bias_of(m.up)});
    }
    const TensorMap changed = parts(names, [&] {
      std::vector<std::string> inputs;
      const std::vector<Mlp> all = mlps(layer);
      for (const Mlp& m : all) inputs.push_back(m.act);
      const auto found = session.collect(inputs, {.fp = false, .prefix = true, .cross = false});
      std::vector<TensorMap> made(all.size());
      std::vector<std::string> said(all.size());
      parallel_tasks(static_cast<int64_t>(all.size()), [&](int64_t i) {
        const auto at = static_cast<size_t>(i);
        made[at] = narrowed_mlp(all[at], found.at(all[at].act).prefix, config_.mlp_width(layer), bias, said[at]);
      });
      TensorMap out;
      for (TensorMap& m : made) out.merge(std::move(m));
      for (std::string& note : said)
        if (!note.empty()) notes_.push_back(std::move(note));
      return out;
    });
    put(session, changed, shape(layer));
  }

  // Channels by leverage, and down fitted again to those that are left (Nystrom).
  TensorMap narrowed_mlp(const Mlp& m, const Moments& z, int64_t width, bool bias, std::string& note) const {
    const Tensor gate = job_.weights.tensor(m.gate), up = job_.weights.tensor(m.up), down = job_.weights.tensor(m.down);
    const bool blind = z.count() == 0;
    if (blind) note = m.down + ": no calibration token came here; channels stay by the size of their weights";
    std::vector<int64_t> kept;
    if (blind || asked_.how_mlp == "magnitude") {
      const auto size = [](const Tensor& w, int64_t over) { return w.to(at::kDouble).square().sum(over); };
      kept = largest(size(gate, 1) * size(up, 1) * size(down, 0), width);
    } else {
      kept = largest(leverage_scores(z.second(), asked_.ridge, m.down), width);
    }
    const Tensor index = at::tensor(kept, at::kLong);
    TensorMap out{{m.gate, gate.index_select(0, index)}, {m.up, up.index_select(0, index)}};
    if (bias)
      for (const std::string& name : {bias_of(m.gate), bias_of(m.up)})
        out[name] = job_.weights.tensor(name).index_select(0, index);
    if (blind || asked_.how_mlp != "nystrom") {
      out[m.down] = down.index_select(1, index);
      return out;
    }
    const Nystrom best = nystrom(down, z.second(), kept, m.down);
    if (z.count() < z.width() || best.damp > kNystromDamp)
      note = fmt::format(
          "{}: {} calibration tokens for {} channels: their covariance is singular, damped by {:.0e} of its mean "
          "diagonal; more text is better",
          m.down, z.count(), z.width(), best.damp);
    out[m.down] = best.reader;
    return out;
  }

  ModelResult assembled() {
    ModelResult out;
    out.model = job_.model;
    out.model.config = with_shapes(config_, shapes_of(config_));
    out.model.tensors.clear();
    for (TensorSpec& spec : expected_tensors(out.model.config)) {
      const auto made = nodes_.find(spec.name);
      const ModelTensor* old = job_.model.find(spec.name);
      NodePtr node = made != nodes_.end() ? made->second : old != nullptr ? old->node : nullptr;
      if (node == nullptr)  // an output's bias in a layer whose values kept theirs
        node = exact_node(at::zeros(spec.shape, at::kFloat));
      out.model.tensors.push_back({std::move(spec.name), std::move(spec.shape), std::move(node)});
    }
    out.notes = std::move(notes_);
    out.predicted_loss = predicted_loss_;
    return out;
  }

  /// Eigenvalues of covariances below largest x width x this count as zero.
  static constexpr double kFloor = 1.1920929e-07;

  const ModelJob& job_;
  const Asked asked_;
  LmConfig original_;  ///< of the input, with the output bias that this run may add
  LmConfig config_;    ///< of the result
  NodeMap nodes_;      ///< what was made anew
  std::vector<std::string> notes_;
  std::optional<double> predicted_loss_;
};

ModelResult run(const ModelJob& job, const Options& options) { return Modegpt(job, options).run(); }

// Influence takes two passes, each block four and its two streams another two; the solver's gradients about as many.
double passes(const Options& options) { return options.text("allocation") == "solver" ? 14 : 8; }

constexpr ModelFit kWhole{run, passes};

}  // namespace

const Fit& modegpt_fit() {
  static const Fit fit{"modegpt", nullptr, &kWhole};
  return fit;
}

}  // namespace pith
