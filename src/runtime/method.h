// A method as `pith methods` and every --help see it: a table, no tensors. Each methods/<family>/<name>/<name>.cpp
// defines one function `const pith::Method& <name>_method()`; CMake collects them (cmake/Methods.cmake).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "plan/options.h"

namespace pith {

/// What a fit wants beside the weights, so that a runner prepares it once for all methods.
struct Needs {
  bool moments = false;     ///< H = E[x x^T] of each linear layer's input
  bool cross = false;       ///< E[x xq^T] between the float model and the compressed prefix
  bool row_fisher = false;  ///< G: mean squared gradient of the loss at each output
  bool base = false;        ///< works on an already compressed tensor (EoRA)
};

struct Method {
  std::string_view name;    ///< slug: "spqr"
  std::string_view family;  ///< "quantize", "factorize", "prune"
  std::string_view title;   ///< one line: what the user gets
  std::string_view paper;   ///< authors, title, year, arXiv number; empty for a baseline
  std::span<const Param> params;
  Needs needs;
  bool baseline = false;
  std::string_view example;  ///< a whole command line
  std::string_view
      budget_options;  ///< what `compress` may try by itself: "bits=2..8", empty = only when allowed by name
  /// Where the needs depend on the options; nullptr: always `needs`.
  Needs (*needs_with)(const Options& options) = nullptr;
};

/// What a fit with these options wants.
inline Needs needs_of(const Method& method, const Options& options) {
  return method.needs_with != nullptr ? method.needs_with(options) : method.needs;
}

/// All methods, sorted by family and name.
std::span<const Method* const> all_methods();
/// nullptr when there is none of that name.
const Method* find_method(std::string_view name);
/// The method, or an error that offers the nearest names.
Result<const Method*> require_method(std::string_view name);
/// Judges "spqr:bits=3": unknown method, unknown option, value out of range. For parse_plan and --allow.
Status check_spec(const MethodSpec& spec);

}  // namespace pith
