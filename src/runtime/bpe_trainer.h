// Trains a byte-level BPE tokenizer: merges are learnt inside of the pieces that a pre-tokenizer pattern cuts.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "formats/tokenizer_spec.h"

namespace pith {

struct BpeTrainerOptions {
  int64_t vocab = 4096;                      ///< tokens in all: special ones, 256 bytes, merges
  std::vector<TokenizerSpec::Split> splits;  ///< empty: those of "llama-bpe"
  std::vector<std::string> special = {"<|begin_of_text|>", "<|end_of_text|>"};  ///< the first is bos, the second eos
  int64_t least_count = 2;  ///< pairs that occur less often are not merged
};

/// The same text and options give the same tokenizer: the most frequent pair is merged first, of equally frequent ones
/// the one with the smaller left id, then the smaller right id. Fewer tokens than asked for come out when the text has
/// no more pairs.
Result<TokenizerSpec> train_bpe(std::string_view text, const BpeTrainerOptions& options);

}  // namespace pith
