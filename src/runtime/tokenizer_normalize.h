// The normaliser of a tokenizer: an ordered list of steps from bytes to bytes. Bytes that are no UTF-8 pass through.
#pragma once

#include <pith/result.h>

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/tokenizer_spec.h"
#include "runtime/tokenizer_regex.h"

namespace pith {

enum class UnicodeForm { nfc, nfd, nfkc, nfkd };

/// Unicode normalisation (Unicode 14).
std::string unicode_normalize(std::string_view text, UnicodeForm form);
/// Lower case, one character at a time.
std::string unicode_lower(std::string_view text);

/// sentencepiece's compiled character map: a double-array trie of byte strings, each with its replacement.
class Charsmap {
 public:
  /// `blob`: u32 size of the trie in bytes, the trie's u32 units, then NUL-ended replacements; little-endian.
  static Result<Charsmap> parse(std::string_view blob);
  /// At each place the longest mapped string is replaced; other characters stay.
  std::string apply(std::string_view text) const;

 private:
  std::vector<uint32_t> units_;
  std::string replacements_;
};

class Normalizer {
 public:
  static Result<Normalizer> create(std::span<const TokenizerSpec::Normalizer> steps);
  bool empty() const { return steps_.empty(); }
  Result<std::string> apply(std::string_view text, RegexScratch& scratch) const;

 private:
  struct Step {
    TokenizerSpec::Normalizer spec;
    std::optional<Regex> regex;
    std::optional<Charsmap> charsmap;
  };
  std::vector<Step> steps_;
};

}  // namespace pith
