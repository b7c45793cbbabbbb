// The two models that turn a piece of text into ids: merges (BPE) and the best path (unigram).
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/tokenizer_spec.h"
#include "runtime/tokenizer_trie.h"

namespace pith {

/// Texts to their index in a list that outlives the map. The first of equal texts wins.
class TextMap {
 public:
  void build(std::span<const std::string> texts);
  int32_t find(std::string_view text) const;

 private:
  std::span<const std::string> texts_;
  std::vector<uint32_t> slots_;  // index + 1; 0 = free
};

/// "<0x4A>" is 0x4a; -1 for any other text.
int byte_token_value(std::string_view text);

/// GPT-2's printable stand-ins: every byte is one character, and back.
std::string to_byte_characters(std::string_view bytes);
/// False when `text` has a character that stands for no byte.
bool from_byte_characters(std::string_view text, std::string& bytes);

/// Memory that encoding reuses from piece to piece.
struct ModelScratch {
  struct Symbol {
    int32_t previous, next;  ///< -1 at the ends
    uint32_t begin, length;  ///< bytes of the piece; length 0: merged away
    int32_t id;              ///< -1: not in the vocabulary
  };
  struct Candidate {
    uint64_t order;   ///< rank in the upper half, place in the lower: the smallest goes first
    uint32_t length;  ///< bytes of both symbols when the candidate was made
    int32_t id;
  };
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
  struct Step {
    double score;
    uint32_t from;
    int32_t id;
  };
  std::vector<Step> path;
};

class BpeModel {
 public:
  /// `spec`, whose tokens and types are kept by reference, and `texts` over spec.tokens must outlive the model.
  static Result<BpeModel> create(const TokenizerSpec& spec, const TextMap& texts);
  /// Appends the ids of `piece`, any bytes.
  void encode(std::string_view piece, ModelScratch& scratch, std::vector<int32_t>& out) const;

 private:
  struct Merge {
    uint64_t pair = ~0ull;  ///< left id, right id
    uint32_t rank = 0;
    int32_t id = -1;
  };
  const Merge* find_merge(int32_t left, int32_t right) const;
  void add_symbols(std::string_view piece, ModelScratch& scratch) const;
  /// The candidate of `left` and its right neighbour, if they may join.
  void consider(std::string_view piece, ModelScratch& scratch, int32_t left) const;

  const TokenizerSpec* spec_ = nullptr;
  const TextMap* texts_ = nullptr;
  bool by_score_ = false;
  std::vector<uint32_t> score_rank_;  ///< by_score_: dense rank of each token's score, best = 0
  std::vector<int32_t> bytes_;        ///< id of each byte, -1 = none
  std::vector<Merge> merges_;         ///< open addressing
};

class UnigramModel {
 public:
  static Result<UnigramModel> create(const TokenizerSpec& spec);
  void encode(std::string_view piece, ModelScratch& scratch, std::vector<int32_t>& out) const;

 private:
  const TokenizerSpec* spec_ = nullptr;
  ByteTrie trie_;
  double unknown_score_ = 0;
  std::vector<int32_t> bytes_;
};

}  // namespace pith
