#include "formats/json_text.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "base/file.h"

namespace pith {
namespace {

using json = nlohmann::json;

// Receives the parser's events and builds the value itself: depth and repeated keys are seen before anything is kept.
class Builder : public nlohmann::json_sax<json> {
 public:
  explicit Builder(uint32_t max_depth) : max_depth_(max_depth) {}

  bool null() override { return put(json()); }
  bool boolean(bool v) override { return put(json(v)); }
  bool number_integer(number_integer_t v) override { return put(json(v)); }
  bool number_unsigned(number_unsigned_t v) override { return put(json(v)); }
  bool number_float(number_float_t v, const string_t&) override { return put(json(v)); }
  bool string(string_t& v) override { return put(json(std::move(v))); }
  bool binary(binary_t&) override { return fail("binary value"); }

  bool start_object(std::size_t) override { return open(json::object()); }
  bool key(string_t& v) override {
    const auto [place, added] = stack_.back()->emplace(v, nullptr);
    if (!added) return fail("key \"" + v.substr(0, 100) + "\" occurs twice");
    slot_ = &*place;
    return true;
  }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override { return open(json::array()); }
  bool end_array() override { return close(); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    return fail("not valid JSON at byte " + std::to_string(position));
  }

  json root;
  std::string error;

 private:
  bool fail(std::string message) {
    if (error.empty()) error = std::move(message);
    return false;
  }
  json* place(json value) {
    if (stack_.empty()) {
      root = std::move(value);
      return &root;
    }
    if (stack_.back()->is_array()) {
      stack_.back()->push_back(std::move(value));
      return &stack_.back()->back();
    }
    *slot_ = std::move(value);
    return slot_;
  }
  bool put(json value) {
    place(std::move(value));
    return true;
  }
  bool open(json value) {
    if (stack_.size() >= max_depth_) return fail("nested deeper than " + std::to_string(max_depth_) + " levels");
    stack_.push_back(place(std::move(value)));
    return true;
  }
  bool close() {
    stack_.pop_back();
    return true;
  }

  uint32_t max_depth_;
  std::vector<json*> stack_;
  json* slot_ = nullptr;
};

Error wrong_type(const char* key, const char* expected, const json& found) {
  return data_error("\"" + std::string(key) + "\" should be " + expected + ", is " + json_text(found).substr(0, 60));
}

}  // namespace

Result<json> parse_json(std::string_view text, const std::string& what, const Limits& limits) {
  if (text.size() > limits.max_header_bytes)
    return data_error(what + ": " + std::to_string(text.size()) + " bytes of JSON, at most " +
                      std::to_string(limits.max_header_bytes) + " are read");
  Builder builder(limits.max_json_depth);
  const bool complete = json::sax_parse(text.begin(), text.end(), &builder, json::input_format_t::json, true);
  if (!complete || !builder.error.empty())
    return data_error(what + ": " + (builder.error.empty() ? "not valid JSON" : builder.error));
  return std::move(builder.root);
}

Result<json> read_json(const std::string& path, const Limits& limits) {
  PITH_ASSIGN(const std::string text, read_text(path, limits.max_header_bytes));
  return parse_json(text, path, limits);
}

Result<int64_t> json_int(const json& object, const char* key, int64_t fallback) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return fallback;
  if (it->is_number_unsigned() && it->get<uint64_t>() <= INT64_MAX) return static_cast<int64_t>(it->get<uint64_t>());
  if (it->is_number_integer() && !it->is_number_unsigned()) return it->get<int64_t>();
  if (it->is_number_float()) {  // some writers say 4096.0
    const double v = it->get<double>();
    if (v >= -9e15 && v <= 9e15 && v == static_cast<double>(static_cast<int64_t>(v))) return static_cast<int64_t>(v);
  }
  return wrong_type(key, "an integer", *it);
}

Result<double> json_number(const json& object, const char* key, double fallback) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return fallback;
  if (!it->is_number()) return wrong_type(key, "a number", *it);
  return it->get<double>();
}

Result<bool> json_bool(const json& object, const char* key, bool fallback) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return fallback;
  if (!it->is_boolean()) return wrong_type(key, "true or false", *it);
  return it->get<bool>();
}

Result<std::string> json_string(const json& object, const char* key, std::string fallback) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return fallback;
  if (!it->is_string()) return wrong_type(key, "a string", *it);
  return it->get<std::string>();
}

std::optional<uint64_t> json_unsigned(const json& value) {
  if (value.is_number_unsigned()) return value.get<uint64_t>();
  if (value.is_number_integer() && value.get<int64_t>() >= 0) return static_cast<uint64_t>(value.get<int64_t>());
  return std::nullopt;
}

std::string json_text(const json& value, int indent) {
  return value.dump(indent, ' ', false, json::error_handler_t::replace);
}

}  // namespace pith
