#include "runtime/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <random>

#include "base/file.h"
#include "base/zstd.h"
#include "runtime/tokenizer_models.h"
#include "runtime/tokenizer_normalize.h"
#include "runtime/tokenizer_regex.h"
#include "runtime/tokenizer_utf8.h"

namespace pith {
namespace {

using Json = nlohmann::json;
using Kind = TokenizerSpec::Kind;
using TokenType = TokenizerSpec::TokenType;

Json zoo() {
  static const Json data = [] {
    const auto file = MappedFile::open(PITH_SOURCE_DIR "/testdata/tokenizer/zoo.json.zst");
    if (!file.ok()) return Json();
    const auto text = zstd_decompress((*file)->bytes(), 1u << 26);
    return text.ok() ? Json::parse(*text) : Json();
  }();
  return data;
}

Tokenizer load(const Json& json) {
  auto spec = tokenizer_from_hf(json, nullptr, nullptr, Limits());
  EXPECT_TRUE(spec.ok()) << spec.error().message;
  auto tokenizer = Tokenizer::create(std::move(*spec));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  return std::move(*tokenizer);
}

std::vector<int32_t> ids_of(const Tokenizer& t, std::string_view text, bool special = false, bool parse = false) {
  auto ids = t.encode(text, {.add_special = special, .parse_special = parse});
  EXPECT_TRUE(ids.ok()) << ids.error().message;
  return ids.ok() ? *ids : std::vector<int32_t>();
}

// All 256 bytes, the given merges ("a b") of their printable forms, and two control tokens.
TokenizerSpec byte_spec(const std::vector<std::pair<std::string, std::string>>& merges, std::string pattern = "") {
  TokenizerSpec spec;
  spec.kind = Kind::byte_bpe;
  for (int b = 0; b < 256; ++b) {
    const char c = static_cast<char>(b);
    spec.tokens.push_back(to_byte_characters({&c, 1}));
  }
  for (const auto& [a, b] : merges) spec.tokens.push_back(a + b);
  spec.merges = merges;
  spec.types.assign(spec.tokens.size(), TokenType::normal);
  for (const char* control : {"<|a|>", "<|im_end|>"}) {
    spec.tokens.emplace_back(control);
    spec.types.push_back(TokenType::control);
  }
  if (!pattern.empty()) spec.splits.push_back({.pattern = std::move(pattern)});
  return spec;
}

Tokenizer made(TokenizerSpec spec) {
  auto tokenizer = Tokenizer::create(std::move(spec));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  return std::move(*tokenizer);
}

std::string random_bytes(size_t size, unsigned seed) {
  std::mt19937 rng(seed);
  std::string out;
  while (out.size() < size) {
    const unsigned kind = rng() % 4;
    if (kind == 0) {
      out.push_back(static_cast<char>(rng() % 256));
    } else if (kind == 1) {
      append_utf8(out, 0x80 + rng() % 0x3000);
    } else {
      out.push_back(static_cast<char>("abcd e\n'"[rng() % 8]));
    }
  }
  return out;
}

// ---- independent references ----------------------------------------------------------------------------------------

// Ids of the packages `tokenizers` and `sentencepiece` (tests/peers/make_tokenizer_fixtures.py).
TEST(Tokenizer, EqualsItsPackages) {
  const Json data = zoo();
  ASSERT_TRUE(data.is_object());
  const auto text = data["text"].get<std::string>(), plain = data["plain"].get<std::string>();
  ASSERT_GE(data["cases"].size(), 15u);
  for (const Json& one : data["cases"]) {
    SCOPED_TRACE(one["name"].get<std::string>());
    const Tokenizer t = load(one["tokenizer"]);
    const auto want = one["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(ids_of(t, plain), want);
    EXPECT_EQ(t.decode(want), one["decoded"].get<std::string>());
    if (!one.contains("parsed")) continue;
    EXPECT_EQ(ids_of(t, text, false, true), one["parsed"].get<std::vector<int32_t>>());
    EXPECT_EQ(ids_of(t, text, true, true), one["special"].get<std::vector<int32_t>>());
    EXPECT_EQ(ids_of(t, text, false, false), one["text_only"].get<std::vector<int32_t>>());
  }
}

// The definition of BPE, word for word: while any pair of neighbours has a merge, join the leftmost best-ranked one.
std::vector<std::string> plain_bpe(std::string_view text,
                                   const std::vector<std::pair<std::string, std::string>>& merges) {
  std::vector<std::string> parts;
  for (const char c : text) parts.push_back(to_byte_characters({&c, 1}));
  while (true) {
    size_t best = merges.size(), place = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const size_t rank = static_cast<size_t>(
          std::find(merges.begin(), merges.end(), std::pair(parts[i], parts[i + 1])) - merges.begin());
      if (rank < best) best = rank, place = i;
    }
    if (best == merges.size()) return parts;
    parts[place] += parts[place + 1];
    parts.erase(parts.begin() + static_cast<ptrdiff_t>(place) + 1);
  }
}

TEST(Tokenizer, BpeIsItsDefinition) {
  const std::vector<std::pair<std::string, std::string>> merges = {{"a", "b"}, {"b", "a"},   {"ab", "a"},
                                                                   {"c", "c"}, {"cc", "cc"}, {"ab", "ab"},
                                                                   {"b", "c"}, {"aba", "b"}, {"d", "ab"}};
  const Tokenizer t = made(byte_spec(merges));
  std::mt19937 rng(3);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    const size_t size = 1 + rng() % 40;
    while (text.size() < size) text.push_back("abcd"[rng() % 4]);
    std::vector<std::string> got;
    for (const int32_t id : ids_of(t, text)) got.push_back(t.spec().tokens[static_cast<size_t>(id)]);
    EXPECT_EQ(got, plain_bpe(text, merges)) << text;
  }
}

TEST(Tokenizer, UnigramIsTheBestPath) {
  TokenizerSpec spec;
  spec.kind = Kind::unigram;
  spec.unk = 0;
  const std::vector<std::pair<const char*, float>> words = {{"<unk>", 0},   {"a", -2.5f},  {"b", -3},
                                                            {"ab", -4.25f}, {"ba", -4},    {"aba", -6.5f},
                                                            {"é", -5},      {"bé", -6.1f}, {"aa", -4.5f}};
  for (const auto& [word, score] : words) {
    spec.tokens.emplace_back(word);
    spec.scores.push_back(score);
    spec.types.push_back(spec.tokens.size() == 1 ? TokenType::unknown : TokenType::normal);
  }
  const Tokenizer t = made(spec);
  const std::function<double(std::string_view)> best = [&](std::string_view text) {
    if (text.empty()) return 0.0;
    double top = -16.5 + best(text.substr(utf8_at(text, 0).length));  // unknown: the lowest score less ten
    for (size_t id = 1; id < words.size(); ++id) {
      if (text.starts_with(words[id].first)) {
        top = std::max(top, words[id].second + best(text.substr(std::string_view(words[id].first).size())));
      }
    }
    return top;
  };
  std::mt19937 rng(5);
  const std::vector<std::string> letters = {"a", "b", "é", "x"};
  for (int round = 0; round < 200; ++round) {
    std::string text, joined;
    for (size_t n = 1 + rng() % 9; n > 0; --n) {
      const std::string& letter = letters[rng() % 4];
      text += letter == "x" && text.ends_with('x') ? "a" : letter;  // a run of unknown characters would be one token
    }
    double score = 0;
    for (const int32_t id : ids_of(t, text)) {
      score += id == 0 ? -16.5 : words[static_cast<size_t>(id)].second;
      joined += id == 0 ? "x" : words[static_cast<size_t>(id)].first;
    }
    EXPECT_EQ(joined, text);
    EXPECT_NEAR(score, best(text), 1e-5) << text;
  }
  EXPECT_EQ(ids_of(t, "axxxb"), (std::vector<int32_t>{1, 0, 2}));
}

// ---- exact properties ----------------------------------------------------------------------------------------------

TEST(Tokenizer, NoByteIsLost) {
  const std::string pattern = R"(\p{N}| ?\p{L}+|\s+(?!\S)|[^\s\p{L}\p{N}]+)";
  const Tokenizer bytes = made(byte_spec({{"a", "b"}, {"b", "c"}, {"ab", "c"}}, pattern));
  TokenizerSpec spm = byte_spec({});
  spm.kind = Kind::spm_bpe;
  spm.byte_fallback = true;
  spm.tokens.clear();
  for (int b = 0; b < 256; ++b) {
    constexpr char kHex[] = "0123456789ABCDEF";
    spm.tokens.push_back(std::string("<0x") + kHex[b / 16] + kHex[b % 16] + ">");
  }
  spm.types.assign(256, TokenType::byte);
  for (const char* word : {"a", "b", "ab", "▁", "▁a"}) {
    spm.tokens.emplace_back(word);
    spm.types.push_back(TokenType::normal);
  }
  spm.scores.assign(spm.tokens.size(), -1);
  spm.normalizers.push_back({TokenizerSpec::Normalizer::Op::replace, " ", "▁"});
  TokenizerSpec unigram = spm;
  unigram.kind = Kind::unigram;
  const Tokenizer pieces = made(spm), paths = made(unigram);
  for (unsigned seed = 0; seed < 60; ++seed) {
    const std::string text = random_bytes(1 + seed * 7, seed);
    EXPECT_EQ(bytes.decode(ids_of(bytes, text)), text);
    if (text.find("▁") != std::string::npos) continue;
    EXPECT_EQ(pieces.decode(ids_of(pieces, text)), text);
    EXPECT_EQ(paths.decode(ids_of(paths, text)), text);
  }
}

TEST(Tokenizer, BrokenBytesAreCutLikeReplacements) {
  const Json data = zoo();
  const Tokenizer t = load(data["cases"][0]["tokenizer"]);
  const auto lengths = [&](std::string_view text) {
    std::vector<size_t> out;
    for (const int32_t id : ids_of(t, text)) out.push_back(t.decode({&id, 1}).size());
    return out;
  };
  EXPECT_EQ(repair_utf8("a\x80\xe2\x82z\xf0"), "a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz\xef\xbf\xbd");
  EXPECT_EQ(repair_utf8("\xed\xa0\x80\xc0\xaf\xf5"), repair_utf8("\xff\xff\xff\xff\xff\xff"));  // surrogate, overlong
  EXPECT_EQ(repair_utf8("é😀"), "é😀");
  // A broken byte ends the word before it and begins no word, and what follows is as after U+FFFD.
  EXPECT_EQ(lengths("hello\xff world").back(), lengths("hello\xef\xbf\xbd world").back());
  EXPECT_EQ(t.decode(ids_of(t, "hello\xff world")), "hello\xff world");
}

TEST(Tokenizer, StreamNeverSplitsCharacters) {
  const Tokenizer t = made(byte_spec({{"a", "b"}}));
  for (unsigned seed = 0; seed < 40; ++seed) {
    const std::string text = seed % 2 == 0 ? random_bytes(200, seed) : repair_utf8(random_bytes(200, seed));
    std::string joined;
    StreamDecoder decoder(t);
    for (const int32_t id : ids_of(t, text)) {
      const std::string part = decoder.push(id);
      if (valid_utf8(text)) {
        EXPECT_TRUE(valid_utf8(part));
      }
      joined += part;
    }
    joined += decoder.finish();
    EXPECT_EQ(joined, text);
  }
}

TEST(Tokenizer, SpecialTokens) {
  TokenizerSpec spec = byte_spec({{"a", "b"}});
  const auto a = static_cast<int32_t>(spec.tokens.size() - 2), end = a + 1;
  spec.bos = a;
  spec.add_bos = true;
  const Tokenizer t = made(spec);
  EXPECT_EQ(ids_of(t, "b<|a|>b", false, true), (std::vector<int32_t>{'b', a, 'b'}));
  EXPECT_EQ(ids_of(t, "<|a|>", false, false).size(), 5u);
  EXPECT_EQ(ids_of(t, "b", true, false), (std::vector<int32_t>{a, 'b'}));
  EXPECT_EQ(ids_of(t, "", true, false), (std::vector<int32_t>{a}));
  EXPECT_TRUE(ids_of(t, "").empty());
  EXPECT_EQ(t.decode(std::vector<int32_t>{a, 'b', end}), "<|a|>b<|im_end|>");
  EXPECT_EQ(t.decode(std::vector<int32_t>{a, 'b', end}, {.skip_special = true}), "b");
  EXPECT_EQ(t.decode(std::vector<int32_t>{-5, 'b', 1 << 30}), "b");
  EXPECT_TRUE(t.is_stop(end));  // by its name
  EXPECT_FALSE(t.is_stop(a));
  EXPECT_TRUE(t.is_special(a));
  EXPECT_EQ(t.find("<|a|>"), a);
  EXPECT_EQ(t.find("nope"), -1);
  EXPECT_EQ(t.vocab_size(), 259);
}

TEST(Tokenizer, PrefixSpaceComesOffOnce) {
  const Json data = zoo();
  for (const Json& one : data["cases"]) {
    if (one["name"] != "llama2") continue;
    const Tokenizer t = load(one["tokenizer"]);
    const auto ids = ids_of(t, " the boy  ");
    EXPECT_EQ(t.decode(ids), " the boy  ");
    StreamDecoder decoder(t);
    std::string joined;
    for (const int32_t id : ids) joined += decoder.push(id);
    EXPECT_EQ(joined + decoder.finish(), " the boy  ");
    return;
  }
  FAIL() << "no such tokenizer in the zoo";
}

TEST(Tokenizer, UnicodeForms) {
  const auto check = [](std::string_view text, std::string_view nfc, std::string_view nfd, std::string_view nfkc) {
    EXPECT_EQ(unicode_normalize(text, UnicodeForm::nfc), nfc);
    EXPECT_EQ(unicode_normalize(text, UnicodeForm::nfd), nfd);
    EXPECT_EQ(unicode_normalize(text, UnicodeForm::nfkc), nfkc);
  };
  check("e\u0301", "\u00e9", "e\u0301", "\u00e9");
  check("\u212b", "\u00c5", "A\u030a", "\u00c5");
  check("\ud55c", "\ud55c", "\u1112\u1161\u11ab", "\ud55c");
  check("\u1112\u1161\u11ab", "\ud55c", "\u1112\u1161\u11ab", "\ud55c");
  check("q\u0307\u0323", "q\u0323\u0307", "q\u0323\u0307", "q\u0323\u0307");  // canonical order
  check("\u1e0b\u0323", "\u1e0d\u0307", "d\u0323\u0307", "\u1e0d\u0307");
  check("\ufb01\u2075", "\ufb01\u2075", "\ufb01\u2075", "fi5");
  check("\u0958", "\u0915\u093c", "\u0915\u093c", "\u0915\u093c");  // excluded from composition
  check("a\xff\u0301", "a\xff\u0301", "a\xff\u0301", "a\xff\u0301");
  EXPECT_EQ(unicode_lower("ÀÉ ΑΒ İx\xff"), "àé αβ i\u0307x\xff");
}

TEST(Tokenizer, PatternsMeanWhatOnigurumaMeans) {
  const auto matches = [](const char* pattern, std::string_view text) {
    RegexScratch scratch;
    std::vector<std::pair<size_t, size_t>> found;
    const auto regex = Regex::compile(pattern);
    EXPECT_TRUE(regex.ok()) << regex.error().message;
    EXPECT_TRUE(regex->find_all(text, scratch, found).ok());
    std::vector<std::string> out;
    for (const auto& [begin, end] : found) out.emplace_back(text.substr(begin, end - begin));
    return out;
  };
  using Strings = std::vector<std::string>;
  EXPECT_EQ(matches("\\s", "a\u180e\u0085b\u3000"), (Strings{"\u0085", "\u3000"}));  // U+180E is no white space
  EXPECT_EQ(matches("[^\\s]+", "ab c"), (Strings{"ab", "c"}));
  EXPECT_EQ(matches("\\p{Han}+", "、漢字ー"), (Strings{"漢字"}));  // not its script extensions
  EXPECT_EQ(matches("[\\p{L}&&[^\\p{Han}]]+", "ab漢c"), (Strings{"ab", "c"}));
  EXPECT_EQ(matches("[^a-z&&[^aeiou]]+", "abcde"), (Strings{"a", "e"}));
  EXPECT_EQ(matches("\\h+", "xAf9g"), (Strings{"Af9"}));
  EXPECT_EQ(matches("(?=b)", "abab"), (Strings{"", ""}));
  EXPECT_EQ(matches("[^\\p{L}]+",
                    "a\xff\xfe"
                    "b"),
            (Strings{"\xff\xfe"}));
  EXPECT_FALSE(Regex::compile("(").ok());
  EXPECT_FALSE(Regex::compile("[a").ok());
  EXPECT_FALSE(Regex::compile("a\\").ok());
  EXPECT_FALSE(Regex::compile("[a[b]c]").ok());
}

TEST(Tokenizer, EveryGgufPreTokenizerCompiles) {
  const auto unknown = pre_tokenizer_from_gguf("no-such");
  ASSERT_FALSE(unknown.ok());
  const std::string& message = unknown.error().message;
  std::string names = message.substr(message.find("known: ") + 7);
  int count = 0;
  for (size_t at = 0; at < names.size();) {
    const size_t end = std::min(names.find(' ', at), names.size());
    const auto pre = pre_tokenizer_from_gguf(names.substr(at, end - at));
    ASSERT_TRUE(pre.ok());
    for (const auto& step : pre->splits) EXPECT_TRUE(Regex::compile(step.pattern).ok()) << step.pattern;
    ++count;
    at = end + 1;
  }
  EXPECT_GT(count, 50);
}

// ---- hostile input -------------------------------------------------------------------------------------------------

TEST(Tokenizer, RefusesWhatCannotWork) {
  const auto message = [](TokenizerSpec spec) {
    const auto result = Tokenizer::create(std::move(spec));
    EXPECT_FALSE(result.ok());
    return result.ok() ? "" : result.error().message;
  };
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  EXPECT_TRUE(has(message({}), "no tokenizer"));
  TokenizerSpec spec = byte_spec({{"a", "b"}});
  spec.merges.clear();
  EXPECT_TRUE(has(message(spec), "without merges"));
  spec = byte_spec({{"a", "b"}});
  spec.merges.emplace_back("zz", "y");
  EXPECT_TRUE(has(message(spec), "'zz' is not in the vocabulary"));
  spec = byte_spec({{"a", "b"}});
  spec.bos = 100000;
  EXPECT_TRUE(has(message(spec), "bos is token 100000"));
  spec = byte_spec({{"a", "b"}});
  spec.types.pop_back();
  EXPECT_TRUE(has(message(spec), "token types"));
  spec = byte_spec({{"a", "b"}}, "(unclosed");
  EXPECT_TRUE(has(message(spec), "(unclosed"));
  spec = byte_spec({{"a", "b"}});
  spec.kind = Kind::unigram;
  EXPECT_TRUE(has(message(spec), "score"));
  spec.scores.assign(spec.tokens.size(), NAN);
  EXPECT_TRUE(has(message(spec), "finite"));
  spec = byte_spec({{"a", "b"}});
  spec.added.push_back({.id = 99999});
  EXPECT_TRUE(has(message(spec), "added token 99999"));
  spec = byte_spec({{"a", "b"}});
  spec.normalizers.push_back({TokenizerSpec::Normalizer::Op::charsmap, "", std::string("\xff\xff\xff\x7f xx")});
  EXPECT_TRUE(has(message(spec), "character map"));
}

TEST(Tokenizer, HostileModelsEnd) {
  // A pattern that backtracks without end gives up with an error.
  const Tokenizer slow = made(byte_spec({{"a", "b"}}, "(a+a+)+[bc]"));
  const auto begin = std::chrono::steady_clock::now();
  const auto ids = slow.encode(std::string(200, 'a'));
  EXPECT_FALSE(ids.ok());
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), 20);
  // So does a normaliser that grows.
  TokenizerSpec spec = byte_spec({{"a", "b"}});
  for (int i = 0; i < 20; ++i)
    spec.normalizers.push_back({TokenizerSpec::Normalizer::Op::replace, "a", "aaaaaaaaaaaaaaaa"});
  EXPECT_FALSE(made(spec).encode("aaaa").ok());
  // Random bytes as a character map never read outside of it.
  std::mt19937 rng(9);
  for (int round = 0; round < 500; ++round) {
    std::string blob;
    const uint32_t units = 1 + rng() % 64;
    const uint32_t bytes = units * 4;
    blob.append(reinterpret_cast<const char*>(&bytes), 4);
    for (uint32_t i = 0; i < bytes + rng() % 20; ++i)
      blob.push_back(static_cast<char>(rng() % 3 == 0 ? rng() % 256 : 0));
    const auto map = Charsmap::parse(blob);
    ASSERT_TRUE(map.ok());
    EXPECT_LE(map->apply(random_bytes(100, static_cast<unsigned>(round))).size(), 110u * 1024);
  }
}

// One long piece must not cost quadratic time.
TEST(Tokenizer, LongPieces) {
  const Tokenizer t = made(byte_spec({{"a", "a"}, {"aa", "aa"}, {"a", "b"}}));
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(ids_of(t, std::string(1u << 20, 'a')).size(), 1u << 18);
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), 10);
}

}  // namespace
}  // namespace pith
