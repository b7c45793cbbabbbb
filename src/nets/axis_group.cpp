#include "nets/axis_group.h"

#include <algorithm>
#include <string>
#include <utility>

namespace pith {
namespace {

// Adds a weight's output axis and, when it has one, its bias.
void add_output(AxisGroup& group, const std::string& name, bool bias, int64_t start, int64_t chunk) {
  group.uses.push_back({name + ".weight", 0, start, chunk});
  if (bias) group.uses.push_back({name + ".bias", 0, start, chunk});
}

AxisGroup hidden_group(const LmConfig& c) {
  AxisGroup g{"hidden", c.hidden, {}, {}};
  g.uses.push_back({"model.embed_tokens.weight", 1});
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const std::string p = "model.layers." + std::to_string(layer) + ".";
    g.uses.push_back({p + "input_layernorm.weight", 0});
    g.uses.push_back({p + "post_attention_layernorm.weight", 0});
    if (c.post_norms) {
      g.uses.push_back({p + "pre_feedforward_layernorm.weight", 0});
      g.uses.push_back({p + "post_feedforward_layernorm.weight", 0});
    }
    for (const LmLinear& l : block_linears(c, layer)) {
      const bool reads = l.input == "attn_in" || l.input == "mlp_in" || l.input.ends_with(".in");
      if (reads) {
        g.uses.push_back({l.name, 1});
      } else {
        const bool bias = l.input == "attn_out" ? c.o_bias : c.mlp_bias && c.experts == 0;
        add_output(g, l.name.substr(0, l.name.size() - std::string(".weight").size()), bias, 0, 1);
      }
    }
  }
  g.uses.push_back({"model.norm.weight", 0});
  if (!c.tied_embeddings) g.uses.push_back({"lm_head.weight", 1});
  return g;
}

void check_members(const TensorMap& tensors, const AxisGroup& group, const std::vector<int64_t>& members) {
  for (const int64_t m : members)
    if (m < 0 || m >= group.size)
      throw Failure(bug_error("axis group " + group.name + " has no member " + std::to_string(m)));
  for (const AxisUse& use : group.uses) {
    const auto found = tensors.find(use.tensor);
    if (found == tensors.end() || found->second.size(use.axis) < use.start + group.size * use.chunk)
      throw Failure(bug_error("axis group " + group.name + " does not fit the tensor '" + use.tensor + "'"));
  }
}

// Rewrites each tensor so that its members are those named, in that order.
void gather(TensorMap& tensors, const AxisGroup& group, const std::vector<int64_t>& members) {
  for (const AxisUse& use : group.uses) {
    Tensor& t = tensors.find(use.tensor)->second;
    const int64_t end = use.start + group.size * use.chunk, size = t.size(use.axis);
    std::vector<int64_t> index;
    for (int64_t i = 0; i < use.start; ++i) index.push_back(i);
    for (const int64_t m : members)
      for (int64_t i = 0; i < use.chunk; ++i) index.push_back(use.start + m * use.chunk + i);
    for (int64_t i = end; i < size; ++i) index.push_back(i);
    t = t.index_select(use.axis, at::tensor(index, at::kLong));
  }
  for (const std::vector<std::string>& names : group.whole) {
    std::vector<Tensor> old;
    for (const std::string& name : names) old.push_back(tensors.at(name));
    for (size_t j = 0; j < names.size(); ++j) {
      if (j < members.size())
        tensors.insert_or_assign(names[j], old[static_cast<size_t>(members[j])]);
      else
        tensors.erase(names[j]);
    }
  }
}

}  // namespace

std::vector<AxisGroup> axis_groups(const LmConfig& c) {
  std::vector<AxisGroup> groups{hidden_group(c)};
  const int64_t per_kv = c.heads / c.kv_heads;
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const int64_t key = c.key_dim(layer), d = c.value_dim(layer);
    const std::string name = "layers." + std::to_string(layer), p = "model." + name + ".";
    const std::string q = p + "self_attn.q_proj", k = p + "self_attn.k_proj", v = p + "self_attn.v_proj";
    const std::string o = p + "self_attn.o_proj.weight";
    AxisGroup kv{name + ".kv", c.kv_heads, {}, {}};
    add_output(kv, q, c.qkv_bias, 0, per_kv * key);
    add_output(kv, k, c.qkv_bias, 0, key);
    add_output(kv, v, c.qkv_bias, 0, d);
    kv.uses.push_back({o, 1, 0, per_kv * d});
    groups.push_back(std::move(kv));
    for (int64_t g = 0; g < c.kv_heads; ++g) {
      const std::string in_kv = name + ".kv." + std::to_string(g);
      if (per_kv > 1) {
        AxisGroup heads{in_kv + ".heads", per_kv, {}, {}};
        add_output(heads, q, c.qkv_bias, g * per_kv * key, key);
        heads.uses.push_back({o, 1, g * per_kv * d, d});
        groups.push_back(std::move(heads));
      }
      AxisGroup value{in_kv + ".value", d, {}, {}};
      add_output(value, v, c.qkv_bias, g * d, 1);
      for (int64_t h = 0; h < per_kv; ++h) value.uses.push_back({o, 1, (g * per_kv + h) * d, 1});
      groups.push_back(std::move(value));
    }
    if (c.experts == 0) {
      AxisGroup mlp{name + ".mlp", c.mlp_width(layer), {}, {}};
      add_output(mlp, p + "mlp.gate_proj", c.mlp_bias, 0, 1);
      add_output(mlp, p + "mlp.up_proj", c.mlp_bias, 0, 1);
      mlp.uses.push_back({p + "mlp.down_proj.weight", 1});
      groups.push_back(std::move(mlp));
      continue;
    }
    AxisGroup experts{name + ".experts", c.experts, {{p + "block_sparse_moe.gate.weight", 0}}, {{}, {}, {}}};
    for (int64_t e = 0; e < c.experts; ++e) {
      const std::string x = p + "block_sparse_moe.experts." + std::to_string(e) + ".";
      groups.push_back({name + ".experts." + std::to_string(e) + ".mlp",
                        c.mlp_width(layer),
                        {{x + "w1.weight", 0}, {x + "w3.weight", 0}, {x + "w2.weight", 1}},
                        {}});
      experts.whole[0].push_back(x + "w1.weight");
      experts.whole[1].push_back(x + "w2.weight");
      experts.whole[2].push_back(x + "w3.weight");
    }
    groups.push_back(std::move(experts));
  }
  return groups;
}

void permute(TensorMap& tensors, const AxisGroup& group, const std::vector<int64_t>& order) {
  std::vector<int64_t> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  for (size_t i = 0; i < sorted.size(); ++i)
    if (sorted[i] != static_cast<int64_t>(i)) sorted.clear();
  if (static_cast<int64_t>(sorted.size()) != group.size)
    throw Failure(bug_error("axis group " + group.name + ": not a permutation of its " + std::to_string(group.size) +
                            " members"));
  check_members(tensors, group, order);
  gather(tensors, group, order);
}

void select(TensorMap& tensors, const AxisGroup& group, const std::vector<int64_t>& keep) {
  if (keep.empty()) throw Failure(bug_error("axis group " + group.name + ": nothing is kept"));
  for (size_t i = 1; i < keep.size(); ++i)
    if (keep[i] <= keep[i - 1]) throw Failure(bug_error("axis group " + group.name + ": members must ascend"));
  check_members(tensors, group, keep);
  gather(tensors, group, keep);
}

}  // namespace pith
