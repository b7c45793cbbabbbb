#include "runtime/tokenizer_models.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/hash.h"
#include "runtime/tokenizer_utf8.h"

namespace pith {
namespace {

using TokenType = TokenizerSpec::TokenType;

TokenType type_of(const TokenizerSpec& spec, size_t id) {
  return id < spec.types.size() ? spec.types[id] : TokenType::normal;
}

// Tokens that ordinary text can become.
bool is_text(const TokenizerSpec& spec, size_t id) {
  const TokenType type = type_of(spec, id);
  return type == TokenType::normal || type == TokenType::user_defined || type == TokenType::unused;
}

struct ByteCharacters {
  std::array<uint32_t, 256> code{};
  std::array<int, 324> byte{};  // the codes are below 324
  ByteCharacters() {
    byte.fill(-1);
    uint32_t next = 256;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      code[b] = printable ? b : next++;
      byte[code[b]] = static_cast<int>(b);
    }
  }
};
const ByteCharacters& byte_characters() {
  static const ByteCharacters table;
  return table;
}

std::vector<int32_t> byte_tokens(const TokenizerSpec& spec) {
  std::vector<int32_t> ids(256, -1);
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    const TokenType type = type_of(spec, id);
    if (type == TokenType::control || type == TokenType::unknown) continue;
    const int value = byte_token_value(spec.tokens[id]);
    if (value >= 0 && ids[static_cast<size_t>(value)] < 0) ids[static_cast<size_t>(value)] = static_cast<int32_t>(id);
  }
  return ids;
}

// The byte tokens of `text`, when all are there.
bool append_bytes(std::string_view text, std::span<const int32_t> ids, std::vector<int32_t>& out) {
  const auto id_of = [&](char c) { return ids[static_cast<uint8_t>(c)]; };
  if (!std::all_of(text.begin(), text.end(), [&](char c) { return id_of(c) >= 0; })) return false;
  for (const char c : text) out.push_back(id_of(c));
  return true;
}

}  // namespace

void TextMap::build(std::span<const std::string> texts) {
  texts_ = texts;
  size_t size = 16;
  while (size < texts.size() * 2) size *= 2;
  slots_.assign(size, 0);
  for (size_t i = 0; i < texts.size(); ++i) {
    size_t at = hash64(texts[i]) & (size - 1);
    while (slots_[at] != 0 && texts[slots_[at] - 1] != texts[i]) at = (at + 1) & (size - 1);
    if (slots_[at] == 0) slots_[at] = static_cast<uint32_t>(i + 1);
  }
}

int32_t TextMap::find(std::string_view text) const {
  if (slots_.empty()) return -1;
  size_t at = hash64(text) & (slots_.size() - 1);
  while (slots_[at] != 0) {
    if (texts_[slots_[at] - 1] == text) return static_cast<int32_t>(slots_[at] - 1);
    at = (at + 1) & (slots_.size() - 1);
  }
  return -1;
}

int byte_token_value(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
  int value = 0;
  for (const char c : text.substr(3, 2)) {
    if (c >= '0' && c <= '9') {
      value = value * 16 + (c - '0');
    } else if (c >= 'A' && c <= 'F') {
      value = value * 16 + (c - 'A' + 10);
    } else {
      return -1;
    }
  }
  return value;
}

std::string to_byte_characters(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) append_utf8(out, byte_characters().code[static_cast<uint8_t>(c)]);
  return out;
}

bool from_byte_characters(std::string_view text, std::string& bytes) {
  bytes.clear();
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = utf8_at(text, i);
    i += c.length;
    if (c.code >= byte_characters().byte.size() || byte_characters().byte[c.code] < 0) return false;
    bytes.push_back(static_cast<char>(byte_characters().byte[c.code]));
  }
  return true;
}

// ---- BPE
// -------------------------------------------------------------------------------------------------------------

Result<BpeModel> BpeModel::create(const TokenizerSpec& spec, const TextMap& texts) {
  BpeModel model;
  model.spec_ = &spec;
  model.texts_ = &texts;
  const bool byte_level = spec.kind == TokenizerSpec::Kind::byte_bpe;
  if (byte_level) {
    model.bytes_.resize(256);
    for (size_t b = 0; b < 256; ++b) {
      const char c = static_cast<char>(b);
      model.bytes_[b] = texts.find(to_byte_characters({&c, 1}));
    }
  } else {
    model.bytes_ = byte_tokens(spec);
  }
  if (spec.merges.empty()) {
    if (byte_level) {
      return data_error(
          "byte-level BPE tokenizer without merges; the file lacks 'merges' (GGUF: tokenizer.ggml.merges)");
    }
    if (spec.scores.size() != spec.tokens.size()) {
      return data_error(
          fmt::format("sentencepiece BPE tokenizer without merges needs one score a token; {} tokens, {} "
                      "scores",
                      spec.tokens.size(), spec.scores.size()));
    }
    model.by_score_ = true;
    std::vector<float> sorted(spec.scores);
    for (size_t i = 0; i < sorted.size(); ++i) {
      if (std::isnan(sorted[i])) return data_error(fmt::format("score of token {} is not a number", i));
    }
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
    model.score_rank_.reserve(spec.scores.size());
    for (const float score : spec.scores) {
      const auto at = std::lower_bound(sorted.begin(), sorted.end(), score, std::greater<>());
      model.score_rank_.push_back(static_cast<uint32_t>(at - sorted.begin()));
    }
    return model;
  }
  size_t size = 16;
  while (size < spec.merges.size() * 2) size *= 2;
  model.merges_.resize(size);
  std::string joined;
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const auto& [left, right] = spec.merges[rank];
    joined.assign(left).append(right);
    const int32_t a = texts.find(left), b = texts.find(right), id = texts.find(joined);
    if (a < 0 || b < 0 || id < 0) {
      return data_error(fmt::format("merge {} joins '{}' and '{}', but '{}' is not in the vocabulary", rank, left,
                                    right,
                                    a < 0   ? left
                                    : b < 0 ? right
                                            : joined));
    }
    const uint64_t pair = static_cast<uint64_t>(a) << 32 | static_cast<uint32_t>(b);
    size_t at = (pair * 0x9e3779b97f4a7c15ull) >> 24 & (size - 1);
    while (model.merges_[at].id >= 0 && model.merges_[at].pair != pair) at = (at + 1) & (size - 1);
    if (model.merges_[at].id < 0) model.merges_[at] = {pair, static_cast<uint32_t>(rank), id};
  }
  return model;
}

const BpeModel::Merge* BpeModel::find_merge(int32_t left, int32_t right) const {
  if (left < 0 || right < 0) return nullptr;
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  size_t at = (pair * 0x9e3779b97f4a7c15ull) >> 24 & (merges_.size() - 1);
  while (merges_[at].id >= 0) {
    if (merges_[at].pair == pair) return &merges_[at];
    at = (at + 1) & (merges_.size() - 1);
  }
  return nullptr;
}

void BpeModel::add_symbols(std::string_view piece, ModelScratch& scratch) const {
  const bool byte_level = spec_->kind == TokenizerSpec::Kind::byte_bpe;
  scratch.symbols.clear();
  for (size_t i = 0; i < piece.size();) {
    const uint32_t length = byte_level ? 1 : utf8_at(piece, i).length;
    int32_t id = byte_level ? bytes_[static_cast<uint8_t>(piece[i])] : texts_->find(piece.substr(i, length));
    if (!byte_level && id >= 0 && !is_text(*spec_, static_cast<size_t>(id))) id = -1;
    const auto index = static_cast<int32_t>(scratch.symbols.size());
    scratch.symbols.push_back({index - 1, index + 1, static_cast<uint32_t>(i), length, id});
    i += length;
  }
  if (!scratch.symbols.empty()) scratch.symbols.back().next = -1;
}

void BpeModel::consider(std::string_view piece, ModelScratch& scratch, int32_t left) const {
  if (left < 0) return;
  const auto& a = scratch.symbols[static_cast<size_t>(left)];
  if (a.next < 0) return;
  const auto& b = scratch.symbols[static_cast<size_t>(a.next)];
  uint32_t rank = 0;
  int32_t id = -1;
  if (by_score_) {
    id = texts_->find(piece.substr(a.begin, a.length + b.length));
    if (id < 0 || !is_text(*spec_, static_cast<size_t>(id))) return;
    rank = score_rank_[static_cast<size_t>(id)];
  } else {
    const Merge* merge = find_merge(a.id, b.id);
    if (merge == nullptr) return;
    rank = merge->rank;
    id = merge->id;
  }
  scratch.heap.push_back({static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(left), a.length + b.length, id});
  std::push_heap(scratch.heap.begin(), scratch.heap.end(),
                 [](const auto& x, const auto& y) { return x.order > y.order; });
}

void BpeModel::encode(std::string_view piece, ModelScratch& scratch, std::vector<int32_t>& out) const {
  add_symbols(piece, scratch);
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  heap.clear();
  for (size_t i = 0; i + 1 < symbols.size(); ++i) consider(piece, scratch, static_cast<int32_t>(i));
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), [](const auto& x, const auto& y) { return x.order > y.order; });
    const ModelScratch::Candidate best = heap.back();
    heap.pop_back();
    const auto place = static_cast<int32_t>(best.order & 0xffffffffu);
    auto& left = symbols[static_cast<size_t>(place)];
    if (left.length == 0 || left.next < 0) continue;
    auto& right = symbols[static_cast<size_t>(left.next)];
    if (left.length + right.length != best.length) continue;  // one of the two has grown since
    left.length = best.length;
    left.id = best.id;
    left.next = right.next;
    right.length = 0;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = place;
    consider(piece, scratch, left.previous);
    consider(piece, scratch, place);
  }
  const bool byte_level = spec_->kind == TokenizerSpec::Kind::byte_bpe;
  bool after_unknown = false;
  for (int32_t i = symbols.empty() ? -1 : 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    const auto& symbol = symbols[static_cast<size_t>(i)];
    if (symbol.id >= 0) {
      out.push_back(symbol.id);
      after_unknown = false;
    } else if (!byte_level && append_bytes(piece.substr(symbol.begin, symbol.length), bytes_, out)) {
      after_unknown = false;
    } else if (spec_->unk >= 0 &&
               (!byte_level || type_of(*spec_, static_cast<size_t>(spec_->unk)) == TokenType::unknown)) {
      // GGUF files name <|endoftext|> as the unknown token of byte-level vocabularies; text must not become that.
      if (!after_unknown || !spec_->fuse_unk) out.push_back(spec_->unk);
      after_unknown = true;
    }
  }
}

// ---- unigram
// ---------------------------------------------------------------------------------------------------------

Result<UnigramModel> UnigramModel::create(const TokenizerSpec& spec) {
  if (spec.scores.size() != spec.tokens.size()) {
    return data_error(fmt::format("unigram tokenizer needs one score a token; {} tokens, {} scores", spec.tokens.size(),
                                  spec.scores.size()));
  }
  UnigramModel model;
  model.spec_ = &spec;
  model.bytes_ = byte_tokens(spec);
  double lowest = 0;
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (!std::isfinite(spec.scores[id])) return data_error(fmt::format("score of token {} is not a finite number", id));
    lowest = std::min(lowest, static_cast<double>(spec.scores[id]));
    if (is_text(spec, id) && type_of(spec, id) != TokenType::unused && !spec.tokens[id].empty()) {
      model.trie_.insert(spec.tokens[id], static_cast<int32_t>(id));
    }
  }
  // An unknown character is worse than any word; 10 is sentencepiece's penalty.
  model.unknown_score_ = lowest - 10;
  return model;
}

void UnigramModel::encode(std::string_view piece, ModelScratch& scratch, std::vector<int32_t>& out) const {
  constexpr int32_t kUnknown = -1, kOpen = -2;
  auto& path = scratch.path;  // path[i]: the best way to cover the first i bytes
  path.assign(piece.size() + 1, {0, 0, kOpen});
  path[0].id = kUnknown;
  for (size_t at = 0; at < piece.size();) {
    const size_t length = utf8_at(piece, at).length;
    bool covers_one = false;
    uint32_t node = ByteTrie::kRoot;
    const auto offer = [&](size_t end, double score, int32_t id) {
      if (path[end].id == kOpen || score > path[end].score) path[end] = {score, static_cast<uint32_t>(at), id};
    };
    for (size_t end = at; end < piece.size();) {
      node = trie_.step(node, static_cast<uint8_t>(piece[end++]));
      if (node == ByteTrie::kNone) break;
      const int32_t id = trie_.value(node);
      if (id < 0) continue;
      offer(end, path[at].score + spec_->scores[static_cast<size_t>(id)], id);
      covers_one |= end - at == length;
    }
    if (!covers_one) offer(at + length, path[at].score + unknown_score_, kUnknown);
    at += length;
  }
  // Back along the path, then forward; a run of unknown characters is one.
  const size_t first = out.size();
  std::vector<std::pair<uint32_t, uint32_t>> unknown;  // ranges, last first
  for (size_t end = piece.size(); end > 0; end = path[end].from) {
    const auto& step = path[end];
    if (step.id != kUnknown) {
      out.push_back(step.id);
    } else if (!unknown.empty() && out.size() > first && out.back() == kUnknown && unknown.back().first == end) {
      unknown.back().first = step.from;
    } else {
      unknown.emplace_back(step.from, static_cast<uint32_t>(end));
      out.push_back(kUnknown);
    }
  }
  std::reverse(out.begin() + static_cast<ptrdiff_t>(first), out.end());
  if (unknown.empty()) return;
  const std::vector<int32_t> ids(out.begin() + static_cast<ptrdiff_t>(first), out.end());
  out.resize(first);
  for (const int32_t id : ids) {
    if (id != kUnknown) {
      out.push_back(id);
      continue;
    }
    const auto [from, to] = unknown.back();
    unknown.pop_back();
    if (spec_->byte_fallback && append_bytes(piece.substr(from, to - from), bytes_, out)) continue;
    if (spec_->unk >= 0) out.push_back(spec_->unk);
  }
}

}  // namespace pith
