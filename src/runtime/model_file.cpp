#include "runtime/model_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_set>

#include "base/file.h"
#include "base/hash.h"
#include "entropy/codes.h"
#include "formats/gguf.h"
#include "formats/gguf_model.h"
#include "formats/huggingface.h"
#include "formats/json_text.h"
#include "formats/pith_file.h"
#include "formats/safetensors.h"
#include "represent/blocks.h"
#include "represent/codebook.h"
#include "represent/dense.h"
#include "represent/grid.h"
#include "represent/sparse.h"

namespace pith {

using nlohmann::json;

Result<ModelKind> sniff(const std::string& path) {
  if (!file_exists(path)) return user_error(path + ": no such file or folder");
  if (is_directory(path)) {
    if (file_exists(path + "/config.json")) return ModelKind::hf_folder;
    return user_error(path + ": is a folder without config.json; expected a Hugging Face model folder");
  }
  PITH_ASSIGN(auto file, MappedFile::open(path));
  const auto bytes = file->bytes();
  if (bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0) return ModelKind::gguf;
  if (PithFile::recognise(path)) return ModelKind::pith;
  // safetensors: length of the header, then an object that reaches no further than the file.
  uint64_t header = 0;
  if (bytes.size() >= 9) std::memcpy(&header, bytes.data(), 8);
  if (bytes.size() >= 9 && header >= 2 && header <= bytes.size() - 8 && bytes[8] == std::byte{'{'})
    return ModelKind::safetensors;
  return data_error(path + ": is neither GGUF nor safetensors nor .pith (or it is cut short)");
}

// ---- GGUF ---------------------------------------------------------------------------------------

static std::optional<DType> dense_type(GgmlType type) {
  switch (type) {
    case GgmlType::f32:
      return DType::f32;
    case GgmlType::f16:
      return DType::f16;
    case GgmlType::bf16:
      return DType::bf16;
    case GgmlType::f64:
      return DType::f64;
    default:
      return std::nullopt;
  }
}

static bool is_integer(GgmlType type) {
  return type == GgmlType::i8 || type == GgmlType::i16 || type == GgmlType::i32 || type == GgmlType::i64;
}

static Result<NodePtr> node_of_gguf(const GgufFile& file, const GgufTensor& tensor, const GgufPlace& place,
                                    const MatrixShape& shape) {
  if (is_integer(tensor.type)) return data_error("holds integers, weights were expected");
  Bytes data = file.data(tensor);
  if (place.expert >= 0) {
    const int64_t experts = tensor.shape.empty() ? 0 : tensor.shape.front();
    if (tensor.shape.size() != 3 || place.expert >= experts)
      return data_error(fmt::format("expected {} or more experts stacked in three dimensions", place.expert + 1));
    const uint64_t one = tensor.bytes / static_cast<uint64_t>(experts);
    data = data.slice(one * static_cast<uint64_t>(place.expert), one);
  }
  const auto dense = dense_type(tensor.type);
  // A vector is one row for us, but it is its elements that llama.cpp permutes.
  const int64_t rows = shape.rows == 1 && place.permuted_heads > 0 ? shape.cols : shape.rows;
  if (place.permuted_heads > 0) {
    if (rows != shape.rows && !dense) return data_error("a permuted vector in blocks is not supported");
    if (rows % place.permuted_heads != 0 || data.size() % static_cast<uint64_t>(rows) != 0)
      return data_error(fmt::format("{} rows are no multiple of {} heads", rows, place.permuted_heads));
    const auto order = gguf_row_order(rows, place.permuted_heads);
    const size_t row_bytes = data.size() / static_cast<size_t>(rows);
    std::vector<std::byte> sorted(data.size());
    for (size_t i = 0; i < order.size(); ++i)
      std::memcpy(sorted.data() + static_cast<size_t>(order[i]) * row_bytes, data.data() + i * row_bytes, row_bytes);
    data = Bytes::own(std::move(sorted));
  }
  if (!dense) return Blocks::make(tensor.type, shape.rows, shape.cols, std::move(data));
  if (!place.plus_one) return Dense::make(*dense, shape.rows, shape.cols, std::move(data));
  PITH_ASSIGN(NodePtr stored, Dense::make(*dense, shape.rows, shape.cols, std::move(data)));
  auto values = decode_all(*stored);
  for (float& v : values) v -= 1.0f;
  return Dense::from(DType::f32, shape.rows, shape.cols, values);
}

static Result<Model> open_gguf(const std::string& path, const Limits& limits) {
  PITH_ASSIGN(GgufFile file, GgufFile::open(path, limits));
  Model model;
  model.origin = path;
  PITH_ASSIGN(model.config, lm_config_from_gguf(file).context(path));
  PITH_ASSIGN(model.tokenizer, tokenizer_from_gguf(file.metadata(), limits).context(path));
  std::unordered_set<std::string_view> used;
  for (TensorSpec& spec : expected_tensors(model.config)) {
    PITH_ASSIGN(const GgufPlace place, gguf_place(model.config, spec.name).context(path));
    const GgufTensor* tensor = file.find(place.name);
    if (tensor == nullptr)
      return data_error(fmt::format("{}: tensor '{}' (for {}) is missing", path, place.name, spec.name));
    used.insert(tensor->name);
    std::vector<int64_t> found = tensor->shape;
    if (place.expert >= 0 && !found.empty()) found.erase(found.begin());
    if (found != spec.shape)
      return data_error(fmt::format("{}: tensor '{}' has shape {}, the configuration asks for {}", path, place.name,
                                    json(found).dump(), json(spec.shape).dump()));
    PITH_ASSIGN(const MatrixShape shape, matrix_shape(spec.shape).context(path));
    PITH_ASSIGN(NodePtr node,
                node_of_gguf(file, *tensor, place, shape).context(path + ": tensor '" + place.name + "'"));
    model.tensors.push_back({std::move(spec.name), std::move(spec.shape), std::move(node)});
  }
  // What nobody asked for may change what the model computes, except RoPE factors, which are in the configuration.
  for (const GgufTensor& tensor : file.tensors())
    if (!used.contains(tensor.name) && !tensor.name.starts_with("rope_"))
      return data_error(fmt::format("{}: tensor '{}' is no part of architecture {} as Pith knows it", path, tensor.name,
                                    model.config.architecture));
  return model;
}

// ---- Hugging Face -------------------------------------------------------------------------------

static bool ignorable_in_hf(const LmConfig& config, std::string_view name) {
  if (name == "lm_head.weight" || name.ends_with(".lm_head.weight")) return config.tied_embeddings;
  for (const std::string_view part : {"rotary_emb.", "vision_tower.", "multi_modal_projector.", "vision_model."})
    if (name.find(part) != std::string_view::npos) return true;
  return false;
}

static Result<Model> open_hf(const std::string& path, const Limits& limits) {
  PITH_ASSIGN(HfModel hf, open_huggingface(path, limits));
  Model model;
  model.origin = path;
  model.config = hf.config;
  model.tokenizer = std::move(hf.tokenizer);
  std::unordered_set<const SafetensorsEntry*> used;
  for (TensorSpec& spec : expected_tensors(model.config)) {
    const auto found = hf.find(spec.name);
    if (!found) return data_error(fmt::format("{}: tensor '{}' is missing", path, spec.name));
    used.insert(found->entry);
    PITH_ASSIGN(const MatrixShape shape, matrix_shape(spec.shape).context(path));
    PITH_ASSIGN(NodePtr node, Dense::make(found->entry->type, shape.rows, shape.cols, found->data())
                                  .context(path + ": tensor '" + spec.name + "'"));
    model.tensors.push_back({std::move(spec.name), std::move(spec.shape), std::move(node)});
  }
  for (const auto& found : hf.weights.all())
    if (!used.contains(found.entry) && !ignorable_in_hf(model.config, found.entry->name))
      return data_error(fmt::format("{}: tensor '{}' is no part of architecture {} as Pith knows it", path,
                                    found.entry->name, model.config.architecture));
  return model;
}

// ---- .pith --------------------------------------------------------------------------------------

namespace {

class PithSections final : public SectionSource {
 public:
  explicit PithSections(const PithFile& file) : file_(file) {}
  Result<Section> find(std::string_view name) const override {
    const PithSection* s = file_.find(name);
    if (s == nullptr) return data_error("section '" + std::string(name) + "' is missing");
    return Section{s->type, s->shape, s->data};
  }

 private:
  const PithFile& file_;
};

// Collects one tensor's sections at a time, and the shared ones of all.
class PithSink final : public SectionSink {
 public:
  void add(std::string name, DType type, std::vector<int64_t> shape, Bytes data) override {
    own.push_back({std::move(name), type, std::move(shape), std::move(data)});
  }
  std::string add_shared(std::string key, DType type, std::vector<int64_t> shape, Bytes data) override {
    std::string name = "shared." + key;
    if (seen_.insert(name).second) shared.push_back({name, type, std::move(shape), std::move(data)});
    return name;
  }
  std::vector<PithSection> own, shared;

 private:
  std::set<std::string> seen_;
};

Result<Model> model_of_pith(const PithFile& file, const std::string& path, const Limits& limits) {
  Model model;
  model.origin = path;
  model.plan_json = file.plan();
  model.report_json = file.report();
  PITH_ASSIGN(const json config, parse_json(file.config(), path + ": configuration", limits));
  PITH_ASSIGN(model.config, lm_config_from_hf(config).context(path + ": configuration"));
  if (!file.tokenizer().empty()) {
    PITH_ASSIGN(model.tokenizer, unpack_tokenizer(file.tokenizer(), limits).context(path + ": tokenizer"));
  }
  const PithSections sections(file);
  const ParseContext context{sections, limits, entropy_codes_formats()};
  for (const PithTensor& tensor : file.tensors()) {
    const std::string where = path + ": tensor '" + tensor.name + "'";
    PITH_ASSIGN(const json tree, parse_json(tensor.tree, where, limits));
    PITH_ASSIGN(NodePtr node, parse_node(tree, context).context(where));
    model.tensors.push_back({tensor.name, tensor.shape, std::move(node)});
  }
  return model;
}

PithContents contents_of(const Model& model) {
  PithContents contents;
  contents.config = json_text(lm_config_to_hf(model.config));
  if (model.tokenizer.kind != TokenizerSpec::Kind::none) contents.tokenizer = pack_tokenizer(model.tokenizer);
  contents.plan = model.plan_json;
  contents.report = model.report_json;
  PithSink sink;
  for (const ModelTensor& tensor : model.tensors) {
    const json tree = tensor.node->serialize(tensor.name, sink);
    contents.tensors.push_back({tensor.name, tensor.shape, json_text(tree), std::move(sink.own)});
    sink.own.clear();
  }
  contents.shared = std::move(sink.shared);
  return contents;
}

}  // namespace

Status write_pith(const Model& model, const std::string& path, bool overwrite) {
  PITH_TRY(check_model(model));
  return write_pith(path, contents_of(model), overwrite);
}

Result<uint64_t> pith_model_bytes(const Model& model) { return pith_file_bytes(contents_of(model)); }

// ---- opening ------------------------------------------------------------------------------------

Result<Model> open_model(const std::string& path, const Limits& limits) {
  PITH_ASSIGN(const ModelKind kind, sniff(path));
  Result<Model> model = [&]() -> Result<Model> {
    switch (kind) {
      case ModelKind::gguf:
        return open_gguf(path, limits);
      case ModelKind::pith: {
        PITH_ASSIGN(const PithFile file, PithFile::open(path, limits));
        return model_of_pith(file, path, limits);
      }
      default:
        return open_hf(path, limits);
    }
  }();
  if (model.ok()) PITH_TRY(check_model(*model).context(path));
  return model;
}

Result<Model> parse_pith(Bytes file, const std::string& label, const Limits& limits) {
  PITH_ASSIGN(const PithFile parsed, PithFile::parse(std::move(file), label, limits));
  auto model = model_of_pith(parsed, label, limits);
  if (model.ok()) PITH_TRY(check_model(*model).context(label));
  return model;
}

// ---- GGUF out -----------------------------------------------------------------------------------

namespace {

// One canonical tensor on its way into a GGUF file.
struct GgufPart {
  const ModelTensor* tensor;
  GgufPlace place;
  GgmlType type;
};

struct GgufOut {
  GgufMetadata metadata;
  std::vector<GgufDecl> tensors;
  std::vector<std::vector<GgufPart>> parts;  // one list a GGUF tensor
};

Result<GgmlType> gguf_type(const ModelTensor& tensor, const GgufPlace& place) {
  if (place.f32 || place.plus_one) return GgmlType::f32;
  if (const auto* blocks = dynamic_cast<const Blocks*>(tensor.node.get())) return blocks->type();
  if (const auto* dense = dynamic_cast<const Dense*>(tensor.node.get())) {
    switch (dense->type()) {
      case DType::f16:
        return GgmlType::f16;
      case DType::bf16:
        return GgmlType::bf16;
      case DType::f32:
        return GgmlType::f32;
      default:
        break;
    }
  }
  return user_error(fmt::format(
      "tensor '{}' is stored as {}, which GGUF cannot hold; quantize it to a GGUF type first (`pith quantize "
      "gguf`), or export to .pith",
      tensor.name, tensor.node->describe()));
}

// llama.cpp's number for "mostly this type" (general.file_type).
uint32_t file_type_of(GgmlType type) {
  static constexpr std::pair<GgmlType, uint32_t> kTypes[] = {
      {GgmlType::f32, 0},      {GgmlType::f16, 1},     {GgmlType::q4_0, 2},     {GgmlType::q4_1, 3},
      {GgmlType::q8_0, 7},     {GgmlType::q5_0, 8},    {GgmlType::q5_1, 9},     {GgmlType::q2_k, 10},
      {GgmlType::q3_k, 12},    {GgmlType::q4_k, 15},   {GgmlType::q5_k, 17},    {GgmlType::q6_k, 18},
      {GgmlType::iq2_xxs, 19}, {GgmlType::iq2_xs, 20}, {GgmlType::iq3_xxs, 23}, {GgmlType::iq1_s, 24},
      {GgmlType::iq4_nl, 25},  {GgmlType::iq3_s, 26},  {GgmlType::iq2_s, 28},   {GgmlType::iq4_xs, 30},
      {GgmlType::iq1_m, 31},   {GgmlType::bf16, 32},   {GgmlType::tq1_0, 36},   {GgmlType::tq2_0, 37}};
  for (const auto& [t, number] : kTypes)
    if (t == type) return number;
  return 1;
}

Result<GgufOut> plan_gguf(const Model& model) {
  PITH_TRY(check_model(model));
  GgufOut out;
  PITH_ASSIGN(out.metadata, gguf_metadata_from_config(model.config));
  PITH_ASSIGN(auto layout, gguf_layout(model.config));
  std::map<GgmlType, int64_t> weights;
  for (GgufLayoutEntry& entry : layout) {
    std::vector<GgufPart> parts;
    for (const std::string& name : entry.canonical) {
      const ModelTensor* tensor = model.find(name);
      if (tensor == nullptr) return bug_error(fmt::format("tensor '{}' of the GGUF layout is missing", name));
      PITH_ASSIGN(GgufPlace place, gguf_place(model.config, name));
      PITH_ASSIGN(const GgmlType type, gguf_type(*tensor, place));
      if (!parts.empty() && parts[0].type != type)
        return user_error(fmt::format("'{}' is {} and '{}' is {}, but GGUF stacks all experts of a layer in one type",
                                      parts[0].tensor->name, ggml_traits(parts[0].type).name, name,
                                      ggml_traits(type).name));
      weights[type] += tensor->node->rows() * tensor->node->cols();
      parts.push_back({tensor, std::move(place), type});
    }
    if (parts.empty()) return bug_error(fmt::format("GGUF tensor '{}' is made of nothing", entry.name));
    out.tensors.push_back({std::move(entry.name), parts[0].type, std::move(entry.shape)});
    out.parts.push_back(std::move(parts));
  }
  const auto most = std::max_element(weights.begin(), weights.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  out.metadata.set("general.file_type", GgufValue::u32(file_type_of(most->first)));
  out.metadata.set("general.quantization_version", GgufValue::u32(2));
  if (model.tokenizer.kind != TokenizerSpec::Kind::none)
    PITH_TRY(gguf_metadata_from_tokenizer(model.tokenizer, out.metadata));
  return out;
}

Status write_part(const GgufPart& part, GgufWriter& writer) {
  const Node& node = *part.tensor->node;
  // Vectors that llama.cpp permutes move element by element.
  const int64_t rows = node.rows() == 1 && part.place.permuted_heads > 0 ? node.cols() : node.rows();
  std::vector<std::byte> converted;
  std::span<const std::byte> data;
  const auto* blocks = dynamic_cast<const Blocks*>(&node);
  const auto* dense = dynamic_cast<const Dense*>(&node);
  if (blocks != nullptr && blocks->type() == part.type) {
    data = blocks->data().view;
  } else if (dense != nullptr && dense_type(part.type) == dense->type() && !part.place.plus_one) {
    data = dense->data().view;
  } else {  // norms, biases, the router: small
    std::vector<float> values = decode_all(node);
    if (part.place.plus_one)
      for (float& v : values) v += 1.0f;
    const auto raw = std::as_bytes(std::span(values));
    converted.assign(raw.begin(), raw.end());
    data = converted;
  }
  if (part.place.permuted_heads == 0) return writer.write(data);
  const auto order = gguf_row_order(rows, part.place.permuted_heads);
  const size_t row_bytes = data.size() / static_cast<size_t>(rows);
  std::vector<std::byte> sorted(data.size());
  for (size_t i = 0; i < order.size(); ++i)
    std::memcpy(sorted.data() + i * row_bytes, data.data() + static_cast<size_t>(order[i]) * row_bytes, row_bytes);
  return writer.write(sorted);
}

}  // namespace

Result<uint64_t> gguf_model_bytes(const Model& model) {
  PITH_ASSIGN(const GgufOut out, plan_gguf(model));
  return gguf_file_bytes(out.metadata, out.tensors);
}

Status write_gguf_model(const Model& model, const std::string& path, bool overwrite) {
  PITH_ASSIGN(const GgufOut out, plan_gguf(model));
  PITH_ASSIGN(GgufWriter writer, GgufWriter::create(path, out.metadata, out.tensors, overwrite));
  for (const auto& parts : out.parts)
    for (const GgufPart& part : parts) PITH_TRY(write_part(part, writer));
  return writer.finish();
}

// ---- Hugging Face out ---------------------------------------------------------------------------

Status write_hf_folder(const Model& model, const std::string& path, DType dtype, bool overwrite,
                       const std::function<Status(const std::string& folder)>& more) {
  PITH_TRY(check_model(model));
  return write_huggingface(
      path, model.config, model.tokenizer, dtype,
      [&](const TensorSpec& spec, int64_t r0, int64_t r1, float* out) -> Status {
        const ModelTensor* tensor = model.find(spec.name);
        if (tensor == nullptr) return bug_error("tensor '" + spec.name + "' is missing");
        tensor->node->decode_rows(r0, r1, out);
        return {};
      },
      overwrite, more);
}

// ---- verify -------------------------------------------------------------------------------------

namespace {

// Entropy-coded codes that end as undamaged ones do.
bool codes_intact(const CodesPtr& codes) {
  const auto* coded = dynamic_cast<const RansCodes*>(codes.get());
  return coded == nullptr || coded->intact();
}

bool node_intact(const Node& node) {
  if (const auto* grid = dynamic_cast<const Grid*>(&node)) {
    for (const FieldPtr& field : {grid->scale(), grid->zero()})
      if (const auto* two_level = dynamic_cast<const TwoLevelField*>(field.get()))
        if (!codes_intact(two_level->codes())) return false;
    if (!codes_intact(grid->codes())) return false;
  }
  if (const auto* book = dynamic_cast<const Codebook*>(&node))
    if (!codes_intact(book->codes())) return false;
  if (const auto* mask = dynamic_cast<const NMask*>(&node))
    if (!codes_intact(mask->patterns())) return false;
  for (const NodePtr& child : node.children())
    if (!node_intact(*child)) return false;
  return true;
}

Check verdict(std::string name, const Status& status, const std::string& detail) {
  return {std::move(name), status.ok(), status.ok() ? detail : status.error().message};
}

template <class T>
Status status_of(const Result<T>& result) {
  if (result.ok()) return {};
  return result.error();
}

Status check_codes_intact(const Model& model) {
  for (const ModelTensor& tensor : model.tensors)
    if (!node_intact(*tensor.node))
      return data_error("tensor '" + tensor.name + "': entropy-coded codes do not end as they should");
  return {};
}

Status check_sizes(const PithFile& file, const Model& model) {
  uint64_t sections = 0, count = 2;  // beside the sections: the tokenizer, and the end of the file
  const auto add = [&](const std::vector<PithSection>& list) {
    count += list.size();
    for (const PithSection& s : list) sections += s.data.size();
  };
  for (const PithTensor& tensor : file.tensors()) add(tensor.sections);
  add(file.shared());
  // Nothing in the file that no tree uses, nothing counted twice.
  if (const uint64_t counted = model.bits().total(); counted != 8 * sections)
    return data_error(fmt::format("the trees account for {} bits, the sections hold {}", counted, 8 * sections));
  // Sections begin at multiples of 64 bytes, so each may be followed by up to 63 bytes of padding.
  const uint64_t known = file.header_bytes() + sections + file.tokenizer().size();
  if (file.file_bytes() < known || file.file_bytes() - known >= 64 * count)
    return data_error(
        fmt::format("header, sections and tokenizer take {} bytes, the file has {}", known, file.file_bytes()));
  return {};
}

Status check_tokenizer(const Model& model) {
  const auto tokens = static_cast<int64_t>(model.tokenizer.tokens.size());
  if (tokens > model.config.vocab)
    return data_error(fmt::format("{} tokens, the embedding has {} rows", tokens, model.config.vocab));
  return {};
}

}  // namespace

std::vector<Check> verify_model(const std::string& path, const Limits& limits) {
  std::vector<Check> checks;
  const auto kind = sniff(path);
  checks.push_back(verdict("recognised", status_of(kind), "the first bytes say what it is"));
  if (!kind.ok()) return checks;
  std::optional<PithFile> file;
  if (*kind == ModelKind::pith) {
    auto opened = PithFile::open(path, limits);
    checks.push_back(verdict("header", status_of(opened), "lengths and places of all sections"));
    if (!opened.ok()) return checks;
    file = std::move(opened).value();
    checks.push_back(verdict("checksums", file->verify(), fmt::format("{} tensors", file->tensors().size())));
  }
  Result<Model> model = open_model(path, limits);
  checks.push_back(verdict("opens", status_of(model), "configuration, tokenizer, trees, names and shapes"));
  if (!model.ok()) return checks;
  const Model& m = *model;
  if (file) {
    checks.push_back(
        verdict("sizes add up", check_sizes(*file, m),
                fmt::format("{} bytes of header and {} bits of sections", file->header_bytes(), m.bits().total())));
    checks.push_back(verdict("codes", check_codes_intact(m), "entropy-coded codes end as they should"));
  }
  checks.push_back(verdict("tokenizer", check_tokenizer(m), fmt::format("{} tokens", m.tokenizer.tokens.size())));
  checks.push_back(verdict("finite", check_finite(m), fmt::format("{} weights", m.parameters())));
  return checks;
}

}  // namespace pith
