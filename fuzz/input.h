// The input as the readers take it: memory of its exact size, so that a sanitizer sees every step beyond it.
#pragma once

#include <cstdlib>
#include <string_view>
#include <vector>

#include "formats/bytes.h"

namespace pith {

inline Bytes input_bytes(const uint8_t* data, size_t size) {
  return Bytes::own(std::vector<uint8_t>(data, data + size));
}
inline std::string_view input_text(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// Reads every byte of `data`, so that a range that is not there is noticed.
inline unsigned touch(const Bytes& data) {
  unsigned sum = 0;
  for (const std::byte b : data.view) sum += static_cast<unsigned>(b);
  return sum;
}

/// For properties that must hold whatever the input was.
inline void require(bool good) {
  if (!good) std::abort();
}

}  // namespace pith
