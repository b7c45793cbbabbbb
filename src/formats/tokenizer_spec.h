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
    byte_bpe,  ///< GPT-2 type: pre-tokenizer regexes, bytes mapped to printable characters, ranked merges
    spm_bpe,   ///< sentencepiece BPE: "▁" for space, byte fallback; merges by rank (HF) or by score (GGUF)
    unigram,   ///< sentencepiece unigram: best segmentation by score
  };
  enum class TokenType : uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

  /// A normaliser step. Steps apply in order to each stretch of text between added tokens (HF "normalizer").
  struct Normalizer {
    enum class Op : uint8_t {
      nfc,
      nfd,
      nfkc,
      nfkd,
      lowercase,
      prepend,        ///< puts `content` before a stretch that is not empty
      replace,        ///< every `pattern` (literal) becomes `content`
      replace_regex,  ///< every match of `pattern` (PCRE2) becomes `content`, literally
      strip_left,
      strip_right,  ///< drops white space at that end
      charsmap,     ///< sentencepiece's compiled map; `content` holds its bytes (not base64)
    };
    Op op = Op::nfc;
    std::string pattern, content;
  };

  /// A pre-tokenizer step. Steps apply in order, each to every piece that the steps before it left.
  struct Split {
    enum class Op : uint8_t {
      regex,      ///< cut at the matches of `pattern` (PCRE2)
      literal,    ///< cut at every `pattern`
      metaspace,  ///< " " becomes "▁"; "▁" is put before by `prefix` unless there; then no cut (add a literal step)
      prefix_space,  ///< HF ByteLevel's add_prefix_space: " " is put before a piece that does not start with one
    };
    enum class Behavior : uint8_t { removed, isolated, merged_with_previous, merged_with_next, contiguous };
    enum class Prefix : uint8_t { never, first, always };  ///< first: only the piece at the very start of the text
    Op op = Op::regex;
    std::string pattern;
    bool invert = false;  ///< what lies between the matches counts as the matches
    Behavior behavior = Behavior::isolated;
    Prefix prefix = Prefix::never;
  };

  /// A token that is looked for in the text before anything else.
  struct Added {
    int32_t id = -1;
    bool special = false;                 ///< only found when special tokens are to be parsed
    bool normalized = false;              ///< looked for after normalisation
    bool lstrip = false, rstrip = false;  ///< swallows white space on that side
    bool single_word = false;             ///< only between word boundaries
  };

  Kind kind = Kind::none;
  std::vector<std::string> tokens;  ///< text of each id as stored (byte-mapped for normal byte_bpe tokens only)
  std::vector<float> scores;        ///< unigram, spm_bpe without merges; else empty
  std::vector<TokenType> types;     ///< one a token
  std::vector<std::pair<std::string, std::string>> merges;  ///< in rank order
  std::vector<Normalizer> normalizers;  ///< GGUF spm: prepend "▁" (add_space_prefix), replace " " by "▁"
  std::vector<Split> splits;            ///< pre-tokenizer
  std::string pre_name;                 ///< GGUF tokenizer.ggml.pre, when it came from there
  std::vector<Added> added;             ///< empty: each control (special) and user_defined token of `types` is one
  bool byte_fallback = false;           ///< characters outside the vocabulary become "<0x41>" tokens
  bool fuse_unk = false;                ///< a run of unknown characters is one unk
  bool ignore_merges = false;           ///< whole piece in the vocabulary wins over merges (Llama 3)
  bool strip_prefix_space = false;      ///< decoding drops one space at the very start (the prefix space)
  int32_t bos = -1, eos = -1, unk = -1, pad = -1;
  std::vector<int32_t> stop;  ///< further end-of-turn ids
  bool add_bos = false, add_eos = false;
  std::string chat_template;  ///< Jinja source, empty when the model has none
};

/// What llama.cpp's name of a pre-tokenizer ("gpt-2", "llama-bpe", "smollm", "qwen2", …; empty = "default") implies.
struct GgufPreTokenizer {
  std::vector<TokenizerSpec::Split> splits;
  bool ignore_merges = false;
  bool add_bos = false;  ///< when the file does not say
};
/// Lists the known names when `name` is none of them.
Result<GgufPreTokenizer> pre_tokenizer_from_gguf(const std::string& name);

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
