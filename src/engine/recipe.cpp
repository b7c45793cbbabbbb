#include "engine/recipe.h"

#include <fmt/format.h>

namespace pith {

std::string Recipe::print() const {
  const std::string text = options.print();
  return text.empty() ? std::string(method->name) : fmt::format("{}:{}", method->name, text);
}

Recipe recipe(const MethodSpec& spec) {
  const Method* method = must(require_method(spec.method));
  const Fit* fit = find_fit(spec.method);
  if (fit == nullptr) throw Failure(user_error(fmt::format("method '{}' does not compress weights", spec.method)));
  return {method, fit, must(Options::parse(spec.options, method->params).context(spec.method))};
}

Recipe ec_recipe(double step, const MethodSpec* like) {
  Recipe r = recipe({"ec", like != nullptr ? like->options : ""});
  must(r.options.set("step", fmt::format("{:.6g}", step)));
  return r;
}

const MethodSpec* ec_spec(const std::vector<MethodSpec>& allow) {
  for (const MethodSpec& spec : allow)
    if (spec.method == "ec") return &spec;
  return nullptr;
}

}  // namespace pith
