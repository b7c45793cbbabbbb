#include "runtime/export_peft.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "base/file.h"
#include "formats/huggingface.h"
#include "formats/safetensors.h"
#include "represent/combine.h"
#include "represent/low_rank.h"

namespace pith {
namespace {

using nlohmann::json;

// "model.layers.0.self_attn.q_proj" of its weight's name.
std::string module_of(const std::string& tensor) {
  return tensor.substr(0, tensor.size() - std::string_view(".weight").size());
}

struct Split {
  NodePtr base;
  const LowRank* path = nullptr;
};

Result<Split> split(const ModelTensor& tensor) {
  const auto* sum = dynamic_cast<const Sum*>(tensor.node.get());
  if (sum == nullptr || !tensor.name.ends_with(".weight")) return Split{tensor.node, nullptr};
  std::vector<NodePtr> base;
  Split out;
  for (const NodePtr& term : sum->terms()) {
    const auto* path = dynamic_cast<const LowRank*>(term.get());
    if (path != nullptr && path->mean() == nullptr && out.path == nullptr) {
      out.path = path;
    } else {
      base.push_back(term);
    }
  }
  if (out.path == nullptr || base.empty()) return Split{tensor.node, nullptr};
  if (base.size() == 1) {
    out.base = base[0];
  } else {
    PITH_ASSIGN(out.base, Sum::make(std::move(base)));
  }
  return out;
}

json adapter_config(const std::map<std::string, Split>& parts) {
  int64_t rank = 0;
  std::set<std::string> targets;
  for (const auto& [name, part] : parts) {
    rank = std::max(rank, part.path->rank());
    const std::string module = module_of(name);
    targets.insert(module.substr(module.rfind('.') + 1));
  }
  json ranks = json::object();  // of modules that differ
  for (const auto& [name, part] : parts)
    if (part.path->rank() != rank) ranks[module_of(name)] = part.path->rank();
  return {{"peft_type", "LORA"},
          {"task_type", "CAUSAL_LM"},
          {"r", rank},
          {"lora_alpha", rank},
          {"rank_pattern", ranks},
          {"alpha_pattern", ranks},
          {"lora_dropout", 0.0},
          {"bias", "none"},
          {"fan_in_fan_out", false},
          {"inference_mode", false},
          {"target_modules", targets},
          {"base_model_name_or_path", ".."}};
}

Status write_factor(const Node& node, DType dtype, SafetensorsWriter& writer) {
  const int64_t n = node.rows() * node.cols();
  std::vector<float> values(static_cast<size_t>(n));
  node.decode_rows(0, node.rows(), values.data());
  std::vector<std::byte> bytes(values.size() * dtype_size(dtype));
  from_float(dtype, values.data(), n, bytes.data());
  return writer.write(bytes);
}

Status write_adapter(const std::map<std::string, Split>& parts, const std::string& folder, DType dtype) {
  std::error_code error;
  if (!std::filesystem::create_directory(folder, error))
    return user_error(folder + ": cannot write here: " + error.message());
  std::vector<SafetensorsDecl> decls;
  for (const auto& [name, part] : parts) {
    const std::string module = "base_model.model." + module_of(name);
    decls.push_back({module + ".lora_A.weight", dtype, {part.path->rank(), part.path->cols()}});
    decls.push_back({module + ".lora_B.weight", dtype, {part.path->rows(), part.path->rank()}});
  }
  PITH_ASSIGN(auto writer,
              SafetensorsWriter::create(folder + "/adapter_model.safetensors", decls, {{"format", "pt"}}, true));
  for (const auto& [name, part] : parts) {
    PITH_TRY(write_factor(*part.path->v(), dtype, writer));
    PITH_TRY(write_factor(*part.path->u(), dtype, writer));
  }
  PITH_TRY(writer.finish());
  return write_file(folder + "/adapter_config.json", adapter_config(parts).dump(2) + "\n", true);
}

}  // namespace

Status write_peft(const Model& model, const std::string& path, DType dtype, bool overwrite) {
  PITH_TRY(check_model(model));
  std::map<std::string, Split> parts;
  for (const ModelTensor& tensor : model.tensors) {
    PITH_ASSIGN(Split part, split(tensor));
    if (part.path != nullptr) parts.emplace(tensor.name, std::move(part));
  }
  if (parts.empty())
    return user_error(
        "no matrix has a low-rank part beside another one, so there is nothing for an adapter; 'pith quantize lq-lora' "
        "and 'pith factorize eora' make such models");
  const auto rows = [&](const TensorSpec& spec, int64_t r0, int64_t r1, float* out) -> Status {
    const auto part = parts.find(spec.name);
    const ModelTensor* tensor = model.find(spec.name);
    if (tensor == nullptr) return bug_error("tensor '" + spec.name + "' is missing");
    (part != parts.end() ? *part->second.base : *tensor->node).decode_rows(r0, r1, out);
    return {};
  };
  return write_huggingface(path, model.config, model.tokenizer, dtype, rows, overwrite,
                           [&](const std::string& folder) { return write_adapter(parts, folder + "/adapter", dtype); });
}

}  // namespace pith
