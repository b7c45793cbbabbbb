// Regular expressions of tokenizer files. They are written for Oniguruma (the `tokenizers` package); this class
// translates where PCRE2 means something else by the same text, and bounds the steps of a match.
#pragma once

#include <pith/result.h>

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pith {

/// The PCRE2 text for an Oniguruma pattern: \s, \S and \h in Unicode's sense, && in character classes.
Result<std::string> translate_pattern(std::string_view pattern);

/// What a match needs besides the pattern; one serves all patterns of one thread.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class Regex;
  struct State;
  std::unique_ptr<State> state_;
};

class Regex {
 public:
  static Result<Regex> compile(std::string_view pattern);
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  ~Regex();

  /// All matches [begin, end) in `text`, left to right, without overlap, empty ones included; appended to `out`.
  /// Bytes that are no UTF-8 look like U+FFFD, each for itself; the offsets are those of `text` all the same.
  Status find_all(std::string_view text, RegexScratch& scratch, std::vector<std::pair<size_t, size_t>>& out) const;

 private:
  struct State;
  explicit Regex(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace pith
