#include "runtime/tokenizer_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <array>

#include "runtime/tokenizer_utf8.h"

namespace pith {
namespace {

// Unicode White_Space, for the inside of a class. PCRE2's own \s also takes U+180E.
constexpr std::string_view kWhiteSpace =
    R"(\x09-\x0d\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr size_t kMaxPattern = 1u << 20;
constexpr int kMaxNesting = 50;
// Ample for every pattern of a real model; a pattern that backtracks without end stops here with an error.
constexpr uint32_t kMatchLimit = 20'000'000;

// \p{Han} is the script itself in Oniguruma; PCRE2 would take script extensions, which hold "、" and "ー" too.
bool is_script(std::string_view name) {
  if (name.size() < 3 || name.size() > 40) return false;  // one or two letters are a general category
  const std::string pattern = fmt::format("\\p{{sc:{}}}", name);
  int error = 0;
  size_t where = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF, &error, &where, nullptr);
  pcre2_code_free(code);
  return code != nullptr;
}

class Translator {
 public:
  explicit Translator(std::string_view in) : in_(in) {}

  Result<std::string> run() {
    std::string out;
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        PITH_TRY(escape(out, false));
      } else if (c == '[') {
        PITH_TRY(bracket(out, 0));
      } else {
        out.push_back(c);
        ++at_;
      }
    }
    return out;
  }

 private:
  // One backslash sequence.
  Status escape(std::string& out, bool in_class) {
    if (at_ + 1 >= in_.size()) return data_error("pattern ends with a backslash");
    const char c = in_[at_ + 1];
    at_ += 2;
    if (c == 's') {
      out += in_class ? std::string(kWhiteSpace) : fmt::format("[{}]", kWhiteSpace);
    } else if (c == 'S' && !in_class) {
      out += fmt::format("[^{}]", kWhiteSpace);
    } else if ((c == 'p' || c == 'P') && in_.substr(at_, 1) == "{" && in_.find('}', at_) != std::string_view::npos) {
      const size_t end = in_.find('}', at_);
      const std::string_view name = in_.substr(at_ + 1, end - at_ - 1);
      out += fmt::format("\\{}{{{}{}}}", c, is_script(name) ? "sc:" : "", name);
      at_ = end + 1;
    } else if (c == 'h') {
      out += in_class ? "0-9A-Fa-f" : "[0-9A-Fa-f]";
    } else {
      out.push_back('\\');
      out.push_back(c);
    }
    return {};
  }

  // A character class from its '['. Oniguruma's "[A&&B]" becomes a look-ahead for B before [A].
  Status bracket(std::string& out, int depth) {
    if (depth > kMaxNesting) return data_error("character classes nested too deep");
    const size_t begin = at_++;
    bool negated = false;
    if (at_ < in_.size() && in_[at_] == '^') {
      negated = true;
      ++at_;
    }
    std::vector<std::string> parts(1);  // the intersection's members, as the inside of a class
    std::vector<std::string> heads;     // members that are whole classes
    bool first = true;
    while (at_ < in_.size() && (in_[at_] != ']' || first)) {
      const char c = in_[at_];
      first = false;
      if (c == '\\') {
        PITH_TRY(escape(parts.back(), true));
      } else if (in_.substr(at_, 2) == "&&") {
        at_ += 2;
        parts.emplace_back();
      } else if (c == '[' && in_.substr(at_, 2) == "[:") {
        const size_t end = in_.find(":]", at_);
        if (end == std::string_view::npos) return data_error("character class without its end");
        parts.back() += in_.substr(at_, end + 2 - at_);
        at_ = end + 2;
      } else if (c == '[') {
        if (!parts.back().empty()) {
          return data_error(
              fmt::format("pattern has a union of nested character classes at byte {}, which is not "
                          "supported; write it as one class",
                          at_));
        }
        std::string nested;
        PITH_TRY(bracket(nested, depth + 1));
        heads.push_back(nested);
        parts.pop_back();
        if (at_ < in_.size() && in_.substr(at_, 2) == "&&") {
          at_ += 2;
          parts.emplace_back();
        } else if (at_ < in_.size() && in_[at_] != ']') {
          return data_error(
              fmt::format("pattern has a union of nested character classes at byte {}, which is not "
                          "supported; write it as one class",
                          at_));
        } else {
          break;
        }
      } else {
        parts.back().push_back(c);
        ++at_;
      }
    }
    if (at_ >= in_.size()) return data_error(fmt::format("character class at byte {} has no end", begin));
    ++at_;
    if (heads.empty() && parts.size() == 1) {
      out += fmt::format("[{}{}]", negated ? "^" : "", parts[0]);
      return {};
    }
    for (const std::string& part : parts) {
      if (part.empty()) return data_error(fmt::format("character class at byte {} has an empty member", begin));
      heads.push_back("[" + part + "]");
    }
    // Each member must hold at this place; the last one consumes the character.
    std::string all;
    for (size_t i = 0; i + 1 < heads.size(); ++i) all += fmt::format("(?={})", heads[i]);
    all += heads.back();
    out += negated ? fmt::format("(?:(?!{})(?s:.))", all) : fmt::format("(?:{})", all);
    return {};
  }

  std::string_view in_;
  size_t at_ = 0;
};

std::string pcre2_message(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

}  // namespace

struct Regex::State {
  std::string pattern;
  pcre2_code* code = nullptr;
  ~State() { pcre2_code_free(code); }
};

Regex::Regex(std::unique_ptr<State> state) : state_(std::move(state)) {}
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;
Regex::~Regex() = default;

Result<std::string> translate_pattern(std::string_view pattern) { return Translator(pattern).run(); }

Result<Regex> Regex::compile(std::string_view pattern) {
  if (pattern.size() > kMaxPattern) {
    return data_error(fmt::format("pattern of {} bytes, at most {} are supported", pattern.size(), kMaxPattern));
  }
  PITH_ASSIGN(std::string text, translate_pattern(pattern));
  auto state = std::make_unique<State>();
  state->pattern = std::string(pattern);
  std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  size_t where = 0;
  // MULTILINE: Oniguruma's ^ and $ hold at every line.
  state->code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &where, context.get());
  if (state->code == nullptr) {
    return data_error(fmt::format("pattern '{}': {} at byte {}", pattern, pcre2_message(error), where));
  }
  // Without a JIT for this machine, matching falls back to the interpreter.
  (void)pcre2_jit_compile(state->code, PCRE2_JIT_COMPLETE);
  return Regex(std::move(state));
}

struct RegexScratch::State {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);  // only the whole match is asked for
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = nullptr;
  std::string repaired;
  std::vector<size_t> broken;  // where in `repaired` a U+FFFD stands for one byte
  ~State() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

RegexScratch::RegexScratch() : state_(std::make_unique<State>()) {
  pcre2_set_match_limit(state_->context, kMatchLimit);
  pcre2_set_heap_limit(state_->context, 256u << 10);  // KiB
}
RegexScratch::~RegexScratch() = default;

Status Regex::find_all(std::string_view text, RegexScratch& scratch,
                       std::vector<std::pair<size_t, size_t>>& out) const {
  RegexScratch::State& s = *scratch.state_;
  if (s.data == nullptr || s.context == nullptr) return user_error("out of memory for a pattern match");
  if (text.size() > 4096 && s.stack == nullptr) {  // short texts do with the machine stack that PCRE2 takes by itself
    s.stack = pcre2_jit_stack_create(64u << 10, 16u << 20, nullptr);
    pcre2_jit_stack_assign(s.context, nullptr, s.stack);
  }
  s.broken.clear();
  std::string_view subject = text;
  if (!valid_utf8(text)) {
    s.repaired.clear();
    for (size_t i = 0; i < text.size();) {
      const Utf8Char c = utf8_at(text, i);
      if (c.code >= kBrokenByte) {
        s.broken.push_back(s.repaired.size());
        s.repaired += "\xef\xbf\xbd";
      } else {
        s.repaired += text.substr(i, c.length);
      }
      i += c.length;
    }
    subject = s.repaired;
  }
  const auto original = [&](size_t at) {  // each broken byte before `at` takes two bytes more than it did
    return at - 2 * static_cast<size_t>(std::lower_bound(s.broken.begin(), s.broken.end(), at) - s.broken.begin());
  };
  size_t at = 0;
  while (at <= subject.size()) {
    const int found = pcre2_match(state_->code, reinterpret_cast<PCRE2_SPTR>(subject.data()), subject.size(), at,
                                  PCRE2_NO_UTF_CHECK, s.data, s.context);
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) {
      return data_error(fmt::format("pattern '{}' of the tokenizer gave up at byte {} of the text: {}", state_->pattern,
                                    original(at), pcre2_message(found)));
    }
    const size_t* range = pcre2_get_ovector_pointer(s.data);
    const size_t begin = range[0], end = std::max(range[0], range[1]);  // \K in a look-ahead: begin after end
    if (begin < at || end > subject.size()) {
      return data_error(fmt::format("pattern '{}' of the tokenizer matches backwards", state_->pattern));
    }
    out.emplace_back(original(begin), original(end));
    at = end;
    if (begin == end) {  // step over one character so that the search goes on
      ++at;
      while (at < subject.size() && (static_cast<uint8_t>(subject[at]) & 0xc0u) == 0x80u) ++at;
    }
  }
  return {};
}

}  // namespace pith
