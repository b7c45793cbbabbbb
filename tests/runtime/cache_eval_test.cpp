// Scoring over a smaller cache: the dense one gives what one forward pass gives, items are shared, mistakes are said.
#include "runtime/cache_eval.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "runtime/builtin_text.h"
#include "runtime/evaluate.h"
#include "runtime/model_file.h"
#include "runtime/tokenizer.h"

namespace pith::test {
namespace {

struct Loaded {
  ThreadPool pool{2};
  Model model = open_model(std::string(PITH_SOURCE_DIR) + "/testdata/lm-s").value();
  Tokenizer tokenizer = Tokenizer::create(model.tokenizer).value();
  std::unique_ptr<Lm> lm = Lm::load(model, {Precision::exact, KvType::f16, {}}, pool, quiet_progress()).value();
  std::vector<std::vector<int32_t>> documents{
      tokenizer.encode(builtin_heldout_texts()[4].text.substr(0, 12000), {false, false}).value()};
};

TEST(CacheEval, TheDenseCacheGivesTheLossOfOneForwardPass) {
  Loaded l;
  const std::span<const int32_t> text = std::span(l.documents[0]).first(120);
  KvStore kv = l.lm->new_kv(), whole = l.lm->new_kv();
  std::vector<float> logits, all;
  ASSERT_TRUE(l.lm->forward(text.first(79), kv, Lm::Logits::last, logits, l.pool).ok());
  const auto losses = decode_nll(*l.lm, kv, text.subspan(79, 40), text.subspan(80, 40), {}, logits, l.pool);
  ASSERT_TRUE(losses.ok());
  ASSERT_TRUE(l.lm->forward(text, whole, Lm::Logits::all, all, l.pool).ok());
  const auto vocab = static_cast<size_t>(l.model.config.vocab);
  for (size_t i = 0; i < 40; ++i) {
    const float* x = all.data() + (79 + i) * vocab;
    double sum = 0;
    for (size_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(x[v]));
    EXPECT_NEAR((*losses)[i].nll, std::log(sum) - x[text[80 + i]], 1e-3);
  }
  EXPECT_FALSE(decode_nll(*l.lm, kv, text.first(3), text.first(4), {}, logits, l.pool).ok());
}

TEST(CacheEval, SmallerCachesAreScoredOnTheSameItems) {
  Loaded l;
  CacheEvalOptions o;
  o.caches = {"snapkv:budget=50%,window=8", "sinks:budget=20%", "q8:window=16", "ems:budget=100%,window=8", "full"};
  o.tasks = {"niah", "ppl"};
  o.lengths = {256};
  o.items = 3;
  o.continuation = 32;
  o.decode_tokens = 2;
  const auto scores = evaluate_caches(*l.lm, l.tokenizer, l.documents, o, l.pool, quiet_progress());
  ASSERT_TRUE(scores.ok()) << scores.error().message;
  ASSERT_EQ(scores->size(), 10u);  // two tasks, the dense cache and four others
  for (size_t t = 0; t < 2; ++t) {
    const CacheScore* s = scores->data() + 5 * t;
    EXPECT_EQ(s[0].cache, "full");
    EXPECT_EQ(s[0].kl, 0);
    EXPECT_EQ(s[0].same_top, 1);
    EXPECT_GT(s[0].decode_per_second, 0);
    EXPECT_NEAR(s[1].bytes / s[0].bytes, 0.51, 0.03);
    EXPECT_NEAR(s[2].bytes / s[0].bytes, 0.21, 0.03);
    EXPECT_LT(s[3].bytes, 0.62 * s[0].bytes);
    EXPECT_GT(s[2].kl, s[3].kl) << "most of the text gone, against 8 bits";
    EXPECT_LT(s[3].kl, 1e-2);
    EXPECT_LT(s[4].kl, 1e-6) << "room for everything";
    EXPECT_EQ(s[1].losses.size(), 3u);
    EXPECT_EQ(s[1].depths.size(), t == 0 ? 3u : 0u);
  }
  CacheReport report;
  report.title = "KV <caches>";
  report.model = "lm-s";
  report.scores = *scores;
  const std::string html = cache_report_to_html(report);
  EXPECT_NE(html.find("KV &lt;caches&gt;"), std::string::npos);
  EXPECT_NE(html.find("snapkv:budget=50%,window=8"), std::string::npos);
  EXPECT_NE(html.find("<svg"), std::string::npos);
  EXPECT_EQ(html.find("nan"), std::string::npos);
  const auto json = nlohmann::json::parse(cache_report_to_json(report));
  ASSERT_EQ(json["scores"].size(), 10u);
  EXPECT_EQ(json["scores"][1]["bytes"], scores->at(1).bytes);
}

TEST(CacheEval, MistakesComeBeforeTheWork) {
  Loaded l;
  const auto fails = [&](const CacheEvalOptions& o, const std::string& word) {
    const auto r = evaluate_caches(*l.lm, l.tokenizer, l.documents, o, l.pool, quiet_progress());
    ASSERT_FALSE(r.ok()) << word;
    EXPECT_EQ(r.error().kind, ErrorKind::user);
    EXPECT_NE(r.error().message.find(word), std::string::npos) << r.error().message;
  };
  fails({{"snapkv"}, {"passkeys"}, {256}}, "passkey");
  fails({{"snapkv:budget=10%"}, {"ppl"}, {256}}, "always kept");
  fails({{"snapkv"}, {"ppl"}, {l.model.config.context}}, "can hold");
  fails({{"nosuch"}, {"ppl"}, {256}}, "no cache method");
}

}  // namespace
}  // namespace pith::test
