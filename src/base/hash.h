// XXH3: content hashes of sections, inputs and plans.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace pith {

uint64_t hash64(std::span<const std::byte> data, uint64_t seed = 0);
uint64_t hash64(std::string_view text, uint64_t seed = 0);

/// 128-bit hash as 32 lower-case hex digits, as manifests store it.
std::string hash_hex(std::span<const std::byte> data);

/// Hash of parts in order; a cheap key for caches ("stats of this model with this text and these options").
class Hasher {
 public:
  Hasher& add(std::span<const std::byte> data);
  Hasher& add(std::string_view text);
  Hasher& add(uint64_t value);
  std::string hex() const;

 private:
  uint64_t lo_ = 0x9e3779b97f4a7c15ull, hi_ = 0xc2b2ae3d27d4eb4full;
};

}  // namespace pith
