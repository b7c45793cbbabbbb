// Where the codes of a matrix lie for the CUDA kernels. pack.cpp writes by these rules, matvec.cu reads by them.
//
// Rows are cut into strips of 16, columns into spans of 8 slots; a slot is columns that share a scale and a zero (a
// group, or an equal part of one), in one or two parts. A warp takes a part of all slots of a span of a strip at a time
// and multiplies it by tensor cores, m16n8k16: 16 rows by 16 columns of codes (A) times 16 numbers of x (B). Of B's
// eight columns only column j is not zero while slot j is multiplied, so the eight columns of the result are the sums
// of the eight slots, and each lane ends with the sums of two rows and two slots, to which it applies two scales each.
//
// A lane never turns a code into a number: masked out of a word, a code below bit 10 of a 16-bit half IS the fp16
// number code * 2^(position - 24), a subnormal, which tensor cores multiply exactly. Codes of one tensor operation
// share a position (the accumulators of each position are kept apart), and its power of two is multiplied in at the
// end.
#pragma once

#include <cstdint>

namespace pith::cuda {

constexpr int kStripRows = 16;
constexpr int kSlots = 8;

/// Where the two codes (of neighbouring columns) of one 32-bit operand are: in word `word` of a unit, at bit
/// `shift + pos` of each half; (word >> shift) & (mask << pos) is the operand.
struct Place {
  int word, shift, pos;
};

/// A unit is the fewest tensor operations whose codes fill whole words of a lane.
template <int kBits>
struct Unit;

template <>
struct Unit<4> {
  static constexpr int kWords = 2, kOps = 2, kClasses = 2;
  /// Of operand e (0 to 3) of an operation.
  static constexpr Place place(int op, int e) { return {e / 2, 8 * (e % 2), 4 * op}; }
  /// Accumulators of an operation; its codes' position is kBits times this.
  static constexpr int accumulators(int op) { return op; }
};

/// 16-bit halves hold five codes and a spare bit; the spare bits of three words are the sixteenth code.
template <>
struct Unit<3> {
  static constexpr int kWords = 3, kOps = 4, kClasses = 3;
  static constexpr int kSpare = -1;
  static constexpr Place place(int op, int e) {
    constexpr Place kPlaces[kOps][4] = {{{0, 0, 0}, {1, 0, 0}, {2, 0, 0}, {0, 6, 0}},
                                        {{1, 6, 0}, {0, 9, 0}, {1, 9, 0}, {kSpare, 0, 0}},
                                        {{0, 0, 3}, {1, 0, 3}, {2, 0, 3}, {2, 6, 3}},
                                        {{2, 0, 6}, {0, 6, 6}, {1, 6, 6}, {2, 6, 6}}};
    return kPlaces[op][e];
  }
  static constexpr int accumulators(int op) { return op < 2 ? 0 : op - 1; }
};

/// The operand at a place of a unit: two fp16 numbers, each code * 2^(kBits * accumulators - 24).
template <int kBits>
constexpr uint32_t operand(const uint32_t* unit, Place place) {
  constexpr uint32_t kMask = ((1u << kBits) - 1) * 0x00010001u;
  if (place.word >= 0) return (unit[place.word] >> place.shift) & (kMask << place.pos);
  return (unit[0] >> 15 & 0x00010001u) | (unit[1] >> 14 & 0x00020002u) | (unit[2] >> 13 & 0x00040004u);
}

/// Sizes of a span. In memory: the codes of the first part, the statistics, the codes of the second part if there is
/// one; so each part and the statistics are one run of bytes.
struct SpanShape {
  int bits, part, parts;  // columns of a part of a slot, parts of a slot
  bool two_level;
  constexpr int steps() const { return part / 16; }                  // tensor operations for a part of a slot
  constexpr int ops() const { return kSlots * steps(); }             // … for a part of a span
  constexpr int words() const { return ops() * bits / 4; }           // 32-bit words a lane
  constexpr int vector() const { return words() % 4 == 0 ? 4 : 2; }  // words that lie together for one lane
  constexpr int slot() const { return part * parts; }
  constexpr int cols() const { return kSlots * slot(); }
  constexpr int code_bytes() const { return words() * 128; }
  /// Plain: scale and zero, fp16, for each row and slot. Two-level: 4 + 4 bits for each row and slot, then four fp16
  /// numbers for each slot (scale and zero of the scales, scale and zero of the zeros).
  constexpr int stat_bytes() const { return two_level ? 32 * 4 + kSlots * 8 : 32 * 16; }
  constexpr int bytes() const { return parts * code_bytes() + stat_bytes(); }
  /// Where a part, with the statistics, begins in a span, and where in it the codes and the statistics begin.
  constexpr int part_at(int p) const { return p * code_bytes(); }
  constexpr int codes_at(int p) const { return p * stat_bytes(); }
  constexpr int stats_at(int p) const { return p == 0 ? code_bytes() : 0; }
  constexpr int part_bytes() const { return code_bytes() + stat_bytes(); }
  /// Word w of a lane, counted in words from the beginning of the codes.
  constexpr int word_at(int w, int lane) const { return (w / vector() * 32 + lane) * vector() + w % vector(); }
};

/// Shape of spans whose slots have so many columns: 16, 32, 64 or 128.
constexpr SpanShape span_shape(int bits, int slot, bool two_level) {
  return slot == 128 ? SpanShape{bits, 64, 2, two_level} : SpanShape{bits, slot, 1, two_level};
}

/// Column, within its part of a slot, of the first of the four columns that lane t (of four) holds in step s: two for
/// each 32-bit operand. Lanes' columns lie so that 16 bytes of x serve two steps.
constexpr int step_column(int steps, int s, int t) { return steps == 1 ? 4 * t : s / 2 * 32 + 8 * t + s % 2 * 4; }

/// Rows and groups of a tile of codebook codes for the table kernel: lane = group, so that no two lanes of a warp ever
/// look into the same bank of shared memory.
constexpr int kLutRows = 32, kLutGroups = 32;

/// The gather kernel reads codes of 16 rows by 16 groups at a time.
constexpr int kGatherGroups = 16;

}  // namespace pith::cuda
