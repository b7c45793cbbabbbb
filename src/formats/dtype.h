// Element types of plain (unblocked) arrays, with the names that safetensors uses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace pith {

enum class DType : uint8_t { f64, f32, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8, boolean, f8_e4m3, f8_e5m2 };

/// Bytes of one element.
unsigned dtype_size(DType type);
/// "F32", "BF16", "U8", … as safetensors writes them.
std::string_view dtype_name(DType type);
std::optional<DType> dtype_from_name(std::string_view name);

/// `count` elements as fp32 (f64 and wide integers round to nearest). `src` need not be aligned.
void to_float(DType type, const std::byte* src, int64_t count, float* dst);
/// The inverse for f64, f32, f16 and bf16 (round to nearest even); other types are a bug of the caller.
void from_float(DType type, const float* src, int64_t count, std::byte* dst);

}  // namespace pith
