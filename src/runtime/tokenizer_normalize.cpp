#include "runtime/tokenizer_normalize.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "runtime/tokenizer_utf8.h"

namespace pith {
namespace {

#include "runtime/tokenizer_unicode.inc"

constexpr uint32_t kCodeMask = 0xffffff;
constexpr uint32_t kHangulFirst = 0xac00, kHangulCount = 11172, kL = 0x1100, kV = 0x1161, kT = 0x11a7;
constexpr uint32_t kLCount = 19, kVCount = 21, kTCount = 28;

struct Tables {
  std::unordered_map<uint32_t, std::span<const uint32_t>> canonical, compatible, lower;
  std::unordered_map<uint64_t, uint32_t> compose;
  std::unordered_map<uint32_t, uint8_t> classes;
};

void read_records(std::span<const uint32_t> numbers, std::unordered_map<uint32_t, std::span<const uint32_t>>& out) {
  for (size_t i = 0; i < numbers.size();) {
    const size_t count = numbers[i] >> 24;
    out.emplace(numbers[i] & kCodeMask, numbers.subspan(i + 1, count));
    i += 1 + count;
  }
}

const Tables& tables() {
  static const Tables all = [] {
    Tables t;
    read_records(kCanonical, t.canonical);
    read_records(kCompatible, t.compatible);
    read_records(kLower, t.lower);
    for (size_t i = 0; i < std::size(kCompose); i += 3) {
      t.compose.emplace(static_cast<uint64_t>(kCompose[i]) << 32 | kCompose[i + 1], kCompose[i + 2]);
    }
    for (size_t i = 0; i < std::size(kClasses); i += 3) {
      for (uint32_t c = kClasses[i]; c <= kClasses[i + 1]; ++c) t.classes[c] = static_cast<uint8_t>(kClasses[i + 2]);
    }
    return t;
  }();
  return all;
}

uint8_t combining_class(uint32_t code) {
  if (code < 0x300) return 0;
  const auto found = tables().classes.find(code);
  return found == tables().classes.end() ? 0 : found->second;
}

void decompose(uint32_t code, bool compatible, std::vector<uint32_t>& out) {
  if (code >= kHangulFirst && code < kHangulFirst + kHangulCount) {
    const uint32_t index = code - kHangulFirst;
    out.push_back(kL + index / (kVCount * kTCount));
    out.push_back(kV + index % (kVCount * kTCount) / kTCount);
    if (index % kTCount != 0) out.push_back(kT + index % kTCount);
    return;
  }
  const Tables& t = tables();
  if (compatible) {
    if (const auto found = t.compatible.find(code); found != t.compatible.end()) {
      out.insert(out.end(), found->second.begin(), found->second.end());
      return;
    }
  }
  if (const auto found = t.canonical.find(code); found != t.canonical.end()) {
    out.insert(out.end(), found->second.begin(), found->second.end());
  } else {
    out.push_back(code);
  }
}

// The composition of two characters, or 0.
uint32_t composed(uint32_t a, uint32_t b) {
  if (a >= kL && a < kL + kLCount && b >= kV && b < kV + kVCount) {
    return kHangulFirst + ((a - kL) * kVCount + (b - kV)) * kTCount;
  }
  if (a >= kHangulFirst && a < kHangulFirst + kHangulCount && (a - kHangulFirst) % kTCount == 0 && b > kT &&
      b < kT + kTCount) {
    return a + (b - kT);
  }
  const auto found = tables().compose.find(static_cast<uint64_t>(a) << 32 | b);
  return found == tables().compose.end() ? 0 : found->second;
}

// Canonical composition in place (Unicode 3.11, D117).
void compose(std::vector<uint32_t>& codes) {
  size_t kept = 0, starter = SIZE_MAX;
  int last_class = -1;  // class of the last kept character after the starter; -1: none
  for (const uint32_t code : codes) {
    const int cls = combining_class(code);
    if (starter != SIZE_MAX && last_class < std::max(cls, 1)) {
      // Not blocked: nothing between, or only lower classes. A starter joins only right behind the starter.
      if (cls != 0 || last_class == -1) {
        if (const uint32_t joined = composed(codes[starter], code); joined != 0) {
          codes[starter] = joined;
          continue;
        }
      }
    }
    if (cls == 0) {
      starter = kept;
      last_class = -1;
    } else {
      last_class = cls;
    }
    codes[kept++] = code;
  }
  codes.resize(kept);
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

constexpr size_t kMaxSteps = 64;
constexpr size_t kMaxReplacement = 1024;  // bytes one match may become

// A text after a step; steps of a hostile file could make it grow without end.
size_t growth_limit(size_t input) { return 64 * input + (1u << 20); }

// Ranges of `text`, in order, become `content`; false when the result is longer than `limit`.
bool replace_ranges(std::string& text, std::span<const std::pair<size_t, size_t>> ranges, std::string_view content,
                    size_t limit) {
  if (ranges.empty()) return true;
  std::string out;
  size_t begin = 0;
  for (const auto& [from, to] : ranges) {
    out.append(text, begin, from - begin).append(content);
    begin = to;
    if (out.size() > limit) return false;
  }
  out.append(text, begin);
  text = std::move(out);
  return true;
}

}  // namespace

std::string unicode_normalize(std::string_view text, UnicodeForm form) {
  if (is_ascii(text)) return std::string(text);
  const bool compatible = form == UnicodeForm::nfkc || form == UnicodeForm::nfkd;
  std::vector<uint32_t> codes;
  codes.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = utf8_at(text, i);
    i += c.length;
    if (c.code < 0xa0) {
      codes.push_back(c.code);
    } else {
      decompose(c.code, compatible, codes);
    }
  }
  // Canonical order: runs of non-starters sorted by class, equal ones kept in order.
  for (size_t i = 0; i < codes.size();) {
    if (combining_class(codes[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < codes.size() && combining_class(codes[end]) != 0) ++end;
    const auto first = codes.begin() + static_cast<ptrdiff_t>(i), last = codes.begin() + static_cast<ptrdiff_t>(end);
    std::stable_sort(first, last, [](uint32_t a, uint32_t b) { return combining_class(a) < combining_class(b); });
    i = end;
  }
  if (form == UnicodeForm::nfc || form == UnicodeForm::nfkc) compose(codes);
  std::string out;
  out.reserve(text.size());
  for (const uint32_t code : codes) append_utf8(out, code);
  return out;
}

std::string unicode_lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = utf8_at(text, i);
    i += c.length;
    if (c.code < 0x80) {
      out.push_back(static_cast<char>(c.code >= 'A' && c.code <= 'Z' ? c.code + 32 : c.code));
    } else if (const auto found = tables().lower.find(c.code); found != tables().lower.end()) {
      for (const uint32_t code : found->second) append_utf8(out, code);
    } else {
      append_utf8(out, c.code);
    }
  }
  return out;
}

// ---- charsmap
// -------------------------------------------------------------------------------------------------------- A unit of
// the double array: bits 0-7 label (bit 31 set for a value unit), bit 8 "has a value", bits 10-30 offset, shifted left
// by 8 more when bit 9 is set. The child by byte b of the node at index i is at i ^ offset(i) ^ b.

Result<Charsmap> Charsmap::parse(std::string_view blob) {
  uint32_t bytes = 0;
  if (blob.size() < 4) return data_error(fmt::format("character map of {} bytes has no header", blob.size()));
  std::memcpy(&bytes, blob.data(), 4);
  if (bytes % 4 != 0 || bytes == 0 || bytes > blob.size() - 4) {
    return data_error(fmt::format("character map claims a trie of {} bytes, {} are there", bytes, blob.size() - 4));
  }
  Charsmap map;
  map.units_.resize(bytes / 4);
  std::memcpy(map.units_.data(), blob.data() + 4, bytes);
  map.replacements_ = std::string(blob.substr(4 + bytes));
  map.replacements_.push_back('\0');  // so that every replacement has an end
  return map;
}

std::string Charsmap::apply(std::string_view text) const {
  const auto offset = [](uint32_t unit) { return static_cast<size_t>((unit >> 10) << ((unit & 0x200u) >> 6)); };
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    size_t longest = 0, replacement = 0;
    size_t node = offset(units_[0]);
    for (size_t j = i; j < text.size(); ++j) {
      node ^= static_cast<uint8_t>(text[j]);
      if (node >= units_.size()) break;
      const uint32_t unit = units_[node];
      if ((unit & 0x800000ffu) != static_cast<uint8_t>(text[j])) break;
      node ^= offset(unit);
      if (node >= units_.size()) break;
      if ((unit & 0x100u) != 0) {
        longest = j + 1 - i;
        replacement = units_[node] & 0x7fffffffu;
      }
    }
    if (longest > 0 && replacement < replacements_.size()) {
      out += std::string_view(replacements_.c_str() + replacement).substr(0, kMaxReplacement);
      i += longest;
    } else {
      const size_t length = utf8_at(text, i).length;
      out += text.substr(i, length);
      i += length;
    }
  }
  return out;
}

// ---- steps
// -----------------------------------------------------------------------------------------------------------

Result<Normalizer> Normalizer::create(std::span<const TokenizerSpec::Normalizer> steps) {
  using Op = TokenizerSpec::Normalizer::Op;
  Normalizer normalizer;
  if (steps.size() > kMaxSteps) {
    return data_error(fmt::format("normaliser of {} steps, at most {} are supported", steps.size(), kMaxSteps));
  }
  for (const auto& spec : steps) {
    Step step;
    step.spec = spec;
    if (spec.op != Op::charsmap && spec.content.size() > kMaxReplacement) {
      return data_error(fmt::format("normaliser step puts in {} bytes at once, at most {} are supported",
                                    spec.content.size(), kMaxReplacement));
    }
    if (spec.op == Op::replace_regex) {
      PITH_ASSIGN(step.regex, Regex::compile(spec.pattern).context("normaliser"));
    } else if (spec.op == Op::charsmap) {
      PITH_ASSIGN(step.charsmap, Charsmap::parse(spec.content));
      step.spec.content.clear();
    } else if (spec.op == Op::replace && spec.pattern.empty()) {
      return data_error("normaliser replaces an empty text");
    }
    normalizer.steps_.push_back(std::move(step));
  }
  return normalizer;
}

Result<std::string> Normalizer::apply(std::string_view input, RegexScratch& scratch) const {
  using Op = TokenizerSpec::Normalizer::Op;
  const size_t limit = growth_limit(input.size());
  const auto too_long = [&] {
    return data_error(fmt::format(
        "the tokenizer's normaliser makes {} bytes of text longer than {}; its file is broken", input.size(), limit));
  };
  std::string text(input);
  for (const Step& step : steps_) {
    switch (step.spec.op) {
      case Op::nfc:
        text = unicode_normalize(text, UnicodeForm::nfc);
        break;
      case Op::nfd:
        text = unicode_normalize(text, UnicodeForm::nfd);
        break;
      case Op::nfkc:
        text = unicode_normalize(text, UnicodeForm::nfkc);
        break;
      case Op::nfkd:
        text = unicode_normalize(text, UnicodeForm::nfkd);
        break;
      case Op::lowercase:
        text = unicode_lower(text);
        break;
      case Op::prepend:
        if (!text.empty()) text.insert(0, step.spec.content);
        break;
      case Op::replace:
      case Op::replace_regex: {
        std::vector<std::pair<size_t, size_t>> matches;
        if (step.regex) {
          PITH_TRY(step.regex->find_all(text, scratch, matches));
        } else {
          const std::string& from = step.spec.pattern;
          for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + from.size())) {
            matches.emplace_back(at, at + from.size());
          }
        }
        if (!replace_ranges(text, matches, step.spec.content, limit)) return too_long();
        break;
      }
      case Op::strip_left: {
        size_t i = 0;
        while (i < text.size()) {
          const Utf8Char c = utf8_at(text, i);
          if (!is_white_space(c.code)) break;
          i += c.length;
        }
        text.erase(0, i);
        break;
      }
      case Op::strip_right: {
        size_t end = 0;
        for (size_t i = 0; i < text.size();) {
          const Utf8Char c = utf8_at(text, i);
          i += c.length;
          if (!is_white_space(c.code)) end = i;
        }
        text.resize(end);
        break;
      }
      case Op::charsmap:
        text = step.charsmap->apply(text);
        break;
    }
    if (text.size() > limit) return too_long();
  }
  return text;
}

}  // namespace pith
