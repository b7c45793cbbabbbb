#include "runtime/chat_value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "runtime/tokenizer_utf8.h"

namespace pith::chat {
namespace {

constexpr size_t kNode = 8;  // what visiting one value costs, in bytes of text

// repr(float): the shortest digits; exponent form outside 1e-4 .. 1e16; always a point or an exponent.
std::string real_text(double v) {
  if (std::isnan(v)) return "nan";
  if (std::isinf(v)) return v < 0 ? "-inf" : "inf";
  std::string text = fmt::format("{}", v);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string quoted_repr(std::string_view text) {
  const bool single = text.find('\'') == std::string_view::npos || text.find('"') != std::string_view::npos;
  const char quote = single ? '\'' : '"';
  std::string out(1, quote);
  for (const char c : text) {
    if (c == quote || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (static_cast<uint8_t>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned>(static_cast<uint8_t>(c)));
    } else {
      out += c;
    }
  }
  return out + quote;
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<uint8_t>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
        } else {
          out += c;
        }
    }
  }
  return out + "\"";
}

}  // namespace

Value::Value(std::string v) : state_(std::make_shared<const std::string>(std::move(v))) {}

Value::Value(List v) {
  for (const Value& item : v) depth_ = std::max(depth_, item.depth_ + 1);
  state_ = std::make_shared<const List>(std::move(v));
}

Value::Value(Dict v) {
  for (const auto& [key, item] : v) depth_ = std::max(depth_, item.depth_ + 1);
  state_ = std::make_shared<const Dict>(std::move(v));
}

Value::Value(Callable v) {
  if (v.object) depth_ = v.object->depth_ + 1;
  state_ = std::make_shared<const Callable>(std::move(v));
}

int64_t Value::integer() const {
  if (const auto* v = std::get_if<bool>(&state_)) return *v ? 1 : 0;
  if (const auto* v = std::get_if<int64_t>(&state_)) return *v;
  if (const auto* v = std::get_if<double>(&state_)) return std::fabs(*v) < 9e18 ? static_cast<int64_t>(*v) : 0;
  return 0;
}

double Value::real() const {
  if (const auto* v = std::get_if<double>(&state_)) return *v;
  return static_cast<double>(integer());
}

bool Value::truth() const {
  if (is_undefined() || is_none()) return false;
  if (is_number()) return real() != 0;
  if (string() != nullptr) return !string()->empty();
  if (list() != nullptr) return !list()->empty();
  if (dict() != nullptr) return !dict()->empty();
  return true;
}

std::string_view Value::type_name() const {
  if (is_undefined()) return "undefined";
  if (is_none()) return "none";
  if (is_bool()) return "boolean";
  if (is_integer()) return "integer";
  if (is_real()) return "real";
  if (string() != nullptr) return "string";
  if (list() != nullptr) return "list";
  if (dict() != nullptr) return "dict";
  return name_space() != nullptr ? "namespace" : "function";
}

const Value* find(const Dict& dict, std::string_view key) {
  for (const auto& [name, value] : dict) {
    if (name == key) return &value;
  }
  return nullptr;
}

void put(Dict& dict, std::string_view key, Value value) {
  for (auto& [name, old] : dict) {
    if (name == key) {
      old = std::move(value);
      return;
    }
  }
  dict.emplace_back(key, std::move(value));
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  if (!budget.spend(kNode)) return false;
  if (a.is_number() && b.is_number()) {
    return a.is_real() || b.is_real() ? a.real() == b.real() : a.integer() == b.integer();
  }
  if (a.string() != nullptr && b.string() != nullptr) {
    return a.string() == b.string() || (budget.spend(a.string()->size() / 16) && *a.string() == *b.string());
  }
  if (a.list() != nullptr && b.list() != nullptr) {
    if (a.list() == b.list()) return true;
    return std::equal(a.list()->begin(), a.list()->end(), b.list()->begin(), b.list()->end(),
                      [&](const Value& x, const Value& y) { return equal(x, y, budget); });
  }
  if (a.dict() != nullptr && b.dict() != nullptr) {
    return a.dict()->size() == b.dict()->size() &&
           std::all_of(a.dict()->begin(), a.dict()->end(), [&](const auto& item) {
             const Value* other = find(*b.dict(), item.first);
             return other != nullptr && equal(item.second, *other, budget);
           });
  }
  if (a.name_space() != nullptr) return a.name_space() == b.name_space();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

std::string to_text(const Value& value, Budget& budget) {
  if (value.string() == nullptr) return value.is_undefined() ? "" : to_repr(value, budget);
  return budget.spend(value.string()->size()) ? *value.string() : "";
}

std::string to_repr(const Value& value, Budget& budget) {
  if (!budget.spend(kNode)) return "";
  if (value.is_undefined()) return "Undefined";
  if (value.is_none()) return "None";
  if (value.is_bool()) return value.integer() != 0 ? "True" : "False";
  if (value.is_integer()) return fmt::format("{}", value.integer());
  if (value.is_real()) return real_text(value.real());
  if (value.string() != nullptr) return budget.spend(value.string()->size()) ? quoted_repr(*value.string()) : "";
  std::string out;
  if (value.list() != nullptr) {
    for (const Value& item : *value.list()) {
      if (!out.empty()) out += ", ";
      out += to_repr(item, budget);
    }
    return "[" + out + "]";
  }
  if (value.dict() != nullptr) {
    for (const auto& [key, item] : *value.dict()) {
      if (!out.empty()) out += ", ";
      out += quoted_repr(key) + ": " + to_repr(item, budget);
    }
    return "{" + out + "}";
  }
  return value.name_space() != nullptr ? "<Namespace>" : "<function>";
}

std::string to_json(const Value& value, int indent, bool sort_keys, Budget& budget, int level) {
  if (!budget.spend(kNode)) return "";
  if (value.is_bool()) return value.integer() != 0 ? "true" : "false";
  if (value.is_integer()) return fmt::format("{}", value.integer());
  if (value.is_real()) return real_text(value.real());
  if (value.string() != nullptr) return budget.spend(value.string()->size()) ? json_string(*value.string()) : "";
  const std::string line = indent < 0 ? "" : "\n" + std::string(static_cast<size_t>(indent * (level + 1)), ' ');
  const std::string last = indent < 0 ? "" : "\n" + std::string(static_cast<size_t>(indent * level), ' ');
  const std::string comma = indent < 0 ? ", " : ",";
  const size_t items = value.list() != nullptr   ? value.list()->size()
                       : value.dict() != nullptr ? value.dict()->size()
                                                 : 0;
  if (!budget.spend(items * line.size())) return "";
  std::string out;
  if (value.list() != nullptr) {
    if (value.list()->empty()) return "[]";
    for (const Value& item : *value.list()) {
      if (!out.empty()) out += comma;
      out += line + to_json(item, indent, sort_keys, budget, level + 1);
    }
    return "[" + out + last + "]";
  }
  if (value.dict() != nullptr) {
    if (value.dict()->empty()) return "{}";
    std::vector<const std::pair<std::string, Value>*> order;
    for (const auto& item : *value.dict()) order.push_back(&item);
    if (sort_keys) {
      std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->first < b->first; });
    }
    for (const auto* item : order) {
      if (!out.empty()) out += comma;
      out += line + json_string(item->first) + ": " + to_json(item->second, indent, sort_keys, budget, level + 1);
    }
    return "{" + out + last + "}";
  }
  return "null";
}

}  // namespace pith::chat
