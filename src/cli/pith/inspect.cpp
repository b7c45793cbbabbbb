// pith inspect FILE: what a model is, and where its bytes are.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "cli/pith/commands.h"
#include "formats/json_text.h"
#include "measure/report.h"
#include "plan/plan_file.h"
#include "plan/size.h"
#include "runtime/method.h"
#include "runtime/model_file.h"

namespace pith {

namespace {

std::string_view kind_name(ModelKind kind) {
  switch (kind) {
    case ModelKind::gguf:
      return "GGUF";
    case ModelKind::safetensors:
      return "safetensors";
    case ModelKind::hf_folder:
      return "Hugging Face folder";
    case ModelKind::pith:
      return "pith";
  }
  return "?";
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out;
  for (const int64_t n : shape) out += (out.empty() ? "" : " x ") + std::to_string(n);
  return out;
}

uint64_t weights_of(const ModelTensor& t) {
  return static_cast<uint64_t>(t.node->rows()) * static_cast<uint64_t>(t.node->cols());
}

double per_weight(uint64_t bits, uint64_t weights) {
  return weights > 0 ? static_cast<double>(bits) / static_cast<double>(weights) : 0;
}

nlohmann::json bits_json(const BitReport& b) {
  return {{"payload", b.payload},         {"scales", b.scales},   {"tables", b.tables}, {"indices", b.indices},
          {"permutation", b.permutation}, {"factors", b.factors}, {"total", b.total()}};
}

std::string as_json(const Model& model, ModelKind kind, uint64_t file_bytes, const BitReport& total) {
  const uint64_t weights = model.parameters();
  nlohmann::json tensors = nlohmann::json::array();
  for (const ModelTensor& t : model.tensors) {
    const BitReport bits = t.node->bits();
    tensors.push_back({{"name", t.name},
                       {"shape", t.shape},
                       {"tree", t.node->describe()},
                       {"bits", bits_json(bits)},
                       {"bits_per_weight", per_weight(bits.total(), weights_of(t))}});
  }
  nlohmann::json json = {{"path", model.origin},
                         {"kind", kind_name(kind)},
                         {"architecture", model.config.architecture},
                         {"name", model.config.name},
                         {"file_bytes", file_bytes},
                         {"weights", weights},
                         {"bits_per_weight", per_weight(file_bytes * 8, weights)},
                         {"bits", bits_json(total)},
                         {"config", lm_config_to_hf(model.config)},
                         {"tokens", model.tokenizer.tokens.size()},
                         {"tensors", tensors}};
  // Texts of the file, already checked to be JSON by its reader; kept as text should one not be.
  for (const auto& [key, text] : {std::pair("plan", &model.plan_json), std::pair("report", &model.report_json)})
    if (!text->empty()) {
      auto parsed = parse_json(*text, key, {});
      json[key] = parsed.ok() ? std::move(parsed).value() : nlohmann::json(*text);
    }
  return json_text(json, 1) + "\n";
}

std::string as_text(const Model& model, ModelKind kind, uint64_t file_bytes, const BitReport& total, bool brief) {
  const LmConfig& c = model.config;
  const uint64_t weights = model.parameters();
  std::string out = fmt::format("{}\n", model.origin);
  const auto line = [&out](std::string_view what, const std::string& value) {
    out += fmt::format("  {:<14}{}\n", what, value);
  };
  line("format", std::string(kind_name(kind)));
  line("model", c.architecture + (c.name.empty() ? "" : ", " + c.name));
  std::string shape = fmt::format("{} layers, {} wide, {} heads", c.layers, c.hidden, c.heads);
  if (c.kv_heads != c.heads) shape += fmt::format(" ({} for keys and values)", c.kv_heads);
  shape += fmt::format(", MLP {}, context {}", print_count(static_cast<uint64_t>(c.intermediate)),
                       print_count(static_cast<uint64_t>(c.context)));
  if (c.experts > 0) shape += fmt::format(", {} experts, {} at a time", c.experts, c.experts_per_token);
  line("network", shape);
  if (!c.layer_shapes.empty()) {
    const auto range = [&](auto width) {
      int64_t low = width(0), high = low;
      for (int64_t i = 1; i < c.layers; ++i) low = std::min(low, width(i)), high = std::max(high, width(i));
      return low == high ? fmt::format("{}", low) : fmt::format("{} to {}", low, high);
    };
    line("narrowed",
         fmt::format("MLP to {}, keys to {} and values to {} of {}", range([&](int64_t l) { return c.mlp_width(l); }),
                     range([&](int64_t l) { return c.key_dim(l); }), range([&](int64_t l) { return c.value_dim(l); }),
                     c.head_dim));
  }
  line("vocabulary", print_count(static_cast<uint64_t>(c.vocab)) + " tokens" +
                         (c.tied_embeddings ? ", tied embeddings" : "") +
                         (model.tokenizer.kind == TokenizerSpec::Kind::none ? ", no tokenizer" : ""));
  line("weights", print_count(weights));
  line("file", fmt::format("{} ({} bytes), {:.3f} bits per weight", print_size(file_bytes), print_count(file_bytes),
                           per_weight(file_bytes * 8, weights)));
  const uint64_t tensor_bytes = (total.total() + 7) / 8;
  if (file_bytes > tensor_bytes)
    line("", fmt::format("of which header and tokenizer {}", print_size(file_bytes - tensor_bytes)));
  std::string use;
  for (const auto& [name, bits] : {std::pair("payload", total.payload), std::pair("scales", total.scales),
                                   std::pair("tables", total.tables), std::pair("indices", total.indices),
                                   std::pair("permutation", total.permutation), std::pair("factors", total.factors)})
    if (bits > 0)
      use += fmt::format("{}{} {}", use.empty() ? "" : ", ", name,
                         print_percent(static_cast<double>(bits), static_cast<double>(total.total())));
  line("tensor bytes", use);
  if (!model.report_json.empty()) {
    const auto report = report_from_json(model.report_json, {});
    if (report.ok())
      for (const ReportText& t : report->texts)
        if (t.perplexity_before && t.perplexity_after)
          line(&t == &report->texts.front() ? "measured" : "",
               fmt::format("perplexity {:.2f} -> {:.2f} ({:.3f}x) on {}", *t.perplexity_before, *t.perplexity_after,
                           *t.perplexity_after / *t.perplexity_before, t.name));
  }

  struct Sum {
    uint64_t bits = 0, weights = 0, count = 0;
  };
  std::map<std::string, Sum> kinds;
  std::vector<std::string> order;
  for (const ModelTensor& t : model.tensors) {
    const std::string kind_of = tensor_kind(t.name);
    Sum& sum = kinds[kind_of];
    if (sum.count++ == 0) order.push_back(kind_of);
    sum.bits += t.node->bits().total();
    sum.weights += weights_of(t);
  }
  std::vector<std::vector<std::string>> rows = {{"kind", "tensors", "weights", "bits", "bytes", "share"}};
  for (const std::string& k : order) {
    const Sum& s = kinds[k];
    rows.push_back({k, std::to_string(s.count), print_count(s.weights),
                    fmt::format("{:.3f}", per_weight(s.bits, s.weights)), print_size(s.bits / 8),
                    print_percent(static_cast<double>(s.bits), static_cast<double>(total.total()))});
  }
  out += "\n" + format_table(rows, {false, true, true, true, true, true});
  if (brief) return out;

  rows = {{"tensor", "shape", "bits", "bytes", "share", "stored as"}};
  for (const ModelTensor& t : model.tensors) {
    const uint64_t bits = t.node->bits().total();
    rows.push_back({t.name, shape_text(t.shape), fmt::format("{:.3f}", per_weight(bits, weights_of(t))),
                    print_size(bits / 8), print_percent(static_cast<double>(bits), static_cast<double>(total.total())),
                    t.node->describe()});
  }
  return out + "\n" + format_table(rows, {false, true, true, true, true, false});
}

}  // namespace

int inspect_command(const Arguments& arguments) {
  std::string path;
  bool json = false, brief = false, plan = false;
  const auto app =
      new_app("inspect", "Shows what a model file holds: its network, and for each tensor the tree, bits and share.",
              "pith inspect small.pith");
  app->add_option("FILE", path, "Model: .pith, .gguf, .safetensors or Hugging Face folder")->required();
  app->add_flag("--json", json, "As JSON, with the configuration, plan and report of the file");
  app->add_flag("--brief", brief, "Sums only, no line for each tensor");
  app->add_flag("--plan", plan, "Only the plan it was made by, to edit and to pass to 'pith compress --plan'");
  if (const auto code = parse_arguments(*app, arguments)) return *code;

  const auto kind = sniff(path);
  if (!kind.ok()) return fail(kind.error());
  const auto model = open_model(path);
  if (!model.ok()) return fail(model.error());
  if (plan && model->plan_json.empty()) return fail(user_error(path + ": holds no plan; only .pith files do"));
  if (plan) {  // the file packs it; people get one tensor a line
    const auto parsed = parse_plan(model->plan_json, Limits{}, check_spec);
    return parsed.ok() ? print_result(print_plan(*parsed)) : fail(parsed.error());
  }
  const BitReport total = model->bits();
  const uint64_t bytes = model_file_bytes(path);
  return print_result(json ? as_json(*model, *kind, bytes, total) : as_text(*model, *kind, bytes, total, brief));
}

}  // namespace pith
