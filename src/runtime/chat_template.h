// A chat template as a tree: lexer and parser of the Jinja subset that language models use.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pith::chat {

enum class Op : uint8_t {
  // statements
  text,       ///< text
  print,      ///< kids: expression
  branch,     ///< kids: condition, block, [condition, block]…, [block]: if / elif / else
  loop,       ///< names: targets; kids: iterable, filter or -1, body, else block or -1
  set,        ///< names: targets (one may be "ns.attr"); kids: value
  set_block,  ///< names: target; kids: block
  block,      ///< kids: statements
  macro,      ///< text: name; names: parameters; kids: body, then one default or -1 a parameter
  stop,       ///< break
  next,       ///< continue
  // expressions
  none,
  boolean,
  integer,
  real,
  string,
  name,  ///< number / real / text
  list,
  dict,       ///< kids: items; keys and values in turn
  attribute,  ///< text; kids: object
  item,       ///< kids: object, index
  slice,      ///< kids: object, begin, end, step (-1 = absent)
  call,       ///< names: keyword of each argument or ""; kids: callee, arguments
  filter,     ///< text: name; names as call; kids: value, arguments
  test,       ///< text: name; names as call; kids: value, arguments
  negate,
  plus,
  logical_not,
  logical_and,
  logical_or,
  add,
  subtract,
  multiply,
  divide,
  floor_divide,
  modulo,
  power,
  concat,
  equal,
  not_equal,
  less,
  less_equal,
  greater,
  greater_equal,
  in,
  not_in,
  conditional,  ///< kids: condition, value, other or -1
};

struct Node {
  Op op = Op::none;
  int32_t line = 0;
  int64_t number = 0;
  double real = 0;
  std::string text;
  std::vector<std::string> names;
  std::vector<int32_t> kids;  ///< indices into Template::nodes
};

struct Template {
  std::vector<Node> nodes;
  int32_t root = -1;
};

/// Parses with trim_blocks and lstrip_blocks on, as transformers does. Errors name the line.
Result<Template> parse_template(std::string_view source);

}  // namespace pith::chat
