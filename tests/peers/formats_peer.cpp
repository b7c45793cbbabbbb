// Drives the readers and writers of src/formats for formats_peers_test.py: what one side writes, the other reads.
// usage: formats_peer COMMAND ARGUMENTS; prints errors on stderr and returns 1.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "formats/gguf.h"
#include "formats/gguf_model.h"
#include "formats/huggingface.h"
#include "formats/json_text.h"
#include "formats/safetensors.h"

namespace pith {
namespace {

using Arguments = std::vector<std::string>;

// IN OUT: everything that the reader found, through the writer.
Status gguf_copy(const Arguments& a) {
  PITH_ASSIGN(const auto in, GgufFile::open(a.at(0), {}));
  std::vector<GgufDecl> decls;
  for (const auto& t : in.tensors()) decls.push_back({t.name, t.type, t.shape});
  PITH_ASSIGN(auto out, GgufWriter::create(a.at(1), in.metadata(), decls, true));
  for (const auto& t : in.tensors()) PITH_TRY(out.write(in.data(t).view));
  return out.finish();
}

// IN OUT: every tensor decoded to F32, as safetensors.
Status gguf_decode(const Arguments& a) {
  PITH_ASSIGN(const auto in, GgufFile::open(a.at(0), {}));
  std::vector<SafetensorsDecl> decls;
  for (const auto& t : in.tensors()) decls.push_back({t.name, DType::f32, t.shape});
  PITH_ASSIGN(auto out, SafetensorsWriter::create(a.at(1), decls, {{"from", "gguf"}}, true));
  std::vector<float> row;
  for (const auto& t : in.tensors()) {
    row.resize(static_cast<size_t>(t.row_length()));
    for (int64_t r = 0; r < t.rows(); ++r) {
      const auto data = in.data(t).slice(static_cast<size_t>(r) * t.row_bytes(), t.row_bytes());
      dequantize_row(t.type, data.data(), t.row_length(), row.data());
      PITH_TRY(out.write(std::as_bytes(std::span(row))));
    }
  }
  return out.finish();
}

// IN OUT: copies entries, data and metadata of a safetensors file or sharded folder.
Status safetensors_copy(const Arguments& a) {
  PITH_ASSIGN(const auto in, ShardedSafetensors::open(a.at(0), {}));
  std::vector<SafetensorsDecl> decls;
  for (const auto& f : in.all()) decls.push_back({f.entry->name, f.entry->type, f.entry->shape});
  PITH_ASSIGN(auto out, SafetensorsWriter::create(a.at(1), decls, in.shards().front().metadata(), true));
  for (const auto& f : in.all()) PITH_TRY(out.write(f.data().view));
  return out.finish();
}

// IN OUT: writes one F32 tensor "x" of a safetensors file as a GGUF tensor of every writable type, named by the type.
Status quantize(const Arguments& a) {
  PITH_ASSIGN(const auto in, SafetensorsFile::open(a.at(0), {}));
  const auto* x = in.find("x");
  if (x == nullptr || x->type != DType::f32) return data_error("needs an F32 tensor x");
  std::vector<GgufDecl> decls;
  for (const auto& t : all_ggml_types())
    if (t.writable) decls.push_back({std::string(t.name), t.type, x->shape});
  GgufMetadata metadata;
  metadata.set("general.architecture", GgufValue::string("llama"));
  PITH_ASSIGN(auto out, GgufWriter::create(a.at(1), metadata, decls, true));
  int64_t items = 1;
  for (int64_t d : x->shape) items *= d;
  for (const auto& d : decls) {
    std::vector<std::byte> bytes(*ggml_row_bytes(d.type, items));
    quantize_row(d.type, in.data(*x).as<float>().data(), items, nullptr, bytes.data());
    PITH_TRY(out.write(bytes));
  }
  return out.finish();
}

Status write_tokenizer(const TokenizerSpec& spec, const std::string& folder) {
  // Through the packed form, so that it is tested on real tokenizers as well.
  const std::string packed = pack_tokenizer(spec);
  PITH_ASSIGN(const auto again, unpack_tokenizer(packed, {}));
  if (pack_tokenizer(again) != packed) return bug_error("packing is not stable");
  std::printf("%zu bytes packed\n", packed.size());
  PITH_TRY(write_file(folder + "/tokenizer.json", json_text(tokenizer_to_hf(again)), true));
  return write_file(folder + "/tokenizer_config.json", json_text(tokenizer_config_to_hf(again)), true);
}

// FOLDER OUTFOLDER: tokenizer.json read and written.
Status tokenizer_hf(const Arguments& a) {
  PITH_ASSIGN(const auto tokenizer, read_json(a.at(0) + "/tokenizer.json", {}));
  nlohmann::json config;
  if (file_exists(a.at(0) + "/tokenizer_config.json")) {
    PITH_ASSIGN(config, read_json(a.at(0) + "/tokenizer_config.json", {}));
  }
  PITH_ASSIGN(const auto spec, tokenizer_from_hf(tokenizer, config, {}, {}));
  return write_tokenizer(spec, a.at(1));
}

// IN.gguf OUTFOLDER
Status tokenizer_gguf(const Arguments& a) {
  PITH_ASSIGN(const auto in, GgufFile::open(a.at(0), {}));
  PITH_ASSIGN(const auto spec, tokenizer_from_gguf(in.metadata(), {}));
  return write_tokenizer(spec, a.at(1));
}

// FOLDER OUT.gguf F16|F32: a Hugging Face model as GGUF.
Status hf_to_gguf(const Arguments& a) {
  PITH_ASSIGN(const auto model, open_huggingface(a.at(0), {}));
  PITH_ASSIGN(auto metadata, gguf_metadata_from_config(model.config));
  PITH_TRY(gguf_metadata_from_tokenizer(model.tokenizer, metadata));
  PITH_ASSIGN(const auto layout, gguf_layout(model.config));
  const GgmlType wide = a.at(2) == "F32" ? GgmlType::f32 : GgmlType::f16;
  std::vector<GgufDecl> decls;
  for (const auto& e : layout) {
    bool f32 = e.canonical.empty();
    for (const auto& c : e.canonical) {
      PITH_ASSIGN(const auto place, gguf_place(model.config, c));
      f32 = place.f32;
    }
    decls.push_back({e.name, f32 ? GgmlType::f32 : wide, e.shape});
  }
  PITH_ASSIGN(auto out, GgufWriter::create(a.at(1), metadata, decls, true));
  for (size_t i = 0; i < layout.size(); ++i) {
    if (layout[i].canonical.empty()) {
      const auto factors = rope_freq_factors(model.config);
      PITH_TRY(out.write(std::as_bytes(std::span(factors))));
    }
    for (const auto& c : layout[i].canonical) {
      PITH_ASSIGN(const auto place, gguf_place(model.config, c));
      const auto found = model.find(c);
      // A bias of q or k is a vector whose elements are permuted as the rows are.
      const bool permuted = place.permuted_heads > 0;
      const int64_t first = found->entry->shape[0];
      const int64_t rows = found->entry->shape.size() > 1 || permuted ? first : 1;
      const int64_t cols = found->entry->shape.size() > 1 ? found->entry->shape[1] : first / rows;
      const auto order = gguf_row_order(rows, place.permuted_heads);
      std::vector<float> row(static_cast<size_t>(cols));
      std::vector<std::byte> bytes(*ggml_row_bytes(decls[i].type, cols));
      for (const int64_t r : order) {
        to_float(found->entry->type, found->data().data() + r * cols * dtype_size(found->entry->type), cols,
                 row.data());
        if (place.plus_one)
          for (float& v : row) v += 1;
        quantize_row(decls[i].type, row.data(), cols, nullptr, bytes.data());
        PITH_TRY(out.write(bytes));
      }
    }
  }
  return out.finish();
}

// FOLDER OUTFOLDER: a Hugging Face folder read and written as F32.
Status hf_copy(const Arguments& a) {
  PITH_ASSIGN(const auto model, open_huggingface(a.at(0), {}));
  return write_huggingface(
      a.at(1), model.config, model.tokenizer, DType::f32,
      [&](const TensorSpec& spec, int64_t r0, int64_t r1, float* out) -> Status {
        const auto found = model.find(spec.name);
        const int64_t cols = spec.shape.back();
        to_float(found->entry->type, found->data().data() + r0 * cols * dtype_size(found->entry->type),
                 (r1 - r0) * cols, out);
        return {};
      },
      true);
}

// IN.gguf: the configuration as config.json on stdout.
Status gguf_config(const Arguments& a) {
  PITH_ASSIGN(const auto in, GgufFile::open(a.at(0), {}));
  PITH_ASSIGN(const auto config, lm_config_from_gguf(in));
  std::puts(json_text(lm_config_to_hf(config), 1).c_str());
  return {};
}

struct Command {
  const char* name;
  size_t arguments;
  Status (*run)(const Arguments&);
};
constexpr Command kCommands[] = {
    {"gguf-copy", 2, gguf_copy},   {"gguf-decode", 2, gguf_decode},   {"safetensors-copy", 2, safetensors_copy},
    {"quantize", 2, quantize},     {"tokenizer-hf", 2, tokenizer_hf}, {"tokenizer-gguf", 2, tokenizer_gguf},
    {"hf-to-gguf", 3, hf_to_gguf}, {"hf-copy", 2, hf_copy},           {"gguf-config", 1, gguf_config},
};

}  // namespace
}  // namespace pith

int main(int argc, char** argv) {
  for (const auto& c : pith::kCommands)
    if (argc == static_cast<int>(c.arguments) + 2 && std::strcmp(argv[1], c.name) == 0) {
      const auto status = c.run(pith::Arguments(argv + 2, argv + argc));
      if (status.ok()) return 0;
      std::fprintf(stderr, "%s\n", status.error().message.c_str());
      return 1;
    }
  std::fprintf(stderr, "unknown command\n");
  return 2;
}
