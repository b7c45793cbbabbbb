#include "represent/node.h"

#include <nlohmann/json.hpp>

#include "base/file.h"

namespace pith {

void drop_mapped_pages(const Node& node) {
  struct Drop final : SectionSink {
    void add(std::string, DType, std::vector<int64_t>, Bytes data) override { drop_mapped_pages(data.view); }
    std::string add_shared(std::string key, DType, std::vector<int64_t>, Bytes) override { return key; }
  } drop;
  (void)node.serialize("", drop);
}

std::vector<int16_t> all_codes(const Codes& codes) {
  std::vector<int16_t> values(static_cast<size_t>(codes.rows()) * static_cast<size_t>(codes.cols()));
  codes.read_rows(0, codes.rows(), values.data());
  return values;
}

std::vector<float> decode_all(const Node& node) {
  std::vector<float> values(static_cast<size_t>(node.rows()) * static_cast<size_t>(node.cols()));
  node.decode_rows(0, node.rows(), values.data());
  return values;
}

}  // namespace pith
