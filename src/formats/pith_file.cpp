#include "formats/pith_file.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "base/base64.h"
#include "base/checked.h"
#include "base/hash.h"
#include "base/zstd.h"
#include "formats/json_text.h"

namespace pith {
namespace {

using json = nlohmann::json;

constexpr uint64_t kAlignment = 64;
constexpr int kVersion = 1;
constexpr size_t kHashBytes = 16;
constexpr std::string_view kShared = "pith.shared", kTokenizer = "pith.tokenizer";

std::string hash_bytes(std::span<const std::byte> data) {
  const std::string hex = hash_hex(data);
  std::string out;
  const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    out.push_back(static_cast<char>(digit(hex[i]) << 4 | digit(hex[i + 1])));
  return out;
}

std::span<const std::byte> as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::optional<uint64_t> bytes_of(DType type, const std::vector<int64_t>& shape, const Limits& limits) {
  if (shape.size() > limits.max_dims) return std::nullopt;
  uint64_t items = 1;
  for (const int64_t d : shape) {
    const auto next = d < 0 ? std::nullopt : checked_mul(items, static_cast<uint64_t>(d));
    if (!next || *next > limits.max_tensor_items) return std::nullopt;
    items = *next;
  }
  return items * dtype_size(type);
}

// One entry of the safetensors file: sections in a row, or one plain array, or bytes.
struct Entry {
  SafetensorsDecl decl;
  std::vector<const PithSection*> sections;
  std::string_view text;  // tokenizer
};

// A tensor that is one array of its own shape can be an ordinary entry.
bool is_plain(const PithTensor& t) {
  if (t.sections.size() != 1) return false;
  const auto& s = t.sections[0];
  const auto want = bytes_of(s.type, t.shape, Limits{});
  return want && *want == s.data.size() &&
         (s.type == DType::f64 || s.type == DType::f32 || s.type == DType::f16 || s.type == DType::bf16);
}

uint64_t padded_bytes(const std::vector<const PithSection*>& sections) {
  uint64_t n = 0;
  for (const auto* s : sections) n += round_up(s->data.size(), kAlignment);
  return n;
}

Result<std::vector<Entry>> plan_entries(const PithContents& contents) {
  std::vector<Entry> blobs, plain;
  std::set<std::string_view> names, sections;
  const auto check = [&](const PithSection& s) -> Status {
    const auto want = bytes_of(s.type, s.shape, Limits{});
    if (!want || *want != s.data.size())
      return bug_error("section \"" + s.name + "\" has " + std::to_string(s.data.size()) +
                       " bytes, its shape asks for " + (want ? std::to_string(*want) : "something impossible"));
    if (!sections.insert(s.name).second) return bug_error("section \"" + s.name + "\" is given twice");
    return {};
  };
  const auto blob = [&](std::string name, const std::vector<PithSection>& of) {
    Entry e;
    for (const auto& s : of) e.sections.push_back(&s);
    e.decl = {std::move(name), DType::u8, {static_cast<int64_t>(padded_bytes(e.sections))}};
    blobs.push_back(std::move(e));
  };
  for (const auto& t : contents.tensors) {
    if (t.name.starts_with("pith.") || t.name == "__metadata__" || !names.insert(t.name).second)
      return bug_error("tensor name \"" + t.name + "\" is reserved or given twice");
    for (const auto& s : t.sections) PITH_TRY(check(s));
    if (is_plain(t)) {
      plain.push_back({{t.name, t.sections[0].type, t.shape}, {&t.sections[0]}, {}});
    } else if (!t.sections.empty()) {
      blob(t.name, t.sections);
    }
  }
  for (const auto& s : contents.shared) PITH_TRY(check(s));
  if (!contents.shared.empty()) blob(std::string(kShared), contents.shared);
  // Blobs are multiples of 64 bytes; after them, wide types first, every array is aligned for its elements.
  std::stable_sort(plain.begin(), plain.end(),
                   [](const Entry& a, const Entry& b) { return dtype_size(a.decl.type) > dtype_size(b.decl.type); });
  blobs.insert(blobs.end(), plain.begin(), plain.end());
  if (!contents.tokenizer.empty())
    blobs.push_back({{std::string(kTokenizer), DType::u8, {static_cast<int64_t>(contents.tokenizer.size())}},
                     {},
                     contents.tokenizer});
  return blobs;
}

json section_json(const PithSection& s) { return json::array({s.name, std::string(dtype_name(s.type)), s.shape}); }

Result<json> text_json(const std::string& text, const std::string& what) {
  Limits limits;
  limits.max_json_depth = 256;
  return parse_json(text, what, limits);
}

// The compressed manifest.
Result<std::string> manifest_of(const PithContents& contents) {
  json m = json::object();
  const std::pair<const char*, const std::string*> texts[] = {
      {"config", &contents.config}, {"plan", &contents.plan}, {"report", &contents.report}};
  for (const auto& [key, text] : texts)
    if (!text->empty()) {
      PITH_ASSIGN(m[key], text_json(*text, key));
    }
  json tensors = json::array(), shared = json::array();
  for (const auto& t : contents.tensors) {
    PITH_ASSIGN(json tree, text_json(t.tree, "tree of " + t.name));
    json list = json::array();
    for (const auto& s : t.sections) list.push_back(section_json(s));
    tensors.push_back(json::array({t.name, t.shape, std::move(tree), std::move(list)}));
  }
  for (const auto& s : contents.shared) shared.push_back(section_json(s));
  m["tensors"] = std::move(tensors);
  m["shared"] = std::move(shared);
  return zstd_compress(as_bytes(json_text(m)), 19);
}

Result<std::string> header_of(const std::vector<Entry>& entries, const std::string& manifest,
                              const std::string& hashes) {
  std::vector<SafetensorsDecl> decls;
  for (const auto& e : entries) decls.push_back(e.decl);
  return safetensors_header(decls, {{"format", "pith"},
                                    {"pith", to_base64(manifest)},
                                    {"pith_hashes", to_base64(hashes)},
                                    {"pith_version", std::to_string(kVersion)}});
}

// The entry's bytes: a view of one array, or sections and padding put together in `buffer`.
std::span<const std::byte> entry_bytes(const Entry& e, std::vector<std::byte>& buffer) {
  if (e.decl.name == kTokenizer) return as_bytes(e.text);
  if (e.sections.size() == 1 && e.decl.type != DType::u8) return e.sections[0]->data.view;
  buffer.assign(padded_bytes(e.sections), std::byte{0});
  uint64_t at = 0;
  for (const auto* s : e.sections) {
    if (s->data.size() > 0) std::memcpy(buffer.data() + at, s->data.data(), s->data.size());
    at += round_up(s->data.size(), kAlignment);
  }
  return buffer;
}

Result<std::vector<int64_t>> parse_shape(const json& value, const std::string& what, const Limits& limits) {
  if (!value.is_array() || value.size() > limits.max_dims) return data_error(what + ": shape should be a short list");
  std::vector<int64_t> shape;
  for (const auto& d : value) {
    if (!d.is_number_unsigned() || d.get<uint64_t>() > limits.max_tensor_items)
      return data_error(what + ": shape holds " + json_text(d).substr(0, 40));
    shape.push_back(static_cast<int64_t>(d.get<uint64_t>()));
  }
  if (!bytes_of(DType::f64, shape, limits)) return data_error(what + ": shape is too large");
  return shape;
}

// Sections of one entry, with their data cut out of it.
Status parse_sections(const json& list, const std::string& what, const SafetensorsFile& file,
                      const std::string& entry_name, const Limits& limits, std::vector<PithSection>& out) {
  if (!list.is_array()) return data_error(what + ": sections should be a list");
  if (list.empty()) return {};
  const SafetensorsEntry* entry = file.find(entry_name);
  if (entry == nullptr) return data_error(what + ": the file has no entry \"" + entry_name + "\"");
  const Bytes data = file.data(*entry);
  uint64_t at = 0;
  for (const auto& item : list) {
    if (!item.is_array() || item.size() != 3 || !item[0].is_string() || !item[1].is_string())
      return data_error(what + ": section should be [name, type, shape], is " + json_text(item).substr(0, 100));
    PithSection s;
    s.name = item[0].get<std::string>();
    const auto type = dtype_from_name(item[1].get_ref<const std::string&>());
    if (!type) return data_error(what + ": section \"" + s.name.substr(0, 100) + "\" has an unknown type");
    s.type = *type;
    PITH_ASSIGN(s.shape, parse_shape(item[2], what + ": section \"" + s.name.substr(0, 100) + "\"", limits));
    const auto bytes = bytes_of(s.type, s.shape, limits);
    if (!bytes || !in_range(at, *bytes, data.size()))
      return data_error(what + ": section \"" + s.name.substr(0, 100) + "\" does not fit into the " +
                        std::to_string(data.size()) + " bytes of its entry");
    s.data = data.slice(at, *bytes);
    at = entry->type == DType::u8 ? round_up(at + *bytes, kAlignment) : at + *bytes;
    out.push_back(std::move(s));
  }
  if (at != data.size())
    return data_error(what + ": sections take " + std::to_string(at) + " bytes, the entry has " +
                      std::to_string(data.size()));
  return {};
}

}  // namespace

Status write_pith(const std::string& path, const PithContents& contents, bool overwrite) {
  PITH_ASSIGN(const auto entries, plan_entries(contents));
  PITH_ASSIGN(const std::string manifest, manifest_of(contents));
  PITH_ASSIGN(auto file, AtomicFile::create(path, overwrite));  // before hours of hashing
  std::vector<std::byte> buffer;
  std::map<std::string_view, std::string> by_name;
  for (const auto& e : entries) by_name[e.decl.name] = hash_bytes(entry_bytes(e, buffer));
  std::string hashes = hash_bytes(as_bytes(manifest));
  for (const auto& [name, hash] : by_name) hashes += hash;
  PITH_ASSIGN(const std::string header, header_of(entries, manifest, hashes));
  PITH_TRY(file.write(header));
  for (const auto& e : entries) PITH_TRY(file.write(entry_bytes(e, buffer)));
  return file.commit();
}

Result<uint64_t> pith_file_bytes(const PithContents& contents) {
  PITH_ASSIGN(const auto entries, plan_entries(contents));
  PITH_ASSIGN(const std::string manifest, manifest_of(contents));
  PITH_ASSIGN(const std::string header,
              header_of(entries, manifest, std::string((entries.size() + 1) * kHashBytes, '\0')));
  uint64_t total = header.size();
  for (const auto& e : entries) total += *bytes_of(e.decl.type, e.decl.shape, Limits{});
  return total;
}

bool PithFile::recognise(const std::string& path) {
  const auto file = MappedFile::open(path);
  if (!file.ok() || (*file)->bytes().size() < 16) return false;
  const auto bytes = (*file)->bytes();
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  if (length > bytes.size() - 8 || static_cast<char>(bytes[8]) != '{') return false;
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + 8, std::min<uint64_t>(length, 64u << 20));
  return header.find("\"pith_version\"") != std::string_view::npos;
}

Result<PithFile> PithFile::open(const std::string& path, const Limits& limits) {
  PITH_ASSIGN(auto mapped, MappedFile::open(path));
  return parse(Bytes(mapped->bytes(), mapped), path, limits);
}

Result<PithFile> PithFile::parse(Bytes bytes, const std::string& label, const Limits& limits) {
  PithFile f;
  f.label_ = label;
  PITH_ASSIGN(f.file_, SafetensorsFile::parse(std::move(bytes), label, limits));
  const auto& metadata = f.file_.metadata();
  const auto text = [&](const char* key) {
    const auto it = metadata.find(key);
    return it == metadata.end() ? std::string_view() : std::string_view(it->second);
  };
  const std::string_view version = text("pith_version");
  if (version.empty()) return data_error(label + ": is a safetensors file without \"pith_version\"; no .pith file");
  if (version != std::to_string(kVersion))
    return data_error(label + ": .pith version " + std::string(version.substr(0, 20)) + ", this program reads " +
                      std::to_string(kVersion) + "; a newer Pith is needed");
  f.version_ = kVersion;
  const auto manifest = from_base64(text("pith")), hashes = from_base64(text("pith_hashes"));
  if (!manifest || !hashes || manifest->empty()) return data_error(label + ": manifest or hashes are not base64");
  if (hashes->size() != (f.file_.entries().size() + 1) * kHashBytes)
    return data_error(label + ": " + std::to_string(hashes->size() / kHashBytes) + " hashes for a manifest and " +
                      std::to_string(f.file_.entries().size()) + " entries");
  if (hash_bytes(as_bytes(*manifest)) != hashes->substr(0, kHashBytes))
    return data_error(label + ": the manifest is damaged (its checksum differs)");
  std::set<std::string_view> names;
  for (const auto& e : f.file_.entries()) names.insert(e.name);
  size_t at = kHashBytes;
  for (const auto name : names) f.hashes_[std::string(name)] = hashes->substr(at, kHashBytes), at += kHashBytes;

  PITH_ASSIGN(const std::string plain,
              zstd_decompress(as_bytes(*manifest),
                              std::min<uint64_t>(limits.max_header_bytes, 200 * uint64_t{manifest->size()} + 65536))
                  .context(label + ": manifest"));
  Limits deep = limits;  // trees stand inside the manifest
  deep.max_json_depth = limits.max_json_depth + 16;
  PITH_ASSIGN(const json m, parse_json(plain, label + ": manifest", deep));
  const auto member = [&](const char* key) -> const json& {
    static const json none;
    const auto it = m.is_object() ? m.find(key) : m.end();
    return m.is_object() && it != m.end() ? *it : none;
  };
  const std::pair<const char*, std::string*> texts[] = {
      {"config", &f.contents_.config}, {"plan", &f.contents_.plan}, {"report", &f.contents_.report}};
  for (const auto& [key, out] : texts)
    if (!member(key).is_null()) *out = json_text(member(key));

  size_t used = 0;
  const json& tensors = member("tensors");
  if (!tensors.is_array()) return data_error(label + ": manifest has no list \"tensors\"");
  for (const auto& row : tensors) {
    if (!row.is_array() || row.size() != 4 || !row[0].is_string())
      return data_error(label + ": manifest: tensor should be [name, shape, tree, sections], is " +
                        json_text(row).substr(0, 100));
    PithTensor t;
    t.name = row[0].get<std::string>();
    const std::string what = label + ": tensor \"" + t.name.substr(0, 200) + "\"";
    if (!f.tensors_.emplace(t.name, f.contents_.tensors.size()).second) return data_error(what + " occurs twice");
    PITH_ASSIGN(t.shape, parse_shape(row[1], what, limits));
    t.tree = json_text(row[2]);
    PITH_TRY(parse_sections(row[3], what, f.file_, t.name, limits, t.sections));
    used += !t.sections.empty();
    f.contents_.tensors.push_back(std::move(t));
  }
  const json& shared = member("shared");
  if (!shared.is_null())
    PITH_TRY(
        parse_sections(shared, label + ": shared sections", f.file_, std::string(kShared), limits, f.contents_.shared));
  used += !f.contents_.shared.empty();
  if (const auto* e = f.file_.find(kTokenizer)) {
    const Bytes data = f.file_.data(*e);
    if (data.size() > limits.max_header_bytes)
      return data_error(label + ": tokenizer of " + std::to_string(data.size()) + " bytes, at most " +
                        std::to_string(limits.max_header_bytes) + " are read");
    f.contents_.tokenizer.assign(reinterpret_cast<const char*>(data.data()), data.size());
    ++used;
  }
  if (used != f.file_.entries().size())
    return data_error(label + ": the manifest speaks of " + std::to_string(used) + " entries, the file has " +
                      std::to_string(f.file_.entries().size()));
  const auto list = [&](const std::vector<PithSection>& sections, int64_t tensor) -> Status {
    for (size_t i = 0; i < sections.size(); ++i)
      if (!f.index_.emplace(sections[i].name, std::pair(tensor, i)).second)
        return data_error(label + ": section \"" + sections[i].name.substr(0, 200) + "\" occurs twice");
    return {};
  };
  for (size_t k = 0; k < f.contents_.tensors.size(); ++k)
    PITH_TRY(list(f.contents_.tensors[k].sections, static_cast<int64_t>(k)));
  PITH_TRY(list(f.contents_.shared, -1));
  return f;
}

const PithTensor* PithFile::tensor(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &contents_.tensors[it->second];
}

const PithSection* PithFile::find(std::string_view name) const {
  const auto it = index_.find(name);
  if (it == index_.end()) return nullptr;
  const auto [tensor, place] = it->second;
  return tensor < 0 ? &contents_.shared[place] : &contents_.tensors[static_cast<size_t>(tensor)].sections[place];
}

Status PithFile::verify() const {
  for (const auto& e : file_.entries())
    if (hash_bytes(file_.data(e).view) != hashes_.at(e.name))
      return data_error(label_ + ": entry \"" + e.name + "\" (bytes " + std::to_string(e.begin) + " to " +
                        std::to_string(e.begin + e.bytes) + ") is damaged (its checksum differs)");
  return {};
}

}  // namespace pith
