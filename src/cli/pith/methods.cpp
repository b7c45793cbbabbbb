// pith methods [NAME]: what there is, and how one is used.
#include <nlohmann/json.hpp>

#include "cli/pith/commands.h"

namespace pith {

namespace {

nlohmann::json method_json(const Method& method) {
  nlohmann::json params = nlohmann::json::array();
  for (const Param& p : method.params)
    params.push_back({{"name", p.name}, {"values", describe_values(p)}, {"default", p.fallback}, {"help", p.help}});
  return {{"name", method.name},       {"family", method.family},
          {"title", method.title},     {"paper", method.paper},
          {"params", params},          {"baseline", method.baseline},
          {"example", method.example}, {"budget_options", method.budget_options}};
}

}  // namespace

int methods_command(const Arguments& arguments) {
  std::string name;
  bool json = false;
  const auto app =
      new_app("methods", "Lists all methods, or shows one: its paper, options and an example.", "pith methods spqr");
  app->add_option("NAME", name, "Method to show");
  app->add_flag("--json", json, "As JSON");
  if (const auto code = parse_arguments(*app, arguments)) return *code;

  std::string out;
  if (!name.empty()) {
    const auto found = require_method(name);
    if (!found.ok()) return fail(found.error());
    const Method* method = *found;
    out = json ? method_json(*method).dump(2) + "\n" : method_help(*method);
  } else if (json) {
    nlohmann::json list = nlohmann::json::array();
    for (const Method* method : all_methods()) list.push_back(method_json(*method));
    out = list.dump(2) + "\n";
  } else {
    std::string_view family;
    std::vector<std::vector<std::string>> rows;
    const auto flush = [&] {
      if (!rows.empty())
        out += std::string(out.empty() ? "" : "\n") + std::string(family) + "\n" + format_table(rows, {});
      rows.clear();
    };
    for (const Method* method : all_methods()) {
      if (method->family != family) flush();
      family = method->family;
      rows.push_back(
          {"  " + std::string(method->name), std::string(method->title) + (method->baseline ? " (baseline)" : "")});
    }
    flush();
    out += "\n'pith methods NAME' shows one with its options.\n";
  }
  const Status status = print_out(out);
  return status.ok() ? 0 : fail(status.error());
}

}  // namespace pith
