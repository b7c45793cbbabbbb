// A representation tree without the file around it, whose hashes would stop most changes. Input: a line of JSON
// {"tree": …, "sections": {name: [type, shape, offset, bytes]}}, then the bytes of the sections.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/checked.h"
#include "entropy/codes.h"
#include "formats/json_text.h"
#include "fuzz.h"
#include "represent/node.h"

namespace pith {
namespace {

class FuzzSections final : public SectionSource {
 public:
  FuzzSections(nlohmann::json table, Bytes blob) : table_(std::move(table)), blob_(std::move(blob)) {}
  Result<Section> find(std::string_view name) const override {
    const auto it = table_.find(std::string(name));
    if (it == table_.end() || !it->is_array() || it->size() != 4 || !(*it)[0].is_string() || !(*it)[1].is_array() ||
        !(*it)[2].is_number_unsigned() || !(*it)[3].is_number_unsigned())
      return data_error("no such section");
    const auto type = dtype_from_name((*it)[0].get<std::string>());
    const auto offset = (*it)[2].get<uint64_t>(), bytes = (*it)[3].get<uint64_t>();
    if (!type || !in_range(offset, bytes, blob_.size())) return data_error("section outside");
    Section section{*type, {}, blob_.slice(offset, bytes)};
    for (const auto& n : (*it)[1])
      if (n.is_number_integer()) section.shape.push_back(n.get<int64_t>());
    return section;
  }

 private:
  nlohmann::json table_;
  Bytes blob_;
};

}  // namespace
}  // namespace pith

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pith;  // NOLINT(google-build-using-namespace)
  const Limits limits;
  const auto text = fuzz_text(data, size);
  const size_t line = std::min(text.find('\n'), text.size());
  const auto parsed = parse_json(text.substr(0, line), "fuzz", limits);
  if (!parsed.ok() || !(*parsed).is_object() || !(*parsed).contains("tree") || !(*parsed).contains("sections"))
    return 0;
  const size_t begin = std::min(line + 1, size);
  const FuzzSections sections((*parsed)["sections"], fuzz_bytes(data + begin, size - begin));
  const auto node = parse_node((*parsed)["tree"], ParseContext{sections, limits, entropy_codes_formats()});
  if (!node.ok() || (*node)->rows() > (1 << 20) / (*node)->cols()) return 0;
  fuzz_use(decode_all(**node));
  fuzz_use((*node)->describe());
  fuzz_use((*node)->bits());
  return 0;
}
