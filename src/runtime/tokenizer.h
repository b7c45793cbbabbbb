// Text to token ids and back, for byte-level BPE, sentencepiece BPE and unigram models described by a TokenizerSpec.
// A Tokenizer never changes after creation: any number of threads may use one.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/tokenizer_spec.h"

namespace pith {

struct EncodeOptions {
  bool add_special = true;     ///< put bos/eos where the model wants them
  bool parse_special = false;  ///< "<|im_start|>" in the text becomes that token; false: it is ordinary text
};

struct DecodeOptions {
  bool skip_special = false;  ///< leave out control tokens
};

class Tokenizer {
 public:
  /// Builds the lookup tables; refuses a spec that cannot work (no vocabulary, a merge outside it, a bad pattern, …).
  static Result<Tokenizer> create(TokenizerSpec spec);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Token ids of `text`, which may be any bytes: those that are not UTF-8 are cut like U+FFFD, but kept as they are
  /// wherever the vocabulary has bytes. Fails only when a pattern of the model needs too many steps.
  Result<std::vector<int32_t>> encode(std::string_view text, EncodeOptions options = {}) const;

  /// The bytes that the ids stand for; ids outside the vocabulary stand for nothing. With a byte-complete vocabulary
  /// decode(encode(text)) is `text`. The result may end inside a UTF-8 character; StreamDecoder does not.
  std::string decode(std::span<const int32_t> ids, DecodeOptions options = {}) const;

  int32_t vocab_size() const;
  int32_t bos() const;  ///< -1 when the model has none; so are the next two
  int32_t eos() const;
  int32_t unk() const;
  /// Ids that end an answer: eos, the spec's stop ids, and end-of-turn tokens known by their name, sorted.
  std::span<const int32_t> stop_ids() const;
  bool is_stop(int32_t id) const;
  bool is_special(int32_t id) const;
  /// Id of the token stored as `text` ("<|im_end|>"), or -1.
  int32_t find(std::string_view text) const;
  const TokenizerSpec& spec() const;

 private:
  friend class StreamDecoder;
  struct State;
  explicit Tokenizer(std::unique_ptr<const State> state);
  std::unique_ptr<const State> state_;
};

/// Decodes one id at a time; what `push` returns never ends inside a UTF-8 character. The pieces joined, with that of
/// `finish`, equal Tokenizer::decode of all ids. The tokenizer must outlive it.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, DecodeOptions options = {});
  std::string push(int32_t id);
  /// What is still held back: the begin of a character that never came to its end.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  DecodeOptions options_;
  std::string held_;
  bool first_ = true;
};

/// Each byte that is not part of well-formed UTF-8 becomes U+FFFD, as llama.cpp does before it tokenizes.
std::string repair_utf8(std::string_view text);

}  // namespace pith
