// Values of the chat template interpreter, with Python's idea of truth, equality and printing.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace pith::chat {

class Value;
using List = std::vector<Value>;
/// In insertion order, as Python's; lookups are linear, these are small.
using Dict = std::vector<std::pair<std::string, Value>>;

struct Undefined {};
struct None {};
/// namespace(): a dict that `set ns.x = …` changes for all who hold it.
struct Namespace {
  Dict fields;
};
/// Something to call: a global function, a method bound to its object, or a macro.
struct Callable {
  std::string name;
  std::shared_ptr<const Value> object;  ///< of a method
  int32_t macro = -1;                   ///< node of the macro
};

class Value {
 public:
  Value() = default;
  Value(None) : state_(None{}) {}                                // NOLINT(google-explicit-constructor)
  Value(bool v) : state_(v) {}                                   // NOLINT(google-explicit-constructor)
  Value(int64_t v) : state_(v) {}                                // NOLINT(google-explicit-constructor)
  Value(double v) : state_(v) {}                                 // NOLINT(google-explicit-constructor)
  Value(std::string v);                                          // NOLINT(google-explicit-constructor)
  Value(const char* v) : Value(std::string(v)) {}                // NOLINT(google-explicit-constructor)
  Value(List v);                                                 // NOLINT(google-explicit-constructor)
  Value(Dict v);                                                 // NOLINT(google-explicit-constructor)
  Value(std::shared_ptr<Namespace> v) : state_(std::move(v)) {}  // NOLINT(google-explicit-constructor)
  Value(Callable v);                                             // NOLINT(google-explicit-constructor)

  bool is_undefined() const { return std::holds_alternative<Undefined>(state_); }
  bool is_none() const { return std::holds_alternative<None>(state_); }
  bool is_bool() const { return std::holds_alternative<bool>(state_); }
  bool is_integer() const { return std::holds_alternative<int64_t>(state_); }
  bool is_real() const { return std::holds_alternative<double>(state_); }
  bool is_number() const { return is_bool() || is_integer() || is_real(); }
  const std::string* string() const {
    const auto* held = std::get_if<std::shared_ptr<const std::string>>(&state_);
    return held == nullptr ? nullptr : held->get();
  }
  const List* list() const {
    const auto* held = std::get_if<std::shared_ptr<const List>>(&state_);
    return held == nullptr ? nullptr : held->get();
  }
  const Dict* dict() const {
    const auto* held = std::get_if<std::shared_ptr<const Dict>>(&state_);
    return held == nullptr ? nullptr : held->get();
  }
  Namespace* name_space() const {
    const auto* held = std::get_if<std::shared_ptr<Namespace>>(&state_);
    return held == nullptr ? nullptr : held->get();
  }
  const Callable* callable() const {
    const auto* held = std::get_if<std::shared_ptr<const Callable>>(&state_);
    return held == nullptr ? nullptr : held->get();
  }
  /// Of a bool, integer or real.
  int64_t integer() const;
  double real() const;

  bool truth() const;
  /// Levels of lists and dicts inside; the interpreter keeps it small, so that walks need no care of their own.
  int depth() const { return depth_; }
  /// "string", "list", … for messages.
  std::string_view type_name() const;

 private:
  std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const std::string>, std::shared_ptr<const List>,
               std::shared_ptr<const Dict>, std::shared_ptr<Namespace>, std::shared_ptr<const Callable>>
      state_;
  int depth_ = 0;
};

/// What a walk over values may still do: lists that share their items can be small and yet print without end.
struct Budget {
  size_t left = 0;
  /// False, and nothing left, when `cost` is more than there is.
  bool spend(size_t cost) {
    const bool enough = cost <= left;
    left = enough ? left - cost : 0;
    return enough;
  }
};

const Value* find(const Dict& dict, std::string_view key);
void put(Dict& dict, std::string_view key, Value value);

bool equal(const Value& a, const Value& b, Budget& budget);
/// str(): what {{ value }} writes.
std::string to_text(const Value& value, Budget& budget);
/// repr(): strings in quotes.
std::string to_repr(const Value& value, Budget& budget);
/// json.dumps(ensure_ascii=False, indent, sort_keys); indent < 0: one line.
std::string to_json(const Value& value, int indent, bool sort_keys, Budget& budget, int level = 0);

}  // namespace pith::chat
