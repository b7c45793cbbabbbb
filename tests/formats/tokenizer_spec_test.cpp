#include "formats/tokenizer_spec.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/zstd.h"
#include "formats/gguf_model.h"
#include "formats/json_text.h"
#include "represent/tiny_model.h"

namespace pith {
namespace {

using json = nlohmann::json;
using Spec = TokenizerSpec;

void expect_same(const Spec& a, const Spec& b) {
  EXPECT_EQ(a.kind, b.kind);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.scores, b.scores);
  EXPECT_EQ(a.types, b.types);
  EXPECT_EQ(a.merges, b.merges);
  ASSERT_EQ(a.normalizers.size(), b.normalizers.size());
  for (size_t i = 0; i < a.normalizers.size(); ++i) {
    EXPECT_EQ(a.normalizers[i].op, b.normalizers[i].op);
    EXPECT_EQ(a.normalizers[i].pattern, b.normalizers[i].pattern);
    EXPECT_EQ(a.normalizers[i].content, b.normalizers[i].content);
  }
  ASSERT_EQ(a.splits.size(), b.splits.size());
  for (size_t i = 0; i < a.splits.size(); ++i) {
    EXPECT_EQ(a.splits[i].op, b.splits[i].op);
    EXPECT_EQ(a.splits[i].pattern, b.splits[i].pattern);
    EXPECT_EQ(a.splits[i].invert, b.splits[i].invert);
    EXPECT_EQ(a.splits[i].behavior, b.splits[i].behavior);
    EXPECT_EQ(a.splits[i].prefix, b.splits[i].prefix);
  }
  ASSERT_EQ(a.added.size(), b.added.size());
  for (size_t i = 0; i < a.added.size(); ++i) {
    EXPECT_EQ(a.added[i].id, b.added[i].id);
    EXPECT_EQ(a.added[i].special, b.added[i].special);
    EXPECT_EQ(a.added[i].normalized, b.added[i].normalized);
    EXPECT_EQ(a.added[i].lstrip, b.added[i].lstrip);
    EXPECT_EQ(a.added[i].rstrip, b.added[i].rstrip);
    EXPECT_EQ(a.added[i].single_word, b.added[i].single_word);
  }
  EXPECT_EQ(a.pre_name, b.pre_name);
  EXPECT_EQ(a.byte_fallback, b.byte_fallback);
  EXPECT_EQ(a.fuse_unk, b.fuse_unk);
  EXPECT_EQ(a.ignore_merges, b.ignore_merges);
  EXPECT_EQ(a.strip_prefix_space, b.strip_prefix_space);
  EXPECT_EQ(std::tie(a.bos, a.eos, a.unk, a.pad, a.add_bos, a.add_eos),
            std::tie(b.bos, b.eos, b.unk, b.pad, b.add_bos, b.add_eos));
  EXPECT_EQ(a.stop, b.stop);
  EXPECT_EQ(a.chat_template, b.chat_template);
}

// Every field set to something.
Spec full() {
  Spec s = test::tiny_tokenizer();
  s.normalizers = {{Spec::Normalizer::Op::replace, " ", "_"},
                   {Spec::Normalizer::Op::charsmap, "", std::string("\0\xff", 2)}};
  s.splits = {
      {.op = Spec::Split::Op::regex, .pattern = "\\p{N}", .invert = true, .behavior = Spec::Split::Behavior::removed},
      {.op = Spec::Split::Op::metaspace, .pattern = "", .prefix = Spec::Split::Prefix::first}};
  s.added = {{.id = 3, .special = true, .lstrip = true},
             {.id = 1, .normalized = true, .rstrip = true, .single_word = true}};
  s.pre_name = "smollm";
  s.byte_fallback = s.ignore_merges = s.add_eos = true;
  s.bos = 1, s.eos = 2, s.unk = 0, s.pad = 2, s.stop = {5, 6};
  s.chat_template = "{{ messages }}";
  return s;
}

Spec sentencepiece() {
  Spec s;
  s.kind = Spec::Kind::spm_bpe;
  s.tokens = {"<unk>",
              "<s>",
              "</s>",
              "\xe2\x96\x81",
              "a",
              "b",
              "\xe2\x96\x81"
              "a",
              "ab",
              "<0x41>"};
  using T = Spec::TokenType;
  s.types = {T::unknown, T::control, T::control, T::normal, T::normal, T::normal, T::normal, T::normal, T::byte};
  s.scores = {0, 0, 0, -5, -6, -7, -1, -2, 0};
  s.normalizers = {{Spec::Normalizer::Op::prepend, "", "\xe2\x96\x81"},
                   {Spec::Normalizer::Op::replace, " ", "\xe2\x96\x81"}};
  s.byte_fallback = s.strip_prefix_space = s.add_bos = true;
  s.bos = 1, s.eos = 2, s.unk = 0;
  return s;
}

TEST(TokenizerSpec, PackedFormKeepsEverything) {
  Spec odd = sentencepiece();
  odd.scores[4] = -0.3f;  // not whole: kept bit for bit
  odd.scores[5] = -0.0f;
  Spec loose = full();
  loose.merges.emplace_back("no", "token");  // makes nothing that is in the vocabulary
  Spec early = full();
  std::reverse(early.merges.begin(), early.merges.end());  // merges use tokens before they are made
  for (const Spec& s : {full(), sentencepiece(), odd, loose, early, Spec{}}) {
    const std::string packed = pack_tokenizer(s);
    auto again = unpack_tokenizer(packed, {});
    ASSERT_TRUE(again.ok()) << again.error().message;
    expect_same(s, *again);
    EXPECT_EQ(packed, pack_tokenizer(*again));
  }
}

TEST(TokenizerSpec, DamagedPackedFormIsRefused) {
  const std::string packed = pack_tokenizer(full());
  for (size_t n = 0; n < packed.size(); ++n) EXPECT_FALSE(unpack_tokenizer(packed.substr(0, n), {}).ok()) << n;
  // Behind the compression: the plain bytes cut short.
  const auto plain = zstd_decompress(std::as_bytes(std::span(packed.data() + 1, packed.size() - 1)), 1 << 20);
  ASSERT_TRUE(plain.ok());
  for (size_t n = 0; n < plain->size(); n += 3)
    EXPECT_FALSE(
        unpack_tokenizer(packed.substr(0, 1) + zstd_compress(std::as_bytes(std::span(plain->data(), n)), 1), {}).ok())
        << n;
  // Merges that double a text forty times.
  std::string other = packed;
  other[0] = 9;
  auto r = unpack_tokenizer(other, {});
  ASSERT_FALSE(r.ok());
  EXPECT_NE(r.error().message.find("version 9"), std::string::npos);
}

TEST(TokenizerSpec, JsonSurvives) {
  Spec s = full();
  s.pre_name.clear();                                      // GGUF's, no place in tokenizer.json
  s.added = {{.id = 3, .special = true, .lstrip = true}};  // types follow from this list
  for (auto& t : s.types) t = Spec::TokenType::normal;
  s.types[3] = Spec::TokenType::control;
  s.byte_fallback = false, s.add_bos = true, s.strip_prefix_space = false;
  json generation = {{"eos_token_id", {2, 5, 6}}};
  auto again = tokenizer_from_hf(tokenizer_to_hf(s), tokenizer_config_to_hf(s), generation, {});
  ASSERT_TRUE(again.ok()) << again.error().message;
  expect_same(s, *again);
}

TEST(TokenizerSpec, GgufSurvives) {
  Spec bpe = test::tiny_tokenizer();
  auto pre = pre_tokenizer_from_gguf("smollm");
  ASSERT_TRUE(pre.ok());
  bpe.splits = pre->splits, bpe.ignore_merges = pre->ignore_merges, bpe.pre_name = "smollm";
  bpe.normalizers.clear(), bpe.added.clear();
  bpe.stop = {4};
  for (const Spec& s : {bpe, sentencepiece()}) {
    GgufMetadata m;
    const auto status = gguf_metadata_from_tokenizer(s, m);
    ASSERT_TRUE(status.ok()) << status.error().message;
    auto again = tokenizer_from_gguf(m, {});
    ASSERT_TRUE(again.ok()) << again.error().message;
    expect_same(s, *again);
  }
  // A tokenizer.json with the same steps is recognised without the name.
  bpe.pre_name.clear();
  GgufMetadata m;
  ASSERT_TRUE(gguf_metadata_from_tokenizer(bpe, m).ok());
  EXPECT_EQ(*m.get_string("tokenizer.ggml.pre"), "smollm");
  // Padded to the rows of the embedding.
  GgufMetadata padded;
  padded.set("general.architecture", GgufValue::string("llama"));
  padded.set("llama.vocab_size", GgufValue::u32(static_cast<uint32_t>(bpe.tokens.size()) + 3));
  ASSERT_TRUE(gguf_metadata_from_tokenizer(bpe, padded).ok());
  EXPECT_EQ(padded.find("tokenizer.ggml.tokens")->count(), bpe.tokens.size() + 3);
  bpe.splits.push_back({.op = Spec::Split::Op::regex, .pattern = "unheard of"});
  EXPECT_FALSE(gguf_metadata_from_tokenizer(bpe, m).ok());
}

// Ranks of merges become scores that give back the same order.
TEST(TokenizerSpec, MergesAndScoresExpressEachOther) {
  Spec s = sentencepiece();
  auto from_scores = tokenizer_from_hf(tokenizer_to_hf(s), {}, {}, {});
  ASSERT_TRUE(from_scores.ok()) << from_scores.error().message;
  const std::vector<std::pair<std::string, std::string>> want = {{"\xe2\x96\x81", "a"}, {"a", "b"}};
  EXPECT_EQ(from_scores->merges, want);
  GgufMetadata m;
  ASSERT_TRUE(gguf_metadata_from_tokenizer(*from_scores, m).ok());
  const auto scores = m.find("tokenizer.ggml.scores")->as_f32s();
  ASSERT_TRUE(scores.has_value());
  EXPECT_GT((*scores)[6], (*scores)[7]);
  EXPECT_GT((*scores)[7], (*scores)[4]);
}

TEST(TokenizerSpec, RefusalsSayWhatIsWrong) {
  const json good = tokenizer_to_hf(test::tiny_tokenizer());
  const auto refused = [](const json& j, const std::string& words) {
    auto r = tokenizer_from_hf(j, {}, {}, {});
    ASSERT_FALSE(r.ok()) << words;
    EXPECT_NE(r.error().message.find(words), std::string::npos) << r.error().message;
  };
  ASSERT_TRUE(tokenizer_from_hf(good, {}, {}, {}).ok());
  json j = good;
  j["model"]["type"] = "WordPiece";
  refused(j, "WordPiece");
  j = good;
  j["model"].erase("merges");
  refused(j, "no merges");
  j = good;
  j["model"]["vocab"]["far"] = 2000000000;
  refused(j, "largest token id");
  j = good;
  j["model"]["vocab"]["bad"] = -1;
  refused(j, "bad");
  j = good;
  j["model"]["vocab"]["again"] = 5;
  refused(j, "id 5 belongs to");
  j = good;
  j["model"]["merges"].push_back("only-one");
  refused(j, "only-one");
  j = good;
  j["normalizer"] = {{"type", "Nmt"}};
  refused(j, "Nmt");
  j = good;
  j["pre_tokenizer"] = {{"type", "UnicodeScripts"}};
  refused(j, "UnicodeScripts");
  j = good;
  j["model"] = nullptr;
  refused(j, "model");
  refused(json::array(), "object");
}

}  // namespace
}  // namespace pith
