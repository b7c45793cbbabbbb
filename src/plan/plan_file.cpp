#include "plan/plan_file.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "base/file.h"
#include "base/hash.h"
#include "formats/json_text.h"
#include "plan/size.h"

namespace pith {

namespace {

using Json = nlohmann::json;

constexpr int kVersion = 1;
constexpr std::string_view kKinds[] = {"none", "size", "ram", "bits", "loss"};
const std::vector<std::string> kKeys = {"pith_plan", "input",       "input_hash", "budget",
                                        "settings",  "lower_bound", "tensors"};
const std::vector<std::string> kTensorKeys = {"name", "method", "weights", "bytes", "loss"};

Error wrong_type(const std::string& where, std::string_view expected, const Json& found) {
  std::string text = json_text(found);
  if (text.size() > 60) text = text.substr(0, 60) + "…";
  return data_error(where + ": expected " + std::string(expected) + ", found " + text);
}

Status known_keys(const Json& object, const std::vector<std::string>& known, const std::string& where) {
  for (const auto& item : object.items())
    if (std::find(known.begin(), known.end(), item.key()) == known.end())
      return data_error(where + ": key '" + item.key() + "' is unknown" + did_you_mean(item.key(), known));
  return {};
}

Result<std::string> text_of(const Json& object, const char* key, const std::string& where) {
  const auto it = object.find(key);
  if (it == object.end()) return std::string();
  if (!it->is_string()) return wrong_type(where + ": '" + key + "'", "a text", *it);
  return it->get<std::string>();
}

Result<std::optional<uint64_t>> count_of(const Json& object, const char* key, const std::string& where) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return std::optional<uint64_t>();
  if (!it->is_number_unsigned()) return wrong_type(where + ": '" + key + "'", "a whole number", *it);
  return std::optional<uint64_t>(it->get<uint64_t>());
}

Result<std::optional<double>> real_of(const Json& object, const char* key, const std::string& where) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return std::optional<double>();
  if (!it->is_number()) return wrong_type(where + ": '" + key + "'", "a number", *it);
  return std::optional<double>(it->get<double>());
}

/// A person may write {"size": "60MB"}; programs write {"size": 60000000}.
Result<Budget> parse_budget(const Json& json) {
  Budget budget;
  if (json.is_null()) return budget;
  if (!json.is_object() || json.size() > 1)
    return wrong_type("budget", R"(one of {"size": "60MB"}, ram, bits, loss)", json);
  for (const auto& item : json.items()) {
    const std::string where = "budget '" + item.key() + "'";
    for (size_t k = 1; k < std::size(kKinds); ++k)
      if (item.key() == kKinds[k]) budget.kind = static_cast<Budget::Kind>(k);
    if (budget.kind == Budget::Kind::none)
      return data_error(where + " is unknown" + did_you_mean(item.key(), {"size", "ram", "bits", "loss"}));
    const Json& value = item.value();
    if (value.is_number()) {
      budget.value = value.get<double>();
    } else if (value.is_string()) {
      const auto text = value.get<std::string>();
      if (budget.kind == Budget::Kind::size || budget.kind == Budget::Kind::ram) {
        PITH_ASSIGN(const uint64_t bytes, parse_size(text).context(where));
        budget.value = static_cast<double>(bytes);
      } else {
        PITH_ASSIGN(budget.value, parse_share(text).context(where));
      }
    } else {
      return wrong_type(where, "a number or a text", value);
    }
    if (!std::isfinite(budget.value) || budget.value < 0) return wrong_type(where, "a positive number", value);
  }
  return budget;
}

Result<PlanTensor> parse_tensor(const Json& json, size_t index, const std::function<Status(const MethodSpec&)>& check) {
  std::string where = fmt::format("tensor {}", index);
  if (!json.is_object()) return wrong_type(where, R"({"name": …, "method": …})", json);
  PlanTensor tensor;
  PITH_ASSIGN(tensor.name, text_of(json, "name", where));
  if (tensor.name.empty()) return data_error(where + " has no 'name'");
  where += " (" + tensor.name + ")";
  PITH_TRY(known_keys(json, kTensorKeys, where));
  PITH_ASSIGN(tensor.method, text_of(json, "method", where));
  if (tensor.method.empty()) return data_error(where + " has no 'method'");
  PITH_TRY(check(split_spec(tensor.method)).context(where));
  PITH_ASSIGN(tensor.weights, count_of(json, "weights", where));
  PITH_ASSIGN(tensor.bytes, count_of(json, "bytes", where));
  PITH_ASSIGN(tensor.loss, real_of(json, "loss", where));
  return tensor;
}

/// Line of the first syntax error, by asking the parser how far it came.
size_t error_line(std::string_view text) {
  struct Sax : nlohmann::json_sax<Json> {
    size_t at = 0;
    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(number_integer_t) override { return true; }
    bool number_unsigned(number_unsigned_t) override { return true; }
    bool number_float(number_float_t, const string_t&) override { return true; }
    bool string(string_t&) override { return true; }
    bool binary(binary_t&) override { return true; }
    bool start_object(std::size_t) override { return true; }
    bool key(string_t&) override { return true; }
    bool end_object() override { return true; }
    bool start_array(std::size_t) override { return true; }
    bool end_array() override { return true; }
    bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
      at = position;
      return false;
    }
  } sax;
  Json::sax_parse(text, &sax);
  const size_t end = std::min(sax.at, text.size());
  return 1 + static_cast<size_t>(std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
}

}  // namespace

std::string Budget::describe() const {
  switch (kind) {
    case Kind::size:
      return print_exact_size(static_cast<uint64_t>(value)) + " of file";
    case Kind::ram:
      return print_exact_size(static_cast<uint64_t>(value)) + " of memory";
    case Kind::bits:
      return fmt::format("{:g} bits per weight", value);
    case Kind::loss:
      return fmt::format("loss of {:g} %", value * 100);
    case Kind::none:
      break;
  }
  return "none";
}

uint64_t Plan::bytes() const {
  uint64_t sum = 0;
  for (const PlanTensor& t : tensors) sum += t.bytes.value_or(0);
  return sum;
}

double Plan::loss() const {
  double sum = 0;
  for (const PlanTensor& t : tensors) sum += t.loss.value_or(0);
  return sum;
}

std::string Plan::hash() const {
  // Lengths go in as well, so that no two different lists look the same.
  Hasher hasher;
  const auto add = [&hasher](const std::string& text) { hasher.add(uint64_t{text.size()}).add(text); };
  hasher.add(uint64_t{kVersion});
  add(input_hash);
  hasher.add(uint64_t{settings.size()});
  for (const auto& [key, value] : settings) add(key), add(value);
  for (const PlanTensor& t : tensors) add(t.name), add(t.method);
  return hasher.hex();
}

std::string print_plan(const Plan& plan) {
  std::string out = fmt::format("{{\n  \"pith_plan\": {},\n", kVersion);
  out += "  \"input\": " + json_text(plan.input) + ",\n  \"input_hash\": " + json_text(plan.input_hash) + ",\n";
  if (plan.budget.kind != Budget::Kind::none)
    out += "  \"budget\": " + json_text({{kKinds[static_cast<size_t>(plan.budget.kind)], plan.budget.value}}) + ",\n";
  if (plan.lower_bound) out += "  \"lower_bound\": " + json_text(*plan.lower_bound) + ",\n";
  out += "  \"settings\": " + json_text(plan.settings) + ",\n  \"tensors\": [";
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    const PlanTensor& t = plan.tensors[i];
    out += (i == 0 ? "\n" : ",\n") + ("    {\"name\": " + json_text(t.name)) + ", \"method\": " + json_text(t.method);
    if (t.weights) out += ", \"weights\": " + std::to_string(*t.weights);
    if (t.bytes) out += ", \"bytes\": " + std::to_string(*t.bytes);
    if (t.loss) out += ", \"loss\": " + json_text(*t.loss);
    out += "}";
  }
  return out + (plan.tensors.empty() ? "]\n}\n" : "\n  ]\n}\n");
}

Result<Plan> parse_plan(std::string_view text, const Limits& limits,
                        const std::function<Status(const MethodSpec&)>& check) {
  auto parsed = parse_json(text, "the plan", limits);
  if (!parsed.ok()) {
    if (text.size() <= limits.max_header_bytes && !Json::accept(text))  // people look for lines, not for bytes
      return data_error(fmt::format("line {}: is not valid JSON here", error_line(text)));
    return parsed.error();
  }
  const Json json = std::move(parsed).value();
  if (!json.is_object() || !json.contains("pith_plan"))
    return data_error("is no plan: expected a JSON object with the key 'pith_plan'");
  if (json["pith_plan"] != kVersion)
    return data_error(fmt::format("plan version {} is not known, this Pith reads version {}",
                                  json_text(json["pith_plan"]), kVersion));
  PITH_TRY(known_keys(json, kKeys, "plan"));
  Plan plan;
  PITH_ASSIGN(plan.input, text_of(json, "input", "plan"));
  PITH_ASSIGN(plan.input_hash, text_of(json, "input_hash", "plan"));
  PITH_ASSIGN(plan.lower_bound, real_of(json, "lower_bound", "plan"));
  if (json.contains("budget")) {
    PITH_ASSIGN(plan.budget, parse_budget(json["budget"]));
  }
  if (const auto settings = json.find("settings"); settings != json.end()) {
    if (!settings->is_object()) return wrong_type("settings", "an object", *settings);
    for (const auto& item : settings->items()) {
      if (!item.value().is_string()) return wrong_type("settings '" + item.key() + "'", "a text", item.value());
      plan.settings[item.key()] = item.value().get<std::string>();
    }
  }
  const auto tensors = json.find("tensors");
  if (tensors == json.end() || !tensors->is_array()) return data_error("plan: expected a list 'tensors'");
  if (tensors->size() > limits.max_tensors)
    return data_error(fmt::format("plan: {} tensors, at most {} are read", tensors->size(), limits.max_tensors));
  std::set<std::string> seen;
  for (const Json& item : *tensors) {
    PITH_ASSIGN(PlanTensor tensor, parse_tensor(item, plan.tensors.size(), check));
    if (!seen.insert(tensor.name).second) return data_error("plan: tensor '" + tensor.name + "' is listed twice");
    plan.tensors.push_back(std::move(tensor));
  }
  return plan;
}

Result<Plan> read_plan(const std::string& path, const Limits& limits,
                       const std::function<Status(const MethodSpec&)>& check) {
  PITH_ASSIGN(const std::string text, read_text(path, limits.max_header_bytes));
  return parse_plan(text, limits, check).context(path);
}

}  // namespace pith
