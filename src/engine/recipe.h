// A method with checked options, ready to run on matrices.
#pragma once

#include <string>
#include <vector>

#include "engine/fit.h"
#include "plan/options.h"
#include "runtime/method.h"

namespace pith {

struct Recipe {
  const Method* method = nullptr;
  const Fit* fit = nullptr;
  Options options;
  /// As it stands in a plan: "gptq:bits=3,group=64".
  std::string print() const;
};

/// Throws Failure when there is no such method, it does not compress weights, or an option is wrong.
Recipe recipe(const MethodSpec& spec);
/// `ec` with this step and the other options of `like` (an ec spec, or null).
Recipe ec_recipe(double step, const MethodSpec* like);
/// The first `ec` among what is allowed; null when there is none.
const MethodSpec* ec_spec(const std::vector<MethodSpec>& allow);

}  // namespace pith
