#include "base/zstd.h"

#include <zstd.h>

#include <algorithm>

namespace pith {

std::string zstd_compress(std::span<const std::byte> data, int level) {
  std::string out(ZSTD_compressBound(data.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), data.data(), data.size(), level));
  return out;
}

Result<std::string> zstd_decompress(std::span<const std::byte> frame, uint64_t max_bytes) {
  const unsigned long long claimed = ZSTD_getFrameContentSize(frame.data(), frame.size());
  if (claimed == ZSTD_CONTENTSIZE_ERROR) return data_error("not a zstd frame");
  if (claimed == ZSTD_CONTENTSIZE_UNKNOWN) return data_error("zstd frame without its content size");
  if (claimed > max_bytes)
    return data_error("zstd frame claims " + std::to_string(claimed) + " bytes, at most " + std::to_string(max_bytes) +
                      " are read");
  // A frame can claim far more than it holds: grow with what is really there.
  std::string out;
  ZSTD_DCtx* context = ZSTD_createDCtx();
  ZSTD_inBuffer in{frame.data(), frame.size(), 0};
  size_t status = 1;
  while (status != 0) {
    const size_t at = out.size();
    const size_t chunk = std::min<uint64_t>(claimed - at + 1, 1 << 20);
    out.resize(at + chunk);
    ZSTD_outBuffer part{out.data() + at, chunk, 0};
    status = ZSTD_decompressStream(context, &part, &in);
    out.resize(at + part.pos);
    if (ZSTD_isError(status) != 0 || out.size() > claimed || (part.pos == 0 && in.pos == in.size && status != 0)) {
      ZSTD_freeDCtx(context);
      return data_error("damaged zstd frame");
    }
  }
  ZSTD_freeDCtx(context);
  if (out.size() != claimed) return data_error("damaged zstd frame: holds less than it claims");
  return out;
}

}  // namespace pith
