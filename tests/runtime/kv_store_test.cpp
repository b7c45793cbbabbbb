// The KV store: exact bytes, files, ragged heads in several formats under one attention, sums that attention notes.
#include "runtime/kv_store.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/file.h"
#include "measure/memory.h"
#include "represent/memory_sections.h"
#include "runtime/lm.h"
#include "runtime/tiny_models.h"

namespace pith::test {
namespace {

const KvFormat kQ8{KvFormat::Kind::coded, true, {8, false, true, 32}, {8, false, true, 32}};
const KvFormat kQ4{KvFormat::Kind::coded, true, {4, false, true, 32}, {4, false, true, 32}};
const KvFormat kKivi2{KvFormat::Kind::coded, false, {2, true, false, 16}, {2, false, false, 32}};
const KvFormat kKivi4{KvFormat::Kind::coded, false, {4, true, false, 8}, {4, false, false, 32}};

std::vector<float> floats(Random& random, int64_t n) {
  std::vector<float> v(static_cast<size_t>(n));
  for (float& f : v) f = random.real();
  return v;
}

// A store of `n` random tokens, 2 heads in layers of different widths.
KvStore filled(int64_t n, KvType type, uint64_t seed) {
  KvStore kv({2, {{64, 64}, {32, 80}}}, type);
  Random random(seed);
  for (int64_t l = 0; l < 2; ++l) {
    const KvWidths w = kv.shape().layers[static_cast<size_t>(l)];
    kv.append(l, floats(random, n * 2 * w.key).data(), floats(random, n * 2 * w.value).data(), n);
  }
  kv.advance(n);
  return kv;
}

TEST(KvStore, BytesAreThoseOfTheFileAndTheFileReadsBack) {
  Random random(3);
  for (int round = 0; round < 20; ++round) {
    const KvType type = random.between(0, 1) == 0 ? KvType::f32 : KvType::f16;
    KvStore kv = filled(100, type, static_cast<uint64_t>(round));
    if (round % 3 == 0) kv.watch({true, 50});
    for (int64_t l = 0; l < 2; ++l) {
      for (int64_t h = 0; h < 2; ++h) {
        for (const KvFormat& f : {kQ8, kQ4, kKivi2, kKivi4}) {
          const auto count = static_cast<int64_t>(random.between(0, 1) * random.between(0, 24));
          ASSERT_TRUE(kv.encode(l, h, count, f).ok());
        }
        ASSERT_TRUE(kv.seal(l, h, static_cast<int64_t>(random.between(0, 3)), nullptr).ok());
        if (random.between(0, 2) == 0) {
          KvEntries e = kv.entries(l, h);
          e.bias = floats(random, e.size());
          ASSERT_TRUE(kv.rebuild(l, h, e, 30, kQ8).ok());
          ASSERT_TRUE(kv.encode(l, h, 7, kQ8).ok());
        }
        if (round % 3 == 0) kv.note(l, h, floats(random, kv.held(l, h)), floats(random, kv.held(l, h) - 2));
      }
    }
    const std::string file = kv.write();
    EXPECT_EQ(file.size(), kv.header_bytes() + kv.bytes());
    const auto back = KvStore::read(file, kv.shape(), type);
    ASSERT_TRUE(back.ok()) << back.error().message;
    EXPECT_EQ(back->write(), file);
    EXPECT_EQ(back->bytes(), kv.bytes());
    EXPECT_EQ(kv.copy().write(), file);
    for (int64_t l = 0; l < 2; ++l) {
      for (int64_t h = 0; h < 2; ++h) {
        const KvEntries a = kv.entries(l, h), b = back->entries(l, h);
        EXPECT_EQ(a.positions, b.positions);
        EXPECT_EQ(a.keys, b.keys);
        EXPECT_EQ(a.values, b.values);
        EXPECT_EQ(a.bias, b.bias);
      }
    }
    for (size_t cut = 0; cut < file.size(); cut += 1 + file.size() / 97) {
      EXPECT_FALSE(KvStore::read(std::string_view(file).substr(0, cut), kv.shape(), type).ok()) << cut;
    }
    EXPECT_FALSE(KvStore::read(file + "x", kv.shape(), type).ok());
    EXPECT_FALSE(KvStore::read(file, {2, {{64, 64}, {32, 64}}}, type).ok());
    for (int k = 0; k < 200; ++k) {  // damage is an error or another cache, never a crash
      std::string damaged = file;
      damaged[static_cast<size_t>(random.between(0, file.size() - 1))] ^= static_cast<char>(1 << random.between(0, 7));
      const auto read = KvStore::read(damaged, kv.shape(), type);
      if (read.ok()) {
        EXPECT_EQ(read->write().size(), read->header_bytes() + read->bytes());
      }
    }
  }
}

TEST(KvStore, TokensStayInTheirPlaces) {
  KvStore kv = filled(90, KvType::f32, 4);
  const KvEntries before = kv.entries(0, 1);
  ASSERT_TRUE(kv.encode(0, 1, 20, kQ8).ok());
  ASSERT_TRUE(kv.encode(0, 1, 12, kQ8).ok());
  EXPECT_EQ(kv.segments(0, 1).size(), 2u) << "tokens of one format share a segment";
  ASSERT_TRUE(kv.encode(0, 1, 20, kKivi2).ok());  // a short last group
  ASSERT_TRUE(kv.encode(0, 1, 8, kKivi2).ok());
  EXPECT_EQ(kv.segments(0, 1).size(), 4u);
  EXPECT_EQ(kv.held(0, 1), 90);
  EXPECT_EQ(kv.in_window(0, 1), 30);
  const KvEntries after = kv.entries(0, 1);
  EXPECT_EQ(after.positions, before.positions);
  for (size_t i = 0; i < before.keys.size(); ++i) {
    const double most = i < 32 * 64 ? 0.02 : i < 60 * 64 ? 0.4 : 0;
    ASSERT_NEAR(after.keys[i], before.keys[i], most);
  }
  kv.truncate(40);  // the segment with tokens at 40 and later goes whole
  EXPECT_EQ(kv.held(0, 1), 32);
  EXPECT_EQ(kv.held(0, 0), 40);
  EXPECT_EQ(kv.length(), 40);
  // Some tokens of all formats, chosen anew and kept in one.
  KvEntries some;
  for (int64_t i = 0; i < 30; i += 3) {
    some.positions.push_back(before.positions[static_cast<size_t>(i)]);
    some.keys.insert(some.keys.end(), before.keys.begin() + i * 64, before.keys.begin() + (i + 1) * 64);
    some.values.insert(some.values.end(), before.values.begin() + i * 64, before.values.begin() + (i + 1) * 64);
  }
  ASSERT_TRUE(kv.rebuild(0, 1, some, 4, kQ8).ok());
  EXPECT_EQ(kv.held(0, 1), 10);
  EXPECT_EQ(kv.in_window(0, 1), 4);
  EXPECT_EQ(kv.entries(0, 1).positions, some.positions);
  EXPECT_FALSE(kv.encode(0, 1, 5, kQ8).ok());
  EXPECT_FALSE(kv.rebuild(0, 2, some, 4, kQ8).ok());
  EXPECT_FALSE(kv.encode(0, 1, 1, {KvFormat::Kind::coded, false, {3, false, true, 32}, {8, false, true, 32}}).ok());
}

std::vector<float> run(const Lm& lm, std::span<const int32_t> tokens, KvStore& kv, unsigned threads = 2) {
  ThreadPool pool(threads);
  std::vector<float> out;
  const auto status = lm.forward(tokens, kv, Lm::Logits::all, out, pool);
  EXPECT_TRUE(status.ok()) << status.error().message;
  return out;
}

std::unique_ptr<Lm> load(const TinyModel& tiny, Isa isa = default_isa()) {
  ThreadPool pool(2);
  auto lm = Lm::load(tiny.model, {Precision::exact, KvType::f32, isa}, pool, quiet_progress());
  EXPECT_TRUE(lm.ok()) << lm.error().message;
  return std::move(lm).value();
}

// The same numbers kept plain: what attention over codes must equal.
TEST(KvStore, AttentionOverCodesEqualsAttentionOverWhatTheyDecodeTo) {
  for (const std::string name : {"llama", "gemma2", "qwen3"}) {
    const TinyModel tiny(name);
    const LmConfig& c = tiny.model.config;
    for (Isa isa : available_isas()) {
      const auto lm = load(tiny, isa);
      for (const KvFormat& f : {kQ8, kQ4, kKivi4, kKivi2}) {
        if (!f.check({c.head_dim, c.head_dim}).ok()) continue;
        KvStore coded = lm->new_kv();
        const auto exact = run(*lm, tiny.sequence(0).first(16), coded);
        KvStore plain = coded.copy();
        for (int64_t l = 0; l < c.layers; ++l) {
          for (int64_t h = 0; h < c.kv_heads; ++h) {
            ASSERT_TRUE(coded.encode(l, h, 8 + h, f).ok());
            const KvEntries e = coded.entries(l, h);
            ASSERT_TRUE(plain.rebuild(l, h, e, e.size(), f).ok());
          }
        }
        for (int64_t step : {1, 2, 5}) {
          const auto more = tiny.sequence(1).subspan(static_cast<size_t>(step), static_cast<size_t>(step));
          KvStore a = coded.copy(), b = plain.copy();
          const auto got = run(*lm, more, a), want = run(*lm, more, b);
          for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-4) << name << ", " << isa_name(isa);
        }
      }
    }
  }
}

// A token that stands for two is attended to like two tokens.
TEST(KvStore, ABiasIsTheLogarithmOfHowManyTokensOneStandsFor) {
  const TinyModel tiny("llama");
  const LmConfig& c = tiny.model.config;
  const auto lm = load(tiny);
  for (const KvFormat& f : {KvFormat{KvFormat::Kind::f32}, kQ8}) {
    KvStore twice = lm->new_kv();
    run(*lm, tiny.sequence(0).first(16), twice);
    KvStore once = twice.copy();
    for (int64_t l = 0; l < c.layers; ++l) {
      for (int64_t h = 0; h < c.kv_heads; ++h) {
        KvEntries e = twice.entries(l, h);
        const int64_t d = c.head_dim;
        std::copy_n(e.keys.begin() + 4 * d, d, e.keys.begin() + 5 * d);
        std::copy_n(e.values.begin() + 4 * d, d, e.values.begin() + 5 * d);
        ASSERT_TRUE(twice.rebuild(l, h, e, 6, f).ok());
        e.positions.erase(e.positions.begin() + 5);
        for (auto* rows : {&e.keys, &e.values}) rows->erase(rows->begin() + 5 * d, rows->begin() + 6 * d);
        e.bias.assign(15, 0.0f);
        e.bias[4] = std::log(2.0f);
        ASSERT_TRUE(once.rebuild(l, h, e, 6, f).ok());
      }
    }
    for (size_t n : {1, 8}) {
      KvStore a = twice.copy(), b = once.copy();
      const auto want = run(*lm, tiny.sequence(1).first(n), a), got = run(*lm, tiny.sequence(1).first(n), b);
      for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-4);
    }
  }
}

TEST(KvStore, NotesHowMuchKeysAreAttendedTo) {
  for (const std::string name : {"llama", "gemma3"}) {
    const TinyModel tiny(name);
    const LmConfig& c = tiny.model.config;
    const auto lm = load(tiny);
    KvStore dense = lm->new_kv(), kv = lm->new_kv(), pieces = lm->new_kv(), single = lm->new_kv();
    const int64_t n = tiny.length, recent = n - 5;
    for (KvStore* s : {&kv, &pieces, &single}) s->watch({true, recent});
    const auto logits = run(*lm, tiny.sequence(0), kv);
    EXPECT_EQ(logits, run(*lm, tiny.sequence(0), dense)) << "watching changes nothing";
    run(*lm, tiny.sequence(0).first(7), pieces);
    run(*lm, tiny.sequence(0).subspan(7), pieces);
    run(*lm, tiny.sequence(0), single, 1);
    for (int64_t l = 0; l < c.layers; ++l) {
      for (int64_t h = 0; h < c.kv_heads; ++h) {
        const KvEntries a = kv.entries(l, h), b = pieces.entries(l, h);
        EXPECT_EQ(a.mass, single.entries(l, h).mass) << "for any number of threads";
        double mass = 0, late = 0;
        for (size_t i = 0; i < a.mass.size(); ++i) {
          EXPECT_NEAR(a.mass[i], b.mass[i], 1e-4);
          EXPECT_NEAR(a.recent[i], b.recent[i], 1e-4);
          EXPECT_LE(a.recent[i], a.mass[i] + 1e-4);
          mass += a.mass[i];
          late += a.recent[i];
        }
        // Every query spends exactly one.
        EXPECT_NEAR(mass, static_cast<double>(n), 1e-3);
        EXPECT_NEAR(late, 5, 1e-3);
        EXPECT_GE(a.mass[0], 1 - 1e-4) << "the first query sees the first key alone";
      }
    }
    EXPECT_EQ(kv.bytes(), dense.bytes() + static_cast<uint64_t>(c.layers * c.kv_heads * n * 8));
    kv.watch({});
    EXPECT_EQ(kv.bytes(), dense.bytes());
  }
}

TEST(KvStore, UnturnedKeysDoNotDependOnWhereTheTokenStands) {
  for (const std::string name : {"llama", "gemma3", "smollm3"}) {
    const TinyModel tiny(name);
    const LmConfig& c = tiny.model.config;
    const auto lm = load(tiny);
    // In the first layer keys depend on the token and its position alone.
    const std::vector<int32_t> same(9, tiny.tokens[3]);
    KvStore kv = lm->new_kv();
    run(*lm, same, kv);
    for (int64_t h = 0; h < c.kv_heads; ++h) {
      KvEntries e = kv.entries(0, h);
      for (int64_t i = 0; i < e.size(); ++i)
        lm->unturn(0, h, e.positions[static_cast<size_t>(i)], e.keys.data() + i * c.head_dim);
      for (int64_t i = 1; i < e.size(); ++i) {
        for (int64_t d = 0; d < c.head_dim; ++d)
          EXPECT_NEAR(e.keys[static_cast<size_t>(i * c.head_dim + d)], e.keys[static_cast<size_t>(d)], 1e-4) << name;
      }
    }
  }
}

// 8,192 tokens of 24 heads: 50 MB plain, less than 15 MB in 4 bits. The process must give back what the store does.
TEST(KvStore, MemoryOfTheProcessFalls) {
  const auto measure = [] {
    return_free_memory();
    return static_cast<double>(current_anonymous_memory());
  };
  KvStore kv({4, std::vector<KvWidths>(6, {64, 64})}, KvType::f16);
  Random random(9);
  const double before = measure();
  const auto rows = floats(random, 512 * 4 * 64);
  for (int piece = 0; piece < 16; ++piece) {
    for (int64_t l = 0; l < 6; ++l) kv.append(l, rows.data(), rows.data(), 512);
    kv.advance(512);
  }
  const double full = measure() - before, bytes = static_cast<double>(kv.bytes());
  EXPECT_GT(full, 0.95 * bytes);
  EXPECT_LT(full, 1.15 * bytes + 2e6);
  for (int64_t l = 0; l < 6; ++l) {
    for (int64_t h = 0; h < 4; ++h) ASSERT_TRUE(kv.encode(l, h, 8192 - 64, kQ4).ok());
  }
  const double left = measure() - before, now = static_cast<double>(kv.bytes());
  EXPECT_LT(now, 0.3 * bytes);
  EXPECT_GT(left, 0.95 * now);
  EXPECT_LT(left, 1.15 * now + 3e6) << "bytes() says " << now;
}

// Writes the seeds of fuzz/corpus/kv_cache; run once by hand, as tests/formats/fuzz_seeds_test.cpp.
TEST(FuzzCorpus, DISABLED_WriteCacheSeeds) {
  const std::string folder = std::string(PITH_SOURCE_DIR) + "/fuzz/corpus/kv_cache/";
  for (const KvType type : {KvType::f16, KvType::f32}) {
    KvStore kv({2, {{32, 32}, {16, 48}}}, type);
    Random random(1);
    for (int64_t l = 0; l < 2; ++l) {
      const KvWidths w = kv.shape().layers[static_cast<size_t>(l)];
      kv.append(l, floats(random, 40 * w.key).data(), floats(random, 40 * w.value).data(), 20);
    }
    kv.advance(20);
    kv.watch({true, 5});
    ASSERT_TRUE(kv.encode(0, 0, 8, kQ8).ok() && kv.encode(1, 0, 8, kKivi4).ok() && kv.seal(0, 1, 4, nullptr).ok());
    kv.note(0, 0, floats(random, 20), floats(random, 20));
    KvEntries e = kv.entries(1, 1);
    e.positions.erase(e.positions.begin() + 3);
    for (auto* rows : {&e.keys, &e.values}) rows->resize(rows->size() / 20 * 19);
    e.bias = floats(random, 19), e.mass.resize(19), e.recent.resize(19);
    ASSERT_TRUE(kv.rebuild(1, 1, e, 5, kQ4).ok());
    ASSERT_TRUE(write_file(folder + (type == KvType::f16 ? "f16" : "f32"), kv.write(), true).ok());
  }
}

}  // namespace
}  // namespace pith::test
