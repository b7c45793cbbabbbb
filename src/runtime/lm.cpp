#include "runtime/lm.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>

#include "kernels/attention.h"
#include "kernels/tile_linear.h"
#include "represent/low_rank.h"
#include "represent/model.h"

namespace pith {

namespace {

/// A matrix and what is added to its output.
struct Layer {
  LinearPtr matrix;
  std::vector<float> bias;  ///< empty = none
};

struct Expert {
  Layer gate, up, down;
};

struct Block {
  std::vector<float> attention_norm, q_norm, k_norm, post_attention_norm, mlp_norm, post_mlp_norm;
  Layer q, k, v, o, gate, up, down, router;
  std::vector<Expert> experts;
};

// Angles a position, by pair of channels.
std::vector<double> rope_frequencies(const LmConfig& c, double theta, bool scaled) {
  const RopeScaling& s = c.rope_scaling;
  std::vector<double> f(static_cast<size_t>(c.head_dim / 2));
  for (size_t i = 0; i < f.size(); ++i) {
    f[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(c.head_dim));
    if (!scaled || s.kind == RopeScaling::Kind::none) continue;
    if (s.kind == RopeScaling::Kind::linear) {
      f[i] /= s.factor;
      continue;
    }
    // llama3: waves longer than the original context are stretched, short ones stay, those between are blended.
    const double turns = static_cast<double>(s.original_context) * f[i] / (2 * std::numbers::pi);
    if (turns < s.low_freq_factor) {
      f[i] /= s.factor;
    } else if (turns < s.high_freq_factor) {
      const double blend = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
      f[i] *= (1 - blend) / s.factor + blend;
    }
  }
  return f;
}

struct Rotation {
  std::vector<float> cosines, sines;  ///< [n][half]
};

Rotation rotation(const std::vector<double>& frequencies, int64_t first, int64_t n) {
  Rotation r;
  r.cosines.reserve(static_cast<size_t>(n) * frequencies.size());
  r.sines.reserve(r.cosines.capacity());
  for (int64_t p = first; p < first + n; ++p) {
    for (double f : frequencies) {
      r.cosines.push_back(static_cast<float>(std::cos(static_cast<double>(p) * f)));
      r.sines.push_back(static_cast<float>(std::sin(static_cast<double>(p) * f)));
    }
  }
  return r;
}

// Rows of a batch are independent; small batches are not worth waking threads for.
template <class F>
void each_row(ThreadPool& pool, int64_t n, F body) {
  constexpr int64_t kRows = 8;
  if (n < 2 * kRows) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  pool.parallel_for((n + kRows - 1) / kRows, [&](int64_t b) {
    for (int64_t i = b * kRows; i < std::min(n, (b + 1) * kRows); ++i) body(i);
  });
}

// Buffers of one forward pass.
struct Work {
  std::vector<float> x, h, q, k, v, attended, gate, up, out;
};

}  // namespace

static KvShape kv_shape(const LmConfig& c) {
  KvShape shape{c.kv_heads, {}};
  for (int64_t i = 0; i < c.layers; ++i) shape.layers.push_back({c.key_dim(i), c.value_dim(i)});
  return shape;
}

static void read_vector(const Model& model, const std::string& name, bool gain, std::vector<float>& out) {
  const ModelTensor* t = model.find(name);
  if (t == nullptr) return;
  out = decode_all(*t->node);
  if (gain && model.config.norm_plus_one) {
    for (float& v : out) v += 1.0f;
  }
}

struct Lm::Impl {
  LmConfig config;
  LmOptions options;
  const Ops* ops = nullptr;
  const KvRowOps* row_ops = nullptr;
  LinearPtr embedding, head;  ///< head is null when tied
  std::vector<float> final_norm;
  std::vector<Block> blocks;    ///< none when streamed
  std::optional<Model> source;  ///< of a streamed model
  std::vector<double> frequencies, local_frequencies;

  /// A matrix still to be prepared.
  struct Job {
    const ModelTensor* tensor;
    LinearPtr* into;
    std::vector<float>* bias;
  };
  Status prepare(std::span<const Job> jobs, ThreadPool& pool, Progress& progress) const;
  /// The final norm, and jobs for embedding and head.
  void collect_ends(const Model& model, std::vector<Job>& jobs);
  /// Fills in the vectors of block i, and appends its matrices to `jobs`.
  void collect_block(const Model& model, int64_t i, Block& block, std::vector<Job>& jobs) const;
  Result<Block> stream_block(int64_t i, ThreadPool& pool) const;

  const Linear& output() const { return head != nullptr ? *head : *embedding; }
  void add_bias(const Layer& layer, int64_t n, float* y) const;
  void multiply(std::span<const Layer* const> layers, const float* x, int64_t n, std::span<float* const> ys,
                ThreadPool& pool) const;
  void norm(const std::vector<float>& gain, const float* x, int64_t n, float* out, ThreadPool& pool) const;
  void attention(int64_t layer, const Work& w, int64_t n, KvStore& kv, float* out, ThreadPool& pool) const;
  void rotate(int64_t layer, const Rotation& turns, int64_t token, float* heads, int64_t count) const;
  void activate(float* gate, const float* up, int64_t n, int64_t width, ThreadPool& pool) const;
  void experts(const Block& b, int64_t layer, const float* h, int64_t n, float* out, ThreadPool& pool) const;
};

Lm::Lm(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Lm::~Lm() = default;
const LmConfig& Lm::config() const { return impl_->config; }

KvStore Lm::new_kv() const { return KvStore(kv_shape(impl_->config), impl_->options.kv); }

uint64_t Lm::ram_bytes() const {
  const Impl& m = *impl_;
  uint64_t n = m.embedding->ram_bytes() + (m.head ? m.head->ram_bytes() : 0) + m.final_norm.size() * 4;
  const auto layer = [&](const Layer& l) { n += (l.matrix ? l.matrix->ram_bytes() : 0) + l.bias.size() * 4; };
  for (const Block& b : m.blocks) {
    for (const auto* v :
         {&b.attention_norm, &b.q_norm, &b.k_norm, &b.post_attention_norm, &b.mlp_norm, &b.post_mlp_norm}) {
      n += v->size() * 4;
    }
    for (const Layer* l : {&b.q, &b.k, &b.v, &b.o, &b.gate, &b.up, &b.down, &b.router}) layer(*l);
    for (const Expert& e : b.experts) layer(e.gate), layer(e.up), layer(e.down);
  }
  return n;
}

Result<std::unique_ptr<Lm>> Lm::load(const Model& model, const LmOptions& options, ThreadPool& pool,
                                     Progress& progress) {
  PITH_TRY(check_config(model.config));
  PITH_TRY(check_model(model));
  auto impl = std::make_unique<Impl>();
  Impl& m = *impl;
  const LmConfig& c = m.config = model.config;
  m.options = options;
  m.ops = &ops(options.isa.value_or(default_isa()));
  m.row_ops = &kv_row_ops(options.isa.value_or(default_isa()));
  m.frequencies = rope_frequencies(c, c.rope_theta, true);
  m.local_frequencies =
      rope_frequencies(c, c.rope_theta_local > 0 ? c.rope_theta_local : c.rope_theta, c.rope_theta_local <= 0);

  std::vector<Impl::Job> jobs;
  m.collect_ends(model, jobs);
  if (options.streamed) {
    m.source = model;
  } else {
    m.blocks.resize(static_cast<size_t>(c.layers));
    for (int64_t i = 0; i < c.layers; ++i) m.collect_block(model, i, m.blocks[static_cast<size_t>(i)], jobs);
  }
  PITH_TRY(m.prepare(jobs, pool, progress));
  return std::unique_ptr<Lm>(new Lm(std::move(impl)));
}

Status Lm::take_block(const Model& model, int64_t layer, ThreadPool& pool) {
  Impl& m = *impl_;
  if (layer >= m.config.layers) return bug_error(fmt::format("there is no block {} in this model", layer));
  if (m.source) m.source = model;
  std::vector<Impl::Job> jobs;
  if (layer < 0) {
    m.collect_ends(model, jobs);
  } else if (!m.source) {
    Block& block = m.blocks[static_cast<size_t>(layer)] = {};
    m.collect_block(model, layer, block, jobs);
  }
  return m.prepare(jobs, pool, quiet_progress());
}

void Lm::Impl::collect_ends(const Model& model, std::vector<Job>& jobs) {
  jobs.push_back({model.find("model.embed_tokens.weight"), &embedding, nullptr});
  if (!config.tied_embeddings) jobs.push_back({model.find("lm_head.weight"), &head, nullptr});
  read_vector(model, "model.norm.weight", true, final_norm);
}

Status Lm::Impl::prepare(std::span<const Job> jobs, ThreadPool& pool, Progress& progress) const {
  const KernelOptions kernel{options.precision, options.isa};
  const size_t batch = std::max<size_t>(8, 4 * pool.size());
  std::vector<Error> errors(jobs.size());
  std::vector<uint8_t> failed(jobs.size(), 0);
  for (size_t first = 0; first < jobs.size(); first += batch) {
    const size_t last = std::min(jobs.size(), first + batch);
    pool.parallel_for(static_cast<int64_t>(last - first), [&](int64_t k) {
      const size_t i = first + static_cast<size_t>(k);
      auto made = prepare_linear(jobs[i].tensor->node, kernel);
      if (!made.ok()) {
        errors[i] = made.error();
        failed[i] = 1;
        return;
      }
      *jobs[i].into = std::move(made).value();
      // A low-rank layer may carry the mean of its output.
      const Node* node = jobs[i].tensor->node.get();
      if (const auto* prefix = dynamic_cast<const Prefix*>(node)) node = &prefix->low_rank();
      const auto* low_rank = dynamic_cast<const LowRank*>(node);
      if (low_rank != nullptr && low_rank->mean() != nullptr && jobs[i].bias != nullptr) {
        const std::vector<float> mean = decode_all(*low_rank->mean());
        jobs[i].bias->resize(mean.size());
        for (size_t j = 0; j < mean.size(); ++j) (*jobs[i].bias)[j] += mean[j];
      }
    });
    for (size_t i = first; i < last; ++i) {
      if (failed[i] != 0) return Error{errors[i].kind, jobs[i].tensor->name + ": " + errors[i].message};
    }
    if (!progress.step({"load", jobs[last - 1].tensor->name, last, jobs.size()})) {
      return user_error("stopped while loading the model");
    }
  }
  return {};
}

Result<Block> Lm::Impl::stream_block(int64_t i, ThreadPool& pool) const {
  Block block;
  std::vector<Job> jobs;
  collect_block(*source, i, block, jobs);
  PITH_TRY(prepare(jobs, pool, quiet_progress()));
  for (const Job& job : jobs) drop_mapped_pages(*job.tensor->node);
  return block;
}

void Lm::Impl::collect_block(const Model& model, int64_t i, Block& b, std::vector<Job>& jobs) const {
  const LmConfig& c = config;
  const std::string p = fmt::format("model.layers.{}.", i);
  const auto vector = [&](const std::string& name, std::vector<float>& out) {
    read_vector(model, p + name, true, out);
  };
  const auto matrix = [&](const std::string& name, Layer& layer) {
    const ModelTensor* t = model.find(p + name + ".weight");
    if (t == nullptr) return;
    read_vector(model, p + name + ".bias", false, layer.bias);
    jobs.push_back({t, &layer.matrix, &layer.bias});
  };
  vector("input_layernorm.weight", b.attention_norm);
  if (c.post_norms) {
    vector("post_attention_layernorm.weight", b.post_attention_norm);
    vector("pre_feedforward_layernorm.weight", b.mlp_norm);
    vector("post_feedforward_layernorm.weight", b.post_mlp_norm);
  } else {
    vector("post_attention_layernorm.weight", b.mlp_norm);
  }
  vector("self_attn.q_norm.weight", b.q_norm);
  vector("self_attn.k_norm.weight", b.k_norm);
  matrix("self_attn.q_proj", b.q);
  matrix("self_attn.k_proj", b.k);
  matrix("self_attn.v_proj", b.v);
  matrix("self_attn.o_proj", b.o);
  if (c.experts == 0) {
    matrix("mlp.gate_proj", b.gate);
    matrix("mlp.up_proj", b.up);
    matrix("mlp.down_proj", b.down);
    return;
  }
  matrix("block_sparse_moe.gate", b.router);
  b.experts.resize(static_cast<size_t>(c.experts));
  for (int64_t e = 0; e < c.experts; ++e) {
    const std::string expert = fmt::format("block_sparse_moe.experts.{}.", e);
    matrix(expert + "w1", b.experts[static_cast<size_t>(e)].gate);
    matrix(expert + "w3", b.experts[static_cast<size_t>(e)].up);
    matrix(expert + "w2", b.experts[static_cast<size_t>(e)].down);
  }
}

void Lm::Impl::add_bias(const Layer& layer, int64_t n, float* y) const {
  if (layer.bias.empty()) return;
  const auto width = static_cast<int64_t>(layer.bias.size());
  for (int64_t i = 0; i < n; ++i) ops->add(layer.bias.data(), width, y + i * width);
}

void Lm::Impl::multiply(std::span<const Layer* const> layers, const float* x, int64_t n, std::span<float* const> ys,
                        ThreadPool& pool) const {
  const Linear* matrices[3] = {};
  for (size_t i = 0; i < layers.size(); ++i) matrices[i] = layers[i]->matrix.get();
  multiply_all({matrices, layers.size()}, x, n, ys, pool);
  for (size_t i = 0; i < layers.size(); ++i) add_bias(*layers[i], n, ys[i]);
}

void Lm::Impl::norm(const std::vector<float>& gain, const float* x, int64_t n, float* out, ThreadPool& pool) const {
  const auto width = static_cast<int64_t>(gain.size());
  const auto eps = static_cast<float>(config.norm_eps);
  each_row(pool, n, [&](int64_t i) { ops->rms_norm(x + i * width, gain.data(), width, eps, out + i * width); });
}

// Turns a token's query or key heads in place.
void Lm::Impl::rotate(int64_t layer, const Rotation& turns, int64_t token, float* heads, int64_t count) const {
  const int64_t dim = config.key_dim(layer), half = dim / 2, all = config.head_dim / 2;
  const float *cosines = turns.cosines.data() + token * all, *sines = turns.sines.data() + token * all;
  const auto* pairs = config.rope_pairs(layer);
  float* own = pairs != nullptr ? thread_scratch(0, static_cast<size_t>(dim)) : nullptr;
  for (int64_t h = 0; h < count; ++h) {
    if (pairs == nullptr) {
      ops->rope(heads + h * dim, cosines, sines, half);
      continue;
    }
    const auto& kept = (*pairs)[static_cast<size_t>(h * config.kv_heads / count)];
    for (int64_t j = 0; j < half; ++j) {
      own[j] = cosines[kept[static_cast<size_t>(j)]];
      own[half + j] = sines[kept[static_cast<size_t>(j)]];
    }
    ops->rope(heads + h * dim, own, own + half, half);
  }
}

void Lm::Impl::activate(float* gate, const float* up, int64_t n, int64_t width, ThreadPool& pool) const {
  const auto act = config.activation == Activation::silu ? ops->silu_mul : ops->gelu_mul;
  each_row(pool, n, [&](int64_t i) { act(gate + i * width, up + i * width, width); });
}

// What the queries of one task paid attention to: the weights of each tile as attention_tile leaves them, brought to
// one scale when all tiles are known.
class AttentionNotes {
 public:
  void begin(int64_t rows) {
    rows_ = rows;
    first_.clear(), weights_.clear(), tops_.clear();
  }
  /// After a tile of entries [entry, entry + kAttentionTile).
  void tile(int64_t entry, const float* weights, const float* tops) {
    first_.push_back(entry);
    weights_.insert(weights_.end(), weights, weights + rows_ * kAttentionTile);
    tops_.insert(tops_.end(), tops, tops + rows_);
  }
  /// Adds the mean over a group of `group` rows to the sums; `recent` of rows [recent_row, rows) only.
  void end(const Ops& ops, const AttentionState& state, int64_t group, int64_t entries, bool all, int64_t recent_row,
           std::vector<float>& mass, std::vector<float>& recent) const {
    if (all) mass.assign(static_cast<size_t>(entries), 0.0f);
    if (recent_row < rows_) recent.assign(static_cast<size_t>(entries), 0.0f);
    for (size_t t = 0; t < first_.size(); ++t) {
      const int64_t count = std::min(kAttentionTile, entries - first_[t]);
      for (int64_t i = all ? 0 : recent_row; i < rows_; ++i) {
        const size_t row = t * static_cast<size_t>(rows_) + static_cast<size_t>(i);
        if (!(state.sum[i] > 0) || tops_[row] == -std::numeric_limits<float>::infinity()) continue;
        const float share = std::exp(tops_[row] - state.top[i]) / (state.sum[i] * static_cast<float>(group));
        const float* weights = weights_.data() + row * kAttentionTile;
        if (all) ops.axpy(share, weights, count, mass.data() + first_[t]);
        if (i >= recent_row) ops.axpy(share, weights, count, recent.data() + first_[t]);
      }
    }
  }

 private:
  int64_t rows_ = 0;
  std::vector<int64_t> first_;
  std::vector<float> weights_, tops_;
};

// One task is a KV head and a few tokens: all query heads that share the KV head attend together.
void Lm::Impl::attention(int64_t layer, const Work& w, int64_t n, KvStore& kv, float* out, ThreadPool& pool) const {
  const int64_t dim = config.key_dim(layer), width = config.value_dim(layer), group = config.heads / config.kv_heads;
  const int64_t tokens = std::max<int64_t>(1, 96 / group), blocks = (n + tokens - 1) / tokens;
  const auto scale = static_cast<float>(
      config.attention_scale > 0 ? config.attention_scale : 1 / std::sqrt(static_cast<double>(config.head_dim)));
  const int64_t past = kv.length();
  const KvWatch& watch = kv.watched();
  const bool noting = watch.mass || past + n > watch.recent_from;
  std::vector<std::vector<float>> mass(static_cast<size_t>(noting ? config.kv_heads * blocks : 0)), recent(mass.size());
  const auto task = [&](int64_t id) {
    const int64_t head = id / blocks, t0 = id % blocks * tokens, count = std::min(tokens, n - t0), rows = count * group;
    float* scratch = thread_scratch(0, static_cast<size_t>(attention_scratch(rows, dim)));
    float* tile = thread_scratch(1, static_cast<size_t>(kAttentionTile * (dim + width)));
    const int64_t padded = (rows + 15) / 16 * 16, room = padded * (dim + width + dim / 2 + 4);
    const auto segments = kv.segments(layer, head);
    // Rotated segments are attended by rotated queries, with sums of their own that are turned back at the end.
    const bool turned = std::any_of(segments.begin(), segments.end(), [](const KvSegment* s) { return s->rotated(); });
    float* own = thread_scratch(2, static_cast<size_t>(turned ? 2 * room : room));
    auto* position = reinterpret_cast<int32_t*>(own + padded * (dim + width) + 2 * padded);
    const auto prepare = [&](float* q, AttentionQueries& queries, AttentionState& state) {
      float* behind = q + padded * (dim + width);
      auto* narrow = reinterpret_cast<uint16_t*>(behind + 3 * padded);
      state = {q + padded * dim, behind, behind + padded};
      queries = {q,
                 position,
                 rows,
                 dim,
                 width,
                 static_cast<float>(config.attention_softcap),
                 config.slides(layer) ? config.sliding_window : 0,
                 nullptr};
      if (options.precision == Precision::fast && attention_takes_bf16(*ops, rows, dim, width)) {
        ops->f32_to_bf16(q, rows * dim, narrow);
        std::fill(narrow + rows * dim, narrow + padded * dim, static_cast<uint16_t>(0));
        queries.bf16 = narrow;
      }
      attention_begin(queries, state);
    };
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t g = 0; g < group; ++g) {
        const int64_t row = t * group + g;
        std::copy_n(w.q.data() + ((t0 + t) * config.heads + head * group + g) * dim, dim, own + row * dim);
        ops->scale(own + row * dim, dim, scale);
        position[row] = static_cast<int32_t>(past + t0 + t);
      }
    }
    AttentionQueries queries, queries_turned;
    AttentionState state, state_turned;
    prepare(own, queries, state);
    if (turned) {
      std::copy_n(own, rows * dim, own + room);
      hadamard_rows(own + room, rows, dim);
      prepare(own + room, queries_turned, state_turned);
    }
    const int64_t newest = position[rows - 1], oldest = position[0];
    const bool note = watch.mass || newest >= watch.recent_from;
    thread_local AttentionNotes notes;
    if (note) notes.begin(rows);
    int64_t before = 0;
    for (const KvSegment* s : segments) {
      const KvPositions& at = s->positions();
      const float *keys = nullptr, *values = nullptr;
      const bool plain = s->plain(&keys, &values);
      KvRows key_codes, value_codes;
      const bool coded = !plain && s->coded(&key_codes, &value_codes);
      const float* bias = s->bias();
      const AttentionQueries& asking = s->rotated() ? queries_turned : queries;
      const AttentionState& into = s->rotated() ? state_turned : state;
      int32_t positions[kAttentionTile];
      for (int64_t i = 0; i < s->size(); i += kAttentionTile) {
        const int64_t end = std::min(s->size(), i + kAttentionTile);
        if (at[i] > newest) break;
        if (queries.window > 0 && at[end - 1] <= oldest - queries.window) continue;
        at.copy(i, end, positions);
        if (coded) {
          attention_tile_coded(*ops, *row_ops, asking, key_codes, value_codes, i, positions, end - i, scratch, tile,
                               into, bias != nullptr ? bias + i : nullptr);
        } else {
          if (!plain) s->decode(i, end, tile, tile + kAttentionTile * dim);
          attention_tile(*ops, asking, plain ? keys + i * dim : tile,
                         plain ? values + i * width : tile + kAttentionTile * dim, positions, end - i, scratch, into,
                         bias != nullptr ? bias + i : nullptr);
        }
        if (note) notes.tile(before + i, scratch, into.top);
      }
      before += s->size();
    }
    if (turned) {
      hadamard_rows(state_turned.out, rows, width);
      attention_merge(*ops, queries, state_turned, state);
    }
    if (note) {
      int64_t recent_row = 0;
      while (recent_row < rows && position[recent_row] < watch.recent_from) ++recent_row;
      notes.end(*ops, state, group, before, watch.mass, recent_row, mass[static_cast<size_t>(id)],
                recent[static_cast<size_t>(id)]);
    }
    attention_end(*ops, queries, state);
    for (int64_t t = 0; t < count; ++t) {
      std::copy_n(state.out + t * group * width, group * width, out + ((t0 + t) * config.heads + head * group) * width);
    }
  };
  pool.parallel_for(config.kv_heads * blocks, task);
  for (size_t id = 0; id < mass.size(); ++id) {
    kv.note(layer, static_cast<int64_t>(id) / blocks, mass[id], recent[id]);  // in order: the same for any threads
  }
}

// Each token goes to its experts_per_token most probable experts; each expert sees its tokens as one batch.
void Lm::Impl::experts(const Block& b, int64_t layer, const float* h, int64_t n, float* out, ThreadPool& pool) const {
  const int64_t hidden = config.hidden, width = config.mlp_width(layer), count = config.experts;
  std::vector<float> chance(static_cast<size_t>(n * count));
  const Layer* router = &b.router;
  float* scores = chance.data();
  multiply({&router, 1}, h, n, {&scores, 1}, pool);
  struct Visit {
    int64_t token;
    float share;
  };
  std::vector<std::vector<Visit>> visits(static_cast<size_t>(count));
  std::vector<int64_t> order(static_cast<size_t>(count));
  for (int64_t i = 0; i < n; ++i) {
    float* p = scores + i * count;
    const float sum = ops->exp_sum(p, count, ops->max(p, count));
    for (int64_t e = 0; e < count; ++e) order[static_cast<size_t>(e)] = e;
    const auto top = order.begin() + config.experts_per_token;
    std::partial_sort(order.begin(), top, order.end(),
                      [&](int64_t a, int64_t c) { return p[a] != p[c] ? p[a] > p[c] : a < c; });
    float chosen = 0;
    for (auto e = order.begin(); e != top; ++e) chosen += p[*e];
    for (auto e = order.begin(); e != top; ++e) {
      visits[static_cast<size_t>(*e)].push_back({i, p[*e] / (config.norm_expert_weights ? chosen : sum)});
    }
  }
  std::fill_n(out, n * hidden, 0.0f);
  std::vector<float> in, gate, up, y;
  for (int64_t e = 0; e < count; ++e) {
    const auto& list = visits[static_cast<size_t>(e)];
    if (list.empty()) continue;
    const auto tokens = static_cast<int64_t>(list.size());
    in.resize(static_cast<size_t>(tokens * hidden));
    y.resize(in.size());
    gate.resize(static_cast<size_t>(tokens * width));
    up.resize(gate.size());
    for (int64_t i = 0; i < tokens; ++i) {
      std::copy_n(h + list[static_cast<size_t>(i)].token * hidden, hidden, in.data() + i * hidden);
    }
    const Expert& expert = b.experts[static_cast<size_t>(e)];
    const Layer* first[2] = {&expert.gate, &expert.up};
    float* both[2] = {gate.data(), up.data()};
    multiply(first, in.data(), tokens, both, pool);
    activate(gate.data(), up.data(), tokens, width, pool);
    const Layer* down = &expert.down;
    float* result = y.data();
    multiply({&down, 1}, gate.data(), tokens, {&result, 1}, pool);
    for (int64_t i = 0; i < tokens; ++i) {
      const Visit& v = list[static_cast<size_t>(i)];
      ops->axpy(v.share, y.data() + i * hidden, hidden, out + v.token * hidden);
    }
  }
}

Status Lm::forward(std::span<const int32_t> tokens, KvStore& kv, Logits which, std::vector<float>& logits,
                   ThreadPool& pool) const {
  thread_local std::vector<float> rows;
  const size_t wanted = which == Logits::last ? 1 : tokens.size();
  PITH_TRY(states(tokens, kv, wanted, rows, pool));
  this->logits(rows, logits, pool);
  return {};
}

Status Lm::states(std::span<const int32_t> tokens, KvStore& kv, size_t last, std::vector<float>& out,
                  ThreadPool& pool) const {
  const Impl& m = *impl_;
  const LmConfig& c = m.config;
  const auto n = static_cast<int64_t>(tokens.size());
  if (n == 0) return user_error("forward: no tokens");
  if (kv.shape() != kv_shape(c)) return bug_error("forward: the KV store is that of another model");
  for (int32_t t : tokens) {
    if (t < 0 || t >= c.vocab) {
      return user_error(fmt::format("token {} lies outside the vocabulary of {} entries", t, c.vocab));
    }
  }
  const int64_t past = kv.length();
  const int64_t q_width = c.heads * c.head_dim, kv_width = c.kv_heads * c.head_dim;  // of the widest layer
  const auto size = [n](int64_t width) { return static_cast<size_t>(n * width); };
  thread_local Work memory;  // stays from pass to pass
  Work& w = memory;          // the reference is what other threads see
  w.x.resize(size(c.hidden));
  w.h.resize(size(c.hidden));
  w.out.resize(size(c.hidden));
  w.q.resize(size(q_width));
  w.attended.resize(size(q_width));
  w.k.resize(size(kv_width));
  w.v.resize(size(kv_width));
  if (c.experts == 0) {
    w.gate.resize(size(c.intermediate));
    w.up.resize(size(c.intermediate));
  }
  each_row(pool, n, [&](int64_t i) {
    float* row = w.x.data() + i * c.hidden;
    m.embedding->decode_row(tokens[static_cast<size_t>(i)], row);
    if (c.embedding_scale != 1) m.ops->scale(row, c.hidden, static_cast<float>(c.embedding_scale));
  });
  const Rotation global = rotation(m.frequencies, past, n);
  const Rotation local = c.rope_theta_local > 0 ? rotation(m.local_frequencies, past, n) : Rotation{};
  const auto eps = static_cast<float>(c.norm_eps);

  for (int64_t i = 0; i < c.layers; ++i) {
    Block streamed;
    if (m.source) {
      PITH_ASSIGN(streamed, m.stream_block(i, pool));
    }
    const Block& b = m.source ? streamed : m.blocks[static_cast<size_t>(i)];
    m.norm(b.attention_norm, w.x.data(), n, w.h.data(), pool);
    const Layer* qkv[3] = {&b.q, &b.k, &b.v};
    float* into[3] = {w.q.data(), w.k.data(), w.v.data()};
    m.multiply(qkv, w.h.data(), n, into, pool);
    const int64_t dim = c.key_dim(i);
    const Rotation& r = c.slides(i) && c.rope_theta_local > 0 ? local : global;
    each_row(pool, n, [&](int64_t t) {
      const auto turn = [&](float* heads, int64_t count, const std::vector<float>& gain) {
        for (int64_t h = 0; h < count && c.qk_norm; ++h) {
          float* x = heads + (t * count + h) * dim;
          m.ops->rms_norm(x, gain.data(), dim, eps, x);
        }
        if (c.has_rope(i)) m.rotate(i, r, t, heads + t * count * dim, count);
      };
      turn(w.q.data(), c.heads, b.q_norm);
      turn(w.k.data(), c.kv_heads, b.k_norm);
    });
    kv.append(i, w.k.data(), w.v.data(), n);
    m.attention(i, w, n, kv, w.attended.data(), pool);
    const Layer* o = &b.o;
    float* out = w.out.data();
    m.multiply({&o, 1}, w.attended.data(), n, {&out, 1}, pool);
    if (c.post_norms) m.norm(b.post_attention_norm, out, n, out, pool);
    m.ops->add(out, n * c.hidden, w.x.data());

    m.norm(b.mlp_norm, w.x.data(), n, w.h.data(), pool);
    if (c.experts > 0) {
      m.experts(b, i, w.h.data(), n, out, pool);
    } else {
      const Layer* first[2] = {&b.gate, &b.up};
      float* both[2] = {w.gate.data(), w.up.data()};
      m.multiply(first, w.h.data(), n, both, pool);
      m.activate(w.gate.data(), w.up.data(), n, c.mlp_width(i), pool);
      const Layer* down = &b.down;
      m.multiply({&down, 1}, w.gate.data(), n, {&out, 1}, pool);
    }
    if (c.post_norms) m.norm(b.post_mlp_norm, out, n, out, pool);
    m.ops->add(out, n * c.hidden, w.x.data());
  }
  kv.advance(n);

  const auto rows = static_cast<int64_t>(std::min(last, tokens.size()));
  out.resize(static_cast<size_t>(rows * c.hidden));
  m.norm(m.final_norm, w.x.data() + (n - rows) * c.hidden, rows, out.data(), pool);
  for (int64_t i = 0; i < rows * c.hidden; ++i) {
    if (!std::isfinite(out[static_cast<size_t>(i)])) {
      return data_error(fmt::format("the model computes NaN or infinity at position {}: its weights are damaged",
                                    past + n - rows + i / c.hidden));
    }
  }
  return {};
}

void Lm::unturn(int64_t layer, int64_t head, int32_t position, float* key) const {
  const Impl& m = *impl_;
  const LmConfig& c = m.config;
  if (!c.has_rope(layer)) return;
  const auto& frequencies = c.slides(layer) && c.rope_theta_local > 0 ? m.local_frequencies : m.frequencies;
  const auto* pairs = c.rope_pairs(layer);
  const int64_t half = c.key_dim(layer) / 2;
  for (int64_t j = 0; j < half; ++j) {
    const auto pair =
        static_cast<size_t>(pairs != nullptr ? (*pairs)[static_cast<size_t>(head)][static_cast<size_t>(j)] : j);
    const double angle = static_cast<double>(position) * frequencies[pair];
    const auto cosine = static_cast<float>(std::cos(angle)), sine = static_cast<float>(std::sin(angle));
    const float a = key[j], b = key[half + j];
    key[j] = a * cosine + b * sine;
    key[half + j] = b * cosine - a * sine;
  }
}

void Lm::logits(std::span<const float> states, std::vector<float>& out, ThreadPool& pool) const {
  const Impl& m = *impl_;
  const LmConfig& c = m.config;
  const int64_t rows = static_cast<int64_t>(states.size()) / c.hidden;
  out.resize(static_cast<size_t>(rows * c.vocab));
  m.output().multiply(states.data(), rows, out.data(), pool);
  if (c.logit_softcap > 0) {
    each_row(pool, rows, [&](int64_t i) {
      m.ops->softcap(out.data() + i * c.vocab, c.vocab, static_cast<float>(c.logit_softcap));
    });
  }
}

}  // namespace pith
