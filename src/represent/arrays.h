// Arrays of numbers as they lie in a file: a type, and bytes that are mapped or owned. Reading converts to fp32.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/half.h"
#include "formats/bytes.h"
#include "formats/dtype.h"

namespace pith {

/// Bytes aligned for elements of `align` bytes: the same bytes when they are, else a copy.
Bytes aligned_bytes(Bytes data, size_t align);

/// `count` real numbers of type f64, f32, f16, bf16, f8_e4m3 or f8_e5m2.
class FloatArray {
 public:
  FloatArray() = default;
  /// Refuses other types and a byte count that is not count * dtype_size(type); `what` names the array in errors.
  static Result<FloatArray> make(DType type, int64_t count, Bytes data, std::string_view what);
  /// Rounds fp32 values to `type` (f32, f16 or bf16).
  static Result<FloatArray> from(DType type, std::span<const float> values, std::string_view what);

  DType type() const { return type_; }
  int64_t size() const { return size_; }
  const Bytes& bytes() const { return data_; }
  uint64_t stored_bits() const { return data_.size() * 8; }

  /// Element i, by type (one switch a call: for single values; `read` is for runs).
  float at(int64_t i) const;
  /// Elements [first, first + count) as fp32.
  void read(int64_t first, int64_t count, float* out) const;
  /// Index of the first NaN or infinity, or -1.
  int64_t first_non_finite() const;

 private:
  DType type_ = DType::f32;
  int64_t size_ = 0;
  Bytes data_;
};

/// Unsigned integers of type u8, u16 or u32.
class IndexArray {
 public:
  IndexArray() = default;
  static Result<IndexArray> make(DType type, int64_t count, Bytes data, std::string_view what);
  /// Stores values in the narrowest type that can hold all numbers up to `largest`.
  static IndexArray from(std::span<const uint32_t> values, uint32_t largest);

  DType type() const { return type_; }
  int64_t size() const { return size_; }
  const Bytes& bytes() const { return data_; }
  uint64_t stored_bits() const { return data_.size() * 8; }

  uint32_t operator[](int64_t i) const {
    switch (type_) {
      case DType::u8:
        return reinterpret_cast<const uint8_t*>(data_.data())[i];
      case DType::u16:
        return reinterpret_cast<const uint16_t*>(data_.data())[i];
      default:
        return reinterpret_cast<const uint32_t*>(data_.data())[i];
    }
  }

 private:
  DType type_ = DType::u8;
  int64_t size_ = 0;
  Bytes data_;
};

/// fp16 to fp32 for a run of values (no branches, so compilers vectorise it).
void half_to_float(const uint16_t* in, int64_t count, float* out);

}  // namespace pith
