// What every target shares. A target returns 0 for any bytes; crashing, hanging or allocating what a header merely
// claims is the fault it looks for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/limits.h"
#include "formats/bytes.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace pith {

/// A copy of the input with a length of its own, so that reading past its end is seen.
inline Bytes fuzz_bytes(const uint8_t* data, size_t size) {
  return Bytes::own(std::vector<std::byte>(reinterpret_cast<const std::byte*>(data),
                                           reinterpret_cast<const std::byte*>(data) + size));
}

inline std::string_view fuzz_text(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// Keeps the compiler from dropping what was read.
template <class T>
inline void fuzz_use(const T& value) {
  asm volatile("" : : "g"(&value) : "memory");
}

/// Reads every byte of `data`, so that a range that is not there is noticed.
inline void touch(const Bytes& data) {
  unsigned sum = 0;
  for (const std::byte b : data.view) sum += static_cast<unsigned>(b);
  fuzz_use(sum);
}

/// A property that must hold whatever the input was.
inline void require(bool good) {
  if (!good) __builtin_trap();
}

}  // namespace pith
