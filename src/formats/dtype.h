// Element types of plain (unblocked) arrays, with the names that safetensors uses.
#pragma once

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

}  // namespace pith
