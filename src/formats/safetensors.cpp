#include "formats/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "base/checked.h"
#include "formats/json_text.h"

namespace pith {
namespace {

using json = nlohmann::json;

constexpr uint64_t kDataAlignment = 64;

std::string quoted(const std::string& name) { return "\"" + name.substr(0, 200) + "\""; }

// Elements of a shape, within limits; nullopt when it is negative, too long or too large.
std::optional<uint64_t> count_items(const std::vector<int64_t>& shape, const Limits& limits) {
  if (shape.size() > limits.max_dims) return std::nullopt;
  uint64_t items = 1;
  for (int64_t d : shape) {
    if (d < 0) return std::nullopt;
    const auto next = checked_mul(items, static_cast<uint64_t>(d));
    if (!next || *next > limits.max_tensor_items) return std::nullopt;
    items = *next;
  }
  return items;
}

Result<SafetensorsEntry> parse_entry(const std::string& name, const json& value, uint64_t data_begin,
                                     uint64_t data_bytes, const Limits& limits) {
  const std::string where = "tensor " + quoted(name) + ": ";
  if (!value.is_object()) return data_error(where + "should be an object with dtype, shape and data_offsets");
  PITH_ASSIGN(const std::string type_name, json_string(value, "dtype", "").context("tensor " + quoted(name)));
  const auto type = dtype_from_name(type_name);
  if (!type) return data_error(where + "dtype " + quoted(type_name) + " is not supported");
  SafetensorsEntry entry;
  entry.name = name;
  entry.type = *type;
  const auto shape = value.find("shape");
  if (shape == value.end() || !shape->is_array()) return data_error(where + "has no list \"shape\"");
  if (shape->size() > limits.max_dims)
    return data_error(where + "has " + std::to_string(shape->size()) + " dimensions, at most " +
                      std::to_string(limits.max_dims) + " are read");
  for (const auto& d : *shape) {
    if (!d.is_number_unsigned() || d.get<uint64_t>() > INT64_MAX)
      return data_error(where + "shape holds " + json_text(d).substr(0, 60) + ", sizes are integers >= 0");
    entry.shape.push_back(static_cast<int64_t>(d.get<uint64_t>()));
  }
  const auto items = count_items(entry.shape, limits);
  if (!items) return data_error(where + "shape " + json_text(*shape).substr(0, 100) + " is too large");
  const auto offsets = value.find("data_offsets");
  if (offsets == value.end() || !offsets->is_array() || offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned())
    return data_error(where + "data_offsets should be two integers >= 0");
  const uint64_t begin = (*offsets)[0].get<uint64_t>(), end = (*offsets)[1].get<uint64_t>();
  if (begin > end || end > data_bytes)
    return data_error(where + "data_offsets [" + std::to_string(begin) + ", " + std::to_string(end) +
                      "] lie outside the " + std::to_string(data_bytes) + " bytes of data");
  if (end - begin != *items * dtype_size(*type))
    return data_error(where + type_name + " of shape " + json_text(*shape).substr(0, 100) + " takes " +
                      std::to_string(*items * dtype_size(*type)) + " bytes, data_offsets give " +
                      std::to_string(end - begin));
  entry.begin = data_begin + begin;
  entry.bytes = end - begin;
  return entry;
}

bool plain_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

bool ends_with(const std::string& text, std::string_view end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path, const Limits& limits) {
  PITH_ASSIGN(auto mapped, MappedFile::open(path));
  return parse(Bytes(mapped->bytes(), mapped), path, limits);
}

Result<SafetensorsFile> SafetensorsFile::parse(Bytes bytes, const std::string& label, const Limits& limits) {
  SafetensorsFile file;
  file.file_ = std::move(bytes);
  const uint64_t size = file.file_.size();
  if (size < 8)
    return data_error(label + ": has " + std::to_string(size) +
                      " bytes, a safetensors file begins with 8 bytes of length");
  uint64_t length = 0;
  std::memcpy(&length, file.file_.data(), 8);
  if (length > size - 8)
    return data_error(label + ": the header should be " + std::to_string(length) + " bytes long, only " +
                      std::to_string(size - 8) + " follow (truncated, or no safetensors file)");
  if (length > limits.max_header_bytes)
    return data_error(label + ": header of " + std::to_string(length) + " bytes, at most " +
                      std::to_string(limits.max_header_bytes) + " are read");
  const std::string_view text(reinterpret_cast<const char*>(file.file_.data()) + 8, length);
  if (text.empty() || text[0] != '{') return data_error(label + ": the header at byte 8 does not begin with '{'");
  PITH_ASSIGN(const json header, parse_json(text, label + ": header", limits));
  if (header.size() > limits.max_tensors)
    return data_error(label + ": " + std::to_string(header.size()) + " tensors, at most " +
                      std::to_string(limits.max_tensors) + " are read");
  file.header_bytes_ = 8 + length;
  const uint64_t data_bytes = size - file.header_bytes_;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      if (!value.is_object()) return data_error(label + ": __metadata__ should be an object of strings");
      for (const auto& [key, text_value] : value.items()) {
        if (!text_value.is_string())
          return data_error(label + ": __metadata__ key " + quoted(key) + " should be a string");
        file.metadata_[key] = text_value.get<std::string>();
      }
      continue;
    }
    PITH_ASSIGN(auto entry, parse_entry(name, value, file.header_bytes_, data_bytes, limits).context(label));
    file.entries_.push_back(std::move(entry));
  }
  // Stable: tensors without elements share their place and stay sorted by name.
  std::stable_sort(file.entries_.begin(), file.entries_.end(), [](const auto& a, const auto& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.bytes < b.bytes;
  });
  uint64_t at = file.header_bytes_;
  for (size_t i = 0; i < file.entries_.size(); ++i) {
    const auto& entry = file.entries_[i];
    if (entry.begin != at)
      return data_error(label + ": tensor " + quoted(entry.name) + " begins at byte " + std::to_string(entry.begin) +
                        " of the file, " + (entry.begin < at ? "inside the tensor before it" : "after a hole") +
                        "; expected " + std::to_string(at));
    at += entry.bytes;
    file.index_.emplace(entry.name, i);
  }
  if (at != size)
    return data_error(label + ": the tensors end at byte " + std::to_string(at) + ", the file at " +
                      std::to_string(size));
  return file;
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &entries_[it->second];
}

Result<std::string> safetensors_header(const std::vector<SafetensorsDecl>& entries,
                                       const std::map<std::string, std::string>& metadata) {
  // Written by hand: order of the data, no spaces.
  std::string text = "{";
  if (!metadata.empty()) text += "\"__metadata__\":" + json_text(json(metadata)) + (entries.empty() ? "" : ",");
  uint64_t at = 0;
  std::set<std::string_view> seen;
  for (size_t i = 0; i < entries.size(); ++i) {
    const auto& e = entries[i];
    if (e.name == "__metadata__" || !seen.insert(e.name).second)
      return bug_error("safetensors writer: tensor name " + quoted(e.name) + " is reserved or given twice");
    const auto items = count_items(e.shape, Limits{});
    if (!items) return bug_error("safetensors writer: tensor " + quoted(e.name) + " has an impossible shape");
    const uint64_t end = at + *items * dtype_size(e.type);
    text += json_text(json(e.name)) + ":{\"dtype\":\"" + std::string(dtype_name(e.type)) + "\",\"shape\":[";
    for (size_t k = 0; k < e.shape.size(); ++k) text += (k ? "," : "") + std::to_string(e.shape[k]);
    text += "],\"data_offsets\":[" + std::to_string(at) + "," + std::to_string(end) + "]}";
    if (i + 1 < entries.size()) text += ",";
    at = end;
  }
  text += "}";
  text.resize(round_up(8 + text.size(), kDataAlignment) - 8, ' ');
  const uint64_t length = text.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + text;
}

Result<SafetensorsWriter> SafetensorsWriter::create(const std::string& path,
                                                    const std::vector<SafetensorsDecl>& entries,
                                                    const std::map<std::string, std::string>& metadata,
                                                    bool overwrite) {
  PITH_ASSIGN(const std::string header, safetensors_header(entries, metadata));
  PITH_ASSIGN(auto file, AtomicFile::create(path, overwrite));
  SafetensorsWriter writer(std::move(file));
  for (const auto& e : entries) writer.expected_ += *count_items(e.shape, Limits{}) * dtype_size(e.type);
  PITH_TRY(writer.file_.write(header));
  return writer;
}

Status SafetensorsWriter::write(std::span<const std::byte> data) {
  if (data.size() > expected_ - written_)
    return bug_error("safetensors writer: more data than the " + std::to_string(expected_) + " bytes announced");
  written_ += data.size();
  return file_.write(data);
}

Status SafetensorsWriter::finish() {
  if (written_ != expected_)
    return bug_error("safetensors writer: " + std::to_string(written_) + " bytes written, " +
                     std::to_string(expected_) + " announced");
  return file_.commit();
}

Result<ShardedSafetensors> ShardedSafetensors::open(const std::string& path, const Limits& limits) {
  std::string index_path, single;
  if (is_directory(path)) {
    if (file_exists(path + "/model.safetensors")) {
      single = path + "/model.safetensors";
    } else if (file_exists(path + "/model.safetensors.index.json")) {
      index_path = path + "/model.safetensors.index.json";
    } else {
      std::error_code error;
      size_t found = 0;
      bool torch_file = false;
      for (std::filesystem::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
        const std::string name = it->path().filename().string();
        if (ends_with(name, ".safetensors")) single = it->path().string(), ++found;
        torch_file |= ends_with(name, ".bin") || ends_with(name, ".pt") || ends_with(name, ".pth");
      }
      if (found != 1)
        return data_error(path + ": has neither model.safetensors nor model.safetensors.index.json" +
                          (found > 1 ? " (and " + std::to_string(found) + " other .safetensors files)"
                           : torch_file
                               ? std::string(" (only PyTorch files, which are programs and not read; convert them)")
                               : std::string()));
    }
  } else if (ends_with(path, ".json")) {
    index_path = path;
  } else {
    single = path;
  }

  ShardedSafetensors model;
  std::vector<std::string> files;
  json weight_map = json::object();
  std::string folder;
  if (!single.empty()) {
    files.push_back(single);
  } else {
    PITH_ASSIGN(const json index, read_json(index_path, limits));
    const auto found = index.is_object() ? index.find("weight_map") : index.end();
    if (!index.is_object() || found == index.end() || !found->is_object())
      return data_error(index_path + ": has no object \"weight_map\"");
    weight_map = *found;
    std::set<std::string> names;
    for (const auto& [tensor, file] : weight_map.items()) {
      if (!file.is_string() || !plain_file_name(file.get_ref<const std::string&>()))
        return data_error(index_path + ": tensor " + quoted(tensor) + " should name a file in this folder, names " +
                          json_text(file).substr(0, 100));
      names.insert(file.get<std::string>());
    }
    if (names.size() > 4096)
      return data_error(index_path + ": names " + std::to_string(names.size()) + " files, at most 4096 are read");
    const size_t slash = index_path.rfind('/');
    folder = slash == std::string::npos ? "" : index_path.substr(0, slash + 1);
    for (const auto& name : names) {
      if (!file_exists(folder + name)) return data_error(index_path + ": file " + quoted(name) + " is missing");
      files.push_back(folder + name);
    }
  }
  for (const auto& file : files) {
    PITH_ASSIGN(auto shard, SafetensorsFile::open(file, limits));
    for (size_t i = 0; i < shard.entries().size(); ++i) {
      const std::string& name = shard.entries()[i].name;
      if (!model.index_.emplace(name, std::pair(model.shards_.size(), i)).second)
        return data_error(file + ": tensor " + quoted(name) + " is in another file of the model as well");
    }
    model.shards_.push_back(std::move(shard));
  }
  for (const auto& [tensor, file] : weight_map.items()) {
    const auto it = model.index_.find(tensor);
    if (it == model.index_.end() || files[it->second.first] != folder + file.get<std::string>())
      return data_error(index_path + ": tensor " + quoted(tensor) + " is not in " + file.get<std::string>());
  }
  return model;
}

std::optional<ShardedSafetensors::Found> ShardedSafetensors::find(std::string_view name) const {
  const auto it = index_.find(name);
  if (it == index_.end()) return std::nullopt;
  const auto& shard = shards_[it->second.first];
  return Found{&shard, &shard.entries()[it->second.second]};
}

std::vector<ShardedSafetensors::Found> ShardedSafetensors::all() const {
  std::vector<Found> found;
  for (const auto& [name, place] : index_)
    found.push_back({&shards_[place.first], &shards_[place.first].entries()[place.second]});
  return found;
}

}  // namespace pith
