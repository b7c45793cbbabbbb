#include "entropy/rans.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace pith {

static constexpr uint32_t kLow = 1u << 16;
static constexpr unsigned kMaxLanes = 16;

// ---- encoder: everything backwards, words gathered and reversed at the end
// ---------------------------------------------

namespace {
struct Writer {
  std::vector<uint16_t> words;

  // Puts an event of probability frequency / 2^bits in front of what is coded so far.
  void put(uint32_t& x, uint32_t start, uint32_t frequency, unsigned bits) {
    if (x >= static_cast<uint64_t>(frequency) << (32 - bits)) {
      words.push_back(static_cast<uint16_t>(x));
      x >>= 16;
    }
    x = ((x / frequency) << bits) + x % frequency + start;
  }
};
}  // namespace

void rans_encode(const RansModel& model, const int16_t* codes, int64_t rows, int64_t cols, const int8_t* row_class,
                 const int8_t* col_class, unsigned lanes, std::vector<std::byte>& out) {
  std::array<uint32_t, kMaxLanes> state;
  state.fill(kLow);
  Writer writer;
  for (int64_t r = rows; r-- > 0;) {
    const int16_t* row = codes + r * cols;
    for (int64_t step = (cols - 1) / lanes; step >= 0; --step) {
      const int64_t c0 = step * lanes;
      const int n = static_cast<int>(std::min<int64_t>(lanes, cols - c0));
      for (int lane = n; lane-- > 0;) {
        const int code = row[c0 + lane];
        const CodeTable& t = model.table(code_class(row_class[r], col_class[c0 + lane]));
        if (t.symbol(code) == t.escape()) {
          const auto raw = static_cast<uint16_t>(code);
          writer.put(state[lane], raw >> 8, 1, 8);
          writer.put(state[lane], raw & 0xff, 1, 8);
        } else if (t.shift() > 0) {
          writer.put(state[lane], static_cast<uint32_t>(code) & ((1u << t.shift()) - 1), 1, t.shift());
        }
      }
      for (int lane = n; lane-- > 0;) {
        const CodeTable& t = model.table(code_class(row_class[r], col_class[c0 + lane]));
        const unsigned s = t.symbol(row[c0 + lane]);
        writer.put(state[lane], t.start(s), t.frequencies()[s], CodeTable::kBits);
      }
    }
  }
  const size_t at = out.size();
  out.resize(at + lanes * sizeof(uint32_t) + writer.words.size() * sizeof(uint16_t));
  std::memcpy(out.data() + at, state.data(), lanes * sizeof(uint32_t));
  std::reverse(writer.words.begin(), writer.words.end());
  if (!writer.words.empty())  // memcpy takes no null pointer, not even for no bytes
    std::memcpy(out.data() + at + lanes * sizeof(uint32_t), writer.words.data(),
                writer.words.size() * sizeof(uint16_t));
}

// ---- decoder
// -----------------------------------------------------------------------------------------------------------

bool rans_decode(const RansModel& model, std::span<const std::byte> chunk, int64_t rows, int64_t cols,
                 const int8_t* row_class, const int8_t* col_class, unsigned lanes, int16_t* codes) {
  std::array<uint32_t, kMaxLanes> state{};
  if (lanes == 0 || lanes > kMaxLanes || chunk.size() < lanes * sizeof(uint32_t)) {
    std::fill_n(codes, rows * cols, int16_t{0});
    return false;
  }
  std::memcpy(state.data(), chunk.data(), lanes * sizeof(uint32_t));
  const std::byte* p = chunk.data() + lanes * sizeof(uint32_t);
  const std::byte* const end = chunk.data() + chunk.size();
  bool overrun = false;
  const auto refill = [&](uint32_t& x) {
    if (x < kLow) {
      uint16_t word = 0;
      if (end - p >= 2) {
        std::memcpy(&word, p, 2);
        p += 2;
      } else {
        overrun = true;
      }
      x = x << 16 | word;
    }
  };
  // Tables that need raw bits are known per class, so that the common case costs one comparison a lane.
  std::array<uint8_t, RansModel::kClasses> escape, shift;
  std::array<int16_t, RansModel::kClasses> lo;
  for (int k = 0; k < RansModel::kClasses; ++k) {
    escape[k] = static_cast<uint8_t>(model.table(k).escape());
    shift[k] = static_cast<uint8_t>(model.table(k).shift());
    lo[k] = static_cast<int16_t>(model.table(k).lo());
  }
  const uint32_t* const slots = model.slots(0);
  for (int64_t r = 0; r < rows; ++r) {
    int16_t* row = codes + r * cols;
    const int base = row_class[r];
    for (int64_t c0 = 0; c0 < cols; c0 += lanes) {
      const int n = static_cast<int>(std::min<int64_t>(lanes, cols - c0));
      uint32_t raw_lanes = 0;
      std::array<uint8_t, kMaxLanes> symbol, klass;
      for (int lane = 0; lane < n; ++lane) {
        const int k = code_class(base, col_class[c0 + lane]);
        uint32_t& x = state[lane];
        const uint32_t entry = slots[(static_cast<uint32_t>(k) << CodeTable::kBits) | (x & (CodeTable::kTotal - 1))];
        const uint32_t frequency = (((entry >> 12) - 1) & 0xfffu) + 1;  // 0 stands for 4096
        x = frequency * (x >> CodeTable::kBits) + (entry & 0xfffu);
        refill(x);
        const uint32_t s = entry >> 24;
        symbol[lane] = static_cast<uint8_t>(s);
        klass[lane] = static_cast<uint8_t>(k);
        row[c0 + lane] = static_cast<int16_t>(lo[k] + static_cast<int>(s));
        raw_lanes |= static_cast<uint32_t>(s == escape[k] || shift[k] != 0) << lane;
      }
      while (raw_lanes != 0) {
        const int lane = __builtin_ctz(raw_lanes);
        raw_lanes &= raw_lanes - 1;
        const int k = klass[lane];
        uint32_t& x = state[lane];
        const auto take = [&](unsigned bits) {
          const uint32_t v = x & ((1u << bits) - 1);
          x >>= bits;
          refill(x);
          return v;
        };
        if (symbol[lane] == escape[k]) {
          const uint32_t low = take(8);
          row[c0 + lane] = static_cast<int16_t>(take(8) << 8 | low);
        } else {
          const uint32_t low = take(shift[k]);
          row[c0 + lane] =
              static_cast<int16_t>(static_cast<uint32_t>(static_cast<int>(row[c0 + lane])) << shift[k] | low);
        }
      }
    }
  }
  for (unsigned lane = 0; lane < lanes; ++lane)
    if (state[lane] != kLow) return false;
  return !overrun && p == end;
}

}  // namespace pith
