#include "represent/node.h"

namespace pith {

std::vector<float> decode_all(const Node& node) {
  std::vector<float> values(static_cast<size_t>(node.rows()) * static_cast<size_t>(node.cols()));
  node.decode_rows(0, node.rows(), values.data());
  return values;
}

}  // namespace pith
