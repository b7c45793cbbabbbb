#include "engine/calibrate.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "maths/linalg.h"
#include "nets/fixture.h"
#include "tensor/device.h"
#include "tensor/parallel.h"

namespace pith {
namespace {

namespace fs = std::filesystem;

double gap(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }
double relative_gap(const Tensor& a, const Tensor& b) { return gap(a, b) / b.abs().max().item<double>(); }

Tensor random_tokens(int64_t sequences, int64_t length, uint64_t seed) {
  at::Generator g = at::detail::createCPUGenerator(seed);
  return at::randint(3, 128, {sequences, length}, g, at::TensorOptions().dtype(at::kLong));
}

struct TemporaryFolder {
  std::string path;
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "pith-calibrate-XXXXXX").string();
    path = ::mkdtemp(name.data());
  }
  ~TemporaryFolder() { fs::remove_all(path); }
};

/// What a whole-model pass in one piece finds.
struct Direct {
  std::map<std::string, Tensor> second;  // "layer input" -> E[x x^T]
  std::map<std::string, Tensor> fisher;  // linear -> sum of squared gradients
  Tensor embedding_gradient, head_gradient, head_input;
};

// Loss: sum over all positions but the last of -log p(next token).
Direct direct(const Fixture& f, const Tensor& tokens) {
  const OneThread one;
  Direct d;
  const auto weights = f.weights();
  const LmContext context = make_context(f.config, tokens.size(1));
  Tensor x = embed(*weights, tokens).requires_grad_(true);
  const Tensor start = x;
  for (int64_t layer = 0; layer < f.config.layers; ++layer) {
    Taps taps;
    taps.input = [&](const std::string& name, const Tensor& v) {
      const Tensor w = v.detach().to(at::kDouble);
      if (w.size(0) > 0) d.second[std::to_string(layer) + name] = at::mm(w.t(), w) / static_cast<double>(w.size(0));
    };
    taps.output = [&](const std::string& name, const Tensor& y) {
      y.register_hook([&d, name](const Tensor& g) {
        d.fisher[name] = g.detach().reshape({-1, g.size(-1)}).to(at::kDouble).square().sum(0);
      });
    };
    x = LmBlock::load(*weights, layer).forward(x, context, &taps);
  }
  d.head_input = final_norm(*weights, x).detach();
  Tensor product = at::linear(final_norm(*weights, x), weights->tensor(head_name(f.config)));
  product.register_hook([&d](const Tensor& g) { d.head_gradient = g.detach(); });
  const Tensor logp = soft_cap(product, f.config.logit_softcap).log_softmax(-1).narrow(1, 0, tokens.size(1) - 1);
  logp.gather(2, tokens.narrow(1, 1, tokens.size(1) - 1).unsqueeze(2)).neg().sum().backward();
  d.embedding_gradient = start.grad();
  return d;
}

class Calibrate : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Nets, Calibrate, testing::ValuesIn(fixture_names()), [](const auto& i) { return i.param; });

TEST_P(Calibrate, EqualsTheWholeModelInOnePiece) {
  at::set_num_threads(2);
  const Fixture f(GetParam());
  const Tensor tokens = random_tokens(3, 20, 1);
  const Direct d = direct(f, tokens);
  CalibrationOptions options;
  options.fisher_sequences = 3;
  options.empirical = true;
  options.compute = Compute::fp32;
  const auto statistics = calibrate(*f.weights(), tokens, options);
  const double n = 3 * 19;
  EXPECT_EQ(statistics->tokens(), 60);
  EXPECT_EQ(statistics->fisher_tokens(), 57);
  for (int64_t layer = 0; layer < f.config.layers; ++layer) {
    const BlockStatistics block = statistics->block(layer);
    for (const auto& [input, width] : block_inputs(f.config, 0)) {
      const auto expected = d.second.find(std::to_string(layer) + input);
      if (expected == d.second.end()) {
        EXPECT_EQ(block.inputs.find(input)->second.count(), 0);
        continue;
      }
      EXPECT_LT(relative_gap(block.inputs.find(input)->second.second(), expected->second), 1e-5) << input;
    }
    for (const LmLinear& l : block_linears(f.config, layer)) {
      const Tensor g = block.row_fisher.find(l.name)->second * n;
      const auto expected = d.fisher.find(l.name);
      if (expected == d.fisher.end()) {
        EXPECT_EQ(g.abs().max().item<double>(), 0);
        continue;
      }
      EXPECT_LT(relative_gap(g, expected->second), 1e-4) << l.name;
    }
  }
  const EndStatistics ends = statistics->ends();
  EXPECT_LT(relative_gap(ends.head_fisher * n, d.head_gradient.to(at::kDouble).square().sum({1, 0})), 1e-4);
  const Tensor h = d.head_input.view({-1, f.config.hidden}).to(at::kDouble);
  EXPECT_LT(relative_gap(ends.head_input.second(), at::mm(h.t(), h) / 60.0), 1e-5);
  Tensor expected = at::zeros({f.config.vocab}, at::kDouble), count = at::zeros({f.config.vocab}, at::kLong);
  const double scale = f.config.embedding_scale;
  for (int64_t s = 0; s < 3; ++s)
    for (int64_t t = 0; t < 20; ++t) {
      const int64_t id = tokens[s][t].item<int64_t>();
      expected[id] += d.embedding_gradient[s][t].to(at::kDouble).square().mean() * (scale * scale / n);
      count[id] += 1;
    }
  EXPECT_LT(relative_gap(ends.embedding_fisher, expected), 1e-4);
  EXPECT_TRUE(at::equal(ends.token_count, count));
}

// The prediction that G and H are made for: 1/2 sum G dW H dW^T is the mean KL of a small random change, up to the
// independence of inputs and gradients. Over many directions the ratio must be near one.
TEST(Fisher, PredictsTheKlOfASmallChange) {
  at::set_num_threads(2);
  const Fixture f("qwen3");
  const Tensor tokens = random_tokens(16, 24, 2);
  CalibrationOptions options;
  options.fisher_sequences = 16;
  options.compute = Compute::fp32;
  Tensor ratio = at::zeros({2}, at::kDouble);
  const Tensor before = lm_logits(*f.weights(), tokens).to(at::kDouble).log_softmax(-1);
  std::map<std::string, Tensor> g;
  constexpr int kSeeds = 8;
  std::unique_ptr<Statistics> last;
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  Tensor fisher = at::zeros({f.config.intermediate}, at::kDouble);
  for (options.seed = 0; options.seed < kSeeds; ++options.seed) {
    last = calibrate(*f.weights(), tokens, options);
    fisher += last->block(1).row_fisher.find(name)->second / kSeeds;
  }
  const Tensor h = last->block(1).inputs.find("mlp_in")->second.second();
  double predicted = 0, measured = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    at::Generator generator = at::detail::createCPUGenerator(seed);
    const Tensor& w = f.tensors.at(name);
    const Tensor change = at::randn(w.sizes(), generator, at::TensorOptions().dtype(at::kFloat)) * 0.003;
    TensorMap tensors = f.tensors;
    tensors[name] = w + change;
    const Tensor after = lm_logits(*weights_of(f.config, tensors), tokens).to(at::kDouble).log_softmax(-1);
    measured += (before.exp() * (before - after)).sum(-1).mean().item<double>();
    const Tensor c = change.to(at::kDouble);
    predicted += 0.5 * ((at::mm(c, h) * c).sum(1) * fisher).sum().item<double>();
  }
  EXPECT_NEAR(predicted / measured, 1, 0.25);
}

// True Fisher: labels follow the model's distribution. For the last down projection the expectation is known exactly.
TEST(Fisher, LabelsAreDrawnFromTheModel) {
  at::set_num_threads(2);
  const Fixture f("llama");
  const auto weights = f.weights();
  const Tensor tokens = random_tokens(2, 8, 3);
  const std::string name = "model.layers.2.mlp.down_proj.weight";
  const LmContext context = make_context(f.config, 8);
  Tensor x = embed(*weights, tokens);
  for (int64_t layer = 0; layer < 3; ++layer) x = LmBlock::load(*weights, layer).forward(x, context);
  Tensor top = x.detach().requires_grad_(true);  // the down projection's output reaches the top with slope one
  const Tensor logp = at::linear(final_norm(*weights, top), weights->tensor(head_name(f.config))).log_softmax(-1);
  Tensor expected = at::zeros({32}, at::kDouble);
  for (int64_t v = 0; v < f.config.vocab; ++v) {
    top.mutable_grad() = Tensor();
    logp.select(2, v).sum().backward({}, /*retain_graph=*/true);
    const Tensor p = logp.detach().select(2, v).exp().to(at::kDouble).unsqueeze(2);
    expected += (top.grad().to(at::kDouble).square() * p).sum({1, 0});
  }
  expected /= 16;
  CalibrationOptions options;
  options.moments = false;
  options.fisher_sequences = 2;
  options.compute = Compute::fp32;
  Tensor found = at::zeros({32}, at::kDouble), head;
  constexpr int kSeeds = 300;
  for (options.seed = 0; options.seed < kSeeds; ++options.seed) {
    const auto statistics = calibrate(*weights, tokens, options);
    found += statistics->block(2).row_fisher.find(name)->second / kSeeds;
    // The head's rows carry no sampling noise at all.
    EXPECT_TRUE(!head.defined() || at::equal(head, statistics->ends().head_fisher));
    head = statistics->ends().head_fisher;
  }
  EXPECT_LT(relative_gap(found, expected), 0.1);
  const Tensor p = logp.detach().exp().to(at::kDouble);
  EXPECT_LT(relative_gap(head, (p * (1 - p)).mean(std::vector<int64_t>{0, 1})), 1e-4);
}

TensorMap everything(const Statistics& s, const LmConfig& config) {
  TensorMap all;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const BlockStatistics b = s.block(layer);
    for (const auto& [name, m] : b.inputs) {
      all[std::to_string(layer) + name] = m.second();
      all[std::to_string(layer) + name + "|"] = m.mean_abs();
      all[std::to_string(layer) + name + "^"] = m.max_abs();
    }
    for (const auto& [name, g] : b.row_fisher) all[name] = g;
  }
  const EndStatistics e = s.ends();
  all["head"] = e.head_input.second();
  all["g"] = e.head_fisher;
  all["e"] = e.embedding_fisher;
  all["n"] = e.token_count;
  return all;
}

void expect_same(const TensorMap& a, const TensorMap& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, t] : a) EXPECT_TRUE(at::equal(t, b.at(name))) << name;
}

TEST_P(Calibrate, SameBitsForAnyNumberOfThreads) {
  const Fixture f(GetParam());
  const Tensor tokens = random_tokens(200, 24, 4);  // several tasks
  for (const Compute compute : {Compute::fp32, Compute::bf16}) {
    if (compute == Compute::bf16 && (!fast_bf16() || GetParam() != "llama")) continue;
    CalibrationOptions options;
    options.fisher_sequences = 170;
    options.compute = compute;
    TensorMap first;
    for (const int threads : {1, 2, 5}) {
      at::set_num_threads(threads);
      const TensorMap now = everything(*calibrate(*f.weights(), tokens, options), f.config);
      if (first.empty())
        first = now;
      else
        expect_same(first, now);
    }
  }
  at::set_num_threads(2);
}

/// Says on the first call whether libtorch finds one.
bool has_gpu() {
  static const bool found = [] {
    try {
      return open_device("cuda").is_cuda();
    } catch (const Failure&) {
      return false;
    }
  }();
  return found;
}

void expect_close(const TensorMap& a, const TensorMap& b, double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, t] : a)
    EXPECT_LE(gap(t, b.at(name)), tolerance * b.at(name).abs().max().item<double>()) << name;
}

TEST_P(Calibrate, OnAGpuIsTheSameWithinRoundingAndTheSameBitsEachTime) {
  if (!has_gpu()) GTEST_SKIP() << "libtorch finds no GPU here";
  const Fixture f(GetParam());
  const auto weights = f.weights();
  const Tensor tokens = random_tokens(1500, 24, 4);  // several tasks
  CalibrationOptions options;
  options.fisher_sequences = 1400;
  options.empirical = true;  // the same labels everywhere
  options.compute = Compute::fp32;
  const TensorMap expected = everything(*calibrate(*weights, tokens, options), f.config);
  options.device = at::Device(at::kCUDA);
  const auto statistics = calibrate(*weights, tokens, options);
  const TensorMap found = everything(*statistics, f.config);
  expect_close(found, expected, 1e-3);
  expect_same(found, everything(*calibrate(*weights, tokens, options), f.config));
  options.empirical = false, options.compute = Compute::automatic;
  const TensorMap drawn = everything(*calibrate(*weights, tokens, options), f.config);
  expect_same(drawn, everything(*calibrate(*weights, tokens, options), f.config));

  const Moments moments = statistics->block(0).inputs.find("attn_in")->second;
  const Tensor there = upper_inverse_factor(moments, 0.01, "here", options.device).upper;
  EXPECT_TRUE(there.is_cuda());
  EXPECT_LT(relative_gap(there.to(at::kCPU), upper_inverse_factor(moments, 0.01).upper), 1e-9);

  BlockSession::Options session_options;
  session_options.device = options.device;
  BlockSession session(*weights, tokens, session_options);
  while (session.next())
    for (const auto& [input, s] : session.collect({}, {true, true, true})) {
      const Tensor second = statistics->block(session.block().layer()).inputs.find(input)->second.second();
      EXPECT_LT(gap(s.fp.second(), second), 1e-5 * second.abs().max().item<double>()) << input;
      EXPECT_TRUE(at::equal(s.fp.second(), s.prefix.second())) << input;
    }
}

struct StopAfter final : Progress {
  explicit StopAfter(int n) : left(n) {}
  bool step(const ProgressEvent&) override { return --left > 0; }
  void note(std::string_view m) override { notes.emplace_back(m); }
  int left;
  std::vector<std::string> notes;
};

std::map<std::string, std::string> files_of(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& e : fs::recursive_directory_iterator(folder)) {
    if (!e.is_regular_file()) continue;
    std::ifstream in(e.path(), std::ios::binary);
    files[fs::relative(e.path(), folder).string()] = {std::istreambuf_iterator<char>(in), {}};
  }
  return files;
}

TEST(CalibrationCache, GoesOnWhereItStopped) {
  at::set_num_threads(2);
  const Fixture f("gemma3");
  const Tensor tokens = random_tokens(6, 24, 5);
  CalibrationOptions options;
  options.fisher_sequences = 4;
  const TensorMap expected = everything(*calibrate(*f.weights(), tokens, options), f.config);
  TemporaryFolder whole;
  options.cache_folder = whole.path;
  expect_same(expected, everything(*calibrate(*f.weights(), tokens, options), f.config));
  const auto files = files_of(whole.path);
  EXPECT_EQ(files.size(), 2u * 3 + 2);  // moments and fisher of 3 blocks, ends, lock: nothing temporary stays
  for (const double seconds : {0.0, 1000.0}) {
    options.commit_seconds = seconds;
    for (int stop = 1; stop <= 7; ++stop) {
      TemporaryFolder folder;
      options.cache_folder = folder.path;
      StopAfter progress(stop);
      EXPECT_THROW(calibrate(*f.weights(), tokens, options, progress), Failure);
      StopAfter counter(1000);
      expect_same(expected, everything(*calibrate(*f.weights(), tokens, options, counter), f.config));
      const int steps = 1000 - counter.left;
      EXPECT_TRUE(seconds > 0 || steps == (stop < 7 ? 7 - stop : 1)) << stop << ": " << steps;
      EXPECT_EQ(files_of(folder.path), files) << stop;
    }
  }
  // Found again without work; another text, seed or model is another key.
  options.cache_folder = whole.path;
  StopAfter counter(1000);
  calibrate(*f.weights(), tokens, options, counter);
  EXPECT_EQ(counter.left, 1000);
  EXPECT_EQ(counter.notes.size(), 1u);
  std::set<std::string> keys{calibrate(*f.weights(), tokens, options)->key()};
  options.seed = 1;
  EXPECT_TRUE(keys.insert(calibrate(*f.weights(), tokens, options)->key()).second);
  EXPECT_TRUE(keys.insert(calibrate(*f.weights(), random_tokens(6, 24, 6), options)->key()).second);
  Fixture other("gemma3");
  other.tensors["model.norm.weight"] += 0.1;
  EXPECT_TRUE(keys.insert(calibrate(*other.weights(), tokens, options)->key()).second);
}

// A damaged file of the cache is noticed, never used.
TEST(CalibrationCache, DamageIsNoticed) {
  at::set_num_threads(2);
  const Fixture f("qwen2");
  const Tensor tokens = random_tokens(4, 16, 5);
  CalibrationOptions options;
  options.fisher_sequences = 2;
  TemporaryFolder folder;
  options.cache_folder = folder.path;
  auto statistics = calibrate(*f.weights(), tokens, options);
  const auto files = files_of(folder.path);
  const std::string base = folder.path + "/stats-" + statistics->key();
  EXPECT_EQ(calibrate(*f.weights(), tokens, options)->key(), statistics->key());  // two may read
  for (const char* name : {"/moments-00001", "/fisher-00000"}) {
    const auto size = fs::file_size(base + name);
    std::fstream file(base + name, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(size) - 9);
    file.put(static_cast<char>(0x55));
  }
  EXPECT_THROW(statistics->block(1), Failure);
  EXPECT_THROW(statistics->block(0), Failure);
  EXPECT_NO_THROW(statistics->block(2));
  fs::resize_file(base + "/fisher-00002", 100);
  EXPECT_THROW(statistics->block(2), Failure);
  // Nobody repairs what somebody else still reads.
  EXPECT_THROW(calibrate(*f.weights(), tokens, options), Failure);
  statistics.reset();
  calibrate(*f.weights(), tokens, options);  // makes it again
  EXPECT_EQ(files_of(folder.path), files);
}

TEST(CalibrationCache, IsForgottenByTheLastWhoUsesIt) {
  const Fixture f("llama");
  const auto weights = f.weights();
  const Tensor tokens = random_tokens(2, 8, 1);
  TemporaryFolder folder;
  CalibrationOptions options;
  options.cache_folder = folder.path;
  auto one = calibrate(*weights, tokens, options), other = calibrate(*weights, tokens, options);
  const std::string key = one->key();
  one.reset();
  forget_statistics(folder.path, key);
  EXPECT_FALSE(other->block(1).inputs.empty());
  other.reset();
  forget_statistics(folder.path, key);
  EXPECT_FALSE(fs::exists(folder.path + "/stats-" + key));
  EXPECT_FALSE(calibrate(*weights, tokens, options)->block(1).inputs.empty());
}

TEST(CalibrationCache, RefusesBadInput) {
  const Fixture f("llama");
  CalibrationOptions options;
  const auto weights = f.weights();
  EXPECT_THROW(calibrate(*weights, at::zeros({0, 8}, at::kLong), options), Failure);
  EXPECT_THROW(calibrate(*weights, at::zeros({1, 0}, at::kLong), options), Failure);
  EXPECT_THROW(calibrate(*weights, at::full({1, 8}, 128, at::kLong), options), Failure);
  EXPECT_THROW(calibrate(*weights, at::full({1, 8}, -1, at::kLong), options), Failure);
  options.cache_folder = "/proc/nowhere";
  EXPECT_THROW(calibrate(*weights, random_tokens(1, 8, 1), options), Failure);
  options.cache_folder.clear();
  Fixture broken("llama");
  broken.tensors["model.layers.1.mlp.up_proj.weight"].view({-1})[7].fill_(NAN);
  try {
    calibrate(*broken.weights(), random_tokens(1, 8, 1), options);
    FAIL();
  } catch (const Failure& e) {
    EXPECT_EQ(e.error().kind, ErrorKind::data);
    EXPECT_NE(e.error().message.find("block 1"), std::string::npos) << e.error().message;
  }
}

// Small memory: activations go to files, the bits stay.
TEST(CalibrationCache, SpillsToFiles) {
  at::set_num_threads(2);
  const Fixture f("mistral");
  const Tensor tokens = random_tokens(9, 24, 7);
  CalibrationOptions options;
  options.fisher_sequences = 5;
  const TensorMap expected = everything(*calibrate(*f.weights(), tokens, options), f.config);
  options.memory = 1;
  expect_same(expected, everything(*calibrate(*f.weights(), tokens, options), f.config));
}

// As the calibrator hands moments out.
Tensor compacted(Moments m) {
  m.compact();
  return m.second();
}

TEST_P(Calibrate, SessionWithoutChangesEqualsTheCalibrator) {
  at::set_num_threads(2);
  const Fixture f(GetParam());
  const auto weights = f.weights();
  const Tensor tokens = random_tokens(5, 24, 8);
  CalibrationOptions options;
  options.compute = Compute::fp32;
  const auto statistics = calibrate(*weights, tokens, options);
  BlockSession session(*weights, tokens, {});
  int64_t layer = 0;
  for (; session.next(); ++layer) {
    EXPECT_EQ(session.block().layer(), layer);
    const BlockStatistics expected = statistics->block(layer);
    const auto found = session.collect({}, {true, true, true});
    ASSERT_EQ(found.size(), expected.inputs.size());
    for (const auto& [input, s] : found) {
      const Moments& m = expected.inputs.find(input)->second;
      EXPECT_TRUE(at::equal(compacted(s.fp), m.second())) << input;
      EXPECT_TRUE(at::equal(compacted(s.prefix), m.second())) << input;
      EXPECT_EQ(s.cross.defined(), !input.starts_with("expert.")) << input;
      EXPECT_TRUE(!s.cross.defined() || relative_gap(s.cross, m.second()) < 1e-5) << input;
    }
  }
  EXPECT_EQ(layer, f.config.layers);
  const auto head = session.head_input({true, true, true});
  EXPECT_TRUE(at::equal(compacted(head.prefix), statistics->ends().head_input.second()));
  EXPECT_FALSE(session.next());
}

// Replaced weights reach later inputs of the same block at once, and all later blocks.
TEST_P(Calibrate, SessionCarriesTheCompressedPrefix) {
  at::set_num_threads(2);
  const Fixture f(GetParam());
  const auto weights = f.weights();
  const Tensor tokens = random_tokens(5, 24, 9);
  TensorMap changed = f.tensors;
  changed["model.embed_tokens.weight"] = (changed["model.embed_tokens.weight"] * 8).round() / 8;
  for (int64_t layer = 0; layer < f.config.layers; ++layer)
    for (const LmLinear& l : block_linears(f.config, layer)) changed[l.name] = (changed[l.name] * 8).round() / 8;
  const auto compressed = weights_of(f.config, changed);
  CalibrationOptions options;
  options.compute = Compute::fp32;
  const auto fp = calibrate(*weights, tokens, options), prefix = calibrate(*compressed, tokens, options);
  BlockSession::Options session_options;
  session_options.prefix_embedding = compressed.get();
  session_options.memory = 1;  // from files
  BlockSession session(*weights, tokens, session_options);
  while (session.next()) {
    const int64_t layer = session.block().layer();
    for (const auto& [input, width] : block_inputs(f.config, 0)) {
      const auto found = session.collect({input}, {true, true, true});
      const BlockSession::InputStatistics& s = found.find(input)->second;
      EXPECT_TRUE(at::equal(compacted(s.fp), fp->block(layer).inputs.find(input)->second.second())) << input;
      EXPECT_TRUE(at::equal(compacted(s.prefix), prefix->block(layer).inputs.find(input)->second.second())) << input;
      for (const LmLinear& l : session.block().linears())
        if (l.input == input) session.replace(l.name, changed[l.name]);
    }
  }
  EXPECT_TRUE(
      at::equal(compacted(session.head_input({false, true, false}).prefix), prefix->ends().head_input.second()));
}

TEST(BlockSession, CrossMomentsEqualTheDirectProduct) {
  at::set_num_threads(2);
  const Fixture f("llama");
  const auto weights = f.weights();
  const Tensor tokens = random_tokens(3, 24, 10);
  BlockSession session(*weights, tokens, {});
  ASSERT_TRUE(session.next());
  const std::string q = "model.layers.0.self_attn.q_proj.weight";
  session.replace(q, session.block().weight(q) * 0.5);
  const LmContext context = make_context(f.config, 24);
  TensorMap a, b;
  Taps taps;
  taps.input = [&](const std::string& name, const Tensor& x) { a[name] = x.to(at::kDouble); };
  session.block().forward(embed(*weights, tokens), context, &taps);
  taps.input = [&](const std::string& name, const Tensor& x) { b[name] = x.to(at::kDouble); };
  session.compressed().forward(embed(*weights, tokens), context, &taps);
  const auto found = session.collect({"attn_out", "mlp_act"}, {false, false, true});
  ASSERT_EQ(found.size(), 2u);
  for (const auto& [name, s] : found) {
    EXPECT_LT(relative_gap(s.cross, at::mm(a[name].t(), b[name]) / 72.0), 1e-5) << name;
    EXPECT_GT(relative_gap(s.cross, at::mm(a[name].t(), a[name]) / 72.0), 1e-3) << name;
  }
  EXPECT_THROW(session.collect({"nothing"}, {}), Failure);
  BlockSession::Options no_prefix;
  no_prefix.prefix = false;
  BlockSession plain(*weights, tokens, no_prefix);
  EXPECT_THROW(plain.collect({}, {}), Failure);  // no block yet
  ASSERT_TRUE(plain.next());
  EXPECT_THROW(plain.collect({}, {}), Failure);  // no prefix
  EXPECT_EQ(plain.collect({"mlp_in"}, {true, false, false}).size(), 1u);
}

}  // namespace
}  // namespace pith
