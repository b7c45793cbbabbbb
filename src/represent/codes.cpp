#include "represent/codes.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/bits.h"
#include "base/checked.h"
#include "represent/json_read.h"

namespace pith {

using nlohmann::json;

PackedCodes::PackedCodes(int64_t rows, int64_t cols, unsigned width, int offset, Bytes data)
    : Codes(rows, cols),
      width_(width),
      offset_(offset),
      row_bytes_(static_cast<int64_t>(packed_bytes(static_cast<uint64_t>(cols), width))),
      data_(std::move(data)) {}

Result<CodesPtr> PackedCodes::make(int64_t rows, int64_t cols, unsigned width, int offset, Bytes data) {
  PITH_TRY(check_shape(rows, cols, "codes"));
  if (width < 1 || width > 16) return data_error(fmt::format("codes: {} bits a code, expected 1 to 16", width));
  if (offset < -32768 || offset > 32768 - (1 << width))
    return data_error(fmt::format("codes: offset {} puts {}-bit codes outside 16 bits", offset, width));
  const auto bytes = checked_mul(static_cast<uint64_t>(rows), packed_bytes(static_cast<uint64_t>(cols), width));
  if (!bytes || *bytes != data.size())
    return data_error(fmt::format("codes: {} x {} codes of {} bits take {} bytes, found {}", rows, cols, width,
                                  bytes.value_or(0), data.size()));
  return CodesPtr(new PackedCodes(rows, cols, width, offset, std::move(data)));
}

Result<CodesPtr> PackedCodes::pack(int64_t rows, int64_t cols, unsigned width, int offset,
                                   std::span<const int16_t> values) {
  PITH_TRY(check_shape(rows, cols, "codes"));
  if (width < 1 || width > 16 || values.size() != static_cast<size_t>(rows) * static_cast<size_t>(cols))
    return bug_error(fmt::format("codes: {} values of {} bits for {} x {}", values.size(), width, rows, cols));
  const size_t row_bytes = packed_bytes(static_cast<uint64_t>(cols), width);
  std::vector<std::byte> data(static_cast<size_t>(rows) * row_bytes);
  std::vector<uint16_t> row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const int stored = values[static_cast<size_t>(r * cols + c)] - offset;
      if (stored < 0 || stored >= 1 << width)
        return bug_error(fmt::format("codes: value {} at ({}, {}) does not fit {} bits with offset {}", stored + offset,
                                     r, c, width, offset));
      row[static_cast<size_t>(c)] = static_cast<uint16_t>(stored);
    }
    pack_bits(row, width, data.data() + static_cast<size_t>(r) * row_bytes);
  }
  return make(rows, cols, width, offset, Bytes::own(std::move(data)));
}

Result<CodesPtr> PackedCodes::pack(int64_t rows, int64_t cols, std::span<const int16_t> values) {
  if (values.empty()) return bug_error("codes: there are none to pack");
  const auto [lowest, highest] = std::minmax_element(values.begin(), values.end());
  unsigned width = 1;
  while ((*highest - *lowest) >> width != 0) ++width;
  // The whole range of codes fits 16 bits.
  return pack(rows, cols, width, std::min<int>(*lowest, 32768 - (1 << width)), values);
}

// One row of codes. Each code is cut out of a 64-bit window read at its byte, as long as the window stays inside the
// data; the last few go the slow way.
static void unpack_row(const std::byte* in, const std::byte* data_end, int64_t count, unsigned width, int offset,
                       int16_t* out) {
  int64_t i = 0;
  if (width == 8) {
    for (; i < count; ++i) out[i] = static_cast<int16_t>(static_cast<int>(in[i]) + offset);
    return;
  }
  if (width == 4) {
    for (; i + 1 < count; i += 2) {
      const int byte = static_cast<int>(in[i / 2]);
      out[i] = static_cast<int16_t>((byte & 15) + offset);
      out[i + 1] = static_cast<int16_t>((byte >> 4) + offset);
    }
    if (i < count) out[i] = static_cast<int16_t>((static_cast<int>(in[i / 2]) & 15) + offset);
    return;
  }
  const uint64_t mask = (uint64_t{1} << width) - 1;
  // Eight codes begin on a byte again; a window of 8 bytes read at the byte of a code holds all of its up to 16 bits.
  if constexpr (std::endian::native == std::endian::little) {
    for (; i < count; ++i) {
      const uint64_t bit = static_cast<uint64_t>(i) * width;
      if (data_end - (in + bit / 8) < 8) break;
      uint64_t window;
      std::memcpy(&window, in + bit / 8, 8);
      out[i] = static_cast<int16_t>(static_cast<int>((window >> (bit % 8)) & mask) + offset);
    }
  }
  for (; i < count; ++i) {
    uint16_t code;
    unpack_bits(in, static_cast<uint64_t>(i), 1, width, &code);
    out[i] = static_cast<int16_t>(code + offset);
  }
}

void PackedCodes::read_rows(int64_t r0, int64_t r1, int16_t* out) const {
  const std::byte* end = data_.data() + data_.size();
  for (int64_t r = r0; r < r1; ++r, out += cols_) unpack_row(row_data(r), end, cols_, width_, offset_, out);
}

BitReport PackedCodes::bits() const {
  BitReport report;
  report.payload = data_.size() * 8;
  return report;
}

json PackedCodes::serialize(const std::string& prefix, SectionSink& sink) const {
  const std::string name = prefix + ".codes";
  sink.add(name, DType::u8, {rows_, row_bytes_}, data_);
  return {{"codes", "packed"}, {"bits", width_}, {"offset", offset_}, {"section", name}};
}

Result<CodesPtr> PackedCodes::parse(const json& j, int64_t rows, int64_t cols, const ParseContext& context) {
  PITH_ASSIGN(const int64_t width, json_int(j, "bits", 1, 16));
  PITH_ASSIGN(const int64_t offset, json_int(j, "offset", -32768, 32767));
  PITH_ASSIGN(Section section, json_section(j, "section", context));
  if (section.type != DType::u8) return data_error("codes: section is not U8");
  return make(rows, cols, static_cast<unsigned>(width), static_cast<int>(offset), std::move(section.data));
}

Result<CodesPtr> parse_codes(const json& j, int64_t rows, int64_t cols, const ParseContext& context) {
  PITH_TRY(check_shape(rows, cols, "codes"));
  PITH_ASSIGN(const std::string kind, json_text(j, "codes"));
  if (kind == "packed") return PackedCodes::parse(j, rows, cols, context);
  for (const CodesFormat& format : context.codes_formats)
    if (format.kind == kind) {
      PITH_ASSIGN(CodesPtr codes, format.parse(j, rows, cols, context));
      if (codes == nullptr || codes->rows() != rows || codes->cols() != cols)
        return bug_error(fmt::format("codes of kind '{}' came out with another shape", kind));
      return codes;
    }
  return data_error(fmt::format("codes of kind '{}' are not known here; a newer pith may read them", kind));
}

}  // namespace pith
