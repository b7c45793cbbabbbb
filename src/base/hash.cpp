#include "base/hash.h"

#include <xxhash.h>

#include <cstdio>
#include <cstring>

namespace pith {

uint64_t hash64(std::span<const std::byte> data, uint64_t seed) {
  return XXH3_64bits_withSeed(data.data(), data.size(), seed);
}

uint64_t hash64(std::string_view text, uint64_t seed) { return XXH3_64bits_withSeed(text.data(), text.size(), seed); }

static std::string hex128(uint64_t hi, uint64_t lo) {
  char text[33];
  std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(hi),
                static_cast<unsigned long long>(lo));
  return text;
}

std::string hash_hex(std::span<const std::byte> data) {
  const XXH128_hash_t h = XXH3_128bits(data.data(), data.size());
  return hex128(h.high64, h.low64);
}

Hasher& Hasher::add(std::span<const std::byte> data) {
  // Each part is hashed with the state as seed, so order and part borders both count.
  const uint64_t size = data.size();
  lo_ = XXH3_64bits_withSeed(data.data(), data.size(), lo_ + size);
  hi_ = XXH3_64bits_withSeed(data.data(), data.size(), hi_ ^ lo_);
  return *this;
}

Hasher& Hasher::add(std::string_view text) { return add(std::as_bytes(std::span(text.data(), text.size()))); }

Hasher& Hasher::add(uint64_t value) { return add(std::as_bytes(std::span(&value, 1))); }

std::string Hasher::hex() const { return hex128(hi_, lo_); }

}  // namespace pith
