// The plan: which method with which options for which tensor, solved for a budget. A JSON file that a person can read,
// edit, diff and feed back (`--plan plan.json`); one tensor a line.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/limits.h"
#include "plan/options.h"

namespace pith {

/// What the user asked for.
struct Budget {
  enum class Kind : uint8_t { none, size, ram, bits, loss };
  Kind kind = Kind::none;
  double value = 0;  ///< bytes of the file, bytes in memory, bits per weight, loss as a share (0.02 = 2 %)
  /// "60MB of file", "80MB of memory", "2.8 bits per weight", "loss of 2 %", "none".
  std::string describe() const;
  bool operator==(const Budget&) const = default;
};

struct PlanTensor {
  std::string name;                 ///< canonical name of the tensor
  std::string method;               ///< "spqr:bits=3,group=16"
  std::optional<uint64_t> weights;  ///< number of elements
  std::optional<uint64_t> bytes;    ///< predicted size
  std::optional<double> loss;       ///< predicted loss
  bool operator==(const PlanTensor&) const = default;
};

struct Plan {
  std::string input;       ///< the model as the user named it; for people only
  std::string input_hash;  ///< content hash; empty in a plan written by hand (then it fits any input)
  Budget budget;
  std::map<std::string, std::string> settings;  ///< what is not a tensor's own: "calib", "seed", "format", …
  std::vector<PlanTensor> tensors;              ///< in the order in which they are worked on
  std::optional<double> lower_bound;            ///< of the solver, on the total predicted loss

  uint64_t bytes() const;  ///< sum of what is predicted
  double loss() const;
  /// Hash of what decides the result: input, settings, tensors and methods; not of predictions.
  std::string hash() const;
  bool operator==(const Plan&) const = default;
};

/// Deterministic text: parse_plan(print_plan(p)) == p.
std::string print_plan(const Plan& plan);

/// Errors name line or tensor and key, and offer the nearest name. `check` judges each method spec (unknown methods,
/// unknown options): pass check_spec of runtime/method.h.
Result<Plan> parse_plan(std::string_view text, const Limits& limits,
                        const std::function<Status(const MethodSpec&)>& check);
/// The same from a file.
Result<Plan> read_plan(const std::string& path, const Limits& limits,
                       const std::function<Status(const MethodSpec&)>& check);

}  // namespace pith
