// UTF-8 by hand: one code point at a time, and bytes that are no UTF-8 kept apart from real characters.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pith {

/// Code points of bytes that are not part of well-formed UTF-8 are `kBrokenByte + byte`, above all of Unicode.
inline constexpr uint32_t kBrokenByte = 0x110000;

struct Utf8Char {
  uint32_t code = 0;
  uint32_t length = 0;  ///< bytes; 1 for a broken one
};

/// The character at text[at] (at < text.size()). Overlong forms, surrogates and values above U+10FFFF are broken.
inline Utf8Char utf8_at(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[at + i]); };
  const auto follows = [&](size_t i) { return at + i < text.size() && (byte(i) & 0xc0u) == 0x80u; };
  const uint32_t first = byte(0);
  if (first < 0x80) return {first, 1};
  if (first >= 0xc2 && first < 0xe0 && follows(1)) return {(first & 0x1fu) << 6 | (byte(1) & 0x3fu), 2};
  if (first >= 0xe0 && first < 0xf0 && follows(1) && follows(2)) {
    const uint32_t code = (first & 0x0fu) << 12 | (byte(1) & 0x3fu) << 6 | (byte(2) & 0x3fu);
    if (code >= 0x800 && (code < 0xd800 || code > 0xdfff)) return {code, 3};
  }
  if (first >= 0xf0 && first < 0xf5 && follows(1) && follows(2) && follows(3)) {
    const uint32_t code = (first & 0x07u) << 18 | (byte(1) & 0x3fu) << 12 | (byte(2) & 0x3fu) << 6 | (byte(3) & 0x3fu);
    if (code >= 0x10000 && code <= 0x10ffff) return {code, 4};
  }
  return {kBrokenByte + first, 1};
}

/// The inverse of utf8_at: a broken byte comes out as the byte it was.
inline void append_utf8(std::string& out, uint32_t code) {
  const auto put = [&](uint32_t b) { out.push_back(static_cast<char>(b)); };
  if (code >= kBrokenByte) {
    put(code - kBrokenByte);
  } else if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0u | code >> 6);
    put(0x80u | (code & 0x3fu));
  } else if (code < 0x10000) {
    put(0xe0u | code >> 12);
    put(0x80u | (code >> 6 & 0x3fu));
    put(0x80u | (code & 0x3fu));
  } else {
    put(0xf0u | code >> 18);
    put(0x80u | (code >> 12 & 0x3fu));
    put(0x80u | (code >> 6 & 0x3fu));
    put(0x80u | (code & 0x3fu));
  }
}

inline bool valid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    if (static_cast<uint8_t>(text[i]) < 0x80) {
      ++i;
      continue;
    }
    const Utf8Char c = utf8_at(text, i);
    if (c.code >= kBrokenByte) return false;
    i += c.length;
  }
  return true;
}

/// Unicode White_Space.
inline bool is_white_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

}  // namespace pith
