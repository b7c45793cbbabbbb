#include "runtime/export_compressed_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "base/bits.h"
#include "formats/huggingface.h"
#include "formats/safetensors.h"
#include "represent/blocks.h"
#include "represent/combine.h"
#include "represent/dense.h"
#include "represent/grid.h"
#include "represent/json_read.h"
#include "runtime/export_folder.h"

namespace pith {

using nlohmann::json;

namespace {

// How a matrix is quantized, in the words of compressed-tensors. Matrices of one scheme form a config group.
struct Scheme {
  int bits = 0;
  int64_t group = 0;  // 0: one scale a row ("channel")
  bool symmetric = true;
  bool int8_activations = false;

  auto operator<=>(const Scheme&) const = default;
};

// x_q = code + shift lies in [-2^(bits-1), 2^(bits-1)); w = scale * (x_q - zero_point).
struct Quantized {
  Scheme scheme;
  const Grid* grid = nullptr;
  int shift = 0;
};

struct Out {
  const ModelTensor* tensor = nullptr;
  std::optional<Quantized> quantized;  // empty: decoded
};

bool is_linear(std::string_view name) {
  return name.ends_with(".weight") && name.find("embed_tokens") == std::string_view::npos &&
         (name.find("_proj.") != std::string_view::npos || name.find(".experts.") != std::string_view::npos ||
          name == "lm_head.weight" || name.find("moe.gate.") != std::string_view::npos);
}

// The scheme of a tree, or why there is none.
Result<Quantized> scheme_of(const Node& node) {
  Quantized q;
  const Node* inner = &node;
  if (const auto* dynamic = dynamic_cast<const DynamicInt8*>(inner)) {
    q.scheme.int8_activations = dynamic->threshold() == 0;
    inner = dynamic->child().get();
  }
  q.grid = dynamic_cast<const Grid*>(inner);
  if (q.grid == nullptr) return user_error("a " + std::string(inner->kind()) + " node has no place in this layout");
  if (!q.grid->uniform()) return user_error("its levels are a table, not evenly spaced");
  const auto* scale = dynamic_cast<const AffineField*>(q.grid->scale().get());
  const auto* zero = dynamic_cast<const AffineField*>(q.grid->zero().get());
  if (scale == nullptr || (q.grid->zero() != nullptr && zero == nullptr))
    return user_error("its scales are stored in two levels or by row and column");
  if (zero != nullptr && zero->group() != scale->group()) return user_error("scales and zeros have different groups");
  if (scale->group() != node.cols()) {
    if (node.cols() % scale->group() != 0)
      return user_error(fmt::format("groups of {} do not divide rows of {}", scale->group(), node.cols()));
    q.scheme.group = scale->group();
  }

  // The codes that occur decide the number of bits and, without a zero, whether the grid is symmetric.
  const auto [low, high] = q.grid->codes()->range();
  q.scheme.bits = high - low < 16 ? 4 : 8;
  const int half = 1 << (q.scheme.bits - 1);
  if (high - low >= 2 * half) return user_error("its codes need more than 8 bits");
  if (zero == nullptr && low >= -half && high < half) return q;  // symmetric as it stands
  q.scheme.symmetric = false;
  q.shift = -half - low;
  std::vector<float> zeros(static_cast<size_t>(zero == nullptr ? 1 : zero->groups()), 0.0f);
  for (int64_t r = 0; r < (zero == nullptr ? 1 : node.rows()); ++r) {
    if (zero != nullptr) zero->row(r, zeros.data());
    for (const float z : zeros) {
      const float moved = z + static_cast<float>(q.shift);
      if (moved != std::nearbyint(moved) || moved < -half || moved >= half)
        return user_error(
            fmt::format("zero {} of row {} is not a code of the grid, as this layout wants (use a "
                        "symmetric grid, or integer zeros)",
                        z, r));
    }
  }
  if (q.scheme.int8_activations) return user_error("int8 activations go with symmetric weights only");
  return q;
}

json arguments(const Scheme& s) {
  json weights = {{"num_bits", s.bits},
                  {"type", "int"},
                  {"symmetric", s.symmetric},
                  {"strategy", s.group == 0 ? "channel" : "group"},
                  {"dynamic", false}};
  if (s.group != 0) weights["group_size"] = s.group;
  return weights;
}

std::string_view format_of(const Scheme& s) { return s.int8_activations ? "int-quantized" : "pack-quantized"; }

json quantization_config(const std::vector<Out>& tensors, bool tied_embeddings) {
  std::map<Scheme, std::vector<std::string>> groups;
  std::vector<std::string> plain;
  for (const Out& out : tensors) {
    if (!is_linear(out.tensor->name)) continue;
    if (out.quantized)
      groups[out.quantized->scheme].push_back(module_of(out.tensor->name));
    else
      plain.push_back(module_of(out.tensor->name));
  }
  if (tied_embeddings) plain.push_back("lm_head");  // a module of its own there, without a tensor of its own
  json config = {{"quant_method", "compressed-tensors"}, {"quantization_status", "compressed"}, {"ignore", plain}};
  bool one_format = true;
  for (const auto& [scheme, modules] : groups) one_format &= format_of(scheme) == format_of(groups.begin()->first);
  config["format"] = one_format ? format_of(groups.begin()->first) : "mixed-precision";
  json list = json::object();
  for (const auto& [scheme, modules] : groups) {
    json group = {{"weights", arguments(scheme)}, {"format", format_of(scheme)}};
    group["targets"] = groups.size() == 1 ? std::vector<std::string>{"Linear"} : modules;
    group["input_activations"] = json();
    if (scheme.int8_activations)
      group["input_activations"] = {
          {"num_bits", 8}, {"type", "int"}, {"symmetric", true}, {"strategy", "token"}, {"dynamic", true}};
    group["output_activations"] = json();
    list[fmt::format("group_{}", list.size())] = std::move(group);
  }
  config["config_groups"] = std::move(list);
  return config;
}

void declare(const Out& out, DType dtype, std::vector<SafetensorsDecl>& decls) {
  const ModelTensor& t = *out.tensor;
  if (!out.quantized) {
    decls.push_back({t.name, dtype, t.shape});
    return;
  }
  const std::string module = module_of(t.name);
  const Scheme& s = out.quantized->scheme;
  const auto& scale = static_cast<const AffineField&>(*out.quantized->grid->scale());
  const int64_t rows = t.node->rows(), cols = t.node->cols();
  decls.push_back({module + ".weight_scale", scale.values().type(), {rows, scale.groups()}});
  if (s.int8_activations) {
    decls.push_back({t.name, DType::i8, {rows, cols}});
    return;
  }
  const auto words = [&](int64_t n) { return static_cast<int64_t>(ceil_div(static_cast<uint64_t>(n * s.bits), 32)); };
  decls.push_back({module + ".weight_packed", DType::i32, {rows, words(cols)}});
  decls.push_back({module + ".weight_shape", DType::i64, {2}});
  if (!s.symmetric) decls.push_back({module + ".weight_zero_point", DType::i32, {words(rows), scale.groups()}});
}

// Offset codes of 4 or 8 bits, least significant first, padded with zeros to whole words of 32 bits.
std::vector<std::byte> packed(std::span<const uint16_t> codes, int bits) {
  const auto width = static_cast<unsigned>(bits);
  std::vector<std::byte> bytes(round_up(packed_bytes(codes.size(), width), 4));
  pack_bits(codes, width, bytes.data());
  return bytes;
}

Status write_scales(const AffineField& scale, SafetensorsWriter& writer) {
  for (int64_t r = 0; r < (scale.shared_rows() ? scale.rows() : 1); ++r)
    PITH_TRY(writer.write(scale.values().bytes().view));
  return {};
}

Status write_tensor(const Out& out, DType dtype, SafetensorsWriter& writer) {
  const Node& node = *out.tensor->node;
  if (!out.quantized) return write_decoded(node, dtype, writer);
  const int64_t rows = node.rows(), cols = node.cols();
  const Quantized& q = *out.quantized;
  const int half = 1 << (q.scheme.bits - 1);
  PITH_TRY(write_scales(static_cast<const AffineField&>(*q.grid->scale()), writer));
  std::vector<int16_t> codes(static_cast<size_t>(cols));
  std::vector<uint16_t> offset_codes(static_cast<size_t>(cols));
  std::vector<int8_t> plain(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    q.grid->codes()->read_rows(r, r + 1, codes.data());
    for (size_t c = 0; c < codes.size(); ++c) {
      plain[c] = static_cast<int8_t>(codes[c] + q.shift);
      offset_codes[c] = static_cast<uint16_t>(codes[c] + q.shift + half);
    }
    PITH_TRY(q.scheme.int8_activations ? writer.write(std::as_bytes(std::span(plain)))
                                       : writer.write(packed(offset_codes, q.scheme.bits)));
  }
  if (q.scheme.int8_activations) return {};
  const int64_t shape[2] = {rows, cols};
  PITH_TRY(writer.write(std::as_bytes(std::span(shape))));
  if (q.scheme.symmetric) return {};

  // Zero points are packed along the rows: word i of a column of groups holds rows 32 / bits * i and on.
  const int64_t groups = q.grid->scale()->groups();
  std::vector<float> zeros(static_cast<size_t>(rows * groups), 0.0f);
  if (q.grid->zero() != nullptr)
    for (int64_t r = 0; r < rows; ++r) q.grid->zero()->row(r, zeros.data() + r * groups);
  const int64_t words = static_cast<int64_t>(ceil_div(static_cast<uint64_t>(rows * q.scheme.bits), 32));
  std::vector<uint32_t> table(static_cast<size_t>(words * groups), 0);
  std::vector<uint16_t> column(static_cast<size_t>(rows));
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t r = 0; r < rows; ++r)
      column[static_cast<size_t>(r)] =
          static_cast<uint16_t>(static_cast<int>(zeros[static_cast<size_t>(r * groups + g)]) + q.shift + half);
    const auto bytes = packed(column, q.scheme.bits);
    for (int64_t w = 0; w < words; ++w)
      std::memcpy(&table[static_cast<size_t>(w * groups + g)], bytes.data() + 4 * w, 4);
  }
  return writer.write(std::as_bytes(std::span(table)));
}

}  // namespace

Status write_compressed_tensors(const Model& model, const std::string& path, DType dtype, bool overwrite) {
  if (dtype != DType::f16 && dtype != DType::bf16)
    return user_error("compressed-tensors export: plain tensors are written as f16 or bf16");
  PITH_TRY(check_model(model));
  std::vector<Out> tensors;
  bool any = false;
  for (const ModelTensor& tensor : model.tensors) {
    Out out{&tensor, {}};
    const std::string_view kind = tensor.node->kind();
    if (is_linear(tensor.name) && kind != "dense" && kind != "blocks") {
      auto scheme = scheme_of(*tensor.node);
      if (!scheme.ok())
        return user_error(
            fmt::format("tensor '{}' ({}) does not fit compressed-tensors: {}; `--to hf` writes decoded "
                        "weights instead",
                        tensor.name, tensor.node->describe(), scheme.error().message));
      out.quantized = std::move(scheme).value();
      any = true;
    }
    tensors.push_back(out);
  }
  if (!any)
    return user_error(
        "no matrix is on a 4 or 8 bit grid, so there is nothing for compressed-tensors to hold; `--to hf` "
        "writes plain weights");
  std::vector<SafetensorsDecl> decls;
  for (const Out& out : tensors) declare(out, dtype, decls);
  const auto weights = [&](const std::string& file) -> Status {
    PITH_ASSIGN(auto writer, SafetensorsWriter::create(file, decls, {{"format", "pt"}}, true));
    for (const Out& out : tensors)
      PITH_TRY(write_tensor(out, dtype, writer).context("tensor '" + out.tensor->name + "'"));
    return writer.finish();
  };
  return write_huggingface_folder(path, model.config, model.tokenizer, dtype,
                                  {{"quantization_config", quantization_config(tensors, model.config.tied_embeddings)}},
                                  weights, overwrite);
}

}  // namespace pith
