// Plain numbers.
#pragma once

#include "represent/arrays.h"
#include "represent/node.h"

namespace pith {

/// rows * cols numbers of type f64, f32, f16, bf16, f8_e4m3 or f8_e5m2, row-major. Not required to be finite
/// (check_finite of represent/model.h tests that).
class Dense final : public Node {
 public:
  static Result<NodePtr> make(DType type, int64_t rows, int64_t cols, Bytes data);
  /// Rounds fp32 values to `type` (f32, f16 or bf16).
  static Result<NodePtr> from(DType type, int64_t rows, int64_t cols, std::span<const float> values);
  static Result<NodePtr> parse(const nlohmann::json& j, const ParseContext& context, uint32_t depth);

  DType type() const { return values_.type(); }
  const FloatArray& values() const { return values_; }
  const Bytes& data() const { return values_.bytes(); }

  std::string_view kind() const override { return "dense"; }
  void decode_rows(int64_t r0, int64_t r1, float* out) const override;
  BitReport bits() const override;
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;
  std::string describe() const override;

 private:
  Dense(int64_t rows, int64_t cols, FloatArray values) : Node(rows, cols), values_(std::move(values)) {}
  FloatArray values_;
};

}  // namespace pith
