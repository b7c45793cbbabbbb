#include "formats/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/checked.h"

namespace pith {
namespace {

constexpr uint64_t kWriteAlignment = 32;

// Bytes of a value of this type; 0 for strings and arrays, whose length stands in the file.
unsigned scalar_size(GgufType type) {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean:
      return 1;
    case GgufType::u16:
    case GgufType::i16:
      return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32:
      return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64:
      return 8;
    case GgufType::string:
    case GgufType::array:
      return 0;
  }
  return 0;
}

template <class T>
T load(const std::byte* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Calls f with the number at p as its own type.
template <class F>
auto with_number(GgufType type, const std::byte* p, F f) {
  switch (type) {
    case GgufType::u8:
      return f(load<uint8_t>(p));
    case GgufType::i8:
      return f(load<int8_t>(p));
    case GgufType::u16:
      return f(load<uint16_t>(p));
    case GgufType::i16:
      return f(load<int16_t>(p));
    case GgufType::u32:
      return f(load<uint32_t>(p));
    case GgufType::i32:
      return f(load<int32_t>(p));
    case GgufType::f32:
      return f(load<float>(p));
    case GgufType::u64:
      return f(load<uint64_t>(p));
    case GgufType::i64:
      return f(load<int64_t>(p));
    case GgufType::f64:
      return f(load<double>(p));
    default:
      return f(static_cast<uint8_t>(load<uint8_t>(p) != 0));  // boolean
  }
}

bool is_integer(GgufType type) {
  return type != GgufType::f32 && type != GgufType::f64 && type != GgufType::boolean && scalar_size(type) > 0;
}

// Reads forward; every access is checked against the end of the file.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& label) : bytes_(bytes), label_(label) {}

  uint64_t at() const { return at_; }
  uint64_t left() const { return bytes_.size() - at_; }

  template <class T>
  Result<T> number(const char* what) {
    if (left() < sizeof(T)) return ends_inside(what);
    const T v = load<T>(bytes_.data() + at_);
    at_ += sizeof(T);
    return v;
  }

  Result<std::string_view> string(const char* what, const Limits& limits) {
    PITH_ASSIGN(const uint64_t length, number<uint64_t>(what));
    if (length > limits.max_string_bytes)
      return error(what, "claims " + std::to_string(length) + " bytes, at most " +
                             std::to_string(limits.max_string_bytes) + " are read");
    if (length > left()) return ends_inside(what);
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + at_, length);
    at_ += length;
    return text;
  }

  Status skip(uint64_t n, const char* what) {
    if (n > left()) return ends_inside(what);
    at_ += n;
    return {};
  }

  Error ends_inside(const char* what) const {
    return error(what, "the file ends inside it (" + std::to_string(left()) + " bytes left)");
  }
  Error error(const std::string& what, const std::string& found) const {
    return data_error(label_ + ": " + what + " at byte " + std::to_string(at_) + ": " + found);
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& label_;
  uint64_t at_ = 0;
};

struct ValueHead {
  GgufType type{}, item{};
  uint64_t count = 1, payload = 0;  // payload: byte where the payload begins
};

// Steps over a value of the given type and checks all its lengths.
Result<ValueHead> scan_value(Cursor& in, uint32_t type, const char* what, const Limits& limits, uint32_t depth) {
  if (type > static_cast<uint32_t>(GgufType::f64))
    return in.error(what, "value type " + std::to_string(type) + " is unknown");
  ValueHead head;
  head.type = static_cast<GgufType>(type);
  if (head.type == GgufType::array) {
    if (depth >= 4) return in.error(what, "arrays nested deeper than 4");
    PITH_ASSIGN(const uint32_t item, in.number<uint32_t>(what));
    PITH_ASSIGN(head.count, in.number<uint64_t>(what));
    if (item > static_cast<uint32_t>(GgufType::f64))
      return in.error(what, "item type " + std::to_string(item) + " is unknown");
    if (head.count > limits.max_array_items)
      return in.error(what, "claims " + std::to_string(head.count) + " items, at most " +
                                std::to_string(limits.max_array_items) + " are read");
    head.item = static_cast<GgufType>(item);
    head.payload = in.at();
    if (const unsigned size = scalar_size(head.item)) {
      PITH_TRY(in.skip(head.count * size, what));
    } else {
      for (uint64_t i = 0; i < head.count; ++i) PITH_TRY(scan_value(in, item, what, limits, depth + 1));
    }
    return head;
  }
  head.payload = in.at();
  if (head.type == GgufType::string) {
    PITH_TRY(in.string(what, limits));
  } else {
    PITH_TRY(in.skip(scalar_size(head.type), what));
  }
  return head;
}

template <class T>
void append(std::string& out, T v) {
  out.append(reinterpret_cast<const char*>(&v), sizeof v);
}

void append_string(std::string& out, std::string_view text) {
  append<uint64_t>(out, text.size());
  out += text;
}

Bytes own_text(std::string text) {
  auto held = std::make_shared<const std::string>(std::move(text));
  return {std::as_bytes(std::span(held->data(), held->size())), held};
}

template <class T>
GgufValue scalar(GgufType type, T v) {
  std::string raw;
  append(raw, v);
  return GgufValue::encoded(type, {}, 1, own_text(std::move(raw)));
}

template <class T>
GgufValue array(GgufType item, std::span<const T> v) {
  std::string raw(reinterpret_cast<const char*>(v.data()), v.size_bytes());
  return GgufValue::encoded(GgufType::array, item, v.size(), own_text(std::move(raw)));
}

Error wrong_type(std::string_view key, const char* expected, const GgufValue& value) {
  return data_error("metadata key " + std::string(key) + " should be " + expected + ", is " +
                    std::string(gguf_type_name(value.type())));
}

Error missing_key(std::string_view key) { return data_error("metadata key " + std::string(key) + " is missing"); }

Result<uint64_t> tensor_bytes(const std::string& name, GgmlType type, const std::vector<int64_t>& shape,
                              const Limits& limits) {
  uint64_t items = 1;
  for (int64_t d : shape) {
    const auto next = d < 0 ? std::nullopt : checked_mul(items, static_cast<uint64_t>(d));
    if (!next || *next > limits.max_tensor_items)
      return data_error("tensor \"" + name + "\": more than " + std::to_string(limits.max_tensor_items) + " elements");
    items = *next;
  }
  const auto& traits = ggml_traits(type);
  const uint64_t row = shape.empty() ? 1 : static_cast<uint64_t>(shape.back());
  if (row % traits.elements != 0)
    return data_error("tensor \"" + name + "\": rows of " + std::to_string(row) + " values are no multiple of the " +
                      std::to_string(traits.elements) + " in a block of " + std::string(traits.name));
  return items / traits.elements * traits.bytes;
}

// Everything before the tensor data, padded.
Result<std::string> encode_head(const GgufMetadata& metadata, const std::vector<GgufDecl>& tensors,
                                std::vector<uint64_t>& sizes) {
  std::string out = "GGUF";
  append<uint32_t>(out, 3);
  append<uint64_t>(out, tensors.size());
  uint64_t keys = 0;
  std::string pairs;
  for (const auto& [key, value] : metadata.items()) {
    if (key == "general.alignment") continue;  // ours is the default of 32
    ++keys;
    append_string(pairs, key);
    append<uint32_t>(pairs, static_cast<uint32_t>(value.type()));
    if (value.type() == GgufType::array) {
      append<uint32_t>(pairs, static_cast<uint32_t>(value.item_type()));
      append<uint64_t>(pairs, value.count());
    }
    pairs.append(reinterpret_cast<const char*>(value.raw().data()), value.raw().size());
  }
  append<uint64_t>(out, keys);
  out += pairs;
  uint64_t offset = 0;
  std::map<std::string_view, int> seen;
  for (const auto& t : tensors) {
    if (!seen.emplace(t.name, 0).second) return bug_error("GGUF writer: tensor \"" + t.name + "\" is given twice");
    if (t.shape.size() > 4)
      return data_error("tensor \"" + t.name + "\" has " + std::to_string(t.shape.size()) +
                        " dimensions, GGUF files have at most 4");
    if (t.name.size() > 63)
      return data_error("tensor name \"" + t.name + "\" is longer than the 63 bytes that llama.cpp reads");
    PITH_ASSIGN(const uint64_t bytes, tensor_bytes(t.name, t.type, t.shape, Limits{}));
    append_string(out, t.name);
    append<uint32_t>(out, static_cast<uint32_t>(t.shape.size()));
    for (size_t k = t.shape.size(); k-- > 0;) append<uint64_t>(out, static_cast<uint64_t>(t.shape[k]));
    append<uint32_t>(out, static_cast<uint32_t>(t.type));
    append<uint64_t>(out, offset);
    sizes.push_back(bytes);
    offset += round_up(bytes, kWriteAlignment);
  }
  out.resize(round_up(out.size(), kWriteAlignment), '\0');
  return out;
}

}  // namespace

std::string_view gguf_type_name(GgufType type) {
  static constexpr std::string_view names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                               "bool", "string", "array", "u64", "i64", "f64"};
  return names[static_cast<uint32_t>(type)];
}

// ---- values
// ----------------------------------------------------------------------------------------------------------

GgufValue GgufValue::encoded(GgufType type, GgufType item, uint64_t count, Bytes raw) {
  GgufValue v;
  v.type_ = type, v.item_ = item, v.count_ = count, v.raw_ = std::move(raw);
  return v;
}

GgufValue GgufValue::u8(uint8_t v) { return scalar(GgufType::u8, v); }
GgufValue GgufValue::u32(uint32_t v) { return scalar(GgufType::u32, v); }
GgufValue GgufValue::i32(int32_t v) { return scalar(GgufType::i32, v); }
GgufValue GgufValue::u64(uint64_t v) { return scalar(GgufType::u64, v); }
GgufValue GgufValue::f32(float v) { return scalar(GgufType::f32, v); }
GgufValue GgufValue::boolean(bool v) { return scalar(GgufType::boolean, static_cast<uint8_t>(v)); }
GgufValue GgufValue::string(std::string_view v) {
  std::string raw;
  append_string(raw, v);
  return encoded(GgufType::string, {}, 1, own_text(std::move(raw)));
}
GgufValue GgufValue::u32s(std::span<const uint32_t> v) { return array(GgufType::u32, v); }
GgufValue GgufValue::i32s(std::span<const int32_t> v) { return array(GgufType::i32, v); }
GgufValue GgufValue::f32s(std::span<const float> v) { return array(GgufType::f32, v); }
GgufValue GgufValue::bools(std::span<const uint8_t> v) { return array(GgufType::boolean, v); }
GgufValue GgufValue::u8s(std::span<const uint8_t> v) { return array(GgufType::u8, v); }
GgufValue GgufValue::strings(std::span<const std::string> v) {
  std::string raw;
  for (const auto& s : v) append_string(raw, s);
  return encoded(GgufType::array, GgufType::string, v.size(), own_text(std::move(raw)));
}

std::optional<int64_t> GgufValue::as_i64() const {
  if (!is_integer(type_)) return std::nullopt;
  if (type_ == GgufType::u64 && load<uint64_t>(raw_.data()) > INT64_MAX) return std::nullopt;
  return with_number(type_, raw_.data(), [](auto v) { return static_cast<int64_t>(v); });
}

std::optional<uint64_t> GgufValue::as_u64() const {
  if (type_ == GgufType::u64) return load<uint64_t>(raw_.data());
  const auto v = as_i64();
  if (!v || *v < 0) return std::nullopt;
  return static_cast<uint64_t>(*v);
}

std::optional<double> GgufValue::as_f64() const {
  if (type_ == GgufType::boolean || scalar_size(type_) == 0) return std::nullopt;
  return with_number(type_, raw_.data(), [](auto v) { return static_cast<double>(v); });
}

std::optional<bool> GgufValue::as_bool() const {
  if (type_ != GgufType::boolean) return std::nullopt;
  return load<uint8_t>(raw_.data()) != 0;
}

std::optional<std::string_view> GgufValue::as_string() const {
  if (type_ != GgufType::string) return std::nullopt;
  return std::string_view(reinterpret_cast<const char*>(raw_.data()) + 8, raw_.size() - 8);
}

std::optional<std::vector<std::string_view>> GgufValue::as_strings() const {
  if (type_ != GgufType::array || item_ != GgufType::string) return std::nullopt;
  std::vector<std::string_view> out;
  out.reserve(count_);  // each takes at least 8 bytes of the file
  const std::byte* p = raw_.data();
  for (uint64_t i = 0; i < count_; ++i) {
    const auto length = load<uint64_t>(p);
    out.emplace_back(reinterpret_cast<const char*>(p) + 8, length);
    p += 8 + length;
  }
  return out;
}

std::optional<std::vector<int64_t>> GgufValue::as_i64s() const {
  if (type_ != GgufType::array || (!is_integer(item_) && item_ != GgufType::boolean)) return std::nullopt;
  const unsigned size = scalar_size(item_);
  std::vector<int64_t> out(count_);
  for (uint64_t i = 0; i < count_; ++i)
    out[i] = with_number(item_, raw_.data() + i * size, [](auto v) { return static_cast<int64_t>(v); });
  return out;
}

std::optional<std::vector<float>> GgufValue::as_f32s() const {
  if (type_ != GgufType::array || (item_ != GgufType::f32 && item_ != GgufType::f64)) return std::nullopt;
  const unsigned size = scalar_size(item_);
  std::vector<float> out(count_);
  for (uint64_t i = 0; i < count_; ++i)
    out[i] = with_number(item_, raw_.data() + i * size, [](auto v) { return static_cast<float>(v); });
  return out;
}

const GgufValue* GgufMetadata::find(std::string_view key) const {
  const auto it = index_.find(key);
  return it == index_.end() ? nullptr : &items_[it->second].second;
}

void GgufMetadata::set(std::string key, GgufValue value) {
  const auto [it, added] = index_.emplace(key, items_.size());
  if (added) {
    items_.emplace_back(std::move(key), std::move(value));
  } else {
    items_[it->second].second = std::move(value);
  }
}

bool GgufMetadata::erase(std::string_view key) {
  const auto it = index_.find(key);
  if (it == index_.end()) return false;
  const size_t gone = it->second;
  items_.erase(items_.begin() + static_cast<std::ptrdiff_t>(gone));
  index_.erase(it);
  for (auto& [name, place] : index_)
    if (place > gone) --place;
  return true;
}

Result<uint32_t> GgufMetadata::get_u32(std::string_view key) const {
  const GgufValue* v = find(key);
  if (v == nullptr) return missing_key(key);
  const auto n = v->as_u64();
  if (!n || *n > UINT32_MAX) return wrong_type(key, "an integer from 0 to 2^32 - 1", *v);
  return static_cast<uint32_t>(*n);
}

Result<double> GgufMetadata::get_f64(std::string_view key) const {
  const GgufValue* v = find(key);
  if (v == nullptr) return missing_key(key);
  const auto n = v->as_f64();
  if (!n) return wrong_type(key, "a number", *v);
  return *n;
}

Result<std::string> GgufMetadata::get_string(std::string_view key) const {
  const GgufValue* v = find(key);
  if (v == nullptr) return missing_key(key);
  const auto s = v->as_string();
  if (!s) return wrong_type(key, "a string", *v);
  return std::string(*s);
}

Result<bool> GgufMetadata::get_bool(std::string_view key) const {
  const GgufValue* v = find(key);
  if (v == nullptr) return missing_key(key);
  const auto b = v->as_bool();
  if (!b) return wrong_type(key, "a bool", *v);
  return *b;
}

Result<uint32_t> GgufMetadata::get_u32(std::string_view key, uint32_t fallback) const {
  if (find(key) == nullptr) return fallback;
  return get_u32(key);
}
Result<double> GgufMetadata::get_f64(std::string_view key, double fallback) const {
  if (find(key) == nullptr) return fallback;
  return get_f64(key);
}
Result<std::string> GgufMetadata::get_string(std::string_view key, std::string fallback) const {
  if (find(key) == nullptr) return fallback;
  return get_string(key);
}
Result<bool> GgufMetadata::get_bool(std::string_view key, bool fallback) const {
  if (find(key) == nullptr) return fallback;
  return get_bool(key);
}

int64_t GgufTensor::rows() const {
  int64_t n = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) n *= shape[i];
  return n;
}

// ---- files
// -----------------------------------------------------------------------------------------------------------

Result<GgufFile> GgufFile::open(const std::string& path, const Limits& limits) {
  PITH_ASSIGN(auto mapped, MappedFile::open(path));
  return parse(Bytes(mapped->bytes(), mapped), path, limits);
}

Result<GgufFile> GgufFile::parse(Bytes bytes, const std::string& label, const Limits& limits) {
  GgufFile file;
  file.file_ = std::move(bytes);
  Cursor in(file.file_.view, label);
  if (in.left() < 4 || std::memcmp(file.file_.data(), "GGUF", 4) != 0)
    return data_error(label + ": does not begin with \"GGUF\"; no GGUF file");
  PITH_TRY(in.skip(4, "magic"));
  PITH_ASSIGN(file.version_, in.number<uint32_t>("version"));
  if (file.version_ != 2 && file.version_ != 3) {
    const uint32_t v = file.version_;
    const uint32_t swapped = v >> 24 | (v >> 8 & 0xff00u) | (v << 8 & 0xff0000u) | v << 24;
    if (swapped >= 1 && swapped <= 3)
      return data_error(label + ": is a big-endian GGUF file; only little-endian ones are read (convert it with " +
                        "llama.cpp's gguf_convert_endian.py)");
    return data_error(label + ": GGUF version " + std::to_string(v) + "; versions 2 and 3 are read");
  }
  PITH_ASSIGN(const uint64_t tensors, in.number<uint64_t>("number of tensors"));
  PITH_ASSIGN(const uint64_t pairs, in.number<uint64_t>("number of metadata keys"));
  if (tensors > limits.max_tensors)
    return data_error(label + ": claims " + std::to_string(tensors) + " tensors, at most " +
                      std::to_string(limits.max_tensors) + " are read");
  if (pairs > limits.max_tensors)
    return data_error(label + ": claims " + std::to_string(pairs) + " metadata keys, at most " +
                      std::to_string(limits.max_tensors) + " are read");
  for (uint64_t i = 0; i < pairs; ++i) {
    PITH_ASSIGN(const std::string_view key, in.string("metadata key", limits));
    if (file.metadata_.find(key) != nullptr)
      return in.error("metadata key", "\"" + std::string(key.substr(0, 200)) + "\" occurs twice");
    PITH_ASSIGN(const uint32_t type, in.number<uint32_t>("metadata type"));
    const std::string what = "metadata \"" + std::string(key.substr(0, 200)) + "\"";
    PITH_ASSIGN(const ValueHead head, scan_value(in, type, what.c_str(), limits, 0));
    file.metadata_.set(std::string(key), GgufValue::encoded(head.type, head.item, head.count,
                                                            file.file_.slice(head.payload, in.at() - head.payload)));
    if (in.at() > limits.max_header_bytes)
      return in.error("metadata",
                      "longer than the " + std::to_string(limits.max_header_bytes) + " bytes that are read");
  }
  if (const GgufValue* v = file.metadata_.find("general.alignment")) {
    const auto a = v->as_u64();
    if (!a || *a == 0 || *a > (1u << 20) || !std::has_single_bit(*a))
      return data_error(label + ": general.alignment should be a power of two up to 2^20");
    file.alignment_ = *a;
  }
  struct Claim {
    uint64_t offset;
    size_t index;
  };
  std::vector<Claim> order;
  for (uint64_t i = 0; i < tensors; ++i) {
    GgufTensor t;
    PITH_ASSIGN(const std::string_view name, in.string("tensor name", limits));
    t.name = name;
    const std::string what = "tensor \"" + t.name.substr(0, 200) + "\"";
    PITH_ASSIGN(const uint32_t dims, in.number<uint32_t>(what.c_str()));
    if (dims > limits.max_dims)
      return in.error(what, "claims " + std::to_string(dims) + " dimensions, at most " +
                                std::to_string(limits.max_dims) + " are read");
    t.shape.resize(dims);
    for (uint32_t k = dims; k-- > 0;) {
      PITH_ASSIGN(const uint64_t d, in.number<uint64_t>(what.c_str()));
      if (d > limits.max_tensor_items) return in.error(what, "claims a dimension of " + std::to_string(d));
      t.shape[k] = static_cast<int64_t>(d);
    }
    PITH_ASSIGN(const uint32_t type, in.number<uint32_t>(what.c_str()));
    const GgmlTraits* traits = ggml_traits(type);
    if (traits == nullptr)
      return in.error(what, "element type " + std::to_string(type) + " is unknown, or was removed from ggml");
    t.type = traits->type;
    PITH_ASSIGN(t.bytes, tensor_bytes(t.name.substr(0, 200), t.type, t.shape, limits).context(label));
    PITH_ASSIGN(t.begin, in.number<uint64_t>(what.c_str()));
    if (t.begin % file.alignment_ != 0)
      return in.error(what, "offset " + std::to_string(t.begin) + " is no multiple of the alignment " +
                                std::to_string(file.alignment_));
    if (!file.index_.emplace(t.name, file.tensors_.size()).second) return in.error(what, "occurs twice");
    order.push_back({t.begin, file.tensors_.size()});
    file.tensors_.push_back(std::move(t));
  }
  if (in.at() > limits.max_header_bytes)
    return in.error("header", "longer than the " + std::to_string(limits.max_header_bytes) + " bytes that are read");
  file.data_begin_ = round_up(in.at(), file.alignment_);
  const uint64_t size = file.file_.size();
  for (auto& t : file.tensors_) {
    if (file.data_begin_ > size || !in_range(t.begin, t.bytes, size - file.data_begin_))
      return data_error(label + ": tensor \"" + t.name.substr(0, 200) + "\" should take " + std::to_string(t.bytes) +
                        " bytes at " + std::to_string(t.begin) + " after byte " + std::to_string(file.data_begin_) +
                        ", the file ends at " + std::to_string(size) + " (truncated?)");
    t.begin += file.data_begin_;
  }
  std::sort(order.begin(), order.end(), [](const Claim& a, const Claim& b) {
    return a.offset != b.offset ? a.offset < b.offset : a.index < b.index;
  });
  for (size_t i = 1; i < order.size(); ++i) {
    const auto& a = file.tensors_[order[i - 1].index];
    const auto& b = file.tensors_[order[i].index];
    if (a.begin + a.bytes > b.begin && b.bytes > 0)
      return data_error(label + ": tensors \"" + a.name.substr(0, 200) + "\" and \"" + b.name.substr(0, 200) +
                        "\" overlap at byte " + std::to_string(b.begin));
  }
  return file;
}

const GgufTensor* GgufFile::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

Result<uint64_t> gguf_file_bytes(const GgufMetadata& metadata, const std::vector<GgufDecl>& tensors) {
  std::vector<uint64_t> sizes;
  PITH_ASSIGN(const std::string head, encode_head(metadata, tensors, sizes));
  uint64_t total = head.size();
  for (uint64_t n : sizes) total += round_up(n, kWriteAlignment);
  return total;
}

Result<GgufWriter> GgufWriter::create(const std::string& path, const GgufMetadata& metadata,
                                      const std::vector<GgufDecl>& tensors, bool overwrite) {
  std::vector<uint64_t> sizes;
  PITH_ASSIGN(const std::string head, encode_head(metadata, tensors, sizes));
  PITH_ASSIGN(auto file, AtomicFile::create(path, overwrite));
  GgufWriter writer(std::move(file));
  writer.sizes_ = std::move(sizes);
  PITH_TRY(writer.file_.write(head));
  PITH_TRY(writer.pad_finished());
  return writer;
}

// Steps over tensors whose bytes are all there.
Status GgufWriter::pad_finished() {
  while (current_ < sizes_.size() && done_ == sizes_[current_]) {
    PITH_TRY(file_.pad_to(kWriteAlignment));
    ++current_;
    done_ = 0;
  }
  return {};
}

Status GgufWriter::write(std::span<const std::byte> data) {
  while (!data.empty()) {
    if (current_ == sizes_.size()) return bug_error("GGUF writer: more data than announced");
    const uint64_t n = std::min<uint64_t>(data.size(), sizes_[current_] - done_);
    PITH_TRY(file_.write(data.first(n)));
    done_ += n;
    data = data.subspan(n);
    PITH_TRY(pad_finished());
  }
  return {};
}

Status GgufWriter::finish() {
  if (current_ != sizes_.size())
    return bug_error("GGUF writer: data of " + std::to_string(sizes_.size() - current_) + " tensors is missing");
  return file_.commit();
}

}  // namespace pith
