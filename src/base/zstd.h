// zstd frames in memory.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <span>
#include <string>

namespace pith {

std::string zstd_compress(std::span<const std::byte> data, int level = 19);
/// Refuses frames that claim or give more than `max_bytes`.
Result<std::string> zstd_decompress(std::span<const std::byte> frame, uint64_t max_bytes);

}  // namespace pith
