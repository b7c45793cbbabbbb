// A tokenizer as data: what tokenizer.json and GGUF metadata both say, in one form. src/runtime/tokenizer runs it.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"

namespace pith {

struct TokenizerSpec {
  enum class Kind : uint8_t {
    none,
    byte_bpe,   ///< GPT-2 type: pre-tokenizer regexes, bytes mapped to printable characters, ranked merges
    spm_bpe,    ///< sentencepiece BPE: "▁" for space, byte fallback; merges by rank (HF) or by score (GGUF)
    unigram,    ///< sentencepiece unigram: best segmentation by score
  };
  enum class TokenType : uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

  /// A pre-tokenizer step, applied in order. Split patterns are PCRE2 expressions.
  struct Split {
    std::string pattern;
    bool invert = false;    ///< matches are the pieces (true) or the delimiters (false: "isolated" keeps both)
    bool isolated = true;
  };

  Kind kind = Kind::none;
  std::vector<std::string> tokens;        ///< text of each id as stored (byte-mapped for byte_bpe)
  std::vector<float> scores;              ///< unigram, spm_bpe; else empty
  std::vector<TokenType> types;           ///< one a token
  std::vector<std::pair<std::string, std::string>> merges;  ///< in rank order
  std::vector<Split> splits;              ///< byte_bpe pre-tokenizer
  std::string pre_name;                   ///< GGUF tokenizer.ggml.pre, when it came from there
  bool individual_digits = false;
  bool byte_fallback = false;
  bool add_prefix_space = false;
  bool remove_extra_whitespace = false;
  bool ignore_merges = false;             ///< whole piece in the vocabulary wins over merges (Llama 3)
  bool nfc = false, nfkc = false;
  int32_t bos = -1, eos = -1, unk = -1, pad = -1;
  std::vector<int32_t> stop;              ///< further end-of-turn ids
  bool add_bos = false, add_eos = false;
  std::string chat_template;              ///< Jinja source, empty when the model has none
};

/// From tokenizer.json plus tokenizer_config.json / generation_config.json (either may be null).
Result<TokenizerSpec> tokenizer_from_hf(const nlohmann::json& tokenizer, const nlohmann::json& tokenizer_config,
                                        const nlohmann::json& generation_config, const Limits& limits);
/// As tokenizer.json / tokenizer_config.json that the `tokenizers` and `transformers` packages load.
nlohmann::json tokenizer_to_hf(const TokenizerSpec& spec);
nlohmann::json tokenizer_config_to_hf(const TokenizerSpec& spec);

/// Compact form for `.pith` files (zstd inside); parse checks every length.
std::string pack_tokenizer(const TokenizerSpec& spec);
Result<TokenizerSpec> unpack_tokenizer(const std::string& packed, const Limits& limits);

}  // namespace pith
