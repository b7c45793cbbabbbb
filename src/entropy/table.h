// Static integer probability tables for rANS: the same integers on every machine, no floating point in a decoder.
//
// A table covers the codes lo .. lo + n - 1 after an arithmetic shift right by `shift` (the low bits of large codes are
// close to uniform and go by without a model) and one escape symbol for everything else. Frequencies sum to 2^12.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

namespace pith {

class CodeTable {
 public:
  static constexpr unsigned kBits = 12;
  static constexpr uint32_t kTotal = 1u << kBits;
  static constexpr unsigned kMaxSymbols = 200;
  static constexpr unsigned kMaxShift = 10;

  /// The best table for a histogram of codes (value -> count); never empty: an empty histogram gives escapes only.
  static CodeTable fit(const std::map<int, uint64_t>& histogram);
  /// From its parts; refuses frequencies that do not sum to 2^12 or are zero for the escape.
  static Result<CodeTable> make(int lo, unsigned shift, std::vector<uint16_t> frequencies);

  int lo() const { return lo_; }
  unsigned shift() const { return shift_; }
  /// Frequencies of the n codes, then of the escape.
  std::span<const uint16_t> frequencies() const { return frequency_; }
  uint32_t start(unsigned symbol) const { return start_[symbol]; }
  unsigned escape() const { return static_cast<unsigned>(frequency_.size()) - 1; }

  /// The symbol of a code: 0 .. n-1, or escape().
  unsigned symbol(int code) const {
    const int s = (code >> shift_) - lo_;
    return s >= 0 && s < static_cast<int>(escape()) ? static_cast<unsigned>(s) : escape();
  }
  /// Bits that this table spends on `code`, shift and escape bits included (for estimates; floating point).
  double cost(int code) const;

  /// One entry a slot: symbol << 24 | frequency << 12 | (slot - start). Built on first need by `RansModel`.
  std::vector<uint32_t> slots() const;

 private:
  int lo_ = 0;
  unsigned shift_ = 0;
  std::vector<uint16_t> frequency_;
  std::vector<uint32_t> start_;
};

/// Tables of all classes of a model, shared by many matrices. Class k is meant for codes of rms 2^((k - 24) / 4).
class RansModel {
 public:
  static constexpr int kClasses = 64;
  static constexpr int kClassZero = 24;  ///< the class of rms 1

  explicit RansModel(std::vector<CodeTable> tables);
  static Result<std::shared_ptr<const RansModel>> parse(std::span<const std::byte> bytes);
  std::vector<std::byte> serialize() const;

  const CodeTable& table(int k) const { return tables_[static_cast<size_t>(k)]; }
  /// slots of all classes, kTotal entries each.
  const uint32_t* slots(int k) const { return slots_.data() + static_cast<size_t>(k) * CodeTable::kTotal; }

 private:
  std::vector<CodeTable> tables_;
  std::vector<uint32_t> slots_;
};

}  // namespace pith
