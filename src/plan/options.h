// Options of a method: one table describes them for the command line, plans, `--allow`, Python and logs.
// "spqr:bits=3,group=16" is the same thing as `pith quantize spqr --bits 3 --group 16`, and prints back.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace pith {

enum class ParamType : uint8_t { integer, real, boolean, choice, text };

/// One row of a method's parameter table.
struct Param {
  std::string_view name;  ///< "group"; on the command line --group
  ParamType type = ParamType::text;
  std::string_view fallback;  ///< default, as text
  double low = 0, high = 0;   ///< inclusive range of numbers; both 0 = unlimited
  std::string_view choices;   ///< "asym|sym" for ParamType::choice
  std::string_view help;      ///< one sentence, with the unit
};

/// Checked values; every parameter of the table has one. Tables live as long as the program (static arrays).
/// In names '_' and '-' are the same letter, so Python's act_order is the command line's --act-order.
class Options {
 public:
  static Options defaults(std::span<const Param> table);
  /// Parses "bits=3,group=16"; names the nearest parameter when one is unknown, refuses one given twice. A boolean may
  /// stand alone ("act-order" = "act-order=true"). In values a backslash takes ',', ';', ':' or itself literally.
  static Result<Options> parse(std::string_view text, std::span<const Param> table);
  Status set(std::string_view name, std::string_view value);

  /// Asking for a name that the table lacks is a bug of the caller.
  int64_t integer(std::string_view name) const;
  double real(std::string_view name) const;
  bool flag(std::string_view name) const;
  const std::string& text(std::string_view name) const;

  /// Only what differs from the defaults, in table order: parse(print()) gives the same options.
  std::string print() const;

 private:
  const std::string& at(std::string_view name) const;
  std::span<const Param> table_;
  std::map<std::string, std::string, std::less<>> values_;
};

/// For tests of parameter tables: every default lies in its own range, names are unique slugs, choices are not empty.
Status check_params(std::span<const Param> table);

/// What a value of this parameter looks like: "integer 2..8", "asym|sym".
std::string describe_values(const Param& param);

/// "spqr:bits=3,group=16" split at the first colon.
struct MethodSpec {
  std::string method;
  std::string options;
  std::string print() const { return options.empty() ? method : method + ":" + options; }
  bool operator==(const MethodSpec&) const = default;
};
MethodSpec split_spec(std::string_view text);

/// `--allow 'gptq:bits=2..4;spqr'`: alternatives separated by ';', integer ranges a..b spread out
/// (several in one alternative: all combinations, the last one fastest). Empty text is an empty list; more than 4096
/// alternatives are refused.
Result<std::vector<MethodSpec>> parse_allow(std::string_view text);

/// The names of `known` that are nearest to `word` by edit distance, for "did you mean": best first, three at most,
/// none when nothing is close.
std::vector<std::string> nearest_names(std::string_view word, const std::vector<std::string>& known);

/// "; did you mean 'gptq' or 'rtn'?" or, when nothing is close, "; known: a, b, c" (up to 20 names).
std::string did_you_mean(std::string_view word, const std::vector<std::string>& known);

}  // namespace pith
