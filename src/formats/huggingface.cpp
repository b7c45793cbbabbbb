#include "formats/huggingface.h"

#include <fcntl.h>
#include <stdio.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "formats/json_text.h"

namespace pith {
namespace {

using json = nlohmann::json;
namespace fs = std::filesystem;

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

// null when the file does not exist.
Result<json> read_optional(const std::string& path, const Limits& limits) {
  if (!file_exists(path)) return json();
  return read_json(path, limits);
}

// How names are stored: as they are, inside a picture-and-text model (two generations), or saved without the head.
struct Naming {
  std::string_view prefix, replaced;
};
constexpr Naming kNamings[] = {{"", ""}, {"language_model.", ""}, {"model.language_model.", "model."}, {"", "model."}};

// Removes the temporary folder unless it was moved into place.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(std::string path) : path_(std::move(path)) {}
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  void keep() { path_.clear(); }

 private:
  std::string path_;
};

}  // namespace

std::optional<ShardedSafetensors::Found> HfModel::find(std::string_view canonical) const {
  std::string name(canonical);
  if (name.starts_with(replaced)) name.erase(0, replaced.size());
  // The head stands outside "model." and keeps its own name in the second generation.
  if (!replaced.empty() && !canonical.starts_with(replaced)) return weights.find(canonical);
  return weights.find(prefix + name);
}

Result<HfModel> open_huggingface(const std::string& path, const Limits& limits) {
  HfModel model;
  model.path = path;
  const bool folder = is_directory(path);
  const size_t slash = path.rfind('/');
  std::string base = folder ? path : slash == std::string::npos ? "." : path.substr(0, slash);
  if (!folder && !file_exists(path)) return user_error(path + ": does not exist");
  const std::string config_path = base + "/config.json";
  if (!file_exists(config_path))
    return data_error(path + ": config.json is missing " + (folder ? "in this folder" : "beside this file"));
  PITH_ASSIGN(const json config, read_json(config_path, limits));
  PITH_ASSIGN(model.config, lm_config_from_hf(config).context(config_path));
  PITH_ASSIGN(model.weights, ShardedSafetensors::open(path, limits));

  const Naming* naming = nullptr;
  for (const auto& n : kNamings) {
    model.prefix = n.prefix, model.replaced = n.replaced;
    if (model.find("model.embed_tokens.weight")) {
      naming = &n;
      break;
    }
  }
  if (naming == nullptr) return data_error(path + ": tensor \"model.embed_tokens.weight\" is missing");
  for (const auto& spec : expected_tensors(model.config)) {
    const auto found = model.find(spec.name);
    if (!found) return data_error(path + ": tensor \"" + spec.name + "\" is missing, which config.json asks for");
    if (found->entry->shape != spec.shape)
      return data_error(path + ": tensor \"" + spec.name + "\" has the shape " + shape_text(found->entry->shape) +
                        ", config.json asks for " + shape_text(spec.shape));
    const DType type = found->entry->type;
    if (type != DType::f64 && type != DType::f32 && type != DType::f16 && type != DType::bf16)
      return data_error(path + ": tensor \"" + spec.name + "\" is stored as " + std::string(dtype_name(type)) +
                        "; F64, F32, F16 and BF16 are read (quantized weights: start from the original model)");
  }

  if (file_exists(base + "/tokenizer.json")) {
    PITH_ASSIGN(const json tokenizer, read_json(base + "/tokenizer.json", limits));
    PITH_ASSIGN(json tokenizer_config, read_optional(base + "/tokenizer_config.json", limits));
    PITH_ASSIGN(const json generation, read_optional(base + "/generation_config.json", limits));
    if (tokenizer_config.is_null()) tokenizer_config = json::object();
    // Newer folders keep the template in a file of its own, which wins.
    if (tokenizer_config.is_object() && file_exists(base + "/chat_template.jinja")) {
      PITH_ASSIGN(tokenizer_config["chat_template"], read_text(base + "/chat_template.jinja", limits.max_string_bytes));
    }
    // config.json names the end tokens when generation_config.json does not.
    PITH_ASSIGN(model.tokenizer,
                tokenizer_from_hf(tokenizer, tokenizer_config, generation.is_object() ? generation : config, limits)
                    .context(base + "/tokenizer.json"));
  }
  if (model.config.name.empty()) model.config.name = fs::path(base).lexically_normal().filename().string();
  if (model.config.name == ".") model.config.name.clear();
  return model;
}

Status write_huggingface_folder(const std::string& folder, const LmConfig& config, const TokenizerSpec& tokenizer,
                                DType type, const json& more_config,
                                const std::function<Status(const std::string& file)>& write_weights, bool overwrite) {
  if (type != DType::f32 && type != DType::f16 && type != DType::bf16)
    return bug_error("write_huggingface: type should be f32, f16 or bf16");
  if (!config.layer_shapes.empty())
    return user_error(
        "layers of this model differ in width or have narrowed heads, and transformers has one width for all of them "
        "and whole heads; keep the .pith file, or narrow only MLPs and all of them alike (modegpt: --modules mlp "
        "--allocation uniform)");
  std::string target = folder;
  while (target.size() > 1 && target.back() == '/') target.pop_back();
  std::error_code error;
  const bool exists = fs::exists(target, error);
  if (exists && !overwrite) return user_error(target + ": exists already; choose another name or pass --force");
  if (exists && !fs::is_empty(target, error) && !file_exists(target + "/config.json"))
    return user_error(target + ": exists and is no model folder (no config.json); it is not replaced");
  remove_unfinished(target);
  TemporaryFolder part(unfinished_name(target));
  fs::remove_all(part.path(), error);
  if (!fs::create_directory(part.path(), error)) return user_error(target + ": cannot write here: " + error.message());

  PITH_TRY(write_weights(part.path() + "/model.safetensors"));

  json out = lm_config_to_hf(config);
  out.update(more_config);
  out["torch_dtype"] = type == DType::f32 ? "float32" : type == DType::f16 ? "float16" : "bfloat16";
  // Always said, if only to say "none": the configuration classes would put their own ids in.
  json generation = json::object();
  const auto token = [&](const char* key, int32_t id) {
    const json v = id >= 0 ? json(id) : json();
    out[key] = v;
    if (id >= 0) generation[key] = v;
  };
  token("bos_token_id", tokenizer.bos);
  token("eos_token_id", tokenizer.eos);
  token("pad_token_id", tokenizer.pad);
  if (tokenizer.kind != TokenizerSpec::Kind::none) {
    if (tokenizer.eos >= 0 && !tokenizer.stop.empty()) {
      json eos = json::array({tokenizer.eos});
      for (const int32_t id : tokenizer.stop) eos.push_back(id);
      generation["eos_token_id"] = eos;
    }
    PITH_TRY(write_file(part.path() + "/tokenizer.json", json_text(tokenizer_to_hf(tokenizer), 1), true));
    PITH_TRY(write_file(part.path() + "/tokenizer_config.json", json_text(tokenizer_config_to_hf(tokenizer), 2) + "\n",
                        true));
    PITH_TRY(write_file(part.path() + "/generation_config.json", json_text(generation, 2) + "\n", true));
  }
  PITH_TRY(write_file(part.path() + "/config.json", json_text(out, 2) + "\n", true));

  if (!exists) {
    fs::rename(part.path(), target, error);
    if (error) return user_error(target + ": cannot rename into place: " + error.message());
    part.keep();
    return {};
  }
  // One step, so that a kill leaves either the old folder or the new one; `part` then holds the old one.
  if (::renameat2(AT_FDCWD, part.path().c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) return {};
  // Not every file system can. A folder cannot be renamed over a full one: the old one steps aside, and goes last.
  const std::string old = target + ".old";
  fs::rename(target, old, error);
  if (error) return user_error(target + ": cannot replace: " + error.message());
  fs::rename(part.path(), target, error);
  if (error) {
    std::error_code ignored;
    fs::rename(old, target, ignored);
    return user_error(target + ": cannot rename into place: " + error.message());
  }
  part.keep();
  fs::remove_all(old, error);
  return {};
}

Status write_huggingface(const std::string& folder, const LmConfig& config, const TokenizerSpec& tokenizer, DType type,
                         const std::function<Status(const TensorSpec&, int64_t r0, int64_t r1, float* out)>& rows,
                         bool overwrite, const std::function<Status(const std::string& folder)>& more) {
  const auto specs = expected_tensors(config);
  std::vector<SafetensorsDecl> decls;
  for (const auto& s : specs) decls.push_back({s.name, type, s.shape});
  const auto write_weights = [&](const std::string& file) -> Status {
    PITH_ASSIGN(auto writer, SafetensorsWriter::create(file, decls, {{"format", "pt"}}, true));
    std::vector<float> values;
    std::vector<std::byte> bytes;
    for (const auto& s : specs) {
      const int64_t cols = s.shape.back(), total = s.shape.size() > 1 ? s.shape[0] : 1;
      const int64_t step = std::max<int64_t>(1, (int64_t{1} << 20) / std::max<int64_t>(1, cols));
      for (int64_t r = 0; r < total; r += step) {
        const int64_t end = std::min(total, r + step);
        const auto n = static_cast<size_t>((end - r) * cols);
        values.resize(n);
        bytes.resize(n * dtype_size(type));
        PITH_TRY(rows(s, r, end, values.data()));
        from_float(type, values.data(), static_cast<int64_t>(n), bytes.data());
        PITH_TRY(writer.write(bytes));
      }
    }
    PITH_TRY(writer.finish());
    return more ? more(fs::path(file).parent_path().string()) : Status();
  };
  return write_huggingface_folder(folder, config, tokenizer, type, json::object(), write_weights, overwrite);
}

}  // namespace pith
