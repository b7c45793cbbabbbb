#include "base/bits.h"

#include <cstring>

namespace pith {

void pack_bits(std::span<const uint16_t> codes, unsigned bits, std::byte* out) {
  uint64_t buffer = 0;
  unsigned held = 0;
  for (const uint16_t code : codes) {
    buffer |= static_cast<uint64_t>(code) << held;
    held += bits;
    while (held >= 8) {
      *out++ = static_cast<std::byte>(buffer & 0xff);
      buffer >>= 8;
      held -= 8;
    }
  }
  if (held > 0) *out = static_cast<std::byte>(buffer & 0xff);
}

void unpack_bits(const std::byte* in, uint64_t first, uint64_t count, unsigned bits, uint16_t* out) {
  const uint64_t start = first * bits;
  const std::byte* p = in + start / 8;
  unsigned held = 0;
  uint64_t buffer = 0;
  if (const unsigned skip = start % 8; skip != 0 && count > 0) {
    buffer = static_cast<uint64_t>(*p++) >> skip;
    held = 8 - skip;
  }
  const uint64_t mask = (1u << bits) - 1;
  for (uint64_t i = 0; i < count; ++i) {
    while (held < bits) {
      buffer |= static_cast<uint64_t>(*p++) << held;
      held += 8;
    }
    out[i] = static_cast<uint16_t>(buffer & mask);
    buffer >>= bits;
    held -= bits;
  }
}

}  // namespace pith
