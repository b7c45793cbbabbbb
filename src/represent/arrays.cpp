#include "represent/arrays.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "base/checked.h"

namespace pith {

Bytes aligned_bytes(Bytes data, size_t align) {
  if (reinterpret_cast<uintptr_t>(data.data()) % align == 0) return data;
  // operator new aligns for every fundamental type, so a copy is aligned for all our elements.
  return Bytes::own(std::vector<std::byte>(data.view.begin(), data.view.end()));
}

static Status check_size(DType type, int64_t count, const Bytes& data, std::string_view what) {
  const auto bytes = count < 0 ? std::nullopt : checked_mul(static_cast<uint64_t>(count), dtype_size(type));
  if (!bytes || *bytes != data.size())
    return data_error(
        fmt::format("{}: expected {} elements of {}, found {} bytes", what, count, dtype_name(type), data.size()));
  return {};
}

// ---- FloatArray ---------------------------------------------------------------------------------

void half_to_float(const uint16_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = in[i] & 0x7fffu;
    // Shifted into place the exponent is 112 too small, for subnormals too; a multiplication by 2^112 puts that right.
    uint32_t bits = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f);
    bits |= magnitude >= 0x7c00u ? 0x7f800000u : 0u;  // infinity and NaN
    out[i] = std::bit_cast<float>(bits | static_cast<uint32_t>(in[i] & 0x8000u) << 16);
  }
}

Result<FloatArray> FloatArray::make(DType type, int64_t count, Bytes data, std::string_view what) {
  switch (type) {
    case DType::f64:
    case DType::f32:
    case DType::f16:
    case DType::bf16:
    case DType::f8_e4m3:
    case DType::f8_e5m2:
      break;
    default:
      return data_error(fmt::format("{}: type {} is no type of real numbers (F64, F32, F16, BF16, F8_E4M3, F8_E5M2)",
                                    what, dtype_name(type)));
  }
  PITH_TRY(check_size(type, count, data, what));
  FloatArray array;
  array.type_ = type;
  array.size_ = count;
  array.data_ = aligned_bytes(std::move(data), dtype_size(type));
  return array;
}

Result<FloatArray> FloatArray::from(DType type, std::span<const float> values, std::string_view what) {
  const auto count = static_cast<int64_t>(values.size());
  if (type == DType::f32) return make(type, count, Bytes::own(std::vector<float>(values.begin(), values.end())), what);
  if (type != DType::f16 && type != DType::bf16)
    return bug_error(fmt::format("{}: cannot store fp32 values as {}", what, dtype_name(type)));
  std::vector<std::byte> rounded(values.size() * dtype_size(type));
  from_float(type, values.data(), count, rounded.data());
  return make(type, count, Bytes::own(std::move(rounded)), what);
}

float FloatArray::at(int64_t i) const {
  float value = 0;
  read(i, 1, &value);
  return value;
}

void FloatArray::read(int64_t first, int64_t count, float* out) const {
  const std::byte* p = data_.data() + first * dtype_size(type_);
  if (type_ == DType::f16)
    half_to_float(reinterpret_cast<const uint16_t*>(p), count, out);
  else
    to_float(type_, p, count, out);
}

int64_t FloatArray::first_non_finite() const {
  float buffer[1024];
  for (int64_t first = 0; first < size_; first += 1024) {
    const int64_t n = std::min<int64_t>(1024, size_ - first);
    read(first, n, buffer);
    for (int64_t i = 0; i < n; ++i)
      if (!std::isfinite(buffer[i])) return first + i;
  }
  return -1;
}

// ---- IndexArray ---------------------------------------------------------------------------------

Result<IndexArray> IndexArray::make(DType type, int64_t count, Bytes data, std::string_view what) {
  if (type != DType::u8 && type != DType::u16 && type != DType::u32)
    return data_error(fmt::format("{}: type {} is no type of indices (U8, U16, U32)", what, dtype_name(type)));
  PITH_TRY(check_size(type, count, data, what));
  IndexArray array;
  array.type_ = type;
  array.size_ = count;
  array.data_ = aligned_bytes(std::move(data), dtype_size(type));
  return array;
}

IndexArray IndexArray::from(std::span<const uint32_t> values, uint32_t largest) {
  IndexArray array;
  array.size_ = static_cast<int64_t>(values.size());
  if (largest <= 0xff) {
    array.type_ = DType::u8;
    array.data_ = Bytes::own(std::vector<uint8_t>(values.begin(), values.end()));
  } else if (largest <= 0xffff) {
    array.type_ = DType::u16;
    array.data_ = Bytes::own(std::vector<uint16_t>(values.begin(), values.end()));
  } else {
    array.type_ = DType::u32;
    array.data_ = Bytes::own(std::vector<uint32_t>(values.begin(), values.end()));
  }
  return array;
}

}  // namespace pith
