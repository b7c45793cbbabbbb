#include "runtime/chat.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <map>

#include "runtime/chat_template.h"
#include "runtime/chat_value.h"
#include "runtime/tokenizer_utf8.h"

namespace pith {
namespace chat {
namespace {

constexpr size_t kMaxSteps = 2'000'000;  // nodes evaluated
constexpr size_t kMaxWork = 32u << 20;   // bytes and items that operations may make, all together
constexpr size_t kMaxItems = 1u << 20;   // of one list
constexpr int kMaxValueDepth = 40, kMaxMacroDepth = 20;

using Scope = std::map<std::string, Value, std::less<>>;

// ---- text as Python sees it
// ------------------------------------------------------------------------------------------

int64_t count_characters(std::string_view text) {
  int64_t count = 0;
  for (size_t i = 0; i < text.size(); i += utf8_at(text, i).length) ++count;
  return count;
}

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> out;
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_at(text, i).length;
    out.push_back(text.substr(i, length));
    i += length;
  }
  return out;
}

bool is_blank(uint32_t code) { return is_white_space(code) || (code >= 0x1c && code <= 0x1f); }

std::string strip(std::string_view text, const std::string* set, bool left, bool right) {
  const auto drop = [&](std::string_view c) {
    return set != nullptr ? set->find(c) != std::string::npos : is_blank(utf8_at(c, 0).code);
  };
  while (left && !text.empty()) {
    const size_t length = utf8_at(text, 0).length;
    if (!drop(text.substr(0, length))) break;
    text.remove_prefix(length);
  }
  while (right && !text.empty()) {
    size_t length = 1;
    while (length < 4 && length < text.size() && (static_cast<uint8_t>(text[text.size() - length]) & 0xc0u) == 0x80u) {
      ++length;
    }
    if (!drop(text.substr(text.size() - length))) break;
    text.remove_suffix(length);
  }
  return std::string(text);
}

char upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; }
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

// Case of ASCII letters; others stay. `how`: 'u' upper, 'l' lower, 'c' capitalize, 't' title.
std::string with_case(std::string text, char how) {
  bool begin = true;
  for (char& c : text) {
    c = how == 'u' || (begin && (how == 'c' || how == 't')) ? upper(c) : lower(c);
    begin = how == 't' && !((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'));
  }
  return text;
}

std::string replaced(std::string_view text, std::string_view from, std::string_view to, int64_t limit) {
  std::string out;
  size_t begin = 0;
  while (limit != 0) {
    const size_t at = from.empty() ? std::string_view::npos : text.find(from, begin);
    if (at == std::string_view::npos) break;
    out.append(text.substr(begin, at - begin)).append(to);
    begin = at + from.size();
    --limit;
  }
  return out.append(text.substr(begin));
}

// At most kMaxItems + 1 parts: one too many for a list.
List split(std::string_view text, const std::string* separator, int64_t limit, bool from_right) {
  List out;
  if (separator == nullptr) {
    size_t i = 0;
    while (i < text.size() && out.size() <= kMaxItems) {
      while (i < text.size() && is_blank(utf8_at(text, i).code)) i += utf8_at(text, i).length;
      if (i >= text.size()) break;
      if (limit == 0) {
        out.emplace_back(strip(text.substr(i), nullptr, false, true));
        break;
      }
      const size_t begin = i;
      while (i < text.size() && !is_blank(utf8_at(text, i).code)) i += utf8_at(text, i).length;
      out.emplace_back(std::string(text.substr(begin, i - begin)));
      --limit;
    }
    return out;
  }
  if (from_right) {
    size_t end = text.size();
    while (limit != 0 && out.size() <= kMaxItems) {
      const size_t at =
          end < separator->size() ? std::string_view::npos : text.rfind(*separator, end - separator->size());
      if (at == std::string_view::npos) break;
      out.emplace_back(std::string(text.substr(at + separator->size(), end - at - separator->size())));
      end = at;
      --limit;
    }
    out.emplace_back(std::string(text.substr(0, end)));
    std::reverse(out.begin(), out.end());
    return out;
  }
  size_t begin = 0;
  while (limit != 0 && out.size() <= kMaxItems) {
    const size_t at = text.find(*separator, begin);
    if (at == std::string_view::npos) break;
    out.emplace_back(std::string(text.substr(begin, at - begin)));
    begin = at + separator->size();
    --limit;
  }
  out.emplace_back(std::string(text.substr(begin)));
  return out;
}

// ---- the interpreter
// -------------------------------------------------------------------------------------------------

// Arguments of a call, matched to parameter names.
struct Arguments {
  std::vector<Value> values;
  std::vector<std::string> names;  // "" = by position

  const Value* get(size_t position, std::string_view name) const {
    size_t seen = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      if (names[i].empty() ? seen++ == position : names[i] == name) return &values[i];
    }
    return nullptr;
  }
  const std::string* text(size_t position, std::string_view name) const {
    const Value* v = get(position, name);
    return v == nullptr ? nullptr : v->string();
  }
  int64_t integer(size_t position, std::string_view name, int64_t fallback) const {
    const Value* v = get(position, name);
    return v == nullptr || !v->is_number() ? fallback : v->integer();
  }
};

// Runs a template. The first failure is kept and everything returns as fast as it can; limits make sure of an end.
class Interpreter {
 public:
  /// `input` = bytes of the messages; a long conversation may do more.
  Interpreter(const Template& code, Scope globals, size_t input) : code_(code) {
    budget_.left = kMaxWork + 32 * input;
    scopes_.push_back(std::move(globals));
    scopes_.emplace_back();
  }

  Result<std::string> run() {
    std::string out;
    execute(code_.root, out);
    if (!failed_ && budget_.left == 0) fail("template makes too much text");
    if (failed_) return error_;
    return out;
  }

 private:
  enum class Flow : uint8_t { normal, stop, next };

  const Node& node(int32_t index) const { return code_.nodes[static_cast<size_t>(index)]; }

  Value fail(const std::string& message) {
    if (!failed_) error_ = data_error(fmt::format("line {}: {}", line_, message));
    failed_ = true;
    return {};
  }
  bool over() {
    if (!failed_ && (++steps_ > kMaxSteps || budget_.left == 0)) fail("template runs too long");
    return failed_;
  }
  // Every list, dict and text that an operation makes goes through here.
  Value made(Value value, size_t cost) {
    if (!budget_.spend(cost + 1)) return fail("template makes too much text");
    if (value.depth() > kMaxValueDepth) return fail("values nested too deep");
    return value;
  }
  Value made(std::string text) {
    const size_t cost = text.size();
    return made(Value(std::move(text)), cost);
  }
  Value made(List list) {
    if (list.size() > kMaxItems) return fail("list is too long");
    for (const Value& item : list) {
      if (item.name_space() != nullptr) return fail("a namespace inside of a list is not supported");
    }
    const size_t cost = list.size();
    return made(Value(std::move(list)), cost);
  }
  std::string text_of(const Value& value) { return to_text(value, budget_); }

  // ---- statements ----

  Flow execute(int32_t index, std::string& out) {
    if (index < 0 || over()) return Flow::normal;
    const Node& n = node(index);
    line_ = n.line;
    switch (n.op) {
      case Op::block:
        for (const int32_t kid : n.kids) {
          const Flow flow = execute(kid, out);
          if (failed_ || flow != Flow::normal) return flow;
        }
        return Flow::normal;
      case Op::text:
        write(n.text, out);
        return Flow::normal;
      case Op::print: {
        const Value value = evaluate(n.kids[0]);
        if (!failed_) write(text_of(value), out);
        return Flow::normal;
      }
      case Op::branch:
        for (size_t i = 0; i + 1 < n.kids.size(); i += 2) {
          if (evaluate(n.kids[i]).truth() && !failed_) return execute(n.kids[i + 1], out);
          if (failed_) return Flow::normal;
        }
        return n.kids.size() % 2 == 1 ? execute(n.kids.back(), out) : Flow::normal;
      case Op::loop:
        return loop(n, out);
      case Op::set:
        assign(n, evaluate(n.kids[0]));
        return Flow::normal;
      case Op::set_block: {
        std::string text;
        execute(n.kids[0], text);
        if (!failed_) scopes_.back()[n.names[0]] = made(std::move(text));
        return Flow::normal;
      }
      case Op::macro:
        scopes_.back()[n.text] = Value(Callable{n.text, nullptr, index});
        return Flow::normal;
      case Op::stop:
        return Flow::stop;
      case Op::next:
        return Flow::next;
      default:
        evaluate(index);
        return Flow::normal;
    }
  }

  void write(std::string_view text, std::string& out) {
    if (!budget_.spend(text.size())) {
      fail("template makes too much text");
      return;
    }
    out += text;
  }

  void assign(const Node& n, Value value) {
    if (failed_) return;
    if (n.names.size() == 1) {
      const std::string& name = n.names[0];
      const size_t dot = name.find('.');
      if (dot == std::string::npos) {
        scopes_.back()[name] = std::move(value);
        return;
      }
      const Value* holder = lookup(std::string_view(name).substr(0, dot));
      if (holder == nullptr || holder->name_space() == nullptr) {
        fail(fmt::format("cannot set '{}': '{}' is no namespace", name, name.substr(0, dot)));
      } else if (value.name_space() != nullptr) {
        fail("a namespace inside of a namespace is not supported");
      } else {
        put(holder->name_space()->fields, std::string_view(name).substr(dot + 1), std::move(value));
      }
      return;
    }
    unpack(n.names, value);
  }

  void unpack(const std::vector<std::string>& names, const Value& value) {
    if (names.size() == 1) {
      scopes_.back()[names[0]] = value;
      return;
    }
    if (value.list() == nullptr || value.list()->size() != names.size()) {
      fail(fmt::format("cannot unpack {} into {} names", value.type_name(), names.size()));
      return;
    }
    for (size_t i = 0; i < names.size(); ++i) scopes_.back()[names[i]] = (*value.list())[i];
  }

  Flow loop(const Node& n, std::string& out) {
    const Value iterable = evaluate(n.kids[0]);
    if (failed_) return Flow::normal;
    List items;
    if (!iterate(iterable, items)) return Flow::normal;
    if (n.kids[1] >= 0) {
      List kept;
      for (const Value& item : items) {
        scopes_.emplace_back();
        unpack(n.names, item);
        const bool keep = !failed_ && evaluate(n.kids[1]).truth();
        scopes_.pop_back();
        if (failed_) return Flow::normal;
        if (keep) kept.push_back(item);
      }
      items = std::move(kept);
    }
    if (items.empty()) return execute(n.kids[3], out);
    const auto count = static_cast<int64_t>(items.size());
    for (int64_t i = 0; i < count && !failed_; ++i) {
      if (over()) break;
      scopes_.emplace_back();
      Dict state = {{"index", i + 1},
                    {"index0", i},
                    {"revindex", count - i},
                    {"revindex0", count - i - 1},
                    {"first", Value(i == 0)},
                    {"last", Value(i + 1 == count)},
                    {"length", count},
                    {"depth", int64_t{1}},
                    {"previtem", i > 0 ? items[static_cast<size_t>(i - 1)] : Value()},
                    {"nextitem", i + 1 < count ? items[static_cast<size_t>(i + 1)] : Value()}};
      scopes_.back()["loop"] = Value(std::move(state));
      unpack(n.names, items[static_cast<size_t>(i)]);
      const Flow flow = failed_ ? Flow::normal : execute(n.kids[2], out);
      scopes_.pop_back();
      if (flow == Flow::stop) break;
    }
    return Flow::normal;
  }

  bool iterate(const Value& value, List& items) {
    if (value.list() != nullptr) {
      items = *value.list();
    } else if (value.dict() != nullptr) {
      for (const auto& [key, item] : *value.dict()) items.emplace_back(key);
    } else if (value.string() != nullptr) {
      if (value.string()->size() > kMaxItems) {
        fail("text is too long to go through");
        return false;
      }
      for (const std::string_view c : characters(*value.string())) items.emplace_back(std::string(c));
    } else if (!value.is_undefined()) {
      fail(fmt::format("cannot go through a value of type {}", value.type_name()));
      return false;
    }
    if (!budget_.spend(items.size())) fail("template makes too much text");
    return !failed_;
  }

  const Value* lookup(std::string_view name) const {
    for (size_t i = scopes_.size(); i-- > 0;) {
      if (i < base_ && i > 0) i = 0;  // in a macro: its own scopes, then the globals
      const auto found = scopes_[i].find(name);
      if (found != scopes_[i].end()) return &found->second;
      if (i == 0) break;
    }
    return nullptr;
  }

  // ---- expressions ----

  Value evaluate(int32_t index) {
    if (index < 0 || over()) return {};
    const Node& n = node(index);
    line_ = n.line;
    switch (n.op) {
      case Op::none:
        return None{};
      case Op::boolean:
        return n.number != 0;
      case Op::integer:
        return n.number;
      case Op::real:
        return n.real;
      case Op::string:
        return made(n.text);
      case Op::name:
        return name(n.text);
      case Op::list: {
        List items;
        for (const int32_t kid : n.kids) items.push_back(evaluate(kid));
        return failed_ ? Value() : made(std::move(items));
      }
      case Op::dict: {
        Dict fields;
        for (size_t i = 0; i + 1 < n.kids.size(); i += 2) {
          const Value key = evaluate(n.kids[i]);
          Value value = evaluate(n.kids[i + 1]);
          if (failed_) return {};
          if (value.name_space() != nullptr) return fail("a namespace inside of a dict is not supported");
          budget_.spend(fields.size() / 2);
          put(fields, text_of(key), std::move(value));
        }
        return made(Value(std::move(fields)), n.kids.size());
      }
      case Op::attribute:
        return attribute(evaluate(n.kids[0]), n.text);
      case Op::item: {
        const Value object = evaluate(n.kids[0]);
        const Value key = evaluate(n.kids[1]);
        return failed_ ? Value() : item(object, key);
      }
      case Op::slice:
        return slice(n);
      case Op::call:
        return call(n);
      case Op::filter: {
        Value value = evaluate(n.kids[0]);
        const Arguments arguments = gather(n);
        return failed_ ? Value() : filter(n.text, value, arguments);
      }
      case Op::test: {
        const Value value = evaluate(n.kids[0]);
        const Arguments arguments = gather(n);
        return failed_ ? Value() : Value(test(n.text, value, arguments));
      }
      case Op::logical_not: {
        const Value value = evaluate(n.kids[0]);
        return !value.truth();
      }
      case Op::logical_and: {
        Value left = evaluate(n.kids[0]);
        return failed_ || !left.truth() ? left : evaluate(n.kids[1]);
      }
      case Op::logical_or: {
        Value left = evaluate(n.kids[0]);
        return failed_ || left.truth() ? left : evaluate(n.kids[1]);
      }
      case Op::conditional: {
        const bool yes = evaluate(n.kids[0]).truth();
        return failed_ ? Value() : evaluate(yes ? n.kids[1] : n.kids[2]);
      }
      case Op::negate:
      case Op::plus: {
        const Value value = evaluate(n.kids[0]);
        if (failed_) return {};
        if (!value.is_number()) return fail(fmt::format("cannot put a sign before a {}", value.type_name()));
        const bool minus = n.op == Op::negate;
        if (value.is_real()) return minus ? -value.real() : value.real();
        int64_t result = value.integer();
        if (minus && __builtin_sub_overflow(int64_t{0}, value.integer(), &result)) return fail("number is too large");
        return result;
      }
      default:
        break;
    }
    if (n.kids.size() != 2) return fail("statement where a value should be");
    const Value left = evaluate(n.kids[0]);
    const Value right = evaluate(n.kids[1]);
    return failed_ ? Value() : binary(n.op, left, right);
  }

  Value name(const std::string& text) {
    if (const Value* found = lookup(text); found != nullptr) return *found;
    static constexpr std::array<std::string_view, 4> kFunctions = {"raise_exception", "range", "namespace",
                                                                   "strftime_now"};
    if (text == "dict" || std::find(kFunctions.begin(), kFunctions.end(), text) != kFunctions.end()) {
      return Value(Callable{text, nullptr, -1});
    }
    return {};
  }

  // A value of a dict or namespace; `find` goes through it.
  Value field(const Dict& fields, std::string_view key) {
    budget_.spend(fields.size() / 2);
    const Value* found = find(fields, key);
    return found == nullptr ? Value() : *found;
  }

  Value attribute(const Value& object, const std::string& name) {
    if (failed_) return {};
    if (object.is_undefined()) return fail(fmt::format("'{}' is asked of something undefined", name));
    if (object.name_space() != nullptr) return field(object.name_space()->fields, name);
    if (is_method(object, name)) return made(Value(Callable{name, std::make_shared<const Value>(object), -1}), 1);
    return object.dict() != nullptr ? field(*object.dict(), name) : Value();
  }

  static bool is_method(const Value& object, std::string_view name) {
    static constexpr std::array<std::string_view, 22> kText = {
        "strip",   "lstrip",  "rstrip",  "split",  "rsplit",       "splitlines",  "startswith", "endswith",
        "replace", "upper",   "lower",   "title",  "capitalize",   "find",        "rfind",      "count",
        "join",    "isdigit", "isspace", "format", "removeprefix", "removesuffix"};
    static constexpr std::array<std::string_view, 4> kDict = {"items", "keys", "values", "get"};
    static constexpr std::array<std::string_view, 2> kList = {"count", "index"};
    const auto in = [&](const auto& names) { return std::find(names.begin(), names.end(), name) != names.end(); };
    return (object.string() != nullptr && in(kText)) || (object.dict() != nullptr && in(kDict)) ||
           (object.list() != nullptr && in(kList));
  }

  Value item(const Value& object, const Value& key) {
    if (object.is_undefined()) return fail("an item is asked of something undefined");
    if (object.dict() != nullptr || object.name_space() != nullptr) {
      const Dict& fields = object.dict() != nullptr ? *object.dict() : object.name_space()->fields;
      return field(fields, text_of(key));
    }
    if (!key.is_integer() && !key.is_bool()) return {};
    int64_t at = key.integer();
    if (object.list() != nullptr) {
      const auto size = static_cast<int64_t>(object.list()->size());
      if (at < 0) at += size;
      return at < 0 || at >= size ? Value() : (*object.list())[static_cast<size_t>(at)];
    }
    if (object.string() != nullptr) {
      if (!budget_.spend(object.string()->size() * 4)) return {};
      const auto parts = characters(*object.string());
      if (at < 0) at += static_cast<int64_t>(parts.size());
      if (at < 0 || at >= static_cast<int64_t>(parts.size())) return {};
      return made(std::string(parts[static_cast<size_t>(at)]));
    }
    return {};
  }

  Value slice(const Node& n) {
    const Value object = evaluate(n.kids[0]);
    std::array<Value, 3> part;
    for (size_t i = 0; i < 3; ++i) {
      part[i] = n.kids[i + 1] < 0 ? Value(None{}) : evaluate(n.kids[i + 1]);
      if (!failed_ && !part[i].is_none() && !part[i].is_integer()) return fail("slice bounds must be integers");
    }
    if (failed_) return {};
    if (object.string() != nullptr && !budget_.spend(object.string()->size() * 4)) return {};
    if (object.list() == nullptr && object.string() == nullptr) {
      return fail(fmt::format("cannot slice a value of type {}", object.type_name()));
    }
    const std::vector<std::string_view> letters =
        object.string() != nullptr ? characters(*object.string()) : std::vector<std::string_view>();
    const auto size = static_cast<int64_t>(object.list() != nullptr ? object.list()->size() : letters.size());
    const int64_t step = part[2].is_none() ? 1 : part[2].integer();
    if (step == 0) return fail("slice step is zero");
    // Python's rules: bounds below zero count from the end and are then clamped to what the direction allows.
    const auto clamp = [&](const Value& v, int64_t fallback) {
      if (v.is_none()) return fallback;
      int64_t at = v.integer();
      if (at < 0) at = at < -size ? -1 : at + size;
      return step > 0 ? std::clamp<int64_t>(at, 0, size) : std::clamp<int64_t>(at, -1, size - 1);
    };
    const int64_t begin = clamp(part[0], step > 0 ? 0 : size - 1);
    const int64_t end = clamp(part[1], step > 0 ? size : -1);
    List items;
    std::string text;
    for (int64_t i = begin; step > 0 ? i < end : i > end;) {
      if (object.list() != nullptr) {
        items.push_back((*object.list())[static_cast<size_t>(i)]);
      } else {
        text += letters[static_cast<size_t>(i)];
      }
      if (__builtin_add_overflow(i, step, &i)) break;
    }
    return object.list() != nullptr ? made(std::move(items)) : made(std::move(text));
  }

  bool contains(const Value& container, const Value& item) {
    if (container.string() != nullptr && item.string() != nullptr) {
      budget_.spend(container.string()->size() / 16);
      return container.string()->find(*item.string()) != std::string::npos;
    }
    if (container.list() != nullptr) {
      return std::any_of(container.list()->begin(), container.list()->end(),
                         [&](const Value& v) { return equal(v, item, budget_); });
    }
    if (container.dict() != nullptr)
      return item.string() != nullptr && find(*container.dict(), *item.string()) != nullptr;
    if (container.name_space() != nullptr) {
      return item.string() != nullptr && find(container.name_space()->fields, *item.string()) != nullptr;
    }
    if (container.is_undefined()) return false;
    fail(fmt::format("cannot look for a {} in a {}", item.type_name(), container.type_name()));
    return false;
  }

  Value binary(Op op, const Value& a, const Value& b) {
    switch (op) {
      case Op::equal:
        return equal(a, b, budget_);
      case Op::not_equal:
        return !equal(a, b, budget_);
      case Op::in:
        return contains(b, a);
      case Op::not_in:
        return !contains(b, a);
      case Op::concat:
        return made(text_of(a) + text_of(b));
      case Op::less:
      case Op::less_equal:
      case Op::greater:
      case Op::greater_equal: {
        int order = 0;
        if (a.is_number() && b.is_number()) {
          order = a.real() < b.real() ? -1 : a.real() > b.real() ? 1 : 0;
        } else if (a.string() != nullptr && b.string() != nullptr) {
          budget_.spend(a.string()->size() / 16);
          order = a.string()->compare(*b.string());
        } else {
          return fail(fmt::format("cannot order a {} and a {}", a.type_name(), b.type_name()));
        }
        return op == Op::less         ? order < 0
               : op == Op::less_equal ? order <= 0
               : op == Op::greater    ? order > 0
                                      : order >= 0;
      }
      default:
        break;
    }
    if (op == Op::add && a.string() != nullptr && b.string() != nullptr) return made(*a.string() + *b.string());
    if (op == Op::add && a.list() != nullptr && b.list() != nullptr) {
      List joined = *a.list();
      joined.insert(joined.end(), b.list()->begin(), b.list()->end());
      return made(std::move(joined));
    }
    if (op == Op::multiply && (a.string() != nullptr || b.string() != nullptr) && (a.is_integer() || b.is_integer())) {
      const std::string& text = a.string() != nullptr ? *a.string() : *b.string();
      const int64_t times = std::max<int64_t>(0, a.is_integer() ? a.integer() : b.integer());
      if (!text.empty() && static_cast<uint64_t>(times) > kMaxWork / text.size())
        return fail("template makes too much text");
      std::string out;
      for (int64_t i = 0; i < times && !text.empty(); ++i) out += text;
      return made(std::move(out));
    }
    if (!a.is_number() || !b.is_number()) {
      return fail(fmt::format("operator does not work on a {} and a {}", a.type_name(), b.type_name()));
    }
    return arithmetic(op, a, b);
  }

  Value arithmetic(Op op, const Value& a, const Value& b) {
    const bool divides = op == Op::divide || op == Op::floor_divide || op == Op::modulo;
    if (divides && b.real() == 0) return fail("division by zero");
    if (op == Op::divide) return a.real() / b.real();
    if (op == Op::power) {
      const double result = std::pow(a.real(), b.real());
      const bool whole = !a.is_real() && !b.is_real() && b.integer() >= 0;
      if (whole && std::fabs(result) >= 9e15) return fail("number is too large");
      return whole ? Value(static_cast<int64_t>(result)) : Value(result);
    }
    if (a.is_real() || b.is_real()) {
      const double x = a.real(), y = b.real();
      switch (op) {
        case Op::add:
          return x + y;
        case Op::subtract:
          return x - y;
        case Op::multiply:
          return x * y;
        case Op::floor_divide:
          return std::floor(x / y);
        default:
          return x - y * std::floor(x / y);
      }
    }
    const int64_t x = a.integer(), y = b.integer();
    int64_t result = 0;
    bool overflow = false;
    switch (op) {
      case Op::add:
        overflow = __builtin_add_overflow(x, y, &result);
        break;
      case Op::subtract:
        overflow = __builtin_sub_overflow(x, y, &result);
        break;
      case Op::multiply:
        overflow = __builtin_mul_overflow(x, y, &result);
        break;
      default:
        if (y == -1) {  // INT64_MIN / -1 does not fit
          overflow = op == Op::floor_divide && __builtin_sub_overflow(int64_t{0}, x, &result);
          break;
        }
        // Python rounds down, and the remainder has the sign of the divisor.
        result = op == Op::floor_divide ? x / y : x % y;
        if (x % y != 0 && (x % y < 0) != (y < 0)) result += op == Op::floor_divide ? -1 : y;
    }
    return overflow ? fail("number is too large") : Value(result);
  }

  // ---- calls ----

  Arguments gather(const Node& n) {
    Arguments arguments;
    arguments.names = n.names;
    for (size_t i = 1; i < n.kids.size(); ++i) arguments.values.push_back(evaluate(n.kids[i]));
    return arguments;
  }

  Value call(const Node& n) {
    const Value callee = evaluate(n.kids[0]);
    const Arguments arguments = gather(n);
    if (failed_) return {};
    line_ = n.line;
    const Callable* function = callee.callable();
    if (function == nullptr) {
      const Node& target = node(n.kids[0]);
      return fail(fmt::format("'{}' is {}, not a function that Pith knows", target.text, callee.type_name()));
    }
    if (function->macro >= 0) return call_macro(node(function->macro), arguments);
    if (function->object != nullptr) return call_method(*function->object, function->name, arguments);
    if (function->name == "raise_exception") {
      const Value* message = arguments.get(0, "message");
      return fail("the template says: " + (message == nullptr ? std::string("error") : text_of(*message)));
    }
    if (function->name == "strftime_now") {
      const std::string* format = arguments.text(0, "format");
      if (format == nullptr || format->size() > 100) return fail("strftime_now needs a short format");
      const std::time_t now = std::time(nullptr);
      std::tm local{};
      localtime_r(&now, &local);
      std::array<char, 512> text{};
      return made(std::string(text.data(), std::strftime(text.data(), text.size(), format->c_str(), &local)));
    }
    if (function->name == "range") {
      const bool one = arguments.values.size() == 1;
      const int64_t begin = one ? 0 : arguments.integer(0, "start", 0);
      const int64_t end = arguments.integer(one ? 0 : 1, "stop", 0), step = arguments.integer(2, "step", 1);
      if (step == 0) return fail("range step is zero");
      List items;
      for (int64_t i = begin; step > 0 ? i < end : i > end;) {
        if (items.size() >= kMaxItems) return fail("range is too long");
        items.emplace_back(i);
        if (__builtin_add_overflow(i, step, &i)) break;
      }
      return made(std::move(items));
    }
    Dict fields;  // namespace(a=1), dict(a=1)
    for (size_t i = 0; i < arguments.values.size(); ++i) {
      if (arguments.names[i].empty()) {
        if (arguments.values[i].dict() == nullptr) return fail(function->name + "() takes named values");
        for (const auto& [key, value] : *arguments.values[i].dict()) put(fields, key, value);
      } else if (arguments.values[i].name_space() != nullptr) {
        return fail("a namespace inside of a namespace is not supported");
      } else {
        put(fields, arguments.names[i], arguments.values[i]);
      }
    }
    if (function->name == "dict") return made(Value(std::move(fields)), arguments.values.size());
    return Value(std::make_shared<Namespace>(Namespace{std::move(fields)}));
  }

  Value call_macro(const Node& macro, const Arguments& arguments) {
    if (++macro_depth_ > kMaxMacroDepth) return fail("macros call each other too deep");
    Scope scope;
    for (size_t i = 0; i < macro.names.size(); ++i) {
      const Value* given = arguments.get(i, macro.names[i]);
      scope[macro.names[i]] = given != nullptr ? *given : evaluate(macro.kids[i + 1]);
    }
    // Macros of the top level stay visible inside; the caller's other names do not.
    for (const auto& [key, value] : scopes_[1]) scope.emplace(key, value);
    const size_t base = std::exchange(base_, scopes_.size());
    scopes_.push_back(std::move(scope));
    std::string out;
    execute(macro.kids[0], out);
    scopes_.pop_back();
    base_ = base;
    --macro_depth_;
    return failed_ ? Value() : made(std::move(out));
  }

  Value call_method(const Value& object, const std::string& name, const Arguments& arguments) {
    if (object.dict() != nullptr) {
      if (name == "get") {
        const Value* key = arguments.get(0, "key");
        const Value* found = key == nullptr ? nullptr : find(*object.dict(), text_of(*key));
        const Value* fallback = arguments.get(1, "default");
        return found != nullptr ? *found : fallback != nullptr ? *fallback : Value(None{});
      }
      return entries(object, name);
    }
    if (object.list() != nullptr) {
      const Value* wanted = arguments.get(0, "value");
      int64_t count = 0;
      for (size_t i = 0; wanted != nullptr && i < object.list()->size(); ++i) {
        if (!equal((*object.list())[i], *wanted, budget_)) continue;
        if (name == "index") return static_cast<int64_t>(i);
        ++count;
      }
      return name == "index" ? fail("value is not in the list") : Value(count);
    }
    const std::string& text = *object.string();
    budget_.spend(text.size() / 16);
    const std::string* first = arguments.text(0, "");
    if (name == "strip" || name == "lstrip" || name == "rstrip") {
      return made(strip(text, first, name != "rstrip", name != "lstrip"));
    }
    if (name == "split" || name == "rsplit") {
      if (first == nullptr) first = arguments.text(0, "sep");
      if (first != nullptr && first->empty()) return fail("empty separator");
      return made(split(text, first, arguments.integer(1, "maxsplit", -1), name == "rsplit"));
    }
    if (name == "splitlines") {
      List lines = split(text, &kLineEnd, -1, false);
      if (!lines.empty() && lines.back().string()->empty()) lines.pop_back();
      return made(std::move(lines));
    }
    if (name == "startswith" || name == "endswith") {
      const auto fits = [&](const std::string& part) {
        return name == "startswith" ? text.starts_with(part) : text.ends_with(part);
      };
      if (first != nullptr) return fits(*first);
      const Value* given = arguments.get(0, "");
      if (given == nullptr || given->list() == nullptr) return fail(name + " needs a text");
      return std::any_of(given->list()->begin(), given->list()->end(),
                         [&](const Value& v) { return v.string() != nullptr && fits(*v.string()); });
    }
    if (name == "replace") return replace(text, arguments);
    if (name == "upper" || name == "lower" || name == "capitalize" || name == "title") {
      return made(with_case(text, name[0]));
    }
    if (name == "find" || name == "rfind") {
      if (first == nullptr) return fail(name + " needs a text");
      const size_t at = name == "find" ? text.find(*first) : text.rfind(*first);
      return at == std::string::npos ? Value(int64_t{-1})
                                     : Value(count_characters(std::string_view(text).substr(0, at)));
    }
    if (name == "count") {
      if (first == nullptr || first->empty()) return fail("count needs a text");
      int64_t count = 0;
      for (size_t at = text.find(*first); at != std::string::npos; at = text.find(*first, at + first->size())) ++count;
      return count;
    }
    if (name == "join") {
      const Value* items = arguments.get(0, "");
      return items == nullptr ? fail("join needs a list") : join(*items, text);
    }
    if (name == "removeprefix" || name == "removesuffix") {
      if (first == nullptr) return fail(name + " needs a text");
      const bool front = name == "removeprefix";
      if (front ? !text.starts_with(*first) : !text.ends_with(*first)) return object;
      return made(front ? text.substr(first->size()) : text.substr(0, text.size() - first->size()));
    }
    if (name == "isspace") return !text.empty() && strip(text, nullptr, true, false).empty();
    if (name == "format") return format(text, arguments);
    return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  }

  // "{}", "{0}", "{name}" and doubled braces; no format specifications.
  Value format(const std::string& text, const Arguments& arguments) {
    std::string out;
    size_t next = 0;
    for (size_t i = 0; i < text.size() && !failed_; ++i) {
      const char c = text[i];
      if ((c == '{' || c == '}') && i + 1 < text.size() && text[i + 1] == c) {
        out += c;
        ++i;
        continue;
      }
      if (c == '}') return fail("format: single '}'");
      if (c != '{') {
        out += c;
        continue;
      }
      const size_t end = text.find('}', i);
      if (end == std::string::npos) return fail("format: '{' without its end");
      const std::string key = text.substr(i + 1, end - i - 1);
      const bool digits = !key.empty() && key.size() < 6 &&
                          std::all_of(key.begin(), key.end(), [](char d) { return d >= '0' && d <= '9'; });
      const Value* value = nullptr;
      if (key.empty()) {
        value = arguments.get(next++, "");
      } else {
        value = digits ? arguments.get(static_cast<size_t>(std::atoi(key.c_str())), "") : arguments.get(kMaxItems, key);
      }
      if (value == nullptr) return fail(fmt::format("format: '{{{}}}' is not supported or has no value", key));
      out += text_of(*value);
      i = end;
    }
    return made(std::move(out));
  }

  Value replace(const std::string& text, const Arguments& arguments) {
    const std::string* from = arguments.text(0, "old");
    const std::string* to = arguments.text(1, "new");
    if (from == nullptr || to == nullptr) return fail("replace needs two texts");
    if (from->empty()) return fail("replace of an empty text is not supported");
    if (to->size() > 1 && text.size() / from->size() > kMaxWork / to->size())
      return fail("template makes too much text");
    return made(replaced(text, *from, *to, arguments.integer(2, "count", -1)));
  }

  Value join(const Value& value, const std::string& separator) {
    List items;
    if (!iterate(value, items)) return {};
    std::string out;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0 && !budget_.spend(separator.size())) break;
      if (i > 0) out += separator;
      out += text_of(items[i]);
    }
    return made(std::move(out));
  }

  // items(), keys(), values() of a dict.
  Value entries(const Value& object, std::string_view what) {
    List out;
    for (const auto& [key, value] : *object.dict()) {
      if (what == "items") {
        out.push_back(made(List{Value(key), value}));
      } else {
        out.push_back(what == "keys" ? Value(key) : value);
      }
    }
    return made(std::move(out));
  }

  // ---- filters and tests ----

  // selectattr and its kin: does `item` pass "attribute, test, argument" of `arguments` from `first` on?
  bool passes(const Value& item, const Arguments& arguments, size_t first) {
    const Value* name = arguments.get(first, "");
    if (name == nullptr) return item.truth();
    if (name->string() == nullptr) return fail("a test has a name").truth();
    Arguments rest;
    if (const Value* argument = arguments.get(first + 1, ""); argument != nullptr) {
      rest.values.push_back(*argument);
      rest.names.emplace_back();
    }
    return test(*name->string(), item, rest);
  }

  Value path(const Value& item, const std::string& name) {
    Value at = item;
    for (const Value& part : split(name, &kDot, -1, false)) {
      if (at.is_undefined() || failed_) return {};
      at = attribute(at, *part.string());
    }
    return at;
  }

  Value filter(const std::string& name, const Value& value, const Arguments& arguments) {
    if (name == "default" || name == "d") {
      const Value* fallback = arguments.get(0, "default_value");
      const Value* also_false = arguments.get(1, "boolean");
      const bool use = value.is_undefined() || (also_false != nullptr && also_false->truth() && !value.truth());
      return !use ? value : fallback != nullptr ? *fallback : Value("");
    }
    if (name == "tojson") {
      const Value* sorted = arguments.get(4, "sort_keys");
      const int64_t indent = std::min<int64_t>(arguments.integer(0, "indent", -1), 16);
      if (value.is_undefined()) return fail("tojson of something undefined");
      return made(to_json(value, static_cast<int>(std::max<int64_t>(indent, -1)), sorted != nullptr && sorted->truth(),
                          budget_));
    }
    if (name == "length" || name == "count") {
      if (value.string() != nullptr) return count_characters(*value.string());
      if (value.list() != nullptr) return static_cast<int64_t>(value.list()->size());
      if (value.dict() != nullptr) return static_cast<int64_t>(value.dict()->size());
      if (value.is_undefined()) return int64_t{0};
      return fail(fmt::format("a {} has no length", value.type_name()));
    }
    if (name == "string" || name == "safe" || name == "trim" || name == "upper" || name == "lower" || name == "title" ||
        name == "capitalize" || name == "replace" || name == "indent") {
      const std::string text = text_of(value);
      if (name == "string" || name == "safe") return made(text);
      if (name == "trim") return made(strip(text, arguments.text(0, "chars"), true, true));
      if (name == "replace") return replace(text, arguments);
      if (name == "indent") {
        const int64_t width = std::clamp<int64_t>(arguments.integer(0, "width", 4), 0, 64);
        const Value* first = arguments.get(1, "first");
        const auto lines = static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
        if (!budget_.spend(lines * static_cast<size_t>(width))) return {};
        return made(indent(text, static_cast<size_t>(width), first != nullptr && first->truth()));
      }
      return made(with_case(text, name[0]));
    }
    if (name == "int" || name == "float" || name == "abs") return number(name, value, arguments);
    if (name == "items" || name == "dictsort") {
      if (value.is_undefined()) return made(List{});
      if (value.dict() == nullptr) return fail(fmt::format("filter '{}' needs a dict", name));
      Value all = entries(value, "items");
      if (name == "items" || failed_) return all;
      List sorted = *all.list();
      std::stable_sort(sorted.begin(), sorted.end(), [](const Value& a, const Value& b) {
        return *(*a.list())[0].string() < *(*b.list())[0].string();
      });
      return made(std::move(sorted));
    }
    return list_filter(name, value, arguments);
  }

  Value list_filter(const std::string& name, const Value& value, const Arguments& arguments) {
    static constexpr std::array<std::string_view, 11> kKnown = {
        "list", "first", "last", "join", "reverse", "map", "select", "selectattr", "rejectattr", "reject", "unique"};
    if (std::find(kKnown.begin(), kKnown.end(), name) == kKnown.end()) {
      return fail(fmt::format("filter '{}' is not supported", name));
    }
    if (name == "reverse" && value.string() != nullptr) {
      std::string out;
      const auto parts = characters(*value.string());
      for (auto c = parts.rbegin(); c != parts.rend(); ++c) out += *c;
      return made(std::move(out));
    }
    if (name == "join") {
      const std::string* separator = arguments.text(0, "d");
      const std::string* attribute_name = arguments.text(1, "attribute");
      if (attribute_name == nullptr) return join(value, separator == nullptr ? "" : *separator);
      List items;
      if (!iterate(value, items)) return {};
      for (Value& item : items) item = path(item, *attribute_name);
      return failed_ ? Value() : join(made(std::move(items)), separator == nullptr ? "" : *separator);
    }
    List items;
    const bool may_be_nothing = name == "map" || name.starts_with("select") || name.starts_with("reject");
    if (!(may_be_nothing && !value.truth()) && !iterate(value, items)) return {};
    if (name == "list") return made(std::move(items));
    if (name == "first") return items.empty() ? Value() : items.front();
    if (name == "last") return items.empty() ? Value() : items.back();
    if (name == "reverse") {
      std::reverse(items.begin(), items.end());
      return made(std::move(items));
    }
    List out;
    for (const Value& item : items) {
      if (over()) return {};
      if (name == "map") {
        if (const std::string* attribute_name = arguments.text(kMaxItems, "attribute"); attribute_name != nullptr) {
          Value found = path(item, *attribute_name);
          const Value* fallback = arguments.get(kMaxItems, "default");
          out.push_back(found.is_undefined() && fallback != nullptr ? *fallback : found);
        } else if (const std::string* filter_name = arguments.text(0, ""); filter_name != nullptr) {
          Arguments rest;
          for (size_t i = 1; const Value* argument = arguments.get(i, ""); ++i) {
            rest.values.push_back(*argument);
            rest.names.emplace_back();
          }
          out.push_back(filter(*filter_name, item, rest));
        } else {
          return fail("map needs a filter or attribute=");
        }
      } else if (name == "unique") {
        if (std::none_of(out.begin(), out.end(), [&](const Value& v) { return equal(v, item, budget_); }))
          out.push_back(item);
      } else if (name == "select" || name == "reject") {
        if (passes(item, arguments, 0) == (name == "select")) out.push_back(item);
      } else {
        const std::string* attribute_name = arguments.text(0, "attr");
        if (attribute_name == nullptr) return fail(name + " needs the name of an attribute");
        if (passes(path(item, *attribute_name), arguments, 1) == (name == "selectattr")) out.push_back(item);
      }
      if (failed_) return {};
    }
    return made(std::move(out));
  }

  Value number(const std::string& name, const Value& value, const Arguments& arguments) {
    if (name == "abs") {
      if (!value.is_number()) return fail("abs needs a number");
      if (value.is_real()) return std::fabs(value.real());
      return value.integer() == INT64_MIN ? fail("number is too large") : Value(std::abs(value.integer()));
    }
    double v = 0;
    bool good = value.is_number();
    if (good) {
      v = value.real();
    } else if (value.string() != nullptr) {
      const std::string text = strip(*value.string(), nullptr, true, true);
      char* end = nullptr;
      v = std::strtod(text.c_str(), &end);
      good = !text.empty() && *end == '\0';
    }
    const Value* fallback = arguments.get(0, "default");
    if (!good && fallback != nullptr) return *fallback;
    if (name == "float") return good ? v : 0.0;
    if (value.is_integer()) return value.integer();
    return good && std::fabs(v) < 9e18 ? Value(static_cast<int64_t>(v)) : Value(int64_t{0});
  }

  static std::string indent(const std::string& text, size_t width, bool first) {
    std::string out;
    const std::string blanks(width, ' ');
    size_t begin = 0;
    for (bool more = true; more;) {
      const size_t end = text.find('\n', begin);
      more = end != std::string::npos;
      const std::string line = text.substr(begin, more ? end - begin : end);
      if (!line.empty() && (first || begin > 0)) out += blanks;
      out += line;
      if (more) out += '\n';
      begin = end + 1;
    }
    return out;
  }

  bool test(const std::string& name, const Value& value, const Arguments& arguments) {
    const Value* other = arguments.get(0, "other");
    if (name == "defined") return !value.is_undefined();
    if (name == "undefined") return value.is_undefined();
    if (name == "none") return value.is_none();
    if (name == "string") return value.string() != nullptr;
    if (name == "number") return value.is_number();
    if (name == "integer") return value.is_integer();
    if (name == "float") return value.is_real();
    if (name == "boolean") return value.is_bool();
    if (name == "true") return value.is_bool() && value.integer() != 0;
    if (name == "false") return value.is_bool() && value.integer() == 0;
    if (name == "mapping") return value.dict() != nullptr;
    if (name == "sequence") return value.list() != nullptr || value.string() != nullptr || value.dict() != nullptr;
    if (name == "iterable") {
      return value.list() != nullptr || value.string() != nullptr || value.dict() != nullptr || value.is_undefined();
    }
    if (name == "callable") return value.callable() != nullptr;
    if ((name == "odd" || name == "even") && value.is_integer()) return (value.integer() % 2 != 0) == (name == "odd");
    if (name == "equalto" || name == "eq" || name == "sameas") return other != nullptr && equal(value, *other, budget_);
    if (name == "ne") return other == nullptr || !equal(value, *other, budget_);
    if (name == "in") return other != nullptr && contains(*other, value);
    if (other != nullptr && (name == "lt" || name == "lessthan")) return binary(Op::less, value, *other).truth();
    if (other != nullptr && (name == "gt" || name == "greaterthan")) return binary(Op::greater, value, *other).truth();
    if (other != nullptr && name == "le") return binary(Op::less_equal, value, *other).truth();
    if (other != nullptr && name == "ge") return binary(Op::greater_equal, value, *other).truth();
    if (name == "divisibleby" && other != nullptr && other->integer() != 0 && other->integer() != -1) {
      return value.integer() % other->integer() == 0;
    }
    fail(fmt::format("test '{}' is not supported for a {}", name, value.type_name()));
    return false;
  }

  inline static const std::string kLineEnd = "\n", kDot = ".";
  const Template& code_;
  std::vector<Scope> scopes_;  // [0] globals, [1] the template's own, then loops and macros
  size_t base_ = 0;            // the first scope of the running macro
  size_t steps_ = 0;
  Budget budget_;
  int macro_depth_ = 0;
  int32_t line_ = 1;
  bool failed_ = false;
  Error error_;
};

}  // namespace
}  // namespace chat

Result<std::string> render_chat_template(std::string_view source, std::span<const ChatMessage> messages,
                                         bool add_generation_prompt, std::string_view bos_token,
                                         std::string_view eos_token) {
  PITH_ASSIGN(const chat::Template code, chat::parse_template(source).context("chat template"));
  chat::List list;
  size_t input = 0;
  for (const ChatMessage& message : messages) {
    input += message.content.size();
    list.emplace_back(chat::Dict{{"role", message.role}, {"content", message.content}});
  }
  chat::Scope globals;
  globals["messages"] = chat::Value(std::move(list));
  globals["add_generation_prompt"] = add_generation_prompt;
  globals["tools"] = chat::None{};
  globals["documents"] = chat::None{};
  globals["bos_token"] = std::string(bos_token);
  globals["eos_token"] = std::string(eos_token);
  return chat::Interpreter(code, std::move(globals), input).run().context("chat template");
}

Result<std::string> render_chat(const TokenizerSpec& spec, std::span<const ChatMessage> messages,
                                bool add_generation_prompt) {
  if (spec.chat_template.empty()) {
    return user_error("the model has no chat template; give the prompt as plain text");
  }
  const auto text = [&](int32_t id) -> std::string_view {
    if (id < 0 || static_cast<size_t>(id) >= spec.tokens.size()) return {};
    return spec.tokens[static_cast<size_t>(id)];
  };
  return render_chat_template(spec.chat_template, messages, add_generation_prompt, text(spec.bos), text(spec.eos));
}

}  // namespace pith
