// pith verify FILE: checksums and all invariants of a model file.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/pith/commands.h"
#include "formats/json_text.h"
#include "runtime/model_file.h"

namespace pith {

int verify_command(const Arguments& arguments) {
  std::string path;
  bool json = false;
  const auto app = new_app(
      "verify", "Checks a model file: checksums, lengths, trees, shapes, finite numbers. Exit code 3 when one fails.",
      "pith verify small.pith");
  app->add_option("FILE", path, "Model: .pith, .gguf, .safetensors or Hugging Face folder")->required();
  app->add_flag("--json", json, "As JSON");
  if (const auto code = parse_arguments(*app, arguments)) return *code;

  if (const auto kind = sniff(path); !kind.ok()) return fail(kind.error());  // no such file, no model at all
  const auto checks = verify_model(path);
  const auto broken = std::find_if(checks.begin(), checks.end(), [](const Check& c) { return !c.passed; });
  int code = 0;
  if (json) {
    nlohmann::json list = nlohmann::json::array();
    for (const Check& c : checks) list.push_back({{"name", c.name}, {"passed", c.passed}, {"detail", c.detail}});
    code = print_result(json_text({{"path", path}, {"passed", broken == checks.end()}, {"checks", list}}, 1) + "\n");
  } else {
    std::vector<std::vector<std::string>> rows;
    for (const Check& c : checks) rows.push_back({c.passed ? "ok" : "FAILED", c.name, c.detail});
    code = print_result(format_table(rows, {}));
  }
  if (code != 0) return code;
  if (broken == checks.end()) return 0;
  return fail(data_error(path + ": " + broken->name + ": " + broken->detail));
}

}  // namespace pith
