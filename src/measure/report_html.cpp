#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/print.h"
#include "measure/html.h"
#include "measure/report.h"

namespace pith {

// Written by cmake/Embed.cmake from src/measure/report/ and Chart.js.
extern const std::string_view report_script, report_chart_js;

using namespace html;

namespace {

using Json = nlohmann::json;

struct KindStyle {
  std::string_view name, colour;
};
// The order of legends and heat map rows. Attention is blue, the MLP orange, what stands alone has its own colour.
constexpr KindStyle kKinds[] = {{"embedding", "#7a5cc4"},   {"attention q", "#1f56a8"}, {"attention k", "#3d82d1"},
                                {"attention v", "#6facea"}, {"attention o", "#a5cdf5"}, {"mlp gate", "#a8480c"},
                                {"mlp up", "#e07a1f"},      {"mlp down", "#f3ae69"},    {"router", "#c0392b"},
                                {"head", "#2f9e78"},        {"norm", "#8a93a3"},        {"bias", "#b5bcc8"},
                                {"other", "#596273"}};

struct KindSum {
  std::string name;
  std::string_view colour;
  uint64_t before = 0, bytes = 0, weights = 0;
};

std::vector<KindSum> sum_kinds(const Report& r) {
  std::vector<KindSum> out;
  for (const KindStyle& k : kKinds) out.push_back({std::string(k.name), k.colour});
  for (const ReportTensor& t : r.tensors) {
    const std::string kind = tensor_kind(t.name);
    for (KindSum& k : out)
      if (k.name == kind) k.before += t.bytes_before, k.bytes += t.bytes, k.weights += t.weights;
  }
  std::erase_if(out, [](const KindSum& k) { return k.bytes == 0 && k.before == 0; });
  return out;
}

bool is_matrix_kind(std::string_view kind) { return kind != "norm" && kind != "bias" && kind != "other"; }

/// All texts as one: means over all their tokens, so perplexities are geometric means. Empty without texts.
ReportText all_texts(const Report& r) {
  if (r.texts.size() == 1) return r.texts.front();
  ReportText all;
  all.name = fmt::format("{} texts", r.texts.size());
  const auto mean = [&](std::optional<double> ReportText::*field, bool logarithmic) -> std::optional<double> {
    double sum = 0, tokens = 0;
    for (const ReportText& t : r.texts) {
      if (!(t.*field)) return std::nullopt;
      sum += static_cast<double>(t.tokens) * (logarithmic ? std::log(*(t.*field)) : *(t.*field));
      tokens += static_cast<double>(t.tokens);
    }
    if (tokens == 0) return std::nullopt;
    return logarithmic ? std::exp(sum / tokens) : sum / tokens;
  };
  all.perplexity_before = mean(&ReportText::perplexity_before, true);
  all.perplexity_after = mean(&ReportText::perplexity_after, true);
  all.kl = mean(&ReportText::kl, false);
  all.top1 = mean(&ReportText::top1, false);
  return all;
}

std::string tiles(const Report& r) {
  std::string out = "<div class=\"tiles\">\n";
  if (r.after.file_bytes > 0) {
    std::string sub =
        r.before.file_bytes > 0
            ? fmt::format("from {} ({})", print_size(r.before.file_bytes),
                          change(static_cast<double>(r.before.file_bytes), static_cast<double>(r.after.file_bytes)))
            : std::string();
    out += tile("File", print_size(r.after.file_bytes), sub, true);
  }
  if (r.after.bits_per_weight)
    out += tile("Bits per weight", number(*r.after.bits_per_weight, 2),
                r.before.bits_per_weight ? "from " + number(*r.before.bits_per_weight, 2) : "everything counted");
  const ReportText t = all_texts(r);
  if (t.perplexity_before && t.perplexity_after)
    out += tile("Perplexity", "× " + number(*t.perplexity_after / *t.perplexity_before, 3),
                number(*t.perplexity_before, 2) + " → " + number(*t.perplexity_after, 2) + ", " + escape(t.name));
  if (t.top1)
    out += tile("Same next token", number(*t.top1 * 100, 1) + " %",
                t.kl ? "mean KL " + significant(*t.kl) + " nats" : "as the original");
  if (r.after.loaded_bytes)
    out += tile("Memory when loaded", print_size(*r.after.loaded_bytes),
                r.before.loaded_bytes ? "from " + print_size(*r.before.loaded_bytes) : "weights only");
  if (r.seconds)
    out += tile("Time to make", print_duration(*r.seconds),
                r.peak_memory ? "peak memory " + print_size(*r.peak_memory) : escape(r.machine));
  return out + "</div>\n";
}

std::string comparison(const Report& r) {
  std::vector<Row> rows;
  const auto pair = [&](std::string_view what, bool have, const std::string& before, const std::string& after,
                        std::string_view difference) {
    if (have)
      rows.push_back({std::string(what), "<span class=\"dim\">" + before + "</span>", "<b>" + after + "</b>",
                      std::string(difference)});
  };
  const std::string none = "–";
  if (r.after.file_bytes > 0)
    pair("File", true, r.before.file_bytes > 0 ? print_size(r.before.file_bytes) : none, print_size(r.after.file_bytes),
         r.before.file_bytes > 0
             ? change(static_cast<double>(r.before.file_bytes), static_cast<double>(r.after.file_bytes))
             : "");
  const auto optional = [&](std::string_view what, const auto& b, const auto& a, const auto& print, bool difference) {
    pair(what, a.has_value() || b.has_value(), b ? print(*b) : none, a ? print(*a) : none,
         a && b && difference && *b != 0 ? change(static_cast<double>(*b), static_cast<double>(*a)) : "");
  };
  const auto two = [](double v) { return number(v, 2); };
  const auto one = [](double v) { return number(v, 1); };
  optional("Bits per weight", r.before.bits_per_weight, r.after.bits_per_weight, two, true);
  optional("Memory when loaded", r.before.loaded_bytes, r.after.loaded_bytes, print_size, true);
  optional("Tokens per second", r.before.tokens_per_second, r.after.tokens_per_second, one, true);
  if (const ReportText t = all_texts(r); !r.texts.empty()) {  // one by one they stand in their own table
    optional("Perplexity, " + escape(t.name), t.perplexity_before, t.perplexity_after, two, true);
    if (t.kl) {
      const std::string error = t.kl_error ? " ± " + number(*t.kl_error, *t.kl_error < 0.01 ? 4 : 3) : "";
      pair("Mean KL to the original, nats", true, none, significant(*t.kl) + error, "");
    }
    if (t.top1) pair("Same next token", true, none, number(*t.top1 * 100, 1) + " %", "");
  }
  if (r.seconds) pair("Time to make", true, none, print_duration(*r.seconds), "");
  if (r.peak_memory) pair("Peak memory", true, none, print_size(*r.peak_memory), "");
  return table({"", "original", "compressed", "difference"}, rows, "lnnn");
}

std::string heat_map(const Report& r) {
  int layers = 0;
  for (const ReportTensor& t : r.tensors) layers = std::max(layers, tensor_layer(t.name) + 1);
  if (layers == 0 || layers > 512) return "";
  struct Cell {
    double bits = 0, weights = 0;
  };
  std::map<std::string, std::vector<Cell>> cells;
  for (const ReportTensor& t : r.tensors) {
    const int layer = tensor_layer(t.name);
    const std::string kind = tensor_kind(t.name);
    if (layer < 0 || !is_matrix_kind(kind) || t.weights == 0) continue;
    auto& row = cells[kind];
    row.resize(static_cast<size_t>(layers));
    row[static_cast<size_t>(layer)].bits += static_cast<double>(t.bytes) * 8;
    row[static_cast<size_t>(layer)].weights += static_cast<double>(t.weights);
  }
  double low = 1e300, high = 0;
  for (const auto& [kind, row] : cells)
    for (const Cell& c : row)
      if (c.weights > 0) low = std::min(low, c.bits / c.weights), high = std::max(high, c.bits / c.weights);
  if (high == 0) return "";
  std::string out = "<div class=\"scroll\"><table class=\"heat\"><tbody><tr><th></th>";
  const int every = layers > 48 ? 4 : layers > 24 ? 2 : 1;
  for (int l = 0; l < layers; ++l)
    out += fmt::format("<th class=\"l\">{}</th>", l % every == 0 ? std::to_string(l) : "");
  out += "</tr>\n";
  for (const KindStyle& k : kKinds) {
    const auto it = cells.find(std::string(k.name));
    if (it == cells.end()) continue;
    out += fmt::format("<tr><th>{}</th>", k.name);
    for (int l = 0; l < layers; ++l) {
      const Cell& c = it->second[static_cast<size_t>(l)];
      if (c.weights == 0) {
        out += "<td class=\"none\"></td>";
        continue;
      }
      const double bits = c.bits / c.weights, h = high > low ? (bits - low) / (high - low) : 0.5;
      out += fmt::format("<td style=\"--h:{:.2f}\"{} title=\"layer {}, {}: {:.3f} bits per weight\">{}</td>", h,
                         h > 0.6 ? " class=\"high\"" : "", l, k.name, bits, layers > 40 ? "" : number(bits, 1));
    }
    out += "</tr>\n";
  }
  out += "</tbody></table></div>\n";
  out += fmt::format(
      "<div class=\"legend\"><span>{:.2f} bits</span><span class=\"ramp\"></span><span>{:.2f} bits</span>", low, high);
  for (const KindSum& k : sum_kinds(r)) {
    const bool outside = k.name == "embedding" || k.name == "head";
    if (outside && k.weights > 0)
      out += fmt::format("<span>· {} {:.2f} bits</span>", k.name,
                         static_cast<double>(k.bytes) * 8 / static_cast<double>(k.weights));
  }
  return out + "</div>\n";
}

std::string kinds_card(const std::vector<KindSum>& kinds) {
  uint64_t total = 0;
  for (const KindSum& k : kinds) total += k.bytes;
  std::vector<Row> rows;
  for (const KindSum& k : kinds)
    rows.push_back(
        {fmt::format("<span class=\"swatch\" style=\"background:{}\"></span>{}", k.colour, k.name),
         k.before > 0 ? "<span class=\"dim\">" + print_size(k.before) + "</span>" : "", print_size(k.bytes),
         total > 0 ? number(100.0 * static_cast<double>(k.bytes) / static_cast<double>(total), 1) + " %" : "",
         k.weights > 0 ? number(static_cast<double>(k.bytes) * 8 / static_cast<double>(k.weights), 2) : ""});
  return canvas("kinds", "Share of bytes by kind of tensor", 220) + "<div style=\"height:10px\"></div>" +
         table({"kind", "before", "after", "share", "bits"}, rows, "lnnnn");
}

std::string plan_table(const Report& r) {
  std::vector<Row> rows;
  for (const ReportTensor& t : r.tensors)
    rows.push_back({escape(t.name), "<code>" + escape(t.method) + "</code>", escape(t.tree), print_count(t.weights),
                    print_size(t.bytes_before), print_size(t.bytes),
                    t.weights > 0 ? number(static_cast<double>(t.bytes) * 8 / static_cast<double>(t.weights), 2) : "",
                    t.predicted_loss ? significant(*t.predicted_loss) : "–",
                    t.measured_loss ? significant(*t.measured_loss) : "–"});
  return details(
      fmt::format("All {} tensors", r.tensors.size()),
      table({"tensor", "method", "stored as", "weights", "before", "after", "bits", "predicted loss", "measured loss"},
            rows, "lllnnnnnn"));
}

}  // namespace

std::string report_to_html(const Report& r) {
  const auto kinds = sum_kinds(r);

  // What the script draws, summed up here so that charts and tables say the same.
  Json data = {{"unit", r.loss_unit},
               {"kinds", Json::array()},
               {"scatter", Json::array()},
               {"layers", Json::array()},
               {"layerKinds", Json::array()}};
  for (const KindSum& k : kinds) data["kinds"].push_back({{"name", k.name}, {"bytes", k.bytes}, {"colour", k.colour}});
  if (r.curve.size() > 1) {
    for (const ReportPoint& p : r.curve) data["curve"].push_back({{"bytes", p.bytes}, {"loss", p.loss}});
    uint64_t bytes = 0;
    for (const ReportTensor& t : r.tensors) bytes += t.bytes;
    if (bytes == 0) bytes = r.after.file_bytes;
    if (r.predicted_loss) data["chosen"] = {{"bytes", bytes}, {"loss", *r.predicted_loss}};
    if (r.measured_loss) data["measured"] = {{"bytes", bytes}, {"loss", *r.measured_loss}};
  }
  std::vector<Row> scatter_rows;
  for (const KindSum& k : kinds) {
    Json points = Json::array();
    for (const ReportTensor& t : r.tensors)
      if (tensor_kind(t.name) == k.name && t.predicted_loss && t.measured_loss && *t.predicted_loss > 0 &&
          *t.measured_loss > 0) {
        points.push_back({{"x", *t.predicted_loss}, {"y", *t.measured_loss}, {"name", t.name}});
        scatter_rows.push_back({escape(t.name), significant(*t.predicted_loss), significant(*t.measured_loss),
                                number(*t.measured_loss / *t.predicted_loss, 2)});
      }
    if (!points.empty()) data["scatter"].push_back({{"name", k.name}, {"colour", k.colour}, {"points", points}});
  }
  int layers = 0;
  for (const ReportTensor& t : r.tensors) layers = std::max(layers, tensor_layer(t.name) + 1);
  if (layers > 0 && layers <= 512) {
    std::vector<std::string> names;
    for (const KindSum& k : kinds)
      if (std::any_of(r.tensors.begin(), r.tensors.end(), [&](const ReportTensor& t) {
            return tensor_layer(t.name) >= 0 && tensor_kind(t.name) == k.name && is_matrix_kind(k.name);
          })) {
        names.push_back(k.name);
        data["layerKinds"].push_back({{"name", k.name}, {"colour", k.colour}});
      }
    std::vector<std::vector<uint64_t>> bytes(static_cast<size_t>(layers), std::vector<uint64_t>(names.size()));
    for (const ReportTensor& t : r.tensors) {
      const auto it = std::find(names.begin(), names.end(), tensor_kind(t.name));
      if (tensor_layer(t.name) >= 0 && it != names.end())
        bytes[static_cast<size_t>(tensor_layer(t.name))][static_cast<size_t>(it - names.begin())] += t.bytes;
    }
    data["layers"] = bytes;
  }

  std::string lead;
  if (r.before.file_bytes > 0)
    lead += fmt::format("<b>{}</b> went from {} to <b>{}</b>", escape(last_part(r.before.name)),
                        print_size(r.before.file_bytes), print_size(r.after.file_bytes));
  else
    lead += "<b>" + escape(last_part(r.after.name)) + "</b>, " + print_size(r.after.file_bytes);
  if (!r.budget.empty()) lead += "; the budget was " + escape(r.budget);
  lead += r.texts.empty()
              ? "."
              : ". Every byte is counted, and the loss is measured on text that was not used for calibration.";
  std::string out = page_begin(r.title) + page_header(r.title, lead, r.command) + tiles(r) + "<div class=\"grid\">\n";

  const bool curve = r.curve.size() > 1;
  out += card(curve ? "w5" : "w12", "Before and after", "", comparison(r));
  if (curve) {
    std::string hint = "The least predicted loss for each size, and where this plan stands.";
    if (r.lower_bound && r.predicted_loss && *r.predicted_loss > 0) {
      const double gap = std::max(0.0, 1 - *r.lower_bound / *r.predicted_loss) * 100;
      hint += gap < 0.005 ? " The plan is proved optimal." : fmt::format(" At most {:.2f} % above the optimum.", gap);
    }
    std::vector<Row> rows;
    for (const ReportPoint& p : r.curve) rows.push_back({print_size(p.bytes), significant(p.loss)});
    out += card(
        "w7", "Size and loss", hint,
        canvas("curve", "Loss against size", 0) + details("As a table", table({"size", "predicted loss"}, rows, "nn")));
  }
  if (r.texts.size() > 1 || (!r.texts.empty() && r.texts.front().kl)) {
    std::vector<Row> rows;
    const auto optional = [](const std::optional<double>& v, int digits, double scale, const char* end) {
      return v ? number(*v * scale, digits) + end : std::string("–");
    };
    for (const ReportText& t : r.texts)
      rows.push_back(
          {escape(t.name), print_count(t.tokens), optional(t.perplexity_before, 3, 1, ""),
           optional(t.perplexity_after, 3, 1, ""),
           t.perplexity_before && t.perplexity_after ? number(*t.perplexity_after / *t.perplexity_before, 4) : "–",
           optional(t.kl, 4, 1, ""), optional(t.kl_error, 4, 1, ""), optional(t.top1, 2, 100, " %")});
    out += card(
        "w12", "Measured on held-out text", "KL of the compressed model from the original, in nats a token.",
        "<div class=\"scroll\">" +
            table({"text", "tokens", "perplexity before", "after", "ratio", "mean KL", "± error", "same top token"},
                  rows, "lnnnnnnn") +
            "</div>");
  }
  if (const std::string heat = heat_map(r); !heat.empty())
    out +=
        card("w12", "Bits by layer and kind",
             "Bits per weight, with scales, tables and indices; the solver gives bits where they matter most.", heat);
  if (!kinds.empty()) {
    out += card("w5", "Bytes by kind of tensor", "", kinds_card(kinds));
    std::string right;
    if (!scatter_rows.empty())
      right +=
          "<h2>Predicted and measured loss</h2><p class=\"hint\">One point a tensor; on the line the prediction was "
          "right.</p>" +
          canvas("scatter", "Measured against predicted loss of each tensor", 270) +
          details("As a table", table({"tensor", "predicted", "measured", "ratio"}, scatter_rows, "lnnn"));
    if (layers > 0)
      right += std::string(right.empty() ? "" : "<div style=\"height:18px\"></div>") +
               "<h2>Bytes by layer</h2><p class=\"hint\"></p>" +
               canvas("layers", "Bytes of each layer by kind", scatter_rows.empty() ? 0 : 230);
    if (!right.empty()) out += "<section class=\"card w7\">" + right + "</section>\n";
  }
  if (!r.samples.empty()) {
    std::string body;
    for (const ReportSample& s : r.samples)
      body += fmt::format(
          "<div class=\"sample\"><div class=\"prompt\">{}</div><div class=\"pair\"><div class=\"answer\"><span "
          "class=\"who\">original, {}"
          "</span>{}</div><div class=\"answer small\"><span class=\"who\">compressed, {}</span>{}</div></div></div>\n",
          escape(s.prompt), print_size(r.before.file_bytes), escape(s.before), print_size(r.after.file_bytes),
          escape(s.after));
    out += card("w12", "The same question to both", "", body);
  }
  if (!r.stages.empty()) {
    double total = 0;
    for (const ReportStage& s : r.stages) total += s.seconds;
    std::vector<Row> rows;
    for (const ReportStage& s : r.stages)
      rows.push_back({escape(s.name), print_duration(s.seconds),
                      total > 0 ? number(100 * s.seconds / total, 0) + " %" : "",
                      fmt::format("<div "
                                  "style=\"background:var(--after);opacity:.75;border-radius:3px;height:10px;margin-"
                                  "top:6px;width:{:.1f}%\"></div>",
                                  total > 0 ? 100 * s.seconds / total : 0)});
    rows.front().back() = "<div style=\"min-width:160px\">" + rows.front().back() + "</div>";
    out += card("w12", "Where the time went", "", table({"stage", "time", "share", ""}, rows, "lnnl"));
  }
  if (!r.tensors.empty())
    out += card("w12", "The plan", "Which method each tensor got, and what it cost.", plan_table(r));
  if (!r.notes.empty()) {
    std::string body = "<ul class=\"notes\">";
    for (const std::string& note : r.notes) body += "<li>" + escape(note) + "</li>";
    out += card("w12", "Notes", "", body + "</ul>");
  }
  out += "</div>\n" + page_footer(r.version, r.machine, r.date) + "<script type=\"application/json\" id=\"data\">" +
         script_json(data) + "</script>\n<script>\n" + std::string(report_chart_js) + "\n</script>\n<script>\n" +
         std::string(report_script) + "</script>\n</body>\n</html>\n";
  return out;
}

}  // namespace pith
