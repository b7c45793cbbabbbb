#include "measure/report.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "formats/json_text.h"

namespace pith {

namespace {

using Json = nlohmann::json;
constexpr int kVersion = 1;

// One list of fields for each struct serves both directions: a visitor is called as v("key", member).

template <class V>
void visit(V& v, ReportModel& m) {
  v("name", m.name), v("file_bytes", m.file_bytes), v("loaded_bytes", m.loaded_bytes);
  v("bits_per_weight", m.bits_per_weight), v("tokens_per_second", m.tokens_per_second);
}

template <class V>
void visit(V& v, ReportText& t) {
  v("name", t.name), v("tokens", t.tokens), v("perplexity_before", t.perplexity_before);
  v("perplexity_after", t.perplexity_after), v("kl", t.kl), v("kl_error", t.kl_error), v("top1", t.top1);
}

template <class V>
void visit(V& v, ReportTensor& t) {
  v("name", t.name), v("method", t.method), v("tree", t.tree), v("weights", t.weights);
  v("bytes_before", t.bytes_before), v("bytes", t.bytes);
  v("predicted_loss", t.predicted_loss), v("measured_loss", t.measured_loss);
}

template <class V>
void visit(V& v, ReportPoint& p) {
  v("bytes", p.bytes), v("loss", p.loss);
}

template <class V>
void visit(V& v, ReportSample& s) {
  v("prompt", s.prompt), v("before", s.before), v("after", s.after);
}

template <class V>
void visit(V& v, ReportStage& s) {
  v("name", s.name), v("seconds", s.seconds);
}

template <class V>
void visit(V& v, Report& r) {
  v("title", r.title), v("budget", r.budget), v("command", r.command), v("version", r.version), v("date", r.date);
  v("machine", r.machine), v("before", r.before), v("after", r.after), v("texts", r.texts);
  v("seconds", r.seconds), v("peak_memory", r.peak_memory), v("stages", r.stages);
  v("predicted_loss", r.predicted_loss), v("measured_loss", r.measured_loss), v("lower_bound", r.lower_bound);
  v("loss_unit", r.loss_unit), v("curve", r.curve), v("tensors", r.tensors), v("samples", r.samples);
  v("notes", r.notes);
}

struct Writer {
  Json json = Json::object();
  static Json to(const std::string& s) { return s; }
  static Json to(uint64_t n) { return n; }
  static Json to(double x) { return x; }
  template <class T>
  static Json to(const std::vector<T>& list) {
    Json out = Json::array();
    for (const T& item : list) out.push_back(to(item));
    return out;
  }
  template <class T>
  static Json to(const T& object) {
    Writer w;
    visit(w, const_cast<T&>(object));  // the visitor only reads
    return std::move(w.json);
  }
  template <class T>
  void operator()(const char* key, const std::optional<T>& value) {
    if (value) json[key] = to(*value);
  }
  template <class T>
  void operator()(const char* key, const T& value) {
    json[key] = to(value);
  }
};

struct Reader {
  const Json& json;
  std::string where;
  uint64_t max_items;
  Status status = {};

  void wrong(const std::string& at, const char* expected) {
    if (status.ok()) status = data_error(at + ": expected " + expected);
  }
  void from(const Json& j, const std::string& at, std::string& out) {
    if (!j.is_string()) return wrong(at, "a text");
    out = j.get<std::string>();
  }
  void from(const Json& j, const std::string& at, uint64_t& out) {
    if (!j.is_number_unsigned()) return wrong(at, "a whole number");
    out = j.get<uint64_t>();
  }
  void from(const Json& j, const std::string& at, double& out) {
    if (!j.is_number()) return wrong(at, "a number");
    out = j.get<double>();
  }
  template <class T>
  void from(const Json& j, const std::string& at, std::vector<T>& out) {
    if (!j.is_array()) return wrong(at, "a list");
    if (j.size() > max_items) return wrong(at, "a shorter list");
    for (size_t i = 0; i < j.size() && status.ok(); ++i) {
      out.emplace_back();
      from(j[i], at + "[" + std::to_string(i) + "]", out.back());
    }
  }
  template <class T>
  void from(const Json& j, const std::string& at, T& out) {
    if (!j.is_object()) return wrong(at, "an object");
    Reader r{j, at + ".", max_items};
    visit(r, out);
    if (status.ok()) status = r.status;
  }
  template <class T>
  void operator()(const char* key, std::optional<T>& out) {
    const auto it = json.find(key);
    if (it == json.end() || it->is_null()) return;
    from(*it, where + key, out.emplace());
  }
  template <class T>
  void operator()(const char* key, T& out) {
    const auto it = json.find(key);
    if (it == json.end()) return wrong(where + key, "it to be there");
    from(*it, where + key, out);
  }
};

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

}  // namespace

std::string tensor_kind(std::string_view name) {
  if (name.size() >= 5 && name.substr(name.size() - 5) == ".bias") return "bias";
  if (contains(name, "norm")) return "norm";
  if (contains(name, "embed_tokens")) return "embedding";
  if (contains(name, "lm_head")) return "head";
  if (contains(name, "q_proj")) return "attention q";
  if (contains(name, "k_proj")) return "attention k";
  if (contains(name, "v_proj")) return "attention v";
  if (contains(name, "o_proj")) return "attention o";
  if (contains(name, "gate_proj") || contains(name, ".w1.")) return "mlp gate";
  if (contains(name, "up_proj") || contains(name, ".w3.")) return "mlp up";
  if (contains(name, "down_proj") || contains(name, ".w2.")) return "mlp down";
  if (contains(name, "block_sparse_moe.gate")) return "router";
  return "other";
}

int tensor_layer(std::string_view name) {
  constexpr std::string_view mark = ".layers.";
  const size_t at = name.find(mark);
  if (at == std::string_view::npos) return -1;
  int layer = -1;
  const char* begin = name.data() + at + mark.size();
  const auto r = std::from_chars(begin, name.data() + name.size(), layer);
  return r.ec == std::errc() && layer >= 0 ? layer : -1;
}

std::string report_to_json(const Report& report) {
  Json json = Writer::to(report);
  json["pith_report"] = kVersion;
  return json_text(json, 1) + "\n";
}

Result<Report> report_from_json(std::string_view text, const Limits& limits) {
  PITH_ASSIGN(const Json json, parse_json(text, "the report", limits));
  if (!json.is_object()) return data_error("the report is no JSON object");
  const auto version = json.find("pith_report");
  if (version == json.end() || *version != kVersion)
    return data_error("is no report of this version of Pith ('pith_report': 1)");
  Report report;
  Reader reader{json, "report: ", limits.max_tensors};
  visit(reader, report);
  if (!reader.status.ok()) return reader.status.error();
  return report;
}

}  // namespace pith
