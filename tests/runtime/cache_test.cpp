// Cache methods on a model: settings that change nothing, 20 random compositions, budgets, mistakes.
#include "runtime/cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "represent/memory_sections.h"
#include "runtime/cache_samples.h"
#include "runtime/lm.h"
#include "runtime/tiny_models.h"

namespace pith::test {
namespace {

std::unique_ptr<Lm> load(const TinyModel& tiny) {
  ThreadPool pool(2);
  auto lm = Lm::load(tiny.model, {Precision::exact, KvType::f16, {}}, pool, quiet_progress());
  EXPECT_TRUE(lm.ok()) << lm.error().message;
  return std::move(lm).value();
}

// The sequences of a tiny model behind each other, as often as it takes.
std::vector<int32_t> tokens_of(const TinyModel& tiny, size_t n) {
  std::vector<int32_t> out;
  while (out.size() < n) out.insert(out.end(), tiny.tokens.begin(), tiny.tokens.end());
  out.resize(n);
  return out;
}

struct Ran {
  KvStore kv;
  std::vector<float> logits;  // of the continuation, fed in single tokens
  std::vector<int64_t> held;  // after the prompt, by head
};

Ran run(const Lm& lm, const std::string& cache, std::span<const int32_t> tokens, size_t prompt, unsigned threads = 2) {
  ThreadPool pool(threads);
  auto plan = parse_cache(cache);
  EXPECT_TRUE(plan.ok()) << plan.error().message;
  auto driver = KvDriver::create(std::move(plan).value(), lm);
  EXPECT_TRUE(driver.ok()) << driver.error().message;
  Ran out{lm.new_kv(), {}, {}};
  std::vector<float> part;
  EXPECT_TRUE(driver->begin(out.kv, static_cast<int64_t>(prompt)).ok());
  for (size_t i = 0; i < prompt; i += 20) {
    const auto piece = tokens.subspan(i, std::min<size_t>(20, prompt - i));
    EXPECT_TRUE(lm.forward(piece, out.kv, Lm::Logits::last, part, pool).ok());
    const Status status = driver->after(out.kv, pool);
    EXPECT_TRUE(status.ok()) << status.error().message;
  }
  const KvShape& shape = out.kv.shape();
  for (int64_t i = 0; i < static_cast<int64_t>(shape.layers.size()) * shape.heads; ++i)
    out.held.push_back(out.kv.held(i / shape.heads, i % shape.heads));
  for (size_t i = prompt; i < tokens.size(); ++i) {
    EXPECT_TRUE(lm.forward(tokens.subspan(i, 1), out.kv, Lm::Logits::last, part, pool).ok());
    const Status status = driver->after(out.kv, pool);
    EXPECT_TRUE(status.ok()) << status.error().message;
    out.logits.insert(out.logits.end(), part.begin(), part.end());
  }
  return out;
}

TEST(Cache, SettingsThatKeepEverythingChangeNothing) {
  const TinyModel tiny("llama");
  const auto lm = load(tiny);
  const auto tokens = tokens_of(tiny, 50);
  const auto dense = run(*lm, "full", tokens, 40).logits;
  for (const char* cache : {"", "sinks:budget=100%", "h2o:budget=1000", "snapkv:budget=50,window=4",
                            "ada-snapkv:budget=1.0,window=4", "ems:budget=100MB,window=4", "q4:window=4096",
                            "ems:budget=100%;kivi:window=1000", "snapkv:budget=100%;q8:window=50"})
    EXPECT_EQ(run(*lm, cache, tokens, 40).logits, dense) << cache;
}

TEST(Cache, TwentyRandomCompositionsKeepTheirPromises) {
  Random random(11);
  const std::vector<std::string> names{"llama", "qwen3", "gemma3", "mixtral"};
  const std::vector<std::string> policies{"sinks:budget=",
                                          "h2o:budget=",
                                          "snapkv:window=5,budget=",
                                          "ems:window=5,budget=",
                                          "ada-snapkv:window=5,budget=",
                                          "ems:window=5,tau=0.1,gamma=9,sim=post,score=sum,budget="};
  const std::vector<std::string> formats{"",
                                         ";q8:window=3",
                                         ";q4:window=0",
                                         ";kivi:bits=2,group=8,window=2",
                                         ";kivi:bits=4,value-bits=2,window=0",
                                         ";q4:rotate=false"};
  for (int round = 0; round < 20; ++round) {
    const TinyModel tiny(names[random.between(0, names.size() - 1)]);
    const auto lm = load(tiny);
    const auto tokens = tokens_of(tiny, 90);
    const int64_t budget = static_cast<int64_t>(random.between(12, 30)), prompt = 60;
    const std::string cache = policies[random.between(0, policies.size() - 1)] + std::to_string(budget) +
                              formats[random.between(0, formats.size() - 1)];
    SCOPED_TRACE(cache);
    const Ran a = run(*lm, cache, tokens, prompt);
    for (const float v : a.logits) ASSERT_TRUE(std::isfinite(v));
    const KvShape& shape = a.kv.shape();
    for (size_t l = 0; l < shape.layers.size(); ++l) {
      int64_t sum = 0;
      for (int64_t h = 0; h < shape.heads; ++h) {
        sum += a.held[l * static_cast<size_t>(shape.heads) + static_cast<size_t>(h)];
        const KvEntries e = a.kv.entries(static_cast<int64_t>(l), h);
        for (size_t i = 1; i < e.positions.size(); ++i) ASSERT_LT(e.positions[i - 1], e.positions[i]);
        ASSERT_EQ(e.positions.back(), 89) << "the newest token stays";
        ASSERT_LT(e.size(), shape.heads * (budget + 32 + 16));
      }
      EXPECT_LE(sum, shape.heads * budget);
    }
    EXPECT_EQ(a.kv.write().size(), a.kv.header_bytes() + a.kv.bytes());
    const Ran b = run(*lm, cache, tokens, prompt, 1);
    EXPECT_EQ(a.logits, b.logits) << "for any number of threads";
    EXPECT_EQ(a.kv.write(), b.kv.write());
    const auto read = KvStore::read(a.kv.write(), shape, a.kv.type());
    ASSERT_TRUE(read.ok()) << read.error().message;
  }
}

TEST(Cache, ABudgetInBytesIsKept) {
  const TinyModel tiny("llama");
  const auto lm = load(tiny);
  const auto tokens = tokens_of(tiny, 200);
  const uint64_t dense = run(*lm, "full", tokens, 200).kv.bytes();
  for (const char* method :
       {"h2o", "snapkv:window=8", "ems:window=8", "snapkv:window=8;q4:window=8", "ems:window=8;q8:window=8"}) {
    const std::string all(method);
    const size_t end = std::min(all.find(';'), all.size());
    const uint64_t budget = dense / 3;
    const std::string cache = all.substr(0, end) + (all.find(':') < end ? "," : ":") +
                              "budget=" + std::to_string(budget) + "B" + all.substr(end);
    const Ran ran = run(*lm, cache, tokens, 200);
    EXPECT_LE(ran.kv.bytes(), budget) << cache;
    EXPECT_GE(static_cast<double>(ran.kv.bytes()), 0.8 * static_cast<double>(budget)) << cache;
  }
}

TEST(Cache, MistakesAreSaidBeforeTheWork) {
  const auto message = [](const std::string& text) {
    const auto plan = parse_cache(text);
    EXPECT_FALSE(plan.ok()) << text;
    return plan.ok() ? std::string() : plan.error().message;
  };
  EXPECT_NE(message("snapkw").find("snapkv"), std::string::npos);
  EXPECT_NE(message("snapkv:budgit=3").find("budget"), std::string::npos);
  EXPECT_NE(message("snapkv:budget=-3").find("25%"), std::string::npos);
  EXPECT_NE(message("snapkv:budget=0").find("tokens"), std::string::npos);
  EXPECT_NE(message("snapkv:budget=120%").find("100%"), std::string::npos);
  EXPECT_NE(message("snapkv;h2o").find("which tokens stay"), std::string::npos);
  EXPECT_NE(message("q4;kivi").find("how tokens are stored"), std::string::npos);
  EXPECT_NE(message("kivi:group=8..16").find("ranges"), std::string::npos);

  const TinyModel tiny("llama");
  const auto lm = load(tiny);
  auto driver = KvDriver::create(parse_cache("snapkv:budget=32,window=32").value(), *lm);
  ASSERT_TRUE(driver.ok());
  EXPECT_TRUE(driver->check(30).ok()) << "a short prompt is kept whole";
  const Status narrow = driver->check(100);
  ASSERT_FALSE(narrow.ok());
  EXPECT_EQ(narrow.error().kind, ErrorKind::user);
  EXPECT_NE(narrow.error().message.find("32 are always kept"), std::string::npos) << narrow.error().message;
  KvStore kv = lm->new_kv();
  EXPECT_FALSE(driver->begin(kv, 100).ok());
  // What a prompt takes while it is read: with a policy all of it, with a format alone only the window.
  const auto c = tiny.model.config;
  const auto token = static_cast<uint64_t>(c.layers * c.kv_heads * c.head_dim * 4);
  EXPECT_EQ(driver->prompt_bytes(1000), 1000 * token);
  const auto coded = KvDriver::create(parse_cache("q8:window=0").value(), *lm);
  ASSERT_TRUE(coded.ok());
  EXPECT_LT(coded->prompt_bytes(100000), 100000 * token * 2 / 3);
}

TEST(Cache, PlansPrintAndParseBack) {
  for (const char* text : {"full", "ems:budget=5%,window=16;q4", "snapkv:budget=100", "kivi:bits=2;h2o:budget=2MB"}) {
    const auto plan = parse_cache(text);
    ASSERT_TRUE(plan.ok()) << plan.error().message;
    EXPECT_EQ(parse_cache(plan->text)->text, plan->text);
  }
  EXPECT_TRUE(parse_cache("")->whole());
  EXPECT_TRUE(parse_cache("full")->whole());
  for (const char* text : {"256", "25%", "12.5%", "2MB", "57MiB"}) EXPECT_EQ(KvBudget::parse(text)->print(), text);
  EXPECT_EQ(KvBudget::parse("0.25")->print(), "25%");
}

TEST(Cache, EveryMethodHasItsTableUnderTheSameName) {
  std::set<std::string_view> makers;
  for (const KvMethod* m : all_kv_methods()) {
    makers.insert(m->name);
    const Method* method = find_method(m->name);
    ASSERT_NE(method, nullptr) << m->name;
    EXPECT_EQ(method->family, "cache");
    EXPECT_TRUE(m->make(Options::defaults(method->params)).ok()) << m->name;
  }
  for (const Method* method : all_methods())
    EXPECT_EQ(method->family == "cache", makers.contains(method->name)) << method->name;
}

TEST(Cache, BestScoresStayInOrderWithTheEarlierOfEquals) {
  const std::vector<float> s{5, 1, 3, 3, 3, 2, 9, 0, 0};
  EXPECT_EQ(keep_best(s, 0, 2, 5), (Kept{0, 2, 6, 7, 8}));
  EXPECT_EQ(keep_best(s, 2, 1, 4), (Kept{0, 1, 6, 8}));
  EXPECT_EQ(keep_best(s, 2, 1, 2), (Kept{0, 1, 8})) << "what is always kept comes first";
  EXPECT_EQ(keep_best(s, 0, 0, 9).size(), 9u);
  EXPECT_EQ(pooled(s, 3, true), (std::vector<float>{5, 5, 3, 3, 3, 9, 9, 9, 0}));
  EXPECT_EQ(pooled(std::vector<float>{3, 6, 9}, 3, false), (std::vector<float>{4.5f, 6, 7.5f}));
  EXPECT_EQ(pooled(s, 1, false), s);
}

}  // namespace
}  // namespace pith::test
