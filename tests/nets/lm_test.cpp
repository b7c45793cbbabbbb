#include "nets/lm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include "nets/axis_group.h"
#include "nets/fixture.h"
#include "tensor/parallel.h"

namespace pith {
namespace {

double gap(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

class Architecture : public testing::TestWithParam<std::string> {
  OneThread one_;  // tiny tensors: a second thread only waits
};
INSTANTIATE_TEST_SUITE_P(Nets, Architecture, testing::ValuesIn(fixture_names()),
                         [](const auto& info) { return info.param; });

// The independent reference: transformers on the same files.
TEST_P(Architecture, LogitsEqualTransformers) {
  const Fixture f(GetParam());
  EXPECT_LT(gap(lm_logits(*f.weights(), f.tokens), f.logits), 1e-4);
}

TEST_P(Architecture, NllEqualsTheLogits) {
  const Fixture f(GetParam());
  const Tensor nll = lm_nll(*f.weights(), f.tokens);
  const Tensor logp = f.logits.to(at::kDouble).log_softmax(-1).narrow(1, 0, 23);
  EXPECT_LT(gap(nll, -logp.gather(2, f.tokens.narrow(1, 1, 23).unsqueeze(2)).squeeze(2)), 1e-4);
}

// Taps see exactly the linears and inputs that are announced, in that order, and W x + b of an input is the output.
TEST_P(Architecture, TapsSeeEveryInputAndOutput) {
  const Fixture f(GetParam());
  const auto weights = f.weights();
  const LmBlock block = LmBlock::load(*weights, 1);
  const LmContext context = make_context(f.config, 24);
  std::vector<std::pair<std::string, int64_t>> inputs;
  std::vector<std::string> outputs;
  TensorMap x, y;
  int ropes = 0;
  Taps taps;
  taps.input = [&](const std::string& name, const Tensor& v) {
    inputs.emplace_back(name, v.size(1));
    x[name] = v;
  };
  taps.output = [&](const std::string& name, const Tensor& v) {
    outputs.push_back(name);
    y[name] = v;
  };
  taps.rope = [&](const Tensor& q, const Tensor& k) {
    ++ropes;
    EXPECT_EQ(q.size(1), f.config.heads);
    EXPECT_EQ(k.size(1), f.config.kv_heads);
  };
  const Tensor in = noise({2, 24, f.config.hidden});
  const Tensor out = block.forward(in, context, &taps);
  EXPECT_EQ(gap(out, block.forward(in, context)), 0);
  EXPECT_EQ(ropes, 1);
  EXPECT_EQ(inputs, block_inputs(f.config, 0));
  ASSERT_EQ(outputs.size(), block.linears().size());
  std::set<std::string> seen(outputs.begin(), outputs.end());
  for (const LmLinear& l : block.linears()) {
    ASSERT_TRUE(seen.contains(l.name)) << l.name;
    const Tensor& w = block.weight(l.name);
    EXPECT_EQ(w.size(0), l.out);
    EXPECT_EQ(w.size(1), l.in);
    Tensor product = at::linear(x[l.input], w);
    const std::string bias = l.name.substr(0, l.name.size() - 6) + "bias";
    if (block.weights().contains(bias)) product = product + block.weight(bias);
    EXPECT_TRUE(at::allclose(product, y[l.name].reshape({-1, l.out}), 1e-5, 1e-5)) << l.name;
  }
  // Stopping early: everything up to that input, nothing after.
  Taps stop;
  size_t count = 0;
  stop.input = [&](const std::string&, const Tensor&) { ++count; };
  for (size_t i = 0; i < inputs.size(); ++i) {
    count = 0;
    stop.stop_after = inputs[i].first;
    EXPECT_FALSE(block.forward(in, context, &stop).defined());
    EXPECT_EQ(count, i + 1);
  }
}

// A token must not see what comes after it.
TEST_P(Architecture, IsCausal) {
  const Fixture f(GetParam());
  Tensor changed = f.tokens.clone();
  changed.narrow(1, 20, 1).fill_(5);
  const Tensor a = lm_logits(*f.weights(), f.tokens), b = lm_logits(*f.weights(), changed);
  EXPECT_EQ(gap(a.narrow(1, 0, 20), b.narrow(1, 0, 20)), 0);
  EXPECT_GT(gap(a.narrow(1, 20, 4), b.narrow(1, 20, 4)), 1e-3);
}

// Permuting any axis group leaves the function as it is; permuting only one of its tensors would not.
TEST_P(Architecture, AxisGroupsMoveTogether) {
  const Fixture f(GetParam());
  std::mt19937 random(1);
  std::set<std::string> names;
  for (const AxisGroup& group : axis_groups(f.config)) {
    EXPECT_TRUE(names.insert(group.name).second) << group.name;
    if (group.size < 2) continue;
    std::vector<int64_t> order(static_cast<size_t>(group.size));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    if (std::is_sorted(order.begin(), order.end())) std::swap(order[0], order[1]);
    TensorMap tensors = f.tensors;
    permute(tensors, group, order);
    EXPECT_LT(gap(lm_logits(*weights_of(f.config, tensors), f.tokens), f.logits), 2e-4) << group.name;
    AxisGroup broken = group;
    broken.uses.erase(broken.uses.begin());
    tensors = f.tensors;
    permute(tensors, broken, order);
    EXPECT_GT(gap(lm_logits(*weights_of(f.config, tensors), f.tokens), f.logits), 1e-3) << group.name;
  }
}

TEST_P(Architecture, GradientsReachInputsAndWeights) {
  const Fixture f(GetParam());
  const auto weights = f.weights();
  LmBlock block = LmBlock::load(*weights, 0);
  const LmContext context = make_context(f.config, 6);
  const LmLinear last = block.linears().back();
  const Tensor w = block.weight(last.name).clone().requires_grad_(true);
  block.set_weight(last.name, w);
  const Tensor x = noise({1, 6, f.config.hidden}).requires_grad_(true);
  block.forward(x, context).square().sum().backward();
  EXPECT_GT(x.grad().abs().sum().item<double>(), 0);
  // Against a difference quotient, along one direction of x.
  const at::NoGradGuard no_grad;
  const Tensor direction = noise(x.sizes(), 1);
  auto loss = [&](double step) {
    return block.forward(x + direction * step, context).to(at::kDouble).square().sum().item<double>();
  };
  const double slope = (loss(1e-3) - loss(-1e-3)) / 2e-3, expected = (x.grad() * direction).sum().item<double>();
  EXPECT_NEAR(slope, expected, 0.02 * std::abs(expected) + 0.02);
}

TEST(LmBlock, Bf16ProductsAreClose) {
  const Fixture f("llama");
  const auto weights = f.weights();
  LmBlock block = LmBlock::load(*weights, 0);
  const LmContext context = make_context(f.config, 24);
  const Tensor x = noise({2, 24, f.config.hidden});
  const Tensor exact = block.forward(x, context);
  block.set_compute(at::kBFloat16);
  const double error = gap(block.forward(x, context), exact);
  EXPECT_GT(error, 0);
  EXPECT_LT(error, 0.1);
}

TEST(AxisGroups, SelectDropsChannelsThatDoNothing) {
  Fixture f("llama");
  // Silence channel 3 of one MLP: then dropping it changes nothing.
  f.tensors["model.layers.1.mlp.down_proj.weight"].narrow(1, 3, 1).zero_();
  const Tensor before = lm_logits(*f.weights(), f.tokens);
  for (const AxisGroup& group : axis_groups(f.config)) {
    if (group.name != "layers.1.mlp") continue;
    std::vector<int64_t> keep;
    for (int64_t i = 0; i < group.size; ++i)
      if (i != 3) keep.push_back(i);
    select(f.tensors, group, keep);
    EXPECT_THROW(select(f.tensors, group, {0, 1}), Failure);  // the group describes the old sizes
    EXPECT_THROW(select(f.tensors, group, {}), Failure);
  }
  EXPECT_EQ(f.tensors["model.layers.1.mlp.gate_proj.weight"].size(0), 47);
  EXPECT_EQ(f.tensors["model.layers.1.mlp.up_proj.bias"].size(0), 47);
  // One block with the smaller MLP, by hand.
  LmConfig smaller = f.config;
  smaller.intermediate = 47;
  TensorMap only = f.tensors;
  const auto weights = weights_of(smaller, only);
  const LmBlock block = LmBlock::load(*weights, 1);
  Fixture g("llama");
  g.tensors["model.layers.1.mlp.down_proj.weight"].narrow(1, 3, 1).zero_();
  const auto old = g.weights();
  const Tensor x = noise({1, 24, 32});
  const LmContext context = make_context(f.config, 24);
  EXPECT_LT(gap(block.forward(x, context), LmBlock::load(*old, 1).forward(x, context)), 1e-5);
}

TEST(AxisGroups, RefuseWhatIsNoPermutation) {
  Fixture f("llama");
  const AxisGroup group = axis_groups(f.config)[0];
  std::vector<int64_t> order(32, 0);
  EXPECT_THROW(permute(f.tensors, group, order), Failure);
  EXPECT_THROW(permute(f.tensors, group, {0, 1}), Failure);
}

TEST(LmWeights, SaysWhatIsMissing) {
  Fixture f("qwen3");
  f.tensors.erase("model.layers.1.self_attn.q_norm.weight");
  try {
    lm_logits(*f.weights(), f.tokens);
    FAIL();
  } catch (const Failure& e) {
    EXPECT_NE(e.error().message.find("model.layers.1.self_attn.q_norm.weight"), std::string::npos);
    EXPECT_EQ(e.error().kind, ErrorKind::data);
  }
  Fixture g("qwen3");
  EXPECT_THROW(lm_logits(*g.weights(), at::full({1, 3}, 128, at::kLong)), Failure);
  EXPECT_THROW(lm_logits(*g.weights(), at::full({1, 3}, -1, at::kLong)), Failure);
}

}  // namespace
}  // namespace pith
