#include "entropy/table.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <queue>
#include <string>

namespace pith {

// Integer frequencies that minimise the coded size: start at the floor (but at least 1), then move single units to
// where they save most, or take them from where they cost least.
static std::vector<uint16_t> normalise(const std::vector<uint64_t>& counts) {
  const size_t n = counts.size();
  uint64_t sum = 0;
  for (const uint64_t c : counts) sum += c;
  std::vector<uint16_t> f(n, 1);
  int64_t left = static_cast<int64_t>(CodeTable::kTotal) - static_cast<int64_t>(n);
  for (size_t i = 0; i < n && sum > 0; ++i) {
    const auto share = static_cast<int64_t>(static_cast<double>(counts[i]) / static_cast<double>(sum) *
                                            static_cast<double>(CodeTable::kTotal));
    if (share > 1) {
      f[i] = static_cast<uint16_t>(share);
      left -= share - 1;
    }
  }
  const auto gain = [&](size_t i) {
    return static_cast<double>(counts[i]) * std::log(static_cast<double>(f[i] + 1) / f[i]);
  };
  const auto price = [&](size_t i) {
    return static_cast<double>(counts[i]) * std::log(static_cast<double>(f[i]) / (f[i] - 1));
  };
  using Item = std::pair<double, size_t>;
  if (left > 0) {
    std::priority_queue<Item> best;
    for (size_t i = 0; i < n; ++i) best.emplace(gain(i), i);
    while (left-- > 0) {
      const size_t i = best.top().second;
      best.pop();
      ++f[i];
      best.emplace(gain(i), i);
    }
  } else if (left < 0) {
    std::priority_queue<Item, std::vector<Item>, std::greater<>> best;
    for (size_t i = 0; i < n; ++i)
      if (f[i] > 1) best.emplace(price(i), i);
    while (left++ < 0) {
      const size_t i = best.top().second;
      best.pop();
      if (--f[i] > 1) best.emplace(price(i), i);
    }
  }
  return f;
}

CodeTable CodeTable::fit(const std::map<int, uint64_t>& histogram) {
  uint64_t total = 0;
  double energy = 0;
  for (const auto& [code, count] : histogram) {
    total += count;
    energy += static_cast<double>(count) * code * code;
  }
  unsigned shift = 0;
  if (total > 0) {
    // Keep about 24 buckets to a standard deviation: finer ones cannot be told from uniform.
    const double rms = std::sqrt(energy / static_cast<double>(total));
    while (shift < kMaxShift && rms / std::ldexp(1.0, static_cast<int>(shift)) > 24) ++shift;
  }
  std::map<int, uint64_t> buckets;
  for (const auto& [code, count] : histogram) buckets[code >> shift] += count;
  // The window of codes with a symbol of their own: centred on the bulk, cut where a code is rarer than an escape
  // is dear (an own symbol takes at least 1/4096 of the probability).
  int lo = 0, hi = -1;
  for (const auto& [code, count] : buckets) {
    if (count * 4 * kTotal < total) continue;
    if (hi < lo) lo = code;
    hi = code;
  }
  if (hi - lo + 1 > static_cast<int>(kMaxSymbols)) {
    const int middle = 0;
    lo = std::max(lo, middle - static_cast<int>(kMaxSymbols) / 2);
    hi = std::min(hi, lo + static_cast<int>(kMaxSymbols) - 1);
  }
  std::vector<uint64_t> counts;
  uint64_t covered = 0;
  for (int code = lo; code <= hi; ++code) {
    const auto it = buckets.find(code);
    counts.push_back(it == buckets.end() ? 0 : it->second);
    covered += counts.back();
  }
  counts.push_back(total - covered);
  return std::move(make(lo, shift, normalise(counts))).value();
}

Result<CodeTable> CodeTable::make(int lo, unsigned shift, std::vector<uint16_t> frequencies) {
  if (frequencies.empty() || frequencies.size() > kMaxSymbols + 1 || shift > kMaxShift || lo < -32768 || lo > 32767)
    return data_error("probability table: impossible size, shift or range");
  CodeTable t;
  t.lo_ = lo;
  t.shift_ = shift;
  uint32_t sum = 0;
  for (const uint16_t f : frequencies) {
    if (f == 0) return data_error("probability table: a symbol with frequency 0");
    t.start_.push_back(sum);
    sum += f;
  }
  if (sum != kTotal)
    return data_error("probability table: frequencies sum to " + std::to_string(sum) + ", expected " +
                      std::to_string(kTotal));
  t.frequency_ = std::move(frequencies);
  return t;
}

double CodeTable::cost(int code) const {
  const unsigned s = symbol(code);
  const double bits = kBits - std::log2(static_cast<double>(frequency_[s]));
  return bits + (s == escape() ? 16.0 : static_cast<double>(shift_));
}

std::vector<uint32_t> CodeTable::slots() const {
  std::vector<uint32_t> out(kTotal);
  for (uint32_t s = 0; s < frequency_.size(); ++s)
    // A frequency of 4096 (the only symbol of its table) is stored as 0; the decoder's arithmetic puts it back.
    for (uint32_t i = 0; i < frequency_[s]; ++i)
      out[start_[s] + i] = s << 24 | (static_cast<uint32_t>(frequency_[s]) & 0xfffu) << 12 | i;
  return out;
}

RansModel::RansModel(std::vector<CodeTable> tables) : tables_(std::move(tables)) {
  slots_.reserve(tables_.size() * CodeTable::kTotal);
  for (const CodeTable& t : tables_) {
    const auto s = t.slots();
    slots_.insert(slots_.end(), s.begin(), s.end());
  }
}

// Layout: per class: lo int16, shift uint8, n uint8 (symbols with the escape), then n frequencies: one byte below 128,
// else two bytes (0x80 | high 5 bits, low 8 bits). Little endian.
std::vector<std::byte> RansModel::serialize() const {
  std::vector<std::byte> out;
  const auto put = [&](unsigned v) { out.push_back(static_cast<std::byte>(v & 0xff)); };
  for (const CodeTable& t : tables_) {
    put(static_cast<unsigned>(t.lo()));
    put(static_cast<unsigned>(t.lo()) >> 8);
    put(t.shift());
    put(static_cast<unsigned>(t.frequencies().size()));
    for (const uint16_t f : t.frequencies()) {
      if (f >= 128) put(0x80u | f >> 8);
      put(f);
    }
  }
  return out;
}

Result<std::shared_ptr<const RansModel>> RansModel::parse(std::span<const std::byte> bytes) {
  size_t at = 0;
  bool short_read = false;
  const auto get = [&]() -> unsigned {
    if (at >= bytes.size()) {
      short_read = true;
      return 0;
    }
    return static_cast<unsigned>(bytes[at++]);
  };
  std::vector<CodeTable> tables;
  for (int k = 0; k < kClasses; ++k) {
    const unsigned low = get();
    const auto lo = static_cast<int16_t>(low | get() << 8);
    const unsigned shift = get();
    std::vector<uint16_t> frequencies(get());
    for (uint16_t& f : frequencies) {
      const unsigned first = get();
      f = static_cast<uint16_t>(first < 128 ? first : (first & 0x7f) << 8 | get());
    }
    if (short_read) return data_error("probability tables: cut short in class " + std::to_string(k));
    PITH_ASSIGN(CodeTable table, CodeTable::make(lo, shift, std::move(frequencies)));
    tables.push_back(std::move(table));
  }
  if (at != bytes.size()) return data_error("probability tables: bytes left over after the last class");
  return std::shared_ptr<const RansModel>(std::make_shared<RansModel>(std::move(tables)));
}

}  // namespace pith
