// Integer codes stored with a fixed number of bits.
#pragma once

#include "represent/node.h"

namespace pith {

/// value = stored + offset, `width` bits each, least significant bit first, rows packed back to back, each row begins
/// on a byte: ceil(cols * width / 8) bytes a row.
class PackedCodes final : public Codes {
 public:
  /// `data` holds rows * ceil(cols * width / 8) bytes. All values must fit int16.
  static Result<CodesPtr> make(int64_t rows, int64_t cols, unsigned width, int offset, Bytes data);
  /// Packs row-major values; refuses one outside [offset, offset + 2^width).
  static Result<CodesPtr> pack(int64_t rows, int64_t cols, unsigned width, int offset, std::span<const int16_t> values);
  /// The same in the fewest bits that hold all values.
  static Result<CodesPtr> pack(int64_t rows, int64_t cols, std::span<const int16_t> values);
  static Result<CodesPtr> parse(const nlohmann::json& j, int64_t rows, int64_t cols, const ParseContext& context);

  unsigned width() const { return width_; }
  int offset() const { return offset_; }
  int64_t row_bytes() const { return row_bytes_; }
  const std::byte* row_data(int64_t r) const { return data_.data() + r * row_bytes_; }
  const Bytes& data() const { return data_; }

  std::string_view kind() const override { return "packed"; }
  void read_rows(int64_t r0, int64_t r1, int16_t* out) const override;
  std::pair<int, int> range() const override { return {offset_, offset_ + (1 << width_) - 1}; }
  BitReport bits() const override;
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;

 private:
  PackedCodes(int64_t rows, int64_t cols, unsigned width, int offset, Bytes data);
  unsigned width_;
  int offset_;
  int64_t row_bytes_;
  Bytes data_;
};

/// Reads codes of any known kind ("packed" and those of context.codes_formats) of the given shape.
Result<CodesPtr> parse_codes(const nlohmann::json& j, int64_t rows, int64_t cols, const ParseContext& context);

}  // namespace pith
