// The block types of ggml, which GGUF tensors are made of: sizes, decoding, plain rounding, and the fields of a block
// for those who choose scales and codes themselves.
#pragma once

#include <pith/result.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace pith {

/// The numbers that GGUF files store.
enum class GgmlType : uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q8_1 = 9,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  q8_k = 15,
  iq2_xxs = 16,
  iq2_xs = 17,
  iq3_xxs = 18,
  iq1_s = 19,
  iq4_nl = 20,
  iq3_s = 21,
  iq2_s = 22,
  iq4_xs = 23,
  i8 = 24,
  i16 = 25,
  i32 = 26,
  i64 = 27,
  f64 = 28,
  iq1_m = 29,
  bf16 = 30,
  tq1_0 = 34,
  tq2_0 = 35,
  mxfp4 = 39,
  nvfp4 = 40,
  q1_0 = 41,
  q2_0 = 42,
};

struct GgmlTraits {
  GgmlType type;
  std::string_view name;  ///< "Q4_K"
  uint32_t elements;      ///< values in one block; a row is a whole number of blocks
  uint32_t bytes;         ///< bytes of one block
  bool writable;          ///< quantize_row knows it
};

/// nullptr when the number is none that ggml uses today.
const GgmlTraits* ggml_traits(uint32_t type);
const GgmlTraits& ggml_traits(GgmlType type);
/// By name, upper or lower case ("q4_k", "Q4_K").
std::optional<GgmlType> ggml_type_from_name(std::string_view name);
std::span<const GgmlTraits> all_ggml_types();

double ggml_bits_per_weight(GgmlType type);
/// Bytes of a row of `n` values; nullopt when n is negative or not a whole number of blocks.
std::optional<uint64_t> ggml_row_bytes(GgmlType type, int64_t n);

/// `n` values (a whole number of blocks) as fp32. Any bytes are valid input: each pattern decodes to something.
void dequantize_row(GgmlType type, const std::byte* src, int64_t n, float* dst);

/// Rounds to nearest with a search for the scales that minimises sum of importance * error^2.
/// `importance`: one weight >= 0 a value (mean squared activation of the column), or null for all 1.
/// For writable types; NaN counts as 0, infinities as the largest fp16.
void quantize_row(GgmlType type, const float* src, int64_t n, const float* importance, std::byte* dst);

// ---- blocks as fields
// ------------------------------------------------------------------------------------------------ One formula covers
// Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4_NL IQ4_XS Q2_K Q3_K Q4_K Q5_K Q6_K:
//   x_i = (d * scale_s) * level(code_i) - dmin * min_s,   s = i / sub
// evaluated in fp32 in this order, which is bit for bit what dequantize_row gives. Types with one sub-block have
// scale 1 (and Q4_1, Q5_1: min 1, dmin = -m). level(c) = c except for IQ4: level(c) = iq4_levels[c].

struct BlockFields {
  float d = 0, dmin = 0;  ///< stored as fp16: round them (fp16_round) before choosing codes
  int16_t scales[16] = {};
  int16_t mins[16] = {};
  int16_t codes[256] = {};
};

struct BlockShape {
  int elements, sub;          ///< values in a block, values in a sub-block
  int code_low, code_high;    ///< inclusive
  int scale_low, scale_high;  ///< inclusive; equal when fixed
  int min_low, min_high;      ///< inclusive; both 0 when the type has no minimum
  bool table;                 ///< level(code) is iq4_levels[code]
};

/// nullptr for types that have no such fields.
const BlockShape* block_shape(GgmlType type);

inline constexpr int8_t iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/// The nearest value that fp16 can hold, saturating at +-65504; NaN gives 0.
float fp16_round(float v);

/// Exact inverses on fields within the shape's ranges. pack clamps what lies outside.
void pack_block(GgmlType type, const BlockFields& fields, std::byte* dst);
void unpack_block(GgmlType type, const std::byte* src, BlockFields& fields);
/// The formula above.
void decode_block(GgmlType type, const BlockFields& fields, float* dst);

}  // namespace pith
