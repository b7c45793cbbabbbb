#include "runtime/bpe_trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <queue>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "runtime/tokenizer_models.h"
#include "runtime/tokenizer_regex.h"

namespace pith {
namespace {

using Pair = std::pair<int32_t, int32_t>;

uint64_t key_of(Pair p) { return static_cast<uint64_t>(p.first) << 32 | static_cast<uint32_t>(p.second); }

// Pieces of the text with how often each occurs, in the order of their first occurrence.
Result<std::vector<std::pair<std::string_view, int64_t>>> count_pieces(
    std::string_view text, const std::vector<TokenizerSpec::Split>& splits) {
  std::vector<std::string_view> pieces{text}, next;
  RegexScratch scratch;
  for (const auto& step : splits) {
    if (step.op != TokenizerSpec::Split::Op::regex || step.behavior != TokenizerSpec::Split::Behavior::isolated ||
        step.invert) {
      return user_error("a tokenizer is only trained with pre-tokenizer steps that isolate what a pattern matches");
    }
    PITH_ASSIGN(const Regex regex, Regex::compile(step.pattern));
    next.clear();
    std::vector<std::pair<size_t, size_t>> matches;
    for (const std::string_view piece : pieces) {
      matches.clear();
      PITH_TRY(regex.find_all(piece, scratch, matches));
      size_t at = 0;
      for (const auto& [begin, end] : matches) {
        if (begin > at) next.push_back(piece.substr(at, begin - at));
        if (end > begin) next.push_back(piece.substr(begin, end - begin));
        at = end;
      }
      if (at < piece.size()) next.push_back(piece.substr(at));
    }
    pieces.swap(next);
  }
  std::unordered_map<std::string_view, size_t> index;
  std::vector<std::pair<std::string_view, int64_t>> counted;
  for (const std::string_view piece : pieces) {
    const auto [at, fresh] = index.try_emplace(piece, counted.size());
    if (fresh) counted.emplace_back(piece, 0);
    ++counted[at->second].second;
  }
  return counted;
}

struct Candidate {
  int64_t count;
  Pair pair;
  bool operator<(const Candidate& other) const {  // for a heap with the best on top
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

}  // namespace

Result<TokenizerSpec> train_bpe(std::string_view text, const BpeTrainerOptions& options) {
  const auto specials = static_cast<int64_t>(options.special.size());
  if (options.vocab < 256 + specials || options.vocab > (1 << 20)) {
    return user_error(fmt::format("vocabulary of {}; {} to {} are possible", options.vocab, 256 + specials, 1 << 20));
  }
  TokenizerSpec spec;
  spec.kind = TokenizerSpec::Kind::byte_bpe;
  spec.splits = options.splits;
  if (spec.splits.empty()) {
    PITH_ASSIGN(const auto pre, pre_tokenizer_from_gguf("llama-bpe"));
    spec.splits = pre.splits;
    spec.pre_name = "llama-bpe";
  }
  for (const std::string& token : options.special) {
    spec.added.push_back({.id = static_cast<int32_t>(spec.tokens.size()), .special = true});
    spec.tokens.push_back(token);
    spec.types.push_back(TokenizerSpec::TokenType::control);
  }
  if (specials > 0) spec.bos = 0;
  if (specials > 1) spec.eos = 1;
  for (int b = 0; b < 256; ++b) {
    const char c = static_cast<char>(b);
    spec.tokens.push_back(to_byte_characters({&c, 1}));
  }

  PITH_ASSIGN(const auto pieces, count_pieces(text, spec.splits));
  std::vector<std::vector<int32_t>> words;
  std::unordered_map<uint64_t, int64_t> counts;
  std::unordered_map<uint64_t, std::unordered_set<size_t>> places;  // words in which a pair occurs or occurred
  for (const auto& [piece, count] : pieces) {
    std::vector<int32_t> word;
    for (const char c : piece) word.push_back(static_cast<int32_t>(specials + static_cast<uint8_t>(c)));
    for (size_t i = 0; i + 1 < word.size(); ++i) {
      counts[key_of({word[i], word[i + 1]})] += count;
      places[key_of({word[i], word[i + 1]})].insert(words.size());
    }
    words.push_back(std::move(word));
  }
  std::priority_queue<Candidate> heap;
  for (const auto& [key, count] : counts) {
    heap.push({count, {static_cast<int32_t>(key >> 32), static_cast<int32_t>(key & 0xffffffffu)}});
  }
  std::unordered_set<std::string> known(spec.tokens.begin(), spec.tokens.end());
  while (static_cast<int64_t>(spec.tokens.size()) < options.vocab && !heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    const uint64_t key = key_of(best.pair);
    const int64_t now = counts[key];
    if (now != best.count) {  // counts changed since: back in line, or gone
      if (now > 0 && now < best.count) heap.push({now, best.pair});
      continue;
    }
    if (now < std::max<int64_t>(options.least_count, 1)) break;
    const auto [left, right] = best.pair;
    const std::string joined = spec.tokens[static_cast<size_t>(left)] + spec.tokens[static_cast<size_t>(right)];
    if (!known.insert(joined).second) {  // the same text by another way: a merge could not have an id of its own
      counts[key] = 0;
      continue;
    }
    const auto id = static_cast<int32_t>(spec.tokens.size());
    spec.merges.emplace_back(spec.tokens[static_cast<size_t>(left)], spec.tokens[static_cast<size_t>(right)]);
    spec.tokens.push_back(joined);
    std::unordered_set<uint64_t> grown;
    for (const size_t w : places[key]) {
      std::vector<int32_t>& word = words[w];
      const int64_t times = pieces[w].second;
      const auto tally = [&](int64_t by) {
        for (size_t i = 0; i + 1 < word.size(); ++i) {
          const uint64_t pair = key_of({word[i], word[i + 1]});
          counts[pair] += by;
          if (by > 0 && places[pair].insert(w).second) grown.insert(pair);
        }
      };
      tally(-times);
      size_t kept = 0;
      for (size_t i = 0; i < word.size(); ++kept) {
        if (i + 1 < word.size() && word[i] == left && word[i + 1] == right) {
          word[kept] = id;
          i += 2;
        } else {
          word[kept] = word[i++];
        }
      }
      word.resize(kept);
      tally(times);
    }
    counts.erase(key);
    places.erase(key);
    for (const uint64_t pair : grown) {  // only pairs with the new token can be new
      heap.push({counts[pair], {static_cast<int32_t>(pair >> 32), static_cast<int32_t>(pair & 0xffffffffu)}});
    }
  }
  spec.types.resize(spec.tokens.size(), TokenizerSpec::TokenType::normal);
  return spec;
}

}  // namespace pith
