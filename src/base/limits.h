// What a reader may believe. A header is a claim; a limit is what we are willing to allocate for it.
#pragma once

#include <cstdint>

namespace pith {

struct Limits {
  uint64_t max_tensors = 1u << 20;           ///< tensors in one file
  uint64_t max_header_bytes = 256ull << 20;  ///< JSON headers, GGUF metadata, tokenizer files
  uint64_t max_string_bytes = 64ull << 20;   ///< one string (a chat template, a vocabulary entry)
  uint64_t max_array_items = 64ull << 20;    ///< one metadata array
  uint64_t max_tensor_items = 1ull << 40;    ///< elements of one tensor
  uint32_t max_dims = 8;                     ///< dimensions of one tensor
  uint32_t max_tree_depth = 16;              ///< nesting of a representation tree
  uint32_t max_json_depth = 64;              ///< nesting of any JSON we read
};

}  // namespace pith
