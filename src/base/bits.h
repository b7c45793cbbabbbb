// Bit packing: unsigned codes of 1 to 16 bits, least significant bit first, rows padded to whole bytes by the caller.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/checked.h"

namespace pith {

constexpr uint64_t packed_bytes(uint64_t count, unsigned bits) { return ceil_div(count * bits, 8); }

/// Packs `codes` (each < 2^bits) into `out`, which must hold packed_bytes(codes.size(), bits) bytes.
void pack_bits(std::span<const uint16_t> codes, unsigned bits, std::byte* out);

/// The inverse: `count` codes starting at code index `first` of a packed run. `in` must hold all bytes of the run.
void unpack_bits(const std::byte* in, uint64_t first, uint64_t count, unsigned bits, uint16_t* out);

}  // namespace pith
