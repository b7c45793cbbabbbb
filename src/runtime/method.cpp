#include "runtime/method.h"

namespace pith {

const Method* find_method(std::string_view name) {
  for (const Method* method : all_methods())
    if (method->name == name) return method;
  return nullptr;
}

}  // namespace pith
