#include "formats/dtype.h"

#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "base/half.h"

namespace pith {
namespace {

struct Row {
  std::string_view name;
  unsigned size;
};

// In the order of the enum.
constexpr std::array<Row, 15> kRows{{{"F64", 8},
                                     {"F32", 4},
                                     {"F16", 2},
                                     {"BF16", 2},
                                     {"I64", 8},
                                     {"I32", 4},
                                     {"I16", 2},
                                     {"I8", 1},
                                     {"U64", 8},
                                     {"U32", 4},
                                     {"U16", 2},
                                     {"U8", 1},
                                     {"BOOL", 1},
                                     {"F8_E4M3", 1},
                                     {"F8_E5M2", 1}}};
static_assert(kRows.size() == static_cast<size_t>(DType::f8_e5m2) + 1);

// E4M3 as machine learning uses it (no infinity, S.1111.111 is NaN).
float e4m3_to_float(uint8_t v) {
  const int exponent = (v >> 3) & 15, mantissa = v & 7;
  if (exponent == 15 && mantissa == 7) return std::nanf("");
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (v & 0x80) ? -magnitude : magnitude;
}

template <class T, class Convert>
void convert_all(const std::byte* src, int64_t count, float* dst, Convert convert) {
  for (int64_t i = 0; i < count; ++i) {
    T v;
    std::memcpy(&v, src + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    dst[i] = convert(v);
  }
}

template <class T>
void cast_all(const std::byte* src, int64_t count, float* dst) {
  convert_all<T>(src, count, dst, [](T v) { return static_cast<float>(v); });
}

}  // namespace

unsigned dtype_size(DType type) { return kRows[static_cast<size_t>(type)].size; }

std::string_view dtype_name(DType type) { return kRows[static_cast<size_t>(type)].name; }

std::optional<DType> dtype_from_name(std::string_view name) {
  for (size_t i = 0; i < kRows.size(); ++i)
    if (kRows[i].name == name) return static_cast<DType>(i);
  return std::nullopt;
}

void to_float(DType type, const std::byte* src, int64_t count, float* dst) {
  switch (type) {
    case DType::f64:
      return cast_all<double>(src, count, dst);
    case DType::f32:
      std::memcpy(dst, src, static_cast<size_t>(count) * 4);
      return;
    case DType::f16:
      return convert_all<uint16_t>(src, count, dst, half_to_float);
    case DType::bf16:
      return convert_all<uint16_t>(src, count, dst, bf16_to_float);
    case DType::i64:
      return cast_all<int64_t>(src, count, dst);
    case DType::i32:
      return cast_all<int32_t>(src, count, dst);
    case DType::i16:
      return cast_all<int16_t>(src, count, dst);
    case DType::i8:
      return cast_all<int8_t>(src, count, dst);
    case DType::u64:
      return cast_all<uint64_t>(src, count, dst);
    case DType::u32:
      return cast_all<uint32_t>(src, count, dst);
    case DType::u16:
      return cast_all<uint16_t>(src, count, dst);
    case DType::u8:
      return cast_all<uint8_t>(src, count, dst);
    case DType::boolean:
      return convert_all<uint8_t>(src, count, dst, [](uint8_t v) { return v ? 1.0f : 0.0f; });
    case DType::f8_e4m3:
      return convert_all<uint8_t>(src, count, dst, e4m3_to_float);
    case DType::f8_e5m2:  // the upper half of an fp16
      return convert_all<uint8_t>(src, count, dst,
                                  [](uint8_t v) { return half_to_float(static_cast<uint16_t>(v << 8)); });
  }
}

void from_float(DType type, const float* src, int64_t count, std::byte* dst) {
  const auto store = [&](auto convert) {
    for (int64_t i = 0; i < count; ++i) {
      const auto v = convert(src[i]);
      std::memcpy(dst + i * static_cast<int64_t>(sizeof v), &v, sizeof v);
    }
  };
  switch (type) {
    case DType::f64:
      return store([](float v) { return static_cast<double>(v); });
    case DType::f32:
      std::memcpy(dst, src, static_cast<size_t>(count) * 4);
      return;
    case DType::f16:
      return store(float_to_half);
    case DType::bf16:
      return store(float_to_bf16);
    default:
      std::abort();  // the docstring forbids it
  }
}

}  // namespace pith
