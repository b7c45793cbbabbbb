#include "runtime/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <optional>
#include <unordered_map>

#include "runtime/tokenizer_models.h"
#include "runtime/tokenizer_normalize.h"
#include "runtime/tokenizer_regex.h"
#include "runtime/tokenizer_trie.h"
#include "runtime/tokenizer_utf8.h"

namespace pith {
namespace {

using Kind = TokenizerSpec::Kind;
using TokenType = TokenizerSpec::TokenType;
using Split = TokenizerSpec::Split;

constexpr std::string_view kUnderline = "\xe2\x96\x81";  // ▁
constexpr size_t kMaxTokens = 1u << 24;
constexpr size_t kMaxText = 1u << 30;
constexpr size_t kMaxSplits = 64;

// Names by which models mark the end of a turn or of the text, whatever their files say about it.
constexpr std::array<std::string_view, 11> kStopNames = {
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>",      "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>",
    "<|end|>",    "<EOT>",      "<|end_of_turn|>", "<|eot|>",         "<eos>"};

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t begin = 0;
  for (size_t at = text.find(from); at != std::string_view::npos; at = text.find(from, begin)) {
    out.append(text.substr(begin, at - begin)).append(to);
    begin = at + from.size();
  }
  return out.append(text.substr(begin));
}

// Cuts `text` by its matches as HF's SplitDelimiterBehavior says; pieces are [begin, end), empty ones left out.
void cut(size_t size, const std::vector<std::pair<size_t, size_t>>& matches, const Split& step,
         std::vector<std::pair<size_t, size_t>>& pieces) {
  struct Part {
    size_t begin, end;
    bool match;
  };
  std::vector<Part> parts;
  size_t at = 0;
  for (const auto& [begin, end] : matches) {
    if (begin > at) parts.push_back({at, begin, step.invert});
    parts.push_back({begin, end, !step.invert});
    at = end;
  }
  if (at < size) parts.push_back({at, size, step.invert});
  const size_t first = pieces.size();
  const auto last = [&]() -> std::pair<size_t, size_t>* { return pieces.size() > first ? &pieces.back() : nullptr; };
  bool before = false;  // was the part before a match?
  switch (step.behavior) {
    case Split::Behavior::removed:
      for (const Part& p : parts) {
        if (!p.match) pieces.emplace_back(p.begin, p.end);
      }
      break;
    case Split::Behavior::isolated:
      for (const Part& p : parts) pieces.emplace_back(p.begin, p.end);
      break;
    case Split::Behavior::contiguous:
      for (const Part& p : parts) {
        if (last() != nullptr && p.match == before) {
          last()->second = p.end;
        } else {
          pieces.emplace_back(p.begin, p.end);
        }
        before = p.match;
      }
      break;
    case Split::Behavior::merged_with_previous:
      for (const Part& p : parts) {
        if (p.match && !before && last() != nullptr) {
          last()->second = p.end;
        } else {
          pieces.emplace_back(p.begin, p.end);
        }
        before = p.match;
      }
      break;
    case Split::Behavior::merged_with_next:
      for (auto p = parts.rbegin(); p != parts.rend(); ++p) {
        if (p->match && !before && last() != nullptr) {
          last()->first = p->begin;
        } else {
          pieces.emplace_back(p->begin, p->end);
        }
        before = p->match;
      }
      std::reverse(pieces.begin() + static_cast<ptrdiff_t>(first), pieces.end());
      break;
  }
  const auto is_empty = [](const std::pair<size_t, size_t>& p) { return p.first == p.second; };
  pieces.erase(std::remove_if(pieces.begin() + static_cast<ptrdiff_t>(first), pieces.end(), is_empty), pieces.end());
}

struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

}  // namespace

struct Tokenizer::State {
  TokenizerSpec spec;
  TextMap texts;
  Normalizer normalizer;
  std::vector<std::optional<Regex>> regexes;  // one a split step
  std::optional<BpeModel> bpe;
  std::optional<UnigramModel> unigram;

  ByteTrie raw_added, normal_added;  // by their text, before and after normalisation; values index `added`
  std::array<bool, 256> raw_first{}, normal_first{};
  bool any_raw = false, any_normal = false;
  std::vector<TokenizerSpec::Added> added;
  std::optional<Regex> word;  // \w, when a token wants word boundaries

  std::string bytes;                // what each id decodes to, one after another
  std::vector<uint32_t> byte_ends;  // where each one ends in `bytes`
  std::vector<std::string> raw;     // ignore_merges: bytes of each token that text can become
  TextMap raw_texts;
  std::vector<int32_t> stops;

  // What one call of encode works with.
  struct Call {
    EncodeOptions options;
    RegexScratch regex;
    ModelScratch model;
    std::vector<int32_t> out;
    std::unordered_map<std::string, std::pair<size_t, size_t>, TextHash, std::equal_to<>>
        cache;  // piece → range of `out`
  };
  struct Piece {
    std::string_view text;
    bool start;  // begins where the whole text begins
  };

  Status prepare();
  Status prepare_added();
  void prepare_decoding();
  std::string_view token_bytes(int32_t id) const {
    const auto i = static_cast<size_t>(id);
    const size_t begin = i == 0 ? 0 : byte_ends[i - 1];
    return std::string_view(bytes).substr(begin, byte_ends[i] - begin);
  }
  bool special(int32_t id) const {
    if (id < 0 || static_cast<size_t>(id) >= spec.types.size()) return false;
    const TokenType type = spec.types[static_cast<size_t>(id)];
    return type == TokenType::control;
  }
  bool word_at(std::string_view character, RegexScratch& scratch) const;
  Status for_each_part(std::string_view text, bool normal, Call& call,
                       const std::function<Status(std::string_view, bool)>& on_text) const;
  Status encode_stretch(std::string_view text, bool start, Call& call) const;
  Status encode_normal(std::string_view text, bool start, Call& call) const;
  void encode_piece(std::string_view piece, Call& call) const;
};

Tokenizer::Tokenizer(std::unique_ptr<const State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

// ---- creation
// --------------------------------------------------------------------------------------------------------

Result<Tokenizer> Tokenizer::create(TokenizerSpec spec) {
  auto state = std::make_unique<State>();
  state->spec = std::move(spec);
  PITH_TRY(state->prepare().context("tokenizer"));
  return Tokenizer(std::move(state));
}

Status Tokenizer::State::prepare() {
  if (spec.kind == Kind::none) return data_error("the model has no tokenizer that Pith knows");
  if (spec.tokens.empty() || spec.tokens.size() > kMaxTokens) {
    return data_error(fmt::format("vocabulary of {} tokens; 1 to {} are supported", spec.tokens.size(), kMaxTokens));
  }
  if (spec.types.empty()) spec.types.assign(spec.tokens.size(), TokenType::normal);
  if (spec.types.size() != spec.tokens.size()) {
    return data_error(fmt::format("{} tokens, but {} token types", spec.tokens.size(), spec.types.size()));
  }
  const auto count = static_cast<int32_t>(spec.tokens.size());
  const auto check_id = [&](int32_t id, std::string_view what) -> Status {
    if (id >= count || id < -1)
      return data_error(fmt::format("{} is token {}, the vocabulary has {}", what, id, count));
    return {};
  };
  PITH_TRY(check_id(spec.bos, "bos"));
  PITH_TRY(check_id(spec.eos, "eos"));
  PITH_TRY(check_id(spec.unk, "unk"));
  PITH_TRY(check_id(spec.pad, "pad"));
  for (const int32_t id : spec.stop) PITH_TRY(check_id(id, "a stop token"));
  if (spec.splits.size() > kMaxSplits) {
    return data_error(
        fmt::format("pre-tokenizer of {} steps, at most {} are supported", spec.splits.size(), kMaxSplits));
  }
  texts.build(spec.tokens);
  PITH_ASSIGN(normalizer, Normalizer::create(spec.normalizers));
  for (const Split& step : spec.splits) {
    regexes.emplace_back();
    if (step.op == Split::Op::regex) {
      PITH_ASSIGN(regexes.back(), Regex::compile(step.pattern).context("pre-tokenizer"));
    } else if (step.op == Split::Op::literal && step.pattern.empty()) {
      return data_error("pre-tokenizer cuts at an empty text");
    }
  }
  if (spec.kind == Kind::unigram) {
    PITH_ASSIGN(unigram, UnigramModel::create(spec));
  } else {
    PITH_ASSIGN(bpe, BpeModel::create(spec, texts));
  }
  PITH_TRY(prepare_added());
  prepare_decoding();
  return {};
}

Status Tokenizer::State::prepare_added() {
  added = spec.added;
  if (added.empty()) {
    for (size_t id = 0; id < spec.tokens.size(); ++id) {
      const bool special_token = spec.types[id] == TokenType::control || spec.types[id] == TokenType::unknown;
      if (!special_token && spec.types[id] != TokenType::user_defined) continue;
      added.push_back({.id = static_cast<int32_t>(id), .special = special_token});
    }
  }
  RegexScratch scratch;
  for (size_t i = 0; i < added.size(); ++i) {
    const auto& token = added[i];
    if (token.id < 0 || static_cast<size_t>(token.id) >= spec.tokens.size()) {
      return data_error(fmt::format("added token {} is outside the vocabulary of {}", token.id, spec.tokens.size()));
    }
    std::string text = spec.tokens[static_cast<size_t>(token.id)];
    if (token.normalized) {
      PITH_ASSIGN(text, normalizer.apply(text, scratch));
    }
    if (text.empty()) continue;
    (token.normalized ? normal_added : raw_added).insert(text, static_cast<int32_t>(i));
    (token.normalized ? normal_first : raw_first)[static_cast<uint8_t>(text[0])] = true;
    (token.normalized ? any_normal : any_raw) = true;
    if (token.single_word && !word) {
      PITH_ASSIGN(word, Regex::compile("\\w"));
    }
  }
  return {};
}

void Tokenizer::State::prepare_decoding() {
  byte_ends.reserve(spec.tokens.size());
  std::vector<bool> literal(spec.tokens.size(), false);
  for (const auto& token : spec.added) literal[static_cast<size_t>(token.id)] = true;
  if (spec.ignore_merges) raw.resize(spec.tokens.size());
  std::string decoded;
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    const std::string& text = spec.tokens[id];
    const TokenType type = spec.types[id];
    const bool as_is = literal[id] || type == TokenType::control || type == TokenType::unknown;
    if (spec.kind == Kind::byte_bpe) {
      if (as_is || type == TokenType::user_defined || !from_byte_characters(text, decoded)) {
        decoded = text;
      } else if (spec.ignore_merges) {
        raw[id] = decoded;
      }
    } else {
      const int byte = byte_token_value(text);
      if (byte >= 0 && (type == TokenType::byte || spec.byte_fallback)) {
        decoded.assign(1, static_cast<char>(byte));
      } else {
        decoded = as_is ? text : replaced(text, kUnderline, " ");
        if (spec.ignore_merges && !as_is) raw[id] = text;
      }
    }
    bytes += decoded;
    byte_ends.push_back(static_cast<uint32_t>(bytes.size()));
  }
  if (spec.ignore_merges) raw_texts.build(raw);
  stops = spec.stop;
  if (spec.eos >= 0) stops.push_back(spec.eos);
  for (const std::string_view name : kStopNames) {
    const int32_t id = texts.find(name);
    if (id >= 0 && (literal[static_cast<size_t>(id)] || spec.types[static_cast<size_t>(id)] == TokenType::control ||
                    spec.types[static_cast<size_t>(id)] == TokenType::user_defined)) {
      stops.push_back(id);
    }
  }
  std::sort(stops.begin(), stops.end());
  stops.erase(std::unique(stops.begin(), stops.end()), stops.end());
}

// ---- encoding
// --------------------------------------------------------------------------------------------------------

bool Tokenizer::State::word_at(std::string_view character, RegexScratch& scratch) const {
  std::vector<std::pair<size_t, size_t>> found;
  return word && word->find_all(character, scratch, found).ok() && !found.empty();
}

// Finds added tokens, leftmost and then longest; emits their ids and hands the text between to `on_text`.
Status Tokenizer::State::for_each_part(std::string_view text, bool normal, Call& call,
                                       const std::function<Status(std::string_view, bool)>& on_text) const {
  if (!(normal ? any_normal : any_raw)) return text.empty() ? Status() : on_text(text, true);
  const ByteTrie& trie = normal ? normal_added : raw_added;
  const auto& first = normal ? normal_first : raw_first;
  size_t begin = 0;  // of the text not yet handed out
  for (size_t at = 0; at < text.size();) {
    if (!first[static_cast<uint8_t>(text[at])]) {
      ++at;
      continue;
    }
    size_t longest = 0;
    int32_t which = -1;
    uint32_t node = ByteTrie::kRoot;
    for (size_t end = at; end < text.size();) {
      node = trie.step(node, static_cast<uint8_t>(text[end++]));
      if (node == ByteTrie::kNone) break;
      const int32_t value = trie.value(node);
      if (value < 0 || (added[static_cast<size_t>(value)].special && !call.options.parse_special)) continue;
      longest = end - at;
      which = value;
    }
    if (which < 0) {
      ++at;
      continue;
    }
    const auto& token = added[static_cast<size_t>(which)];
    size_t from = at, to = at + longest;
    if (token.single_word) {
      size_t before = from;
      while (before > 0 && from - before < 4) {
        --before;
        if ((static_cast<uint8_t>(text[before]) & 0xc0u) != 0x80u) break;
      }
      const bool glued = (from > 0 && word_at(text.substr(before, from - before), call.regex)) ||
                         (to < text.size() && word_at(text.substr(to, utf8_at(text, to).length), call.regex));
      if (glued) {
        at = to;
        continue;
      }
    }
    if (token.lstrip) {
      // White space before, as far as it is not used up: walk forward over the text between, remember where its tail
      // begins.
      size_t tail = begin;
      for (size_t i = begin; i < from;) {
        const Utf8Char c = utf8_at(text, i);
        i += c.length;
        if (!is_white_space(c.code)) tail = i;
      }
      from = tail;
    }
    if (token.rstrip) {
      while (to < text.size()) {
        const Utf8Char c = utf8_at(text, to);
        if (!is_white_space(c.code)) break;
        to += c.length;
      }
    }
    if (from > begin) PITH_TRY(on_text(text.substr(begin, from - begin), begin == 0));
    call.out.push_back(token.id);
    begin = at = to;
  }
  if (begin < text.size()) PITH_TRY(on_text(text.substr(begin), begin == 0));
  return {};
}

Status Tokenizer::State::encode_stretch(std::string_view text, bool start, Call& call) const {
  if (normalizer.empty() && !any_normal) return encode_normal(text, start, call);
  PITH_ASSIGN(const std::string normal, normalizer.apply(text, call.regex));
  return for_each_part(normal, true, call,
                       [&](std::string_view part, bool first) { return encode_normal(part, start && first, call); });
}

Status Tokenizer::State::encode_normal(std::string_view text, bool start, Call& call) const {
  std::deque<std::string> rewritten;  // keeps the bytes of pieces that a step changed
  std::vector<Piece> pieces{{text, start}}, next;
  std::vector<std::pair<size_t, size_t>> matches, ranges;
  for (size_t i = 0; i < spec.splits.size(); ++i) {
    const Split& step = spec.splits[i];
    next.clear();
    for (const Piece& piece : pieces) {
      switch (step.op) {
        case Split::Op::metaspace: {
          std::string changed = replaced(piece.text, " ", kUnderline);
          const bool wanted =
              step.prefix == Split::Prefix::always || (step.prefix == Split::Prefix::first && piece.start);
          if (wanted && !std::string_view(changed).starts_with(kUnderline)) changed.insert(0, kUnderline);
          rewritten.push_back(std::move(changed));
          next.push_back({rewritten.back(), piece.start});
          break;
        }
        case Split::Op::prefix_space:
          if (piece.text.starts_with(' ')) {
            next.push_back(piece);
          } else {
            rewritten.push_back(" " + std::string(piece.text));
            next.push_back({rewritten.back(), piece.start});
          }
          break;
        case Split::Op::regex:
        case Split::Op::literal: {
          matches.clear();
          ranges.clear();
          if (regexes[i]) {
            PITH_TRY(regexes[i]->find_all(piece.text, call.regex, matches));
          } else {
            for (size_t at = piece.text.find(step.pattern); at != std::string_view::npos;
                 at = piece.text.find(step.pattern, at + step.pattern.size())) {
              matches.emplace_back(at, at + step.pattern.size());
            }
          }
          cut(piece.text.size(), matches, step, ranges);
          for (const auto& [from, to] : ranges) {
            next.push_back({piece.text.substr(from, to - from), piece.start && from == 0});
          }
          break;
        }
      }
    }
    pieces.swap(next);
  }
  for (const Piece& piece : pieces) encode_piece(piece.text, call);
  return {};
}

void Tokenizer::State::encode_piece(std::string_view piece, Call& call) const {
  constexpr size_t kCachedBytes = 64, kCachedPieces = 1u << 17;
  if (piece.empty()) return;
  if (spec.ignore_merges) {
    if (const int32_t id = raw_texts.find(piece); id >= 0) {
      call.out.push_back(id);
      return;
    }
  }
  const bool cached = piece.size() <= kCachedBytes;
  if (cached) {
    if (const auto found = call.cache.find(piece); found != call.cache.end()) {
      const auto [from, count] = found->second;
      for (size_t i = 0; i < count; ++i) call.out.push_back(call.out[from + i]);
      return;
    }
  }
  const size_t before = call.out.size();
  if (unigram) {
    unigram->encode(piece, call.model, call.out);
  } else {
    bpe->encode(piece, call.model, call.out);
  }
  if (cached && call.cache.size() < kCachedPieces)
    call.cache.emplace(piece, std::pair{before, call.out.size() - before});
}

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  if (text.size() > kMaxText) {
    return user_error(
        fmt::format("text of {} bytes; at most {} are tokenized at once, give it in parts", text.size(), kMaxText));
  }
  const State& s = *state_;
  State::Call call;
  call.options = options;
  if (options.add_special && s.spec.add_bos && s.spec.bos >= 0) call.out.push_back(s.spec.bos);
  PITH_TRY(s.for_each_part(text, false, call,
                           [&](std::string_view part, bool first) { return s.encode_stretch(part, first, call); }));
  if (options.add_special && s.spec.add_eos && s.spec.eos >= 0) call.out.push_back(s.spec.eos);
  return std::move(call.out);
}

// ---- decoding
// --------------------------------------------------------------------------------------------------------

std::string Tokenizer::decode(std::span<const int32_t> ids, DecodeOptions options) const {
  const State& s = *state_;
  std::string out;
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size() || (options.skip_special && s.special(id))) continue;
    out += s.token_bytes(id);
  }
  if (s.spec.strip_prefix_space && out.starts_with(' ')) out.erase(0, 1);
  return out;
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(state_->spec.tokens.size()); }
int32_t Tokenizer::bos() const { return state_->spec.bos; }
int32_t Tokenizer::eos() const { return state_->spec.eos; }
int32_t Tokenizer::unk() const { return state_->spec.unk; }
std::span<const int32_t> Tokenizer::stop_ids() const { return state_->stops; }
bool Tokenizer::is_stop(int32_t id) const { return std::binary_search(state_->stops.begin(), state_->stops.end(), id); }
bool Tokenizer::is_special(int32_t id) const { return state_->special(id); }
int32_t Tokenizer::find(std::string_view text) const { return state_->texts.find(text); }
const TokenizerSpec& Tokenizer::spec() const { return state_->spec; }

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, DecodeOptions options)
    : tokenizer_(&tokenizer), options_(options) {}

std::string StreamDecoder::push(int32_t id) {
  const Tokenizer::State& s = *tokenizer_->state_;
  if (id < 0 || id >= tokenizer_->vocab_size() || (options_.skip_special && s.special(id))) return {};
  held_ += s.token_bytes(id);
  if (first_ && !held_.empty()) {
    if (s.spec.strip_prefix_space && held_.starts_with(' ')) held_.erase(0, 1);
    first_ = false;
  }
  // Hold back the begin of a character that may still be completed: at most three bytes.
  size_t keep = held_.size();
  for (size_t back = 1; back <= 3 && back <= held_.size(); ++back) {
    const auto byte = static_cast<uint8_t>(held_[held_.size() - back]);
    if ((byte & 0xc0u) == 0x80u) continue;
    const size_t wants = byte >= 0xf0 && byte < 0xf5   ? 4
                         : byte >= 0xe0 && byte < 0xf0 ? 3
                         : byte >= 0xc2 && byte < 0xe0 ? 2
                                                       : 1;
    if (wants > back) keep = held_.size() - back;
    break;
  }
  std::string out = held_.substr(0, keep);
  held_.erase(0, keep);
  return out;
}

std::string StreamDecoder::finish() { return std::exchange(held_, {}); }

std::string repair_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = utf8_at(text, i);
    if (c.code >= kBrokenByte) {
      out += "\xef\xbf\xbd";
    } else {
      out += text.substr(i, c.length);
    }
    i += c.length;
  }
  return out;
}

}  // namespace pith
