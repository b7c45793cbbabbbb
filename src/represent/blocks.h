// A matrix in one of ggml's block types: the leaf that GGUF files are made of.
#pragma once

#include "formats/ggml_blocks.h"
#include "represent/node.h"

namespace pith {

/// rows * ggml_row_bytes(type, cols) bytes, rows back to back. Any bytes decode to something.
class Blocks final : public Node {
 public:
  /// cols must be a whole number of blocks.
  static Result<NodePtr> make(GgmlType type, int64_t rows, int64_t cols, Bytes data);
  /// Rounds fp32 values [rows, cols] to a writable type; `importance` has one weight a column, or is null.
  static Result<NodePtr> quantize(GgmlType type, int64_t rows, int64_t cols, std::span<const float> values,
                                  const float* importance = nullptr);
  static Result<NodePtr> parse(const nlohmann::json& j, const ParseContext& context, uint32_t depth);

  GgmlType type() const { return type_; }
  int64_t row_bytes() const { return row_bytes_; }
  const std::byte* row_data(int64_t r) const { return data_.data() + r * row_bytes_; }
  const Bytes& data() const { return data_; }

  std::string_view kind() const override { return "blocks"; }
  void decode_rows(int64_t r0, int64_t r1, float* out) const override;
  BitReport bits() const override;
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  Blocks(GgmlType type, int64_t rows, int64_t cols, int64_t row_bytes, Bytes data);
  GgmlType type_;
  int64_t row_bytes_;
  Bytes data_;
};

}  // namespace pith
