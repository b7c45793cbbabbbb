// Interleaved rANS over static tables. One chunk = some rows of a code matrix.
//
// State 32 bit, renormalised by 16-bit words, so 2^16 <= state < 2^32 between symbols. `lanes` states take turns: a row
// is coded in steps of `lanes` neighbouring codes (the last step of a row may be short), which lets a SIMD decoder hold
// one lane an element. Within a step all lanes decode their symbol in lane order, each followed by its own refill word
// if its state fell below 2^16; then, again in lane order, lanes that have raw bits (escape: 8 + 8 bits; shifted table:
// `shift` bits) take them from their state, refilled likewise. A chunk begins with the initial states, 4 bytes each,
// then the words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "entropy/table.h"

namespace pith {

/// Class of a code: clamp(row_class + col_class[column]).
inline int code_class(int row_class, int col_class) {
  const int k = row_class + col_class;
  return k < 0 ? 0 : k >= RansModel::kClasses ? RansModel::kClasses - 1 : k;
}

/// codes: [rows, cols] row-major; row_class: one a row, col_class: one a column. Appends the chunk to `out`.
void rans_encode(const RansModel& model, const int16_t* codes, int64_t rows, int64_t cols, const int8_t* row_class,
                 const int8_t* col_class, unsigned lanes, std::vector<std::byte>& out);

/// The inverse. Broken input gives wrong codes but never reads outside `chunk`; returns false when the stream did not
/// end exactly where and as it must (all states back at 2^16, all words used).
bool rans_decode(const RansModel& model, std::span<const std::byte> chunk, int64_t rows, int64_t cols,
                 const int8_t* row_class, const int8_t* col_class, unsigned lanes, int16_t* codes);

}  // namespace pith
