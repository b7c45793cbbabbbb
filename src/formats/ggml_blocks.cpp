#include "formats/ggml_blocks.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/half.h"
#include "formats/dtype.h"
#include "formats/ggml_grids.h"

namespace pith {
namespace {

// ---- layouts
// --------------------------------------------------------------------------------------------------------- Above each
// struct: the value of element i, and bits per weight with everything counted. All fields are little endian; d, m and
// dmin are fp16. "nibble order": byte j holds elements j (low) and j + n/2 (high) of its run of n.

// x = d (q - 8); nibble order over 32.  (16 + 32 * 4) / 32 = 4.5 bpw
struct Q4_0 {
  uint16_t d;
  uint8_t qs[16];
};
static_assert(sizeof(Q4_0) == 18);

// x = d q + m.  (2 * 16 + 32 * 4) / 32 = 5 bpw
struct Q4_1 {
  uint16_t d, m;
  uint8_t qs[16];
};
static_assert(sizeof(Q4_1) == 20);

// x = d (q - 16); bit 4 of element i is bit i of qh.  (16 + 32 * 5) / 32 = 5.5 bpw
struct Q5_0 {
  uint16_t d;
  uint8_t qh[4];
  uint8_t qs[16];
};
static_assert(sizeof(Q5_0) == 22);

// x = d q + m.  (2 * 16 + 32 * 5) / 32 = 6 bpw
struct Q5_1 {
  uint16_t d, m;
  uint8_t qh[4];
  uint8_t qs[16];
};
static_assert(sizeof(Q5_1) == 24);

// x = d q.  (16 + 32 * 8) / 32 = 8.5 bpw
struct Q8_0 {
  uint16_t d;
  int8_t qs[32];
};
static_assert(sizeof(Q8_0) == 34);

// x = d q; s = d * sum(q), for dot products.  (2 * 16 + 32 * 8) / 32 = 9 bpw
struct Q8_1 {
  uint16_t d, s;
  int8_t qs[32];
};
static_assert(sizeof(Q8_1) == 36);

// The K types and most IQ types: super-blocks of 256. "planes of 128": byte l of a run of 32 holds, at bit 2 j,
// element 32 j + l of its 128.

// x = d sc_s q - dmin m_s, s = i / 16; scales byte: sc low nibble, m high.  (2 * 16 + 16 * 8 + 256 * 2) / 256 = 2.625
// bpw
struct Q2_K {
  uint8_t scales[16];
  uint8_t qs[64];
  uint16_t d, dmin;
};
static_assert(sizeof(Q2_K) == 84);

// x = d (sc_s - 32) (q - 4), s = i / 16; bit 2 of element 32 j + l is bit j of hmask[l].
// (16 + 16 * 6 + 256 * 3) / 256 = 3.4375 bpw
struct Q3_K {
  uint8_t hmask[32];
  uint8_t qs[64];
  uint8_t scales[12];  // bytes 0-7: low nibbles of sc_0-7 and sc_8-15; bytes 8-11: upper bits of sc_s at 2 (s / 4)
  uint16_t d;
};
static_assert(sizeof(Q3_K) == 110);

// x = d sc_s q - dmin m_s, s = i / 32; 64 elements take 32 bytes in nibble order.
// (2 * 16 + 8 * 12 + 256 * 4) / 256 = 4.5 bpw
struct Q4_K {
  uint16_t d, dmin;
  uint8_t scales[12];  // see six_bit_pairs
  uint8_t qs[128];
};
static_assert(sizeof(Q4_K) == 144);

// As Q4_K; bit 4 of element 32 j + l is bit j of qh[l].  (2 * 16 + 8 * 12 + 256 * 5) / 256 = 5.5 bpw
struct Q5_K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};
static_assert(sizeof(Q5_K) == 176);

// x = d sc_s (q - 32), s = i / 16. In each 128: low nibbles of elements l, l + 64 in ql[l], l < 64; upper bits in
// planes of 128.  (16 + 16 * 8 + 256 * 6) / 256 = 6.5625 bpw
struct Q6_K {
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  uint16_t d;
};
static_assert(sizeof(Q6_K) == 210);

// x = d q; sums of 16 for dot products.  (32 + 256 * 8 + 16 * 16) / 256 = 9.125 bpw
struct Q8_K {
  float d;
  int8_t qs[256];
  int16_t bsums[16];
};
static_assert(sizeof(Q8_K) == 292);

// x = d (0.5 + sc) / 4 * grid * sign. A group of 32 has 64 bits: four grid indices of 8 bits, four sign sets of 7 bits
// (the eighth sign makes the number of minus signs even), sc 4 bits.  (16 + 256 * 2) / 256 = 2.0625 bpw
struct IQ2_XXS {
  uint16_t d;
  uint8_t qs[64];
};
static_assert(sizeof(IQ2_XXS) == 66);

// The same with 9-bit indices beside the 7 sign bits in 16, and a 4-bit sc for each 16.
// (16 + 256 * 2 + 64) / 256 = 2.3125 bpw
struct IQ2_XS {
  uint16_t d;
  uint16_t qs[32];
  uint8_t scales[8];
};
static_assert(sizeof(IQ2_XS) == 74);

// The same with 10-bit indices (upper two in qh) and all 8 signs.  (16 + 32 * 18 + 64) / 256 = 2.5625 bpw
struct IQ2_S {
  uint16_t d;
  uint8_t qs[32], signs[32];
  uint8_t qh[8], scales[8];
};
static_assert(sizeof(IQ2_S) == 82);

// x = d (0.5 + sc) / 2 * grid * sign; grid of 4 values, 8-bit indices; signs and sc as in IQ2_XXS.
// (16 + 256 * 3) / 256 = 3.0625 bpw
struct IQ3_XXS {
  uint16_t d;
  uint8_t qs[64];
  uint8_t signs[32];
};
static_assert(sizeof(IQ3_XXS) == 98);

// x = d (1 + 2 sc) * grid * sign; 9-bit indices (upper bit in qh), all signs, sc 4 bits for each 32.
// (16 + 64 * 9 + 256 + 32) / 256 = 3.4375 bpw
struct IQ3_S {
  uint16_t d;
  uint8_t qs[64], qh[8], signs[32], scales[4];
};
static_assert(sizeof(IQ3_S) == 110);

// x = d (2 sc + 1) (grid + delta), delta = +-1/8; qh of a group of 32: four times 3 index bits, sc 3 bits, sign of
// delta.  (16 + 32 * 8 + 8 * 16) / 256 = 1.5625 bpw
struct IQ1_S {
  uint16_t d;
  uint8_t qs[32];
  uint16_t qh[8];
};
static_assert(sizeof(IQ1_S) == 50);

// The same with a 3-bit sc for each 16 and a delta for each 8; d is scattered over the top nibbles of the scales.
// (32 * 8 + 16 * 8 + 4 * 16) / 256 = 1.75 bpw
struct IQ1_M {
  uint8_t qs[32], qh[16];
  uint16_t scales[4];
};
static_assert(sizeof(IQ1_M) == 56);

// x = d level(q); nibble order over 32.  4.5 bpw
struct IQ4_NL {
  uint16_t d;
  uint8_t qs[16];
};
static_assert(sizeof(IQ4_NL) == 18);

// x = d (sc_s - 32) level(q), s = i / 32; nibble order over each 32.  (16 + 8 * 6 + 256 * 4) / 256 = 4.25 bpw
struct IQ4_XS {
  uint16_t d, scales_h;
  uint8_t scales_l[4];
  uint8_t qs[128];
};
static_assert(sizeof(IQ4_XS) == 136);

// x = d (t - 1), t in {0, 1, 2}; five t in a byte as a fraction in base 3 (four in qh).
// (16 + 48 * 8 + 4 * 8) / 256 = 1.6875 bpw
struct TQ1_0 {
  uint8_t qs[48], qh[4];
  uint16_t d;
};
static_assert(sizeof(TQ1_0) == 54);

// x = d (q - 1); planes of 128.  (16 + 256 * 2) / 256 = 2.0625 bpw
struct TQ2_0 {
  uint8_t qs[64];
  uint16_t d;
};
static_assert(sizeof(TQ2_0) == 66);

// x = 2^(e - 127) fp4(q); nibble order over 32.  (8 + 32 * 4) / 32 = 4.25 bpw
struct Mxfp4 {
  uint8_t e;
  uint8_t qs[16];
};
static_assert(sizeof(Mxfp4) == 17);

// x = e4m3(d_s) fp4(q), s = i / 16; nibble order over each 16.  (4 * 8 + 64 * 4) / 64 = 4.5 bpw
struct Nvfp4 {
  uint8_t d[4];
  uint8_t qs[32];
};
static_assert(sizeof(Nvfp4) == 36);

// x = d or -d; element i is bit i.  (16 + 128) / 128 = 1.125 bpw
struct Q1_0 {
  uint16_t d;
  uint8_t qs[16];
};
static_assert(sizeof(Q1_0) == 18);

// x = d (q - 1), q in 0..3; element i at bit 2 i.  (16 + 64 * 2) / 64 = 2.25 bpw
struct Q2_0 {
  uint16_t d;
  uint8_t qs[16];
};
static_assert(sizeof(Q2_0) == 18);

constexpr std::array<GgmlTraits, 35> kTraits{{
    {GgmlType::f32, "F32", 1, 4, true},
    {GgmlType::f16, "F16", 1, 2, true},
    {GgmlType::q4_0, "Q4_0", 32, sizeof(Q4_0), true},
    {GgmlType::q4_1, "Q4_1", 32, sizeof(Q4_1), true},
    {GgmlType::q5_0, "Q5_0", 32, sizeof(Q5_0), true},
    {GgmlType::q5_1, "Q5_1", 32, sizeof(Q5_1), true},
    {GgmlType::q8_0, "Q8_0", 32, sizeof(Q8_0), true},
    {GgmlType::q8_1, "Q8_1", 32, sizeof(Q8_1), false},
    {GgmlType::q2_k, "Q2_K", 256, sizeof(Q2_K), true},
    {GgmlType::q3_k, "Q3_K", 256, sizeof(Q3_K), true},
    {GgmlType::q4_k, "Q4_K", 256, sizeof(Q4_K), true},
    {GgmlType::q5_k, "Q5_K", 256, sizeof(Q5_K), true},
    {GgmlType::q6_k, "Q6_K", 256, sizeof(Q6_K), true},
    {GgmlType::q8_k, "Q8_K", 256, sizeof(Q8_K), false},
    {GgmlType::iq2_xxs, "IQ2_XXS", 256, sizeof(IQ2_XXS), false},
    {GgmlType::iq2_xs, "IQ2_XS", 256, sizeof(IQ2_XS), false},
    {GgmlType::iq3_xxs, "IQ3_XXS", 256, sizeof(IQ3_XXS), false},
    {GgmlType::iq1_s, "IQ1_S", 256, sizeof(IQ1_S), false},
    {GgmlType::iq4_nl, "IQ4_NL", 32, sizeof(IQ4_NL), true},
    {GgmlType::iq3_s, "IQ3_S", 256, sizeof(IQ3_S), false},
    {GgmlType::iq2_s, "IQ2_S", 256, sizeof(IQ2_S), false},
    {GgmlType::iq4_xs, "IQ4_XS", 256, sizeof(IQ4_XS), true},
    {GgmlType::i8, "I8", 1, 1, false},
    {GgmlType::i16, "I16", 1, 2, false},
    {GgmlType::i32, "I32", 1, 4, false},
    {GgmlType::i64, "I64", 1, 8, false},
    {GgmlType::f64, "F64", 1, 8, false},
    {GgmlType::iq1_m, "IQ1_M", 256, sizeof(IQ1_M), false},
    {GgmlType::bf16, "BF16", 1, 2, true},
    {GgmlType::tq1_0, "TQ1_0", 256, sizeof(TQ1_0), false},
    {GgmlType::tq2_0, "TQ2_0", 256, sizeof(TQ2_0), false},
    {GgmlType::mxfp4, "MXFP4", 32, sizeof(Mxfp4), false},
    {GgmlType::nvfp4, "NVFP4", 64, sizeof(Nvfp4), false},
    {GgmlType::q1_0, "Q1_0", 128, sizeof(Q1_0), false},
    {GgmlType::q2_0, "Q2_0", 64, sizeof(Q2_0), false},
}};

template <class Block>
Block load(const std::byte* src) {
  Block b;
  std::memcpy(&b, src, sizeof b);
  return b;
}

// ---- fields
// ----------------------------------------------------------------------------------------------------------

// Scales and minima of Q4_K and Q5_K: bytes 0-3 hold sc_0-3 and bytes 4-7 m_0-3 in their low 6 bits; bytes 8-11 hold
// the low nibbles of sc_4-7 (low) and m_4-7 (high), whose upper two bits are the top bits of bytes 0-3 and 4-7.
void unpack_six_bit_pairs(const uint8_t* in, BlockFields& f) {
  for (int s = 0; s < 4; ++s) {
    f.scales[s] = in[s] & 63;
    f.mins[s] = in[s + 4] & 63;
    f.scales[s + 4] = static_cast<int16_t>((in[s + 8] & 15) | (in[s] >> 6) << 4);
    f.mins[s + 4] = static_cast<int16_t>((in[s + 8] >> 4) | (in[s + 4] >> 6) << 4);
  }
}

void pack_six_bit_pairs(const BlockFields& f, uint8_t* out) {
  for (int s = 0; s < 4; ++s) {
    out[s] = static_cast<uint8_t>(f.scales[s] | (f.scales[s + 4] >> 4) << 6);
    out[s + 4] = static_cast<uint8_t>(f.mins[s] | (f.mins[s + 4] >> 4) << 6);
    out[s + 8] = static_cast<uint8_t>((f.scales[s + 4] & 15) | (f.mins[s + 4] & 15) << 4);
  }
}

// n codes (offset subtracted) from n / 2 bytes in nibble order.
void unpack_nibbles(const uint8_t* in, int n, int offset, int16_t* out) {
  for (int j = 0; j < n / 2; ++j) {
    out[j] = static_cast<int16_t>((in[j] & 15) - offset);
    out[j + n / 2] = static_cast<int16_t>((in[j] >> 4) - offset);
  }
}

void pack_nibbles(const int16_t* in, int n, int offset, uint8_t* out) {
  for (int j = 0; j < n / 2; ++j)
    out[j] = static_cast<uint8_t>(((in[j] + offset) & 15) | ((in[j + n / 2] + offset) & 15) << 4);
}

// Bit 4 of 32 codes, element i at bit i.
void unpack_fifth_bits(const uint8_t* in, int16_t* codes) {
  for (int i = 0; i < 32; ++i) codes[i] = static_cast<int16_t>(codes[i] + ((in[i / 8] >> (i % 8) & 1) << 4));
}

void pack_fifth_bits(const int16_t* codes, int offset, uint8_t* out) {
  std::memset(out, 0, 4);
  for (int i = 0; i < 32; ++i) out[i / 8] |= static_cast<uint8_t>(((codes[i] + offset) >> 4 & 1) << (i % 8));
}

// 128 two-bit codes in planes.
void unpack_planes(const uint8_t* in, int16_t* out) {
  for (int j = 0; j < 4; ++j)
    for (int l = 0; l < 32; ++l) out[32 * j + l] = static_cast<int16_t>(in[l] >> (2 * j) & 3);
}

constexpr BlockShape shape32(int low, int high) { return {32, 32, low, high, 1, 1, 0, 0, false}; }
constexpr BlockShape shape32_min(int high) { return {32, 32, 0, high, 1, 1, 1, 1, false}; }

}  // namespace

const GgmlTraits* ggml_traits(uint32_t type) {
  static const auto by_number = [] {
    std::array<const GgmlTraits*, 43> table{};
    for (const auto& t : kTraits) table[static_cast<uint32_t>(t.type)] = &t;
    return table;
  }();
  return type < by_number.size() ? by_number[type] : nullptr;
}

const GgmlTraits& ggml_traits(GgmlType type) {
  const GgmlTraits* t = ggml_traits(static_cast<uint32_t>(type));
  if (t == nullptr) std::abort();  // the enum holds known types only
  return *t;
}

std::optional<GgmlType> ggml_type_from_name(std::string_view name) {
  for (const auto& t : kTraits)
    if (std::equal(name.begin(), name.end(), t.name.begin(), t.name.end(),
                   [](char a, char b) { return std::toupper(static_cast<unsigned char>(a)) == b; }))
      return t.type;
  return std::nullopt;
}

std::span<const GgmlTraits> all_ggml_types() { return kTraits; }

double ggml_bits_per_weight(GgmlType type) {
  const auto& t = ggml_traits(type);
  return 8.0 * t.bytes / t.elements;
}

std::optional<uint64_t> ggml_row_bytes(GgmlType type, int64_t n) {
  const auto& t = ggml_traits(type);
  if (n < 0 || n % t.elements != 0) return std::nullopt;
  const uint64_t blocks = static_cast<uint64_t>(n) / t.elements;
  if (blocks > UINT64_MAX / t.bytes) return std::nullopt;
  return blocks * t.bytes;
}

const BlockShape* block_shape(GgmlType type) {
  static constexpr BlockShape q4_0 = shape32(-8, 7), q5_0 = shape32(-16, 15), q8_0 = shape32(-128, 127),
                              q4_1 = shape32_min(15), q5_1 = shape32_min(31),
                              iq4_nl = {32, 32, 0, 15, 1, 1, 0, 0, true};
  static constexpr BlockShape q2_k = {256, 16, 0, 3, 0, 15, 0, 15, false},
                              q3_k = {256, 16, -4, 3, -32, 31, 0, 0, false},
                              q4_k = {256, 32, 0, 15, 0, 63, 0, 63, false},
                              q5_k = {256, 32, 0, 31, 0, 63, 0, 63, false},
                              q6_k = {256, 16, -32, 31, -128, 127, 0, 0, false},
                              iq4_xs = {256, 32, 0, 15, -32, 31, 0, 0, true};
  switch (type) {
    case GgmlType::q4_0:
      return &q4_0;
    case GgmlType::q4_1:
      return &q4_1;
    case GgmlType::q5_0:
      return &q5_0;
    case GgmlType::q5_1:
      return &q5_1;
    case GgmlType::q8_0:
      return &q8_0;
    case GgmlType::iq4_nl:
      return &iq4_nl;
    case GgmlType::iq4_xs:
      return &iq4_xs;
    case GgmlType::q2_k:
      return &q2_k;
    case GgmlType::q3_k:
      return &q3_k;
    case GgmlType::q4_k:
      return &q4_k;
    case GgmlType::q5_k:
      return &q5_k;
    case GgmlType::q6_k:
      return &q6_k;
    default:
      return nullptr;
  }
}

float fp16_round(float v) {
  if (!(v == v)) return 0;
  return half_to_float(float_to_half(std::clamp(v, -65504.0f, 65504.0f)));
}

void unpack_block(GgmlType type, const std::byte* src, BlockFields& f) {
  f.dmin = 0;
  f.scales[0] = 1;
  f.mins[0] = 0;
  switch (type) {
    case GgmlType::q4_0: {
      const auto b = load<Q4_0>(src);
      f.d = half_to_float(b.d);
      unpack_nibbles(b.qs, 32, 8, f.codes);
      return;
    }
    case GgmlType::q4_1: {
      const auto b = load<Q4_1>(src);
      f.d = half_to_float(b.d);
      f.dmin = -half_to_float(b.m);
      f.mins[0] = 1;
      unpack_nibbles(b.qs, 32, 0, f.codes);
      return;
    }
    case GgmlType::q5_0: {
      const auto b = load<Q5_0>(src);
      f.d = half_to_float(b.d);
      unpack_nibbles(b.qs, 32, 16, f.codes);
      unpack_fifth_bits(b.qh, f.codes);
      return;
    }
    case GgmlType::q5_1: {
      const auto b = load<Q5_1>(src);
      f.d = half_to_float(b.d);
      f.dmin = -half_to_float(b.m);
      f.mins[0] = 1;
      unpack_nibbles(b.qs, 32, 0, f.codes);
      unpack_fifth_bits(b.qh, f.codes);
      return;
    }
    case GgmlType::q8_0: {
      const auto b = load<Q8_0>(src);
      f.d = half_to_float(b.d);
      std::copy(b.qs, b.qs + 32, f.codes);
      return;
    }
    case GgmlType::iq4_nl: {
      const auto b = load<IQ4_NL>(src);
      f.d = half_to_float(b.d);
      unpack_nibbles(b.qs, 32, 0, f.codes);
      return;
    }
    case GgmlType::iq4_xs: {
      const auto b = load<IQ4_XS>(src);
      f.d = half_to_float(b.d);
      for (int s = 0; s < 8; ++s) {
        const int low = b.scales_l[s / 2] >> (4 * (s % 2)) & 15, high = b.scales_h >> (2 * s) & 3;
        f.scales[s] = static_cast<int16_t>((low | high << 4) - 32);
        f.mins[s] = 0;
        unpack_nibbles(b.qs + 16 * s, 32, 0, f.codes + 32 * s);
      }
      return;
    }
    case GgmlType::q2_k: {
      const auto b = load<Q2_K>(src);
      f.d = half_to_float(b.d);
      f.dmin = half_to_float(b.dmin);
      for (int s = 0; s < 16; ++s) {
        f.scales[s] = b.scales[s] & 15;
        f.mins[s] = b.scales[s] >> 4;
      }
      unpack_planes(b.qs, f.codes);
      unpack_planes(b.qs + 32, f.codes + 128);
      return;
    }
    case GgmlType::q3_k: {
      const auto b = load<Q3_K>(src);
      f.d = half_to_float(b.d);
      for (int s = 0; s < 16; ++s) {
        const int low = b.scales[s % 8] >> (4 * (s / 8)) & 15, high = b.scales[8 + s % 4] >> (2 * (s / 4)) & 3;
        f.scales[s] = static_cast<int16_t>((low | high << 4) - 32);
        f.mins[s] = 0;
      }
      unpack_planes(b.qs, f.codes);
      unpack_planes(b.qs + 32, f.codes + 128);
      for (int j = 0; j < 8; ++j)
        for (int l = 0; l < 32; ++l)
          f.codes[32 * j + l] = static_cast<int16_t>(f.codes[32 * j + l] + ((b.hmask[l] >> j & 1) << 2) - 4);
      return;
    }
    case GgmlType::q4_k: {
      const auto b = load<Q4_K>(src);
      f.d = half_to_float(b.d);
      f.dmin = half_to_float(b.dmin);
      unpack_six_bit_pairs(b.scales, f);
      for (int g = 0; g < 4; ++g) unpack_nibbles(b.qs + 32 * g, 64, 0, f.codes + 64 * g);
      return;
    }
    case GgmlType::q5_k: {
      const auto b = load<Q5_K>(src);
      f.d = half_to_float(b.d);
      f.dmin = half_to_float(b.dmin);
      unpack_six_bit_pairs(b.scales, f);
      for (int g = 0; g < 4; ++g) unpack_nibbles(b.qs + 32 * g, 64, 0, f.codes + 64 * g);
      for (int j = 0; j < 8; ++j)
        for (int l = 0; l < 32; ++l)
          f.codes[32 * j + l] = static_cast<int16_t>(f.codes[32 * j + l] | (b.qh[l] >> j & 1) << 4);
      return;
    }
    case GgmlType::q6_k: {
      const auto b = load<Q6_K>(src);
      f.d = half_to_float(b.d);
      for (int s = 0; s < 16; ++s) {
        f.scales[s] = b.scales[s];
        f.mins[s] = 0;
      }
      for (int h = 0; h < 2; ++h) {
        int16_t* c = f.codes + 128 * h;
        unpack_nibbles(b.ql + 64 * h, 128, 0, c);
        for (int j = 0; j < 4; ++j)
          for (int l = 0; l < 32; ++l)
            c[32 * j + l] = static_cast<int16_t>((c[32 * j + l] | (b.qh[32 * h + l] >> (2 * j) & 3) << 4) - 32);
      }
      return;
    }
    default:
      std::abort();  // block_shape says which types have fields
  }
}

void pack_block(GgmlType type, const BlockFields& given, std::byte* dst) {
  const BlockShape* shape = block_shape(type);
  if (shape == nullptr) std::abort();
  BlockFields f = given;
  for (int i = 0; i < shape->elements; ++i)
    f.codes[i] = static_cast<int16_t>(std::clamp<int>(f.codes[i], shape->code_low, shape->code_high));
  for (int s = 0; s < shape->elements / shape->sub; ++s) {
    f.scales[s] = static_cast<int16_t>(std::clamp<int>(f.scales[s], shape->scale_low, shape->scale_high));
    f.mins[s] = static_cast<int16_t>(std::clamp<int>(f.mins[s], shape->min_low, shape->min_high));
  }
  const uint16_t d = float_to_half(f.d), dmin = float_to_half(f.dmin);
  const auto store = [&](const auto& b) { std::memcpy(dst, &b, sizeof b); };
  switch (type) {
    case GgmlType::q4_0: {
      Q4_0 b{d, {}};
      pack_nibbles(f.codes, 32, 8, b.qs);
      return store(b);
    }
    case GgmlType::q4_1: {
      Q4_1 b{d, float_to_half(-f.dmin), {}};
      pack_nibbles(f.codes, 32, 0, b.qs);
      return store(b);
    }
    case GgmlType::q5_0: {
      Q5_0 b{d, {}, {}};
      pack_nibbles(f.codes, 32, 16, b.qs);
      pack_fifth_bits(f.codes, 16, b.qh);
      return store(b);
    }
    case GgmlType::q5_1: {
      Q5_1 b{d, float_to_half(-f.dmin), {}, {}};
      pack_nibbles(f.codes, 32, 0, b.qs);
      pack_fifth_bits(f.codes, 0, b.qh);
      return store(b);
    }
    case GgmlType::q8_0: {
      Q8_0 b{d, {}};
      for (int i = 0; i < 32; ++i) b.qs[i] = static_cast<int8_t>(f.codes[i]);
      return store(b);
    }
    case GgmlType::iq4_nl: {
      IQ4_NL b{d, {}};
      pack_nibbles(f.codes, 32, 0, b.qs);
      return store(b);
    }
    case GgmlType::iq4_xs: {
      IQ4_XS b{d, 0, {}, {}};
      for (int s = 0; s < 8; ++s) {
        const int sc = f.scales[s] + 32;
        b.scales_l[s / 2] |= static_cast<uint8_t>((sc & 15) << (4 * (s % 2)));
        b.scales_h = static_cast<uint16_t>(b.scales_h | (sc >> 4) << (2 * s));
        pack_nibbles(f.codes + 32 * s, 32, 0, b.qs + 16 * s);
      }
      return store(b);
    }
    case GgmlType::q2_k: {
      Q2_K b{{}, {}, d, dmin};
      for (int s = 0; s < 16; ++s) b.scales[s] = static_cast<uint8_t>(f.scales[s] | f.mins[s] << 4);
      for (int i = 0; i < 256; ++i)
        b.qs[i / 128 * 32 + i % 32] |= static_cast<uint8_t>(f.codes[i] << (i % 128 / 32 * 2));
      return store(b);
    }
    case GgmlType::q3_k: {
      Q3_K b{{}, {}, {}, d};
      for (int s = 0; s < 16; ++s) {
        const int sc = f.scales[s] + 32;
        b.scales[s % 8] |= static_cast<uint8_t>((sc & 15) << (4 * (s / 8)));
        b.scales[8 + s % 4] |= static_cast<uint8_t>((sc >> 4) << (2 * (s / 4)));
      }
      for (int i = 0; i < 256; ++i) {
        const int q = f.codes[i] + 4;
        b.qs[i / 128 * 32 + i % 32] |= static_cast<uint8_t>((q & 3) << (i % 128 / 32 * 2));
        b.hmask[i % 32] |= static_cast<uint8_t>((q >> 2) << (i / 32));
      }
      return store(b);
    }
    case GgmlType::q4_k: {
      Q4_K b{d, dmin, {}, {}};
      pack_six_bit_pairs(f, b.scales);
      for (int g = 0; g < 4; ++g) pack_nibbles(f.codes + 64 * g, 64, 0, b.qs + 32 * g);
      return store(b);
    }
    case GgmlType::q5_k: {
      Q5_K b{d, dmin, {}, {}, {}};
      pack_six_bit_pairs(f, b.scales);
      for (int g = 0; g < 4; ++g) pack_nibbles(f.codes + 64 * g, 64, 0, b.qs + 32 * g);
      for (int i = 0; i < 256; ++i) b.qh[i % 32] |= static_cast<uint8_t>((f.codes[i] >> 4) << (i / 32));
      return store(b);
    }
    case GgmlType::q6_k: {
      Q6_K b{{}, {}, {}, d};
      for (int s = 0; s < 16; ++s) b.scales[s] = static_cast<int8_t>(f.scales[s]);
      for (int h = 0; h < 2; ++h) pack_nibbles(f.codes + 128 * h, 128, 32, b.ql + 64 * h);
      for (int i = 0; i < 256; ++i)
        b.qh[i / 128 * 32 + i % 32] |= static_cast<uint8_t>((f.codes[i] + 32) >> 4 << (i % 128 / 32 * 2));
      return store(b);
    }
    default:
      std::abort();
  }
}

void decode_block(GgmlType type, const BlockFields& f, float* dst) {
  const BlockShape* shape = block_shape(type);
  if (shape == nullptr) std::abort();
  for (int s = 0; s < shape->elements / shape->sub; ++s) {
    const float scale = f.d * static_cast<float>(f.scales[s]), low = f.dmin * static_cast<float>(f.mins[s]);
    const int16_t* c = f.codes + s * shape->sub;
    float* x = dst + s * shape->sub;
    if (shape->table) {
      for (int i = 0; i < shape->sub; ++i) x[i] = scale * static_cast<float>(iq4_levels[c[i] & 15]);
    } else if (shape->min_high != 0) {
      for (int i = 0; i < shape->sub; ++i) x[i] = scale * static_cast<float>(c[i]) - low;
    } else {
      for (int i = 0; i < shape->sub; ++i) x[i] = scale * static_cast<float>(c[i]);
    }
  }
}

// ---- the other types
// -------------------------------------------------------------------------------------------------
namespace {

// Points of a codebook, `dims` values each, spread out of the bit map once.
template <size_t kLevels>
std::vector<int8_t> spread(const GgmlGrid& grid, const std::array<int8_t, kLevels>& levels) {
  std::vector<int8_t> points;
  points.reserve(static_cast<size_t>(grid.entries) * grid.dims);
  const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  for (size_t n = 0; n < grid.bits.size() * 4; ++n) {
    // Hex digits come high nibble first inside a byte, bits low first.
    const size_t byte = n / 8, bit = n % 8;
    const int nibble = digit(grid.bits[2 * byte + (bit < 4 ? 1 : 0)]);
    if ((nibble >> (bit % 4) & 1) == 0) continue;
    size_t rest = n;
    for (int k = 0; k < grid.dims; ++k, rest /= grid.base) points.push_back(levels[rest % grid.base]);
  }
  return points;
}

const int8_t* grid_of(GgmlType type) {
  static constexpr std::array<int8_t, 3> two{8, 25, 43}, one{-1, 0, 1};
  static constexpr std::array<int8_t, 8> three{4, 12, 20, 28, 36, 44, 52, 62}, odd{1, 3, 5, 7, 9, 11, 13, 15};
  switch (type) {
    case GgmlType::iq2_xxs: {
      static const auto points = spread(iq2_xxs_grid, two);
      return points.data();
    }
    case GgmlType::iq2_xs: {
      static const auto points = spread(iq2_xs_grid, two);
      return points.data();
    }
    case GgmlType::iq2_s: {
      static const auto points = spread(iq2_s_grid, two);
      return points.data();
    }
    case GgmlType::iq3_xxs: {
      static const auto points = spread(iq3_xxs_grid, three);
      return points.data();
    }
    case GgmlType::iq3_s: {
      static const auto points = spread(iq3_s_grid, odd);
      return points.data();
    }
    default: {
      static const auto points = spread(iq1_s_grid, one);
      return points.data();
    }
  }
}

// Seven stored signs and the eighth that makes the number of minus signs even.
unsigned with_parity(unsigned signs) { return signs | (static_cast<unsigned>(std::popcount(signs)) & 1u) << 7; }

void signed_points(const int8_t* point, unsigned signs, int first, int n, float scale, float* out) {
  for (int j = 0; j < n; ++j) {
    const float v = scale * static_cast<float>(point[j]);
    out[j] = (signs >> (first + j) & 1u) ? -v : v;
  }
}

void decode(const IQ2_XXS& b, float* y) {
  const int8_t* grid = grid_of(GgmlType::iq2_xxs);
  const float d = half_to_float(b.d);
  for (int g = 0; g < 8; ++g) {
    uint32_t packed;
    std::memcpy(&packed, b.qs + 8 * g + 4, 4);
    const float scale = d * (0.5f + static_cast<float>(packed >> 28)) * 0.25f;
    for (int k = 0; k < 4; ++k, y += 8)
      signed_points(grid + 8 * b.qs[8 * g + k], with_parity(packed >> (7 * k) & 127), 0, 8, scale, y);
  }
}

void decode(const IQ2_XS& b, float* y) {
  const int8_t* grid = grid_of(GgmlType::iq2_xs);
  const float d = half_to_float(b.d);
  for (int k = 0; k < 32; ++k, y += 8) {
    const int sc = b.scales[k / 4] >> (4 * (k / 2 % 2)) & 15;
    const float scale = d * (0.5f + static_cast<float>(sc)) * 0.25f;
    signed_points(grid + 8 * (b.qs[k] & 511), with_parity(b.qs[k] >> 9), 0, 8, scale, y);
  }
}

void decode(const IQ2_S& b, float* y) {
  const int8_t* grid = grid_of(GgmlType::iq2_s);
  const float d = half_to_float(b.d);
  for (int k = 0; k < 32; ++k, y += 8) {
    const int sc = b.scales[k / 4] >> (4 * (k / 2 % 2)) & 15, high = b.qh[k / 4] >> (2 * (k % 4)) & 3;
    const float scale = d * (0.5f + static_cast<float>(sc)) * 0.25f;
    signed_points(grid + 8 * (b.qs[k] | high << 8), b.signs[k], 0, 8, scale, y);
  }
}

void decode(const IQ3_XXS& b, float* y) {
  const int8_t* grid = grid_of(GgmlType::iq3_xxs);
  const float d = half_to_float(b.d);
  for (int g = 0; g < 8; ++g) {
    uint32_t packed;
    std::memcpy(&packed, b.signs + 4 * g, 4);
    const float scale = d * (0.5f + static_cast<float>(packed >> 28)) * 0.5f;
    for (int k = 0; k < 4; ++k, y += 8) {
      const unsigned signs = with_parity(packed >> (7 * k) & 127);
      signed_points(grid + 4 * b.qs[8 * g + 2 * k], signs, 0, 4, scale, y);
      signed_points(grid + 4 * b.qs[8 * g + 2 * k + 1], signs, 4, 4, scale, y + 4);
    }
  }
}

void decode(const IQ3_S& b, float* y) {
  const int8_t* grid = grid_of(GgmlType::iq3_s);
  const float d = half_to_float(b.d);
  for (int k = 0; k < 64; ++k, y += 4) {  // k: group of 4
    const int sc = b.scales[k / 16] >> (4 * (k / 8 % 2)) & 15, high = b.qh[k / 8] >> (k % 8) & 1;
    const float scale = d * static_cast<float>(1 + 2 * sc);
    signed_points(grid + 4 * (b.qs[k] | high << 8), b.signs[k / 2], k % 2 * 4, 4, scale, y);
  }
}

void shifted_points(const int8_t* point, float delta, float scale, float* out) {
  for (int j = 0; j < 8; ++j) out[j] = scale * (static_cast<float>(point[j]) + delta);
}

void decode(const IQ1_S& b, float* y) {
  const int8_t* grid = grid_of(GgmlType::iq1_s);
  const float d = half_to_float(b.d);
  for (int k = 0; k < 32; ++k, y += 8) {
    const unsigned qh = b.qh[k / 4];
    const float scale = d * static_cast<float>(2 * (qh >> 12 & 7) + 1);
    shifted_points(grid + 8 * (b.qs[k] | (qh >> (3 * (k % 4)) & 7) << 8), (qh & 0x8000) ? -0.125f : 0.125f, scale, y);
  }
}

void decode(const IQ1_M& b, float* y) {
  const int8_t* grid = grid_of(GgmlType::iq1_m);
  unsigned bits = 0;
  for (int i = 0; i < 4; ++i) bits |= static_cast<unsigned>(b.scales[i] >> 12) << (4 * i);
  const float d = half_to_float(static_cast<uint16_t>(bits));
  for (int k = 0; k < 32; ++k, y += 8) {
    const unsigned qh = b.qh[k / 2] >> (4 * (k % 2)) & 15, sc = b.scales[k / 8] >> (3 * (k / 2 % 4)) & 7;
    shifted_points(grid + 8 * (b.qs[k] | (qh & 7) << 8), (qh & 8) ? -0.125f : 0.125f,
                   d * static_cast<float>(2 * sc + 1), y);
  }
}

// Digit n of a byte that holds a fraction in base 3: the byte is ceil(256 / 243 * number), so multiplying by 3 moves
// the next digit above the byte.
float trit(uint8_t byte, int n) {
  static constexpr uint8_t power[5] = {1, 3, 9, 27, 81};
  const auto moved = static_cast<uint8_t>(byte * power[n]);
  return static_cast<float>((moved * 3 >> 8) - 1);
}

void decode(const TQ1_0& b, float* y) {
  const float d = half_to_float(b.d);
  for (int n = 0; n < 5; ++n)
    for (int j = 0; j < 32; ++j) *y++ = trit(b.qs[j], n) * d;
  for (int n = 0; n < 5; ++n)
    for (int j = 32; j < 48; ++j) *y++ = trit(b.qs[j], n) * d;
  for (int n = 0; n < 4; ++n)
    for (int j = 0; j < 4; ++j) *y++ = trit(b.qh[j], n) * d;
}

void decode(const TQ2_0& b, float* y) {
  const float d = half_to_float(b.d);
  for (int i = 0; i < 256; ++i)
    y[i] = static_cast<float>((b.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) - 1) * d;
}

// Twice the fp4 (E2M1) values; the scales below are halved to match.
constexpr int8_t kFp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

void decode(const Mxfp4& b, float* y) {
  const float d = std::ldexp(1.0f, static_cast<int>(b.e) - 128);
  for (int j = 0; j < 16; ++j) {
    y[j] = static_cast<float>(kFp4[b.qs[j] & 15]) * d;
    y[j + 16] = static_cast<float>(kFp4[b.qs[j] >> 4]) * d;
  }
}

void decode(const Nvfp4& b, float* y) {
  for (int s = 0; s < 4; ++s, y += 16) {
    // Unsigned E4M3; 0x7f would be NaN and counts as 0. Bit 7 is never set and is not looked at.
    const int exponent = b.d[s] >> 3 & 15, mantissa = b.d[s] & 7;
    float d = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -10)
                            : std::ldexp(static_cast<float>(8 + mantissa), exponent - 11);
    if (b.d[s] == 0x7f) d = 0;
    for (int j = 0; j < 8; ++j) {
      y[j] = static_cast<float>(kFp4[b.qs[8 * s + j] & 15]) * d;
      y[j + 8] = static_cast<float>(kFp4[b.qs[8 * s + j] >> 4]) * d;
    }
  }
}

void decode(const Q1_0& b, float* y) {
  const float d = half_to_float(b.d);
  for (int i = 0; i < 128; ++i) y[i] = (b.qs[i / 8] >> (i % 8) & 1) ? d : -d;
}

void decode(const Q2_0& b, float* y) {
  const float d = half_to_float(b.d);
  for (int i = 0; i < 64; ++i) y[i] = static_cast<float>((b.qs[i / 4] >> (i % 4 * 2) & 3) - 1) * d;
}

void decode(const Q8_1& b, float* y) {
  const float d = half_to_float(b.d);
  for (int i = 0; i < 32; ++i) y[i] = static_cast<float>(b.qs[i]) * d;
}

void decode(const Q8_K& b, float* y) {
  for (int i = 0; i < 256; ++i) y[i] = b.d * static_cast<float>(b.qs[i]);
}

template <class Block>
void decode_row(const std::byte* src, int64_t blocks, int elements, float* dst) {
  for (int64_t i = 0; i < blocks; ++i)
    decode(load<Block>(src + i * static_cast<int64_t>(sizeof(Block))), dst + i * elements);
}

}  // namespace

void dequantize_row(GgmlType type, const std::byte* src, int64_t n, float* dst) {
  const auto& t = ggml_traits(type);
  const int64_t blocks = n / t.elements;
  const int e = static_cast<int>(t.elements);
  if (block_shape(type) != nullptr) {
    BlockFields f;
    for (int64_t i = 0; i < blocks; ++i) {
      unpack_block(type, src + i * t.bytes, f);
      decode_block(type, f, dst + i * e);
    }
    return;
  }
  switch (type) {
    case GgmlType::f32:
      return to_float(DType::f32, src, n, dst);
    case GgmlType::f16:
      return to_float(DType::f16, src, n, dst);
    case GgmlType::bf16:
      return to_float(DType::bf16, src, n, dst);
    case GgmlType::f64:
      return to_float(DType::f64, src, n, dst);
    case GgmlType::i8:
      return to_float(DType::i8, src, n, dst);
    case GgmlType::i16:
      return to_float(DType::i16, src, n, dst);
    case GgmlType::i32:
      return to_float(DType::i32, src, n, dst);
    case GgmlType::i64:
      return to_float(DType::i64, src, n, dst);
    case GgmlType::q8_1:
      return decode_row<Q8_1>(src, blocks, e, dst);
    case GgmlType::q8_k:
      return decode_row<Q8_K>(src, blocks, e, dst);
    case GgmlType::iq2_xxs:
      return decode_row<IQ2_XXS>(src, blocks, e, dst);
    case GgmlType::iq2_xs:
      return decode_row<IQ2_XS>(src, blocks, e, dst);
    case GgmlType::iq2_s:
      return decode_row<IQ2_S>(src, blocks, e, dst);
    case GgmlType::iq3_xxs:
      return decode_row<IQ3_XXS>(src, blocks, e, dst);
    case GgmlType::iq3_s:
      return decode_row<IQ3_S>(src, blocks, e, dst);
    case GgmlType::iq1_s:
      return decode_row<IQ1_S>(src, blocks, e, dst);
    case GgmlType::iq1_m:
      return decode_row<IQ1_M>(src, blocks, e, dst);
    case GgmlType::tq1_0:
      return decode_row<TQ1_0>(src, blocks, e, dst);
    case GgmlType::tq2_0:
      return decode_row<TQ2_0>(src, blocks, e, dst);
    case GgmlType::mxfp4:
      return decode_row<Mxfp4>(src, blocks, e, dst);
    case GgmlType::nvfp4:
      return decode_row<Nvfp4>(src, blocks, e, dst);
    case GgmlType::q1_0:
      return decode_row<Q1_0>(src, blocks, e, dst);
    case GgmlType::q2_0:
      return decode_row<Q2_0>(src, blocks, e, dst);
    default:
      std::abort();
  }
}

}  // namespace pith
