#include "runtime/method.h"

namespace pith {

const Method* find_method(std::string_view name) {
  for (const Method* method : all_methods())
    if (method->name == name) return method;
  return nullptr;
}

Result<const Method*> require_method(std::string_view name) {
  if (const Method* method = find_method(name)) return method;
  std::vector<std::string> known;
  for (const Method* method : all_methods()) known.emplace_back(method->name);
  return user_error("method '" + std::string(name) + "' is unknown" + did_you_mean(name, known));
}

Status check_spec(const MethodSpec& spec) {
  PITH_ASSIGN(const Method* method, require_method(spec.method));
  const auto options = Options::parse(spec.options, method->params);
  if (!options.ok()) return Status(options.error()).context(spec.method);
  return {};
}

}  // namespace pith
