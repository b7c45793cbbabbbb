// The torch-free language model against transformers, and against itself fed in other pieces.
#include "runtime/lm.h"

#include <gtest/gtest.h>

#include <cmath>

#include "represent/low_rank.h"
#include "represent/memory_sections.h"
#include "runtime/evaluate.h"
#include "runtime/generate.h"
#include "runtime/tiny_models.h"
#include "runtime/tokenizer.h"

namespace pith::test {
namespace {

std::unique_ptr<Lm> load(const Model& model, const LmOptions& options = {}) {
  ThreadPool pool(2);
  auto lm = Lm::load(model, options, pool, quiet_progress());
  EXPECT_TRUE(lm.ok()) << lm.error().message;
  return std::move(lm).value();
}

// Logits of all tokens, fed in pieces of the given sizes (the last one repeats).
std::vector<float> logits_of(const Lm& lm, std::span<const int32_t> tokens, std::vector<size_t> pieces, KvStore& kv) {
  ThreadPool pool(2);
  std::vector<float> all, part;
  for (size_t at = 0, k = 0; at < tokens.size(); ++k) {
    const size_t n = std::min(pieces[std::min(k, pieces.size() - 1)], tokens.size() - at);
    const auto status = lm.forward(tokens.subspan(at, n), kv, Lm::Logits::all, part, pool);
    EXPECT_TRUE(status.ok()) << status.error().message;
    all.insert(all.end(), part.begin(), part.end());
    at += n;
  }
  return all;
}
std::vector<float> logits_of(const Lm& lm, std::span<const int32_t> tokens, std::vector<size_t> pieces = {1000}) {
  KvStore kv = lm.new_kv();
  return logits_of(lm, tokens, std::move(pieces), kv);
}

double max_difference(const std::vector<float>& a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(static_cast<double>(a[i]) - b[i]));
  return most;
}

TEST(Lm, LogitsEqualThoseOfTransformers) {
  for (const std::string& name : tiny_model_names()) {
    SCOPED_TRACE(name);
    const TinyModel tiny(name);
    for (Isa isa : available_isas()) {
      const auto lm = load(tiny.model, {Precision::exact, KvType::f32, isa});
      for (int64_t s = 0; s < tiny.sequences; ++s) {
        const auto want = std::span(tiny.logits)
                              .subspan(static_cast<size_t>(s * tiny.length * tiny.model.config.vocab),
                                       static_cast<size_t>(tiny.length * tiny.model.config.vocab));
        EXPECT_LT(max_difference(logits_of(*lm, tiny.sequence(s)), want), 1e-4) << isa_name(isa) << ", sequence " << s;
      }
    }
  }
}

TEST(Lm, PiecesAndThreadsDoNotChangeTheAnswer) {
  for (const std::string& name : tiny_model_names()) {
    SCOPED_TRACE(name);
    const TinyModel tiny(name);
    const auto lm = load(tiny.model, {Precision::exact, KvType::f32, {}});
    const auto whole = logits_of(*lm, tiny.sequence(0));
    EXPECT_LT(max_difference(logits_of(*lm, tiny.sequence(0), {1}), whole), 2e-5);
    EXPECT_LT(max_difference(logits_of(*lm, tiny.sequence(0), {7, 1, 1, 3}), whole), 2e-5);
    std::vector<float> one, three;
    for (auto [threads, into] : {std::pair<unsigned, std::vector<float>*>{1, &one}, {3, &three}}) {
      ThreadPool pool(threads);
      KvStore kv = lm->new_kv();
      ASSERT_TRUE(lm->forward(tiny.sequence(0), kv, Lm::Logits::all, *into, pool).ok());
    }
    EXPECT_EQ(one, three);
  }
}

TEST(Lm, HalfPrecisionCacheAndFastKernelsStayClose) {
  for (const std::string& name : tiny_model_names()) {
    SCOPED_TRACE(name);
    const TinyModel tiny(name);
    const auto exact = load(tiny.model, {Precision::exact, KvType::f32, {}});
    const auto want = logits_of(*exact, tiny.sequence(1));
    double spread = 0;
    for (float v : want) spread += static_cast<double>(v) * v;
    spread = std::sqrt(spread / static_cast<double>(want.size()));
    const auto half = load(tiny.model, {Precision::exact, KvType::f16, {}});
    EXPECT_LT(max_difference(logits_of(*half, tiny.sequence(1)), want), 0.02 * spread);
    const auto fast = load(tiny.model, {Precision::fast, KvType::f16, {}});
    EXPECT_LT(max_difference(logits_of(*fast, tiny.sequence(1)), want), 0.2 * spread);
    EXPECT_LT(max_difference(logits_of(*fast, tiny.sequence(1), {1}), want), 0.2 * spread);
  }
}

TEST(Lm, LastLogitsAreTheLastOfAll) {
  const TinyModel tiny("llama");
  const auto lm = load(tiny.model);
  ThreadPool pool(1);
  std::vector<float> all, last;
  KvStore a = lm->new_kv(), b = lm->new_kv();
  ASSERT_TRUE(lm->forward(tiny.sequence(0), a, Lm::Logits::all, all, pool).ok());
  ASSERT_TRUE(lm->forward(tiny.sequence(0), b, Lm::Logits::last, last, pool).ok());
  const auto vocab = static_cast<size_t>(tiny.model.config.vocab);
  EXPECT_LT(max_difference(last, std::span(all).last(vocab)), 1e-6);
}

TEST(Lm, CacheForgetsWhatIsTruncated) {
  const TinyModel tiny("gemma3");
  const auto lm = load(tiny.model);
  KvStore kv = lm->new_kv();
  const auto first = logits_of(*lm, tiny.sequence(0), {1000}, kv);
  const uint64_t bytes = kv.bytes();
  const auto& c = tiny.model.config;
  // A header for each head; positions without gaps take nothing.
  const auto held = [&](int64_t n) {
    return static_cast<uint64_t>(c.layers * c.kv_heads * (16 + n * c.head_dim * 2 * 2));
  };
  EXPECT_EQ(bytes, held(tiny.length));
  kv.truncate(10);
  EXPECT_EQ(kv.length(), 10);
  EXPECT_EQ(kv.bytes(), held(10));
  const auto again = logits_of(*lm, tiny.sequence(0).subspan(10), {1000}, kv);
  EXPECT_LT(max_difference(again, std::span(first).last(again.size())), 1e-5);
  kv.clear();
  EXPECT_EQ(kv.bytes(), 0u);
  EXPECT_EQ(logits_of(*lm, tiny.sequence(0), {1000}, kv), first);
}

// A segment that hands out what it was given: any cut of the cache must give the same attention.
class Copied final : public KvSegment {
 public:
  Copied(const KvSegment& from, int64_t count, int64_t dim) : dim_(dim), positions_(from.positions()) {
    positions_.keep_first(count);
    keys_.resize(static_cast<size_t>(count * dim));
    values_.resize(keys_.size());
    from.decode(0, count, keys_.data(), values_.data());
  }
  int64_t size() const override { return positions_.size(); }
  const KvPositions& positions() const override { return positions_; }
  std::unique_ptr<KvSegment> clone() const override { return std::make_unique<Copied>(*this); }
  void write(std::string& out) const override { out.append(77, ' '); }
  void decode(int64_t i0, int64_t i1, float* keys, float* values) const override {
    std::copy(keys_.begin() + i0 * dim_, keys_.begin() + i1 * dim_, keys);
    std::copy(values_.begin() + i0 * dim_, values_.begin() + i1 * dim_, values);
  }
  uint64_t bytes() const override { return 77; }

 private:
  int64_t dim_;
  KvPositions positions_;
  std::vector<float> keys_, values_;
};

TEST(Lm, SealedSegmentsAttendLikePlainTokens) {
  for (const std::string name : {"llama", "gemma2", "smollm3"}) {
    const TinyModel tiny(name);
    const LmConfig& c = tiny.model.config;
    const auto lm = load(tiny.model, {Precision::exact, KvType::f32, {}});
    const auto want = logits_of(*lm, tiny.sequence(0));
    KvStore kv = lm->new_kv();
    logits_of(*lm, tiny.sequence(0).first(15), {1000}, kv);
    const uint64_t before = kv.bytes();
    int64_t sealed = 0;
    for (int64_t l = 0; l < c.layers; ++l) {
      for (int64_t h = 0; h < c.kv_heads; ++h) {
        for (int64_t count : {3 + h, int64_t{5}}) {
          const auto segments = kv.segments(l, h);
          ASSERT_TRUE(kv.seal(l, h, count, std::make_unique<Copied>(*segments.back(), count, c.head_dim)).ok());
          sealed += count;
        }
      }
    }
    EXPECT_EQ(kv.bytes(), before - static_cast<uint64_t>(sealed * c.head_dim * 8) +
                              static_cast<uint64_t>(c.layers * c.kv_heads * 2 * 77));
    const auto rest = logits_of(*lm, tiny.sequence(0).subspan(15), {1000}, kv);
    EXPECT_LT(max_difference(rest, std::span(want).last(rest.size())), 2e-5) << name;
    EXPECT_FALSE(kv.seal(0, 0, 1000, nullptr).ok());
    EXPECT_FALSE(kv.seal(c.layers, 0, 1, nullptr).ok());
  }
}

TEST(Lm, RefusesBadTokensAndDamagedWeights) {
  TinyModel tiny("llama");
  const auto lm = load(tiny.model);
  ThreadPool pool(1);
  KvStore kv = lm->new_kv();
  std::vector<float> logits;
  for (int32_t bad : {-1, static_cast<int32_t>(tiny.model.config.vocab)}) {
    const auto status = lm->forward(std::vector<int32_t>{1, bad}, kv, Lm::Logits::last, logits, pool);
    ASSERT_FALSE(status.ok());
    EXPECT_NE(status.error().message.find("vocabulary"), std::string::npos);
    EXPECT_EQ(kv.bytes(), 0u);
  }
  EXPECT_FALSE(lm->forward({}, kv, Lm::Logits::last, logits, pool).ok());
  for (auto& t : tiny.model.tensors) {
    if (t.name != "model.layers.1.mlp.down_proj.weight") continue;
    auto values = decode_all(*t.node);
    values[7] = NAN;
    t.node = *Dense::from(DType::f32, t.node->rows(), t.node->cols(), values);
  }
  const auto broken = load(tiny.model);
  KvStore other = broken->new_kv();
  const auto status = broken->forward(tiny.sequence(0), other, Lm::Logits::last, logits, pool);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().kind, ErrorKind::data);
  tiny.model.tensors.pop_back();
  EXPECT_FALSE(Lm::load(tiny.model, {}, pool, quiet_progress()).ok());
}

TEST(Lm, MemoryIsThatOfItsMatrices) {
  const TinyModel tiny("qwen3");
  uint64_t want = 0;
  for (const auto& t : tiny.model.tensors) {
    want += t.shape.size() == 1 ? static_cast<uint64_t>(t.shape[0]) * 4 : planned_ram_bytes(*t.node);
  }
  EXPECT_EQ(load(tiny.model)->ram_bytes(), want);
}

TEST(Lm, StreamedBlocksGiveTheSameBits) {
  for (const std::string& name : tiny_model_names()) {
    SCOPED_TRACE(name);
    const TinyModel tiny(name);
    const auto loaded = load(tiny.model);
    const auto streamed = load(tiny.model, {.streamed = true});
    EXPECT_EQ(logits_of(*streamed, tiny.sequence(0), {5, 1, 7}), logits_of(*loaded, tiny.sequence(0), {5, 1, 7}));
    EXPECT_LT(streamed->ram_bytes(), loaded->ram_bytes());
  }
}

// As if the changed model had been loaded, and back; a low-rank matrix brings its mean into the bias and takes it away.
TEST(Lm, BlocksOfAnotherVersionAreTakenInAndGivenBack) {
  for (const std::string& name : tiny_model_names()) {
    SCOPED_TRACE(name);
    const TinyModel tiny(name);
    for (const std::string matrix : {"model.layers.1.self_attn.o_proj.weight", "model.embed_tokens.weight"}) {
      const Node& node = *tiny.model.find(matrix)->node;
      const int64_t rows = node.rows(), cols = node.cols();
      const std::vector<float> u(static_cast<size_t>(2 * rows), 0.1f), v(static_cast<size_t>(2 * cols), -0.2f);
      const NodePtr mean = *Dense::from(DType::f32, 1, rows, std::vector<float>(static_cast<size_t>(rows), 0.3f));
      const NodePtr changed = *LowRank::make(*Dense::from(DType::f32, rows, 2, u), *Dense::from(DType::f32, 2, cols, v),
                                             matrix.starts_with("model.layers") ? mean : nullptr);
      const Model other = with_nodes(tiny.model, {{matrix, changed}});
      const int64_t layer = matrix.starts_with("model.layers") ? 1 : -1;
      for (const bool streamed : {false, true}) {
        const auto lm = load(tiny.model, {.streamed = streamed});
        const auto original = logits_of(*lm, tiny.sequence(0));
        ThreadPool pool(2);
        ASSERT_TRUE(lm->take_block(other, layer, pool).ok());
        const auto found = logits_of(*lm, tiny.sequence(0));
        EXPECT_EQ(found, logits_of(*load(other), tiny.sequence(0)));
        EXPECT_NE(found, original);
        ASSERT_TRUE(lm->take_block(tiny.model, layer, pool).ok());
        EXPECT_EQ(logits_of(*lm, tiny.sequence(0)), original);
      }
    }
  }
  const TinyModel tiny("llama");
  ThreadPool pool(1);
  EXPECT_FALSE(load(tiny.model)->take_block(tiny.model, tiny.model.config.layers, pool).ok());
}

TEST(Evaluate, PerplexityIsWhatItsDefinitionSays) {
  const TinyModel tiny("llama");
  const auto lm = load(tiny.model, {Precision::exact, KvType::f32, {}});
  const int64_t context = 10, vocab = tiny.model.config.vocab;
  ThreadPool pool(2);
  for (const bool full : {false, true}) {
    double nll = 0;
    int64_t scored = 0;
    for (int64_t k = 0; k < static_cast<int64_t>(tiny.tokens.size()) / context; ++k) {
      std::vector<int32_t> chunk(tiny.tokens.begin() + k * context, tiny.tokens.begin() + (k + 1) * context);
      chunk[0] = 3;
      const auto logits = logits_of(*lm, chunk);
      for (int64_t i = full ? 0 : context / 2; i + 1 < context; ++i, ++scored) {
        double sum = 0;
        for (int64_t v = 0; v < vocab; ++v)
          sum += std::exp(static_cast<double>(logits[static_cast<size_t>(i * vocab + v)]));
        nll += std::log(sum) - logits[static_cast<size_t>(i * vocab + chunk[static_cast<size_t>(i + 1)])];
      }
    }
    const auto r = perplexity(*lm, tiny.tokens, {context, 0, full, 3}, pool, quiet_progress());
    ASSERT_TRUE(r.ok()) << r.error().message;
    EXPECT_EQ(r->tokens, scored);
    EXPECT_EQ(r->chunks, 4);
    EXPECT_NEAR(r->nll, nll / static_cast<double>(scored), 1e-5);
    EXPECT_NEAR(r->ppl, std::exp(r->nll), 1e-9);
    EXPECT_GT(r->ppl_error, 0);
  }
}

TEST(Evaluate, ComparesTwoModels) {
  TinyModel tiny("llama");
  const auto reference = load(tiny.model, {Precision::exact, KvType::f32, {}});
  ThreadPool pool(2);
  const EvalOptions options{12, 0, true, -1};
  const auto same = compare(*reference, *reference, tiny.tokens, options, pool, quiet_progress());
  ASSERT_TRUE(same.ok());
  EXPECT_EQ(same->mean_kl, 0);
  EXPECT_EQ(same->same_top, 1);
  EXPECT_EQ(same->ratio, 1);

  for (auto& t : tiny.model.tensors) {
    if (t.shape.size() < 2) continue;
    t.node = *Dense::from(DType::bf16, t.node->rows(), t.node->cols(), decode_all(*t.node));
  }
  const auto rounded = load(tiny.model, {Precision::exact, KvType::f32, {}});
  const auto r = compare(*rounded, *reference, tiny.tokens, options, pool, quiet_progress());
  ASSERT_TRUE(r.ok());
  double kl = 0;
  int64_t count = 0;
  const int64_t vocab = tiny.model.config.vocab;
  for (size_t k = 0; k + 12 <= tiny.tokens.size(); k += 12) {
    const auto a = logits_of(*rounded, std::span(tiny.tokens).subspan(k, 12));
    const auto b = logits_of(*reference, std::span(tiny.tokens).subspan(k, 12));
    for (int64_t i = 0; i + 1 < 12; ++i, ++count) {
      double sa = 0, sb = 0;
      for (int64_t v = i * vocab; v < (i + 1) * vocab; ++v) {
        sa += std::exp(static_cast<double>(a[static_cast<size_t>(v)]));
        sb += std::exp(static_cast<double>(b[static_cast<size_t>(v)]));
      }
      for (int64_t v = i * vocab; v < (i + 1) * vocab; ++v) {
        const double x = a[static_cast<size_t>(v)], y = b[static_cast<size_t>(v)];
        kl += std::exp(y) / sb * ((y - std::log(sb)) - (x - std::log(sa)));
      }
    }
  }
  EXPECT_NEAR(r->mean_kl, kl / static_cast<double>(count), 0.02 * r->mean_kl);
  EXPECT_GT(r->mean_kl, 0);
  EXPECT_GT(r->max_kl, r->mean_kl);
  EXPECT_NEAR(r->ratio, r->model.ppl / r->reference.ppl, 1e-12);

  const TinyModel other("gemma3");
  if (other.model.config.vocab != vocab) {
    EXPECT_FALSE(compare(*reference, *load(other.model), tiny.tokens, options, pool, quiet_progress()).ok());
  }
  EXPECT_FALSE(perplexity(*reference, tiny.tokens, {1, 0, false, -1}, pool, quiet_progress()).ok());
  EXPECT_FALSE(
      perplexity(*reference, std::span(tiny.tokens).first(5), {12, 0, false, -1}, pool, quiet_progress()).ok());
}

TEST(Evaluate, StopsWhenAsked) {
  struct Stop final : Progress {
    bool step(const ProgressEvent&) override { return false; }
  } stop;
  const TinyModel tiny("llama");
  ThreadPool pool(1);
  EXPECT_FALSE(perplexity(*load(tiny.model), tiny.tokens, {12, 0, false, -1}, pool, stop).ok());
  EXPECT_FALSE(Lm::load(tiny.model, {}, pool, stop).ok());
}

TEST(Sampler, GreedyAndItsDegenerateForms) {
  const std::vector<float> logits = {0.5f, 3.0f, 3.0f, -1.0f};
  EXPECT_EQ(Sampler({}).next(logits), 1);
  EXPECT_EQ(Sampler({.temperature = 1, .top_k = 1}).next(logits), 1);
  for (uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_EQ(Sampler({.temperature = 1, .top_p = 1e-9, .seed = seed}).next(logits), 1);
    const int32_t t = Sampler({.temperature = 1, .min_p = 0.9, .seed = seed}).next(logits);
    EXPECT_TRUE(t == 1 || t == 2);
    const int32_t k = Sampler({.temperature = 100, .top_k = 3, .seed = seed}).next(logits);
    EXPECT_NE(k, 3);
  }
}

TEST(Sampler, FrequenciesFollowTheProbabilities) {
  const std::vector<float> logits = {0, 1, 2, -1};
  const double temperature = 0.7;
  double sum = 0;
  for (float l : logits) sum += std::exp(l / temperature);
  Sampler sampler({.temperature = temperature, .seed = 5});
  std::vector<int> count(4);
  constexpr int kDraws = 40000;
  for (int i = 0; i < kDraws; ++i) ++count[static_cast<size_t>(sampler.next(logits))];
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(count[i] / static_cast<double>(kDraws), std::exp(logits[i] / temperature) / sum, 0.01);
  }
  Sampler a({.temperature = 1, .seed = 9}), b({.temperature = 1, .seed = 9}), c({.temperature = 1, .seed = 10});
  std::vector<int32_t> x, y, z;
  for (int i = 0; i < 100; ++i) x.push_back(a.next(logits)), y.push_back(b.next(logits)), z.push_back(c.next(logits));
  EXPECT_EQ(x, y);
  EXPECT_NE(x, z);
}

TEST(Generate, ContinuesGreedilyAndStops) {
  const TinyModel tiny("llama");
  const auto lm = load(tiny.model);
  TokenizerSpec spec;
  spec.kind = TokenizerSpec::Kind::byte_bpe;
  for (int64_t i = 0; i < tiny.model.config.vocab; ++i) {
    // The byte of id 33 … is its own character; the others stand for characters of two bytes.
    spec.tokens.push_back(i >= 33 && i < 127
                              ? std::string(1, static_cast<char>(i))
                              : std::string("\xc4") + static_cast<char>(0x80 + i % 64) + std::to_string(i));
    spec.types.push_back(TokenizerSpec::TokenType::normal);
  }
  spec.tokens.back() = "ab";
  spec.merges = {{"a", "b"}};
  auto tokenizer = Tokenizer::create(spec);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  ThreadPool pool(2);
  const std::vector<int32_t> prompt(tiny.sequence(0).begin(), tiny.sequence(0).begin() + 9);
  GenerateOptions options;
  options.max_tokens = 12;
  options.prefill_batch = 4;
  KvStore kv = lm->new_kv();
  std::string streamed;
  const auto r = generate(*lm, *tokenizer, prompt, kv, options, pool, [&](std::string_view piece) {
    streamed += piece;
    return true;
  });
  ASSERT_TRUE(r.ok()) << r.error().message;
  ASSERT_EQ(r->tokens.size(), 12u);
  EXPECT_EQ(streamed, r->text);
  EXPECT_FALSE(r->stopped);
  // The same by hand, in one piece each time.
  std::vector<int32_t> tokens = prompt;
  const auto vocab = static_cast<size_t>(tiny.model.config.vocab);
  for (int32_t want : r->tokens) {
    const auto logits = logits_of(*lm, tokens);
    EXPECT_EQ(Sampler({}).next(std::span(logits).last(vocab)), want);
    tokens.push_back(want);
  }
  options.stop = {r->tokens[5]};
  size_t first = 0;
  while (r->tokens[first] != r->tokens[5]) ++first;
  KvStore again = lm->new_kv();
  const auto cut = generate(*lm, *tokenizer, prompt, again, options, pool, {});
  ASSERT_TRUE(cut.ok());
  EXPECT_TRUE(cut->stopped);
  EXPECT_EQ(cut->tokens.size(), first);
  KvStore third = lm->new_kv();
  EXPECT_FALSE(generate(*lm, *tokenizer, {}, third, options, pool, {}).ok());
  const std::vector<int32_t> long_prompt(static_cast<size_t>(tiny.model.config.context + 1), 5);
  EXPECT_FALSE(generate(*lm, *tokenizer, long_prompt, third, options, pool, {}).ok());
}

}  // namespace
}  // namespace pith::test
