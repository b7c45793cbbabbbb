#include "engine/statistics_file.h"

#include <cstring>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/hash.h"
#include "formats/safetensors.h"

namespace pith {
namespace {

constexpr const char* kVersion = "1";

std::span<const std::byte> bytes_of(const Tensor& t) {
  return {static_cast<const std::byte*>(t.const_data_ptr()), static_cast<size_t>(t.numel()) * t.element_size()};
}

DType type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble:
      return DType::f64;
    case at::kFloat:
      return DType::f32;
    case at::kLong:
      return DType::i64;
    default:
      throw Failure(bug_error("statistics: a tensor of a type that is not stored"));
  }
}

std::optional<at::ScalarType> scalar_of(DType type) {
  switch (type) {
    case DType::f64:
      return at::kDouble;
    case DType::f32:
      return at::kFloat;
    case DType::i64:
      return at::kLong;
    default:
      return std::nullopt;
  }
}

}  // namespace

void save_tensors(const std::string& path, const std::string& key, const TensorMap& tensors) {
  std::vector<SafetensorsDecl> entries;
  std::vector<Tensor> values;
  Hasher hasher;
  for (const auto& [name, tensor] : tensors) {
    values.push_back(tensor.contiguous());
    entries.push_back({name, type_of(tensor), tensor.sizes().vec()});
    hasher.add(name).add(bytes_of(values.back()));
  }
  const std::map<std::string, std::string> metadata{
      {"pith.statistics", kVersion}, {"pith.key", key}, {"pith.hash", hasher.hex()}};
  SafetensorsWriter writer = must(SafetensorsWriter::create(path, entries, metadata, /*overwrite=*/true));
  for (const Tensor& value : values) must(writer.write(bytes_of(value)));
  must(writer.finish());
}

std::optional<TensorMap> load_tensors(const std::string& path, const std::string& key) {
  if (!file_exists(path)) return std::nullopt;
  const Result<SafetensorsFile> file = SafetensorsFile::open(path, Limits{});
  if (!file.ok()) return std::nullopt;
  const auto& metadata = file->metadata();
  const auto says = [&](const char* name, const std::string& value) {
    const auto found = metadata.find(name);
    return found != metadata.end() && found->second == value;
  };
  if (!says("pith.statistics", kVersion) || !says("pith.key", key)) return std::nullopt;
  TensorMap tensors;
  for (const SafetensorsEntry& entry : file->entries()) {
    const auto type = scalar_of(entry.type);
    if (!type) return std::nullopt;
    Tensor value = at::empty(entry.shape, *type);
    if (bytes_of(value).size() != entry.bytes) return std::nullopt;
    if (entry.bytes > 0) std::memcpy(value.data_ptr(), file->data(entry).data(), entry.bytes);
    tensors.emplace(entry.name, std::move(value));
  }
  Hasher hasher;
  for (const auto& [name, value] : tensors) hasher.add(name).add(bytes_of(value));
  if (!says("pith.hash", hasher.hex())) return std::nullopt;
  return tensors;
}

void put_moments(TensorMap& tensors, const std::string& name, const Moments& moments) {
  tensors[name + "/count"] = at::full({1}, moments.count(), at::kLong);
  tensors[name + "/sum"] = moments.sum();
  tensors[name + "/sum_abs"] = moments.sum_abs();
  tensors[name + "/max_abs"] = moments.max_abs();
  for (size_t k = 0; k < moments.panels().size(); ++k)
    tensors[name + "/panel." + std::to_string(k)] = moments.panels()[k];
}

Moments get_moments(const TensorMap& tensors, const std::string& name) {
  const auto need = [&](const std::string& part) {
    const auto found = tensors.find(name + part);
    if (found == tensors.end()) throw Failure(data_error("statistics: '" + name + part + "' is missing"));
    return found->second;
  };
  std::vector<Tensor> panels;
  for (size_t k = 0; tensors.contains(name + "/panel." + std::to_string(k)); ++k)
    panels.push_back(need("/panel." + std::to_string(k)));
  return Moments::from_panels(need("/count").item<int64_t>(), std::move(panels), need("/sum"), need("/sum_abs"),
                              need("/max_abs"));
}

}  // namespace pith
