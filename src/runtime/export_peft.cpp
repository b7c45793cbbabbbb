#include "runtime/export_peft.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "base/file.h"
#include "formats/safetensors.h"
#include "represent/combine.h"
#include "represent/low_rank.h"
#include "runtime/export_folder.h"
#include "runtime/model_file.h"

namespace pith {
namespace {

using nlohmann::json;

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
    PITH_TRY(write_decoded(*part.path->v(), dtype, writer));
    PITH_TRY(write_decoded(*part.path->u(), dtype, writer));
  }
  PITH_TRY(writer.finish());
  return write_file(folder + "/adapter_config.json", adapter_config(parts).dump(2) + "\n", true);
}

}  // namespace

Status write_peft(const Model& model, const std::string& path, DType dtype, bool overwrite) {
  std::map<std::string, Split> parts;
  for (const ModelTensor& tensor : model.tensors) {
    PITH_ASSIGN(Split part, split(tensor));
    if (part.path != nullptr) parts.emplace(tensor.name, std::move(part));
  }
  if (parts.empty())
    return user_error(
        "no matrix has a low-rank part beside another one, so there is nothing for an adapter; 'pith quantize lq-lora' "
        "and 'pith factorize eora' make such models");
  NodeMap bases;
  for (const auto& [name, part] : parts) bases[name] = part.base;
  return write_hf_folder(with_nodes(model, bases), path, dtype, overwrite,
                         [&](const std::string& folder) { return write_adapter(parts, folder + "/adapter", dtype); });
}

}  // namespace pith
