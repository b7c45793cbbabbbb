#include "engine/unit.h"

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "base/checked.h"
#include "entropy/codes.h"

namespace pith {
namespace {

constexpr uint64_t kAlign = 64;

struct Gather : SectionSink {
  nlohmann::json index = nlohmann::json::array();
  std::map<std::string, std::string> shared;
  std::vector<Bytes> parts;
  uint64_t size = 0;

  void add(std::string name, DType type, std::vector<int64_t> shape, Bytes data) override {
    index.push_back({std::move(name), std::string(dtype_name(type)), std::move(shape), size, data.size()});
    size += round_up(data.size(), kAlign);
    parts.push_back(std::move(data));
  }
  std::string add_shared(std::string key, DType type, std::vector<int64_t> shape, Bytes data) override {
    const auto [it, fresh] = shared.emplace(key, "shared." + key);
    if (fresh) add(it->second, type, std::move(shape), std::move(data));
    return it->second;
  }
};

struct Scatter : SectionSource {
  std::map<std::string, Section, std::less<>> sections;
  Result<Section> find(std::string_view name) const override {
    const auto it = sections.find(name);
    if (it == sections.end()) return data_error("unit: no section '" + std::string(name) + "'");
    return it->second;
  }
};

}  // namespace

// Layout: header length (8 bytes), header as JSON, padding to 64 bytes, sections each padded to 64 bytes.
std::vector<std::byte> pack_unit(const Unit& unit) {
  Gather gather;
  nlohmann::json header;
  header["tree"] = unit.node->serialize("w", gather);
  header["shape"] = {unit.node->rows(), unit.node->cols()};
  header["loss"] = unit.loss;
  header["sections"] = std::move(gather.index);
  const std::string text = header.dump();
  const uint64_t length = text.size();
  const uint64_t start = round_up(sizeof length + length, kAlign);
  std::vector<std::byte> out(start + gather.size);
  std::memcpy(out.data(), &length, sizeof length);
  std::memcpy(out.data() + sizeof length, text.data(), text.size());
  uint64_t at = start;
  for (const Bytes& part : gather.parts) {
    if (part.size() > 0) std::memcpy(out.data() + at, part.data(), part.size());
    at += round_up(part.size(), kAlign);
  }
  return out;
}

Result<Unit> unpack_unit(const Bytes& data, const Limits& limits) {
  // The work folder has verified the checksum, so what is wrong here was written wrong.
  const Error broken = data_error("unit in the work folder: broken; delete the work folder and start again");
  uint64_t length = 0;
  if (data.size() < sizeof length) return broken;
  std::memcpy(&length, data.data(), sizeof length);
  if (!in_range(sizeof length, length, data.size())) return broken;
  const auto* text = reinterpret_cast<const char*>(data.data()) + sizeof length;
  const auto header = nlohmann::json::parse(text, text + length, nullptr, false);
  if (header.is_discarded() || !header.contains("sections") || !header.contains("tree")) return broken;
  const uint64_t start = round_up(sizeof length + length, kAlign);
  Scatter scatter;
  for (const auto& s : header["sections"]) {
    if (!s.is_array() || s.size() != 5 || !s[0].is_string() || !s[1].is_string() || !s[3].is_number_unsigned() ||
        !s[4].is_number_unsigned())
      return broken;
    const auto type = dtype_from_name(s[1].get<std::string>());
    const uint64_t offset = s[3].get<uint64_t>(), bytes = s[4].get<uint64_t>();
    if (!type || !in_range(start, offset, data.size()) || !in_range(start + offset, bytes, data.size())) return broken;
    scatter.sections[s[0].get<std::string>()] = {*type, s[2].get<std::vector<int64_t>>(),
                                                 data.slice(start + offset, bytes)};
  }
  PITH_ASSIGN(NodePtr node, parse_node(header["tree"], {scatter, limits, entropy_codes_formats()}));
  return Unit{std::move(node), header.value("loss", 0.0)};
}

}  // namespace pith
