#include "runtime/chat_template.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

namespace pith::chat {
namespace {

constexpr size_t kMaxSource = 1u << 20;
constexpr int kMaxDepth = 100;
constexpr int32_t kMaxHeight = 400;

enum class TokenKind : uint8_t {
  text,
  print_begin,
  print_end,
  block_begin,
  block_end,
  name,
  string,
  integer,
  real,
  symbol,
  end
};

struct Token {
  TokenKind kind = TokenKind::end;
  std::string text;
  int64_t number = 0;
  double real = 0;
  int32_t line = 1;
};

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f'; }
bool is_name_begin(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

class Lexer {
 public:
  explicit Lexer(std::string_view source) {
    // Jinja counts every line end as "\n" and drops one at the very end.
    for (size_t i = 0; i < source.size(); ++i) {
      if (source[i] == '\r') {
        in_.push_back('\n');
        if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
      } else {
        in_.push_back(source[i]);
      }
    }
    if (!in_.empty() && in_.back() == '\n') in_.pop_back();
  }

  Result<std::vector<Token>> run() {
    while (at_ < in_.size()) {
      PITH_TRY(text_and_tag());
    }
    push(TokenKind::end, "");
    return std::move(tokens_);
  }

 private:
  Error fail(std::string message) const { return data_error(fmt::format("line {}: {}", line_, message)); }
  void push(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), 0, 0, line_}); }
  bool here(std::string_view what) const { return std::string_view(in_).substr(at_, what.size()) == what; }
  void advance(size_t to) {
    line_ += static_cast<int32_t>(
        std::count(in_.begin() + static_cast<ptrdiff_t>(at_), in_.begin() + static_cast<ptrdiff_t>(to), '\n'));
    at_ = to;
  }

  // Text up to the next tag, then the tag. `trim_` says what the tag before wants done to the text's begin.
  Status text_and_tag() {
    size_t tag = at_;
    while (tag < in_.size()) {
      tag = in_.find('{', tag);
      if (tag == std::string::npos) tag = in_.size();
      if (tag + 1 < in_.size() && (in_[tag + 1] == '{' || in_[tag + 1] == '%' || in_[tag + 1] == '#')) break;
      if (tag < in_.size()) ++tag;
    }
    std::string text = in_.substr(at_, tag - at_);
    if (trim_ == Trim::all) {
      const auto first = std::find_if_not(text.begin(), text.end(), is_space);
      text.erase(text.begin(), first);
    } else if (trim_ == Trim::newline && text.starts_with('\n')) {
      text.erase(0, 1);
    }
    const bool after_line_end = at_ == 0 || (trim_ == Trim::newline && at_ < tag && in_[at_] == '\n');
    trim_ = Trim::none;
    if (tag == in_.size()) {
      if (!text.empty()) push(TokenKind::text, std::move(text));
      advance(tag);
      return {};
    }
    const char kind = in_[tag + 1];
    const char mark = tag + 2 < in_.size() ? in_[tag + 2] : ' ';
    if (mark == '-') {
      while (!text.empty() && is_space(text.back())) text.pop_back();
    } else if (kind != '{' && mark != '+') {
      // lstrip_blocks: blanks between the begin of the line and the tag go.
      size_t blank = text.size();
      while (blank > 0 && is_space(text[blank - 1]) && text[blank - 1] != '\n') --blank;
      if (blank > 0 ? text[blank - 1] == '\n' : after_line_end) text.resize(blank);
    }
    if (!text.empty()) push(TokenKind::text, std::move(text));
    advance(tag + 2 + (mark == '-' || mark == '+' ? 1 : 0));
    if (kind == '#') {
      const size_t end = in_.find("#}", at_);
      if (end == std::string::npos) return fail("comment without its end");
      trim_ = end > at_ && in_[end - 1] == '-'   ? Trim::all
              : end > at_ && in_[end - 1] == '+' ? Trim::none
                                                 : Trim::newline;
      advance(end + 2);
      return {};
    }
    if (kind == '%') {
      size_t word = at_;
      while (word < in_.size() && is_space(in_[word])) ++word;
      if (std::string_view(in_).substr(word, 3) == "raw") return raw(word + 3);
    }
    push(kind == '{' ? TokenKind::print_begin : TokenKind::block_begin, "");
    return inside(kind);
  }

  // {% raw %} … {% endraw %}: text as it is.
  Status raw(size_t after_word) {
    const size_t open_end = in_.find("%}", after_word);
    if (open_end == std::string::npos) return fail("raw block without its end");
    size_t close = open_end, word = 0;
    while (true) {
      close = in_.find("{%", close + 2);
      if (close == std::string::npos) return fail("raw block without endraw");
      word = close + 2;
      while (word < in_.size() && (is_space(in_[word]) || in_[word] == '-' || in_[word] == '+')) ++word;
      if (std::string_view(in_).substr(word, 6) == "endraw") break;
    }
    const size_t end = in_.find("%}", word);
    if (end == std::string::npos) return fail("endraw without its end");
    std::string text = in_.substr(open_end + 2, close - open_end - 2);
    if (in_[open_end - 1] == '-') {
      text.erase(text.begin(), std::find_if_not(text.begin(), text.end(), is_space));
    } else if (text.starts_with('\n')) {
      text.erase(0, 1);
    }
    if (in_[close + 2] == '-') {
      while (!text.empty() && is_space(text.back())) text.pop_back();
    }
    if (!text.empty()) push(TokenKind::text, std::move(text));
    trim_ = in_[end - 1] == '-' ? Trim::all : Trim::newline;
    advance(end + 2);
    return {};
  }

  // Tokens between {{ and }}, or {% and %}.
  Status inside(char kind) {
    int open = 0;
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (is_space(c)) {
        advance(at_ + 1);
        continue;
      }
      const std::string_view closing = kind == '{' ? "}}" : "%}";
      const bool marked = (c == '-' || c == '+') && std::string_view(in_).substr(at_ + 1, 2) == closing;
      if (open == 0 && (here(closing) || marked)) {
        push(kind == '{' ? TokenKind::print_end : TokenKind::block_end, "");
        trim_ = marked && c == '-' ? Trim::all : kind == '%' && !marked ? Trim::newline : Trim::none;
        advance(at_ + (marked ? 3 : 2));
        return {};
      }
      if (is_name_begin(c)) {
        size_t end = at_;
        while (end < in_.size() && (is_name_begin(in_[end]) || is_digit(in_[end]))) ++end;
        push(TokenKind::name, in_.substr(at_, end - at_));
        at_ = end;
      } else if (is_digit(c)) {
        PITH_TRY(number());
      } else if (c == '\'' || c == '"') {
        PITH_TRY(quoted(c));
      } else {
        static constexpr std::array<std::string_view, 28> kSymbols = {
            "**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<", ">",
            "(",  ")",  "[",  "]",  "{",  "}",  ",", ":", ".", "|", "=", ";", "&", "^"};
        const auto found = std::find_if(kSymbols.begin(), kSymbols.end(), [&](std::string_view s) { return here(s); });
        if (found == kSymbols.end()) return fail(fmt::format("unexpected character '{}'", c));
        if (c == '(' || c == '[' || c == '{') ++open;
        if ((c == ')' || c == ']' || c == '}') && open > 0) --open;
        push(TokenKind::symbol, std::string(*found));
        at_ += found->size();
      }
    }
    return fail("tag without its end");
  }

  Status number() {
    size_t end = at_;
    bool real = false;
    while (end < in_.size() && (is_digit(in_[end]) || in_[end] == '_')) ++end;
    if (end + 1 < in_.size() && in_[end] == '.' && is_digit(in_[end + 1])) {
      real = true;
      ++end;
      while (end < in_.size() && is_digit(in_[end])) ++end;
    }
    if (end + 1 < in_.size() && (in_[end] == 'e' || in_[end] == 'E')) {
      size_t exponent = end + 1;
      if (in_[exponent] == '+' || in_[exponent] == '-') ++exponent;
      if (exponent < in_.size() && is_digit(in_[exponent])) {
        real = true;
        end = exponent;
        while (end < in_.size() && is_digit(in_[end])) ++end;
      }
    }
    std::string digits = in_.substr(at_, end - at_);
    digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
    Token token{real ? TokenKind::real : TokenKind::integer, digits, 0, 0, line_};
    const auto read = real ? std::from_chars(digits.data(), digits.data() + digits.size(), token.real)
                           : std::from_chars(digits.data(), digits.data() + digits.size(), token.number);
    if (read.ec != std::errc()) return fail(fmt::format("number '{}' is too large", digits));
    tokens_.push_back(std::move(token));
    at_ = end;
    return {};
  }

  Status quoted(char quote) {
    std::string out;
    size_t i = at_ + 1;
    for (; i < in_.size() && in_[i] != quote; ++i) {
      if (in_[i] != '\\' || i + 1 >= in_.size()) {
        out.push_back(in_[i]);
        continue;
      }
      const char c = in_[++i];
      switch (c) {
        case 'n':
          out.push_back('\n');
          break;
        case 't':
          out.push_back('\t');
          break;
        case 'r':
          out.push_back('\r');
          break;
        case 'b':
          out.push_back('\b');
          break;
        case 'f':
          out.push_back('\f');
          break;
        case 'v':
          out.push_back('\v');
          break;
        case 'a':
          out.push_back('\a');
          break;
        case '0':
          out.push_back('\0');
          break;
        case '\n':
          break;
        case '\\':
        case '\'':
        case '"':
          out.push_back(c);
          break;
        case 'x':
        case 'u':
        case 'U': {
          const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
          uint32_t code = 0;
          const char* begin = in_.data() + i + 1;
          if (in_.size() - i - 1 < digits) return fail("string without its end");
          const auto read = std::from_chars(begin, begin + digits, code, 16);
          if (read.ptr != begin + digits || code > 0x10ffff) return fail("bad \\x, \\u or \\U in a string");
          append_code(out, code);
          i += digits;
          break;
        }
        default:
          out.push_back('\\');
          out.push_back(c);
      }
    }
    if (i >= in_.size()) return fail("string without its end");
    push(TokenKind::string, std::move(out));
    advance(i + 1);
    return {};
  }

  static void append_code(std::string& out, uint32_t code) {
    if (code < 0x80) {
      out.push_back(static_cast<char>(code));
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    const uint32_t lead = more == 1 ? 0xc0 : more == 2 ? 0xe0 : 0xf0;
    out.push_back(static_cast<char>(lead | code >> (6 * more)));
    for (int k = more - 1; k >= 0; --k) out.push_back(static_cast<char>(0x80u | (code >> (6 * k) & 0x3fu)));
  }

  enum class Trim : uint8_t { none, newline, all };
  std::string in_;
  size_t at_ = 0;
  int32_t line_ = 1;
  Trim trim_ = Trim::none;
  std::vector<Token> tokens_;
};

// Recursive descent. After the first error every function returns at once with index -1.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Result<Template> run() {
    out_.root = block({});
    if (!failed_ && peek().kind != TokenKind::end) fail("unexpected end tag");
    if (failed_) return error_;
    return std::move(out_);
  }

 private:
  struct Depth {
    explicit Depth(Parser& p) : parser(p) {
      if (++parser.depth_ > kMaxDepth) parser.fail("nested too deep");
    }
    ~Depth() { --parser.depth_; }
    Parser& parser;
  };

  const Token& peek(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  void fail(const std::string& message) {
    if (!failed_) error_ = data_error(fmt::format("line {}: {}", peek().line, message));
    failed_ = true;
  }
  bool is_symbol(std::string_view s, size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::symbol && peek(ahead).text == s;
  }
  bool is_word(std::string_view s, size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::name && peek(ahead).text == s;
  }
  bool take_symbol(std::string_view s) {
    if (failed_ || !is_symbol(s)) return false;
    ++at_;
    return true;
  }
  bool take_word(std::string_view s) {
    if (failed_ || !is_word(s)) return false;
    ++at_;
    return true;
  }
  void need_symbol(std::string_view s) {
    if (!failed_ && !take_symbol(s)) fail(fmt::format("expected '{}', found '{}'", s, describe()));
  }
  void need(TokenKind kind, std::string_view what) {
    if (failed_) return;
    if (peek().kind != kind) return fail(fmt::format("expected {}, found '{}'", what, describe()));
    ++at_;
  }
  std::string need_name() {
    if (failed_) return {};
    if (peek().kind != TokenKind::name) {
      fail(fmt::format("expected a name, found '{}'", describe()));
      return {};
    }
    return tokens_[at_++].text;
  }
  std::string describe() const {
    switch (peek().kind) {
      case TokenKind::end:
        return "end of template";
      case TokenKind::print_end:
        return "}}";
      case TokenKind::block_end:
        return "%}";
      default:
        return peek().text;
    }
  }
  int32_t make(Op op, std::vector<int32_t> kids = {}, std::string text = {}) {
    if (failed_) return -1;
    Node node;
    node.op = op;
    node.line = peek().line;
    node.text = std::move(text);
    node.kids = std::move(kids);
    int32_t height = 1;  // long chains "a + a + …" grow the tree without nesting; the interpreter walks it recursively
    for (const int32_t kid : node.kids) {
      if (kid >= 0) height = std::max(height, heights_[static_cast<size_t>(kid)] + 1);
    }
    if (height > kMaxHeight) {
      fail("expression is too long");
      return -1;
    }
    heights_.push_back(height);
    out_.nodes.push_back(std::move(node));
    return static_cast<int32_t>(out_.nodes.size() - 1);
  }

  // ---- statements ----

  // Statements up to a block tag whose word is one of `ends`; that tag's begin and word stay unread.
  int32_t block(const std::vector<std::string_view>& ends) {
    const Depth depth(*this);
    std::vector<int32_t> kids;
    while (!failed_ && peek().kind != TokenKind::end) {
      if (peek().kind == TokenKind::text) {
        kids.push_back(make(Op::text, {}, peek().text));
        ++at_;
      } else if (peek().kind == TokenKind::print_begin) {
        ++at_;
        const int32_t value = tuple();
        kids.push_back(make(Op::print, {value}));
        need(TokenKind::print_end, "}}");
      } else {
        const std::string word = peek(1).kind == TokenKind::name ? peek(1).text : "";
        if (std::find(ends.begin(), ends.end(), word) != ends.end()) break;
        ++at_;
        statement(kids);
      }
    }
    if (!ends.empty() && peek().kind == TokenKind::end) fail(fmt::format("template ends before '{}'", ends.back()));
    return make(Op::block, std::move(kids));
  }

  // Reads "{% word"; the caller goes on behind it.
  std::string end_word() {
    need(TokenKind::block_begin, "a block tag");
    return need_name();
  }
  void close() { need(TokenKind::block_end, "%}"); }

  void statement(std::vector<int32_t>& kids) {
    const std::string word = need_name();
    if (failed_) return;
    if (word == "if") {
      std::vector<int32_t> parts;
      parts.push_back(expression());
      close();
      while (!failed_) {
        parts.push_back(block({"elif", "else", "endif"}));
        const std::string next = end_word();
        if (next == "elif") {
          parts.push_back(expression());
          close();
        } else if (next == "else") {
          close();
          parts.push_back(block({"endif"}));
          end_word();
          close();
          break;
        } else {
          close();
          break;
        }
      }
      kids.push_back(make(Op::branch, std::move(parts)));
    } else if (word == "for") {
      std::vector<std::string> names = targets();
      if (!take_word("in")) fail(fmt::format("expected 'in', found '{}'", describe()));
      const int32_t iterable = condition(false);
      const int32_t filter = take_word("if") ? expression() : -1;
      if (is_word("recursive")) fail("recursive loops are not supported");
      close();
      ++loops_;
      const int32_t body = block({"else", "endfor"});
      --loops_;
      int32_t other = -1;
      if (end_word() == "else") {
        close();
        other = block({"endfor"});
        end_word();
      }
      close();
      const int32_t node = make(Op::loop, {iterable, filter, body, other});
      if (node >= 0) out_.nodes[static_cast<size_t>(node)].names = std::move(names);
      kids.push_back(node);
    } else if (word == "set") {
      std::vector<std::string> names = targets();
      if (names.size() == 1 && take_symbol(".")) names[0] += "." + need_name();
      int32_t node = -1;
      if (take_symbol("=")) {
        const int32_t value = tuple();
        close();
        node = make(Op::set, {value});
      } else {
        close();
        const int32_t body = block({"endset"});
        end_word();
        close();
        if (names.size() != 1 || names[0].find('.') != std::string::npos) fail("a set block has one plain name");
        node = make(Op::set_block, {body});
      }
      if (node >= 0) out_.nodes[static_cast<size_t>(node)].names = std::move(names);
      kids.push_back(node);
    } else if (word == "macro") {
      const std::string name = need_name();
      std::vector<std::string> parameters;
      std::vector<int32_t> defaults;
      need_symbol("(");
      while (!failed_ && !is_symbol(")")) {
        if (!parameters.empty()) need_symbol(",");
        parameters.push_back(need_name());
        defaults.push_back(take_symbol("=") ? expression() : -1);
      }
      need_symbol(")");
      close();
      const int32_t body = block({"endmacro"});
      end_word();
      close();
      defaults.insert(defaults.begin(), body);
      const int32_t node = make(Op::macro, std::move(defaults), name);
      if (node >= 0) out_.nodes[static_cast<size_t>(node)].names = std::move(parameters);
      kids.push_back(node);
    } else if (word == "generation") {  // transformers' mark of what the model says; no effect on the text
      close();
      kids.push_back(block({"endgeneration"}));
      end_word();
      close();
    } else if (word == "break" || word == "continue") {
      if (loops_ == 0) fail(fmt::format("'{}' outside of a loop", word));
      close();
      kids.push_back(make(word == "break" ? Op::stop : Op::next));
    } else {
      fail(fmt::format("statement '{}' is not supported (if, for, set, macro, generation, break, continue, raw are)",
                       word));
    }
  }

  std::vector<std::string> targets() {
    const bool parenthesis = take_symbol("(");
    std::vector<std::string> names{need_name()};
    while (take_symbol(",")) names.push_back(need_name());
    if (parenthesis) need_symbol(")");
    return names;
  }

  // ---- expressions ----

  int32_t tuple() {
    const int32_t first = expression();
    if (!is_symbol(",")) return first;
    std::vector<int32_t> items{first};
    while (take_symbol(",")) {
      if (peek().kind == TokenKind::block_end || peek().kind == TokenKind::print_end || is_symbol(")")) break;
      items.push_back(expression());
    }
    return make(Op::list, std::move(items));
  }

  int32_t expression() { return condition(true); }

  int32_t condition(bool with_if) {
    const Depth depth(*this);
    if (failed_) return -1;
    int32_t value = either();
    while (with_if && take_word("if")) {
      const int32_t test = either();
      const int32_t other = take_word("else") ? expression() : -1;
      value = make(Op::conditional, {test, value, other});
    }
    return value;
  }
  int32_t either() {
    int32_t left = both();
    while (take_word("or")) {
      const int32_t right = both();
      left = make(Op::logical_or, {left, right});
    }
    return left;
  }
  int32_t both() {
    int32_t left = negation();
    while (take_word("and")) {
      const int32_t right = negation();
      left = make(Op::logical_and, {left, right});
    }
    return left;
  }
  int32_t negation() {
    const Depth depth(*this);
    if (failed_) return -1;
    if (take_word("not")) {
      const int32_t value = negation();
      return make(Op::logical_not, {value});
    }
    return comparison();
  }
  int32_t comparison() {
    const int32_t first = sum();
    int32_t result = -1, left = first;
    while (!failed_) {
      Op op = Op::equal;
      if (take_symbol("==")) {
        op = Op::equal;
      } else if (take_symbol("!=")) {
        op = Op::not_equal;
      } else if (take_symbol("<=")) {
        op = Op::less_equal;
      } else if (take_symbol(">=")) {
        op = Op::greater_equal;
      } else if (take_symbol("<")) {
        op = Op::less;
      } else if (take_symbol(">")) {
        op = Op::greater;
      } else if (take_word("in")) {
        op = Op::in;
      } else if (is_word("not") && is_word("in", 1)) {
        at_ += 2;
        op = Op::not_in;
      } else {
        break;
      }
      const int32_t right = sum();
      const int32_t one = make(op, {left, right});
      result = result < 0 ? one : make(Op::logical_and, {result, one});  // a < b < c
      left = right;
    }
    return result < 0 ? first : result;
  }
  int32_t sum() {
    int32_t left = concatenation();
    while (is_symbol("+") || is_symbol("-")) {
      const Op op = is_symbol("+") ? Op::add : Op::subtract;
      ++at_;
      const int32_t right = concatenation();
      left = make(op, {left, right});
    }
    return left;
  }
  int32_t concatenation() {
    int32_t left = product();
    while (take_symbol("~")) {
      const int32_t right = product();
      left = make(Op::concat, {left, right});
    }
    return left;
  }
  int32_t product() {
    int32_t left = powers();
    while (is_symbol("*") || is_symbol("/") || is_symbol("//") || is_symbol("%")) {
      const Op op = is_symbol("*")    ? Op::multiply
                    : is_symbol("/")  ? Op::divide
                    : is_symbol("//") ? Op::floor_divide
                                      : Op::modulo;
      ++at_;
      const int32_t right = powers();
      left = make(op, {left, right});
    }
    return left;
  }
  int32_t powers() {
    int32_t left = unary(true);
    while (take_symbol("**")) {
      const int32_t right = unary(true);
      left = make(Op::power, {left, right});
    }
    return left;
  }
  int32_t unary(bool with_filter) {
    const Depth depth(*this);
    if (failed_) return -1;
    int32_t value = -1;
    if (take_symbol("-")) {
      const int32_t inner = unary(false);
      value = make(Op::negate, {inner});
    } else if (take_symbol("+")) {
      const int32_t inner = unary(false);
      value = make(Op::plus, {inner});
    } else {
      value = primary();
    }
    value = postfix(value);
    return with_filter ? filters(value) : value;
  }
  int32_t primary() {
    if (failed_) return -1;
    const Token token = peek();
    ++at_;
    int32_t node = -1;
    switch (token.kind) {
      case TokenKind::string: {
        std::string text = token.text;
        while (peek().kind == TokenKind::string) text += tokens_[at_++].text;  // neighbours join, as in Python
        return make(Op::string, {}, std::move(text));
      }
      case TokenKind::integer:
        node = make(Op::integer);
        if (node >= 0) out_.nodes[static_cast<size_t>(node)].number = token.number;
        return node;
      case TokenKind::real:
        node = make(Op::real);
        if (node >= 0) out_.nodes[static_cast<size_t>(node)].real = token.real;
        return node;
      case TokenKind::name:
        if (token.text == "true" || token.text == "True" || token.text == "false" || token.text == "False") {
          node = make(Op::boolean);
          if (node >= 0) out_.nodes[static_cast<size_t>(node)].number = token.text == "true" || token.text == "True";
          return node;
        }
        if (token.text == "none" || token.text == "None") return make(Op::none);
        return make(Op::name, {}, token.text);
      default:
        break;
    }
    if (token.kind == TokenKind::symbol && token.text == "(") {
      if (take_symbol(")")) return make(Op::list);
      node = tuple();
      need_symbol(")");
      return node;
    }
    if (token.kind == TokenKind::symbol && token.text == "[") {
      std::vector<int32_t> items;
      while (!failed_ && !is_symbol("]")) {
        if (!items.empty()) need_symbol(",");
        if (is_symbol("]")) break;
        items.push_back(expression());
      }
      need_symbol("]");
      return make(Op::list, std::move(items));
    }
    if (token.kind == TokenKind::symbol && token.text == "{") {
      std::vector<int32_t> items;
      while (!failed_ && !is_symbol("}")) {
        if (!items.empty()) need_symbol(",");
        if (is_symbol("}")) break;
        items.push_back(expression());
        need_symbol(":");
        items.push_back(expression());
      }
      need_symbol("}");
      return make(Op::dict, std::move(items));
    }
    --at_;
    fail(fmt::format("expected a value, found '{}'", describe()));
    return -1;
  }
  int32_t postfix(int32_t value) {
    while (!failed_) {
      if (take_symbol(".")) {
        if (peek().kind == TokenKind::integer) {
          const int32_t index = primary();
          value = make(Op::item, {value, index});
        } else {
          std::string name = need_name();
          value = make(Op::attribute, {value}, std::move(name));
        }
      } else if (take_symbol("[")) {
        value = subscript(value);
      } else if (is_symbol("(")) {
        value = call(value);
      } else {
        break;
      }
    }
    return value;
  }
  int32_t subscript(int32_t value) {
    std::array<int32_t, 3> part = {-1, -1, -1};
    size_t colons = 0;
    while (!failed_ && !is_symbol("]")) {
      if (take_symbol(":")) {
        if (++colons > 2) fail("too many ':' in a slice");
      } else if (part[colons] < 0) {
        part[colons] = expression();
      } else {
        fail(fmt::format("expected ']', found '{}'", describe()));
      }
    }
    need_symbol("]");
    if (colons > 0) return make(Op::slice, {value, part[0], part[1], part[2]});
    if (part[0] < 0) fail("empty subscript");
    return make(Op::item, {value, part[0]});
  }
  // "(…)" behind `value`.
  void arguments(std::vector<int32_t>& kids, std::vector<std::string>& names) {
    need_symbol("(");
    bool first = true;
    while (!failed_ && !is_symbol(")")) {
      if (!first) need_symbol(",");
      if (is_symbol(")")) break;
      first = false;
      if (is_symbol("*") || is_symbol("**")) fail("'*' arguments are not supported");
      if (peek().kind == TokenKind::name && is_symbol("=", 1)) {
        names.push_back(need_name());
        ++at_;
      } else {
        names.emplace_back();
      }
      kids.push_back(expression());
    }
    need_symbol(")");
  }
  int32_t call(int32_t callee) {
    std::vector<int32_t> kids{callee};
    std::vector<std::string> names;
    arguments(kids, names);
    const int32_t node = make(Op::call, std::move(kids));
    if (node >= 0) out_.nodes[static_cast<size_t>(node)].names = std::move(names);
    return node;
  }
  int32_t filters(int32_t value) {
    while (!failed_) {
      if (take_symbol("|")) {
        const std::string name = need_name();
        value = applied(Op::filter, name, value, is_symbol("("));
      } else if (take_word("is")) {
        const bool negated = take_word("not");
        const std::string name = need_name();
        const bool bare = !is_symbol("(") && starts_operand();
        if (bare) {  // "x is divisibleby 3"
          const int32_t argument = postfix(primary());
          value = make(Op::test, {value, argument}, name);
          if (value >= 0) out_.nodes[static_cast<size_t>(value)].names = {""};
        } else {
          value = applied(Op::test, name, value, is_symbol("("));
        }
        if (negated) value = make(Op::logical_not, {value});
      } else {
        break;
      }
    }
    return value;
  }
  bool starts_operand() const {
    const TokenKind kind = peek().kind;
    if (kind == TokenKind::string || kind == TokenKind::integer || kind == TokenKind::real) return true;
    if (is_symbol("[") || is_symbol("{")) return true;
    if (kind != TokenKind::name) return false;
    static constexpr std::array<std::string_view, 7> kWords = {"else", "or", "and", "is", "if", "in", "not"};
    return std::find(kWords.begin(), kWords.end(), peek().text) == kWords.end();
  }
  int32_t applied(Op op, const std::string& name, int32_t value, bool with_arguments) {
    std::vector<int32_t> kids{value};
    std::vector<std::string> names;
    if (with_arguments) arguments(kids, names);
    const int32_t node = make(op, std::move(kids), name);
    if (node >= 0) out_.nodes[static_cast<size_t>(node)].names = std::move(names);
    return node;
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0, loops_ = 0;
  bool failed_ = false;
  Error error_;
  Template out_;
  std::vector<int32_t> heights_;
};

}  // namespace

Result<Template> parse_template(std::string_view source) {
  if (source.size() > kMaxSource) {
    return data_error(fmt::format("chat template of {} bytes, at most {} are supported", source.size(), kMaxSource));
  }
  PITH_ASSIGN(auto tokens, Lexer(source).run());
  return Parser(std::move(tokens)).run();
}

}  // namespace pith::chat
