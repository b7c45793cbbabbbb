#include "measure/cache_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "base/print.h"
#include "measure/html.h"

namespace pith {

using namespace html;

std::string cache_report_to_json(const CacheReport& r) {
  nlohmann::json rows = nlohmann::json::array();
  for (const CacheScore& s : r.scores) {
    nlohmann::json row = {{"cache", s.cache},
                          {"task", s.task},
                          {"length", s.length},
                          {"items", s.items},
                          {"accuracy", s.accuracy},
                          {"nll", s.nll},
                          {"nll_error", s.nll_error},
                          {"kl", s.kl},
                          {"kl_error", s.kl_error},
                          {"same_top", s.same_top},
                          {"bytes", s.bytes},
                          {"prefill_tokens_per_second", s.prefill_per_second},
                          {"policy_share_of_prefill", s.policy_share},
                          {"item_accuracy", s.scores},
                          {"item_nll", s.losses}};
    if (s.decode_per_second > 0) row["decode_tokens_per_second"] = s.decode_per_second;
    if (!s.depths.empty()) row["item_depth"] = s.depths;
    rows.push_back(std::move(row));
  }
  const nlohmann::json out = {{"title", r.title},         {"model", r.model}, {"command", r.command},
                              {"version", r.version},     {"date", r.date},   {"machine", r.machine},
                              {"ask_after", r.ask_after}, {"seed", r.seed},   {"scores", rows},
                              {"notes", r.notes}};
  return out.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

namespace {

constexpr int kDepths = 5;

// The scores of one task at one length, the dense cache first.
using Group = std::vector<const CacheScore*>;

std::vector<Group> groups_of(const CacheReport& r) {
  std::vector<Group> out;
  for (const CacheScore& s : r.scores) {
    if (out.empty() || out.back().front()->task != s.task || out.back().front()->length != s.length) out.emplace_back();
    out.back().push_back(&s);
  }
  return out;
}

std::string percent(double share, int digits = 1) { return number(100 * share, digits) + " %"; }

/// Points as a drawing that needs no script: the share of the dense cache's bytes, logarithmic, against a value.
std::string chart(const Group& g, bool loss) {
  constexpr double kWidth = 520, kHeight = 250, kLeft = 48, kBottom = 30, kTop = 10, kRight = 12;
  const double dense = g.front()->bytes;
  double least = 1, most = 0;
  for (const CacheScore* s : g) {
    least = std::min(least, s->bytes / dense);
    most = std::max(most, loss ? s->kl : s->accuracy);
  }
  if (!loss) most = 1;
  if (most <= 0) most = 1;
  least = std::pow(2.0, std::floor(std::log2(std::max(least, 1e-4))));
  const auto x = [&](double share) {
    return kLeft + (kWidth - kLeft - kRight) * (std::log2(share) - std::log2(least)) / std::max(1.0, -std::log2(least));
  };
  const auto y = [&](double v) { return kTop + (kHeight - kTop - kBottom) * (1 - v / most); };
  std::string out = fmt::format(
      "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{} against bytes\" style=\"width:100%;height:auto\" "
      "font-size=\"11\" fill=\"var(--soft)\">\n",
      kWidth, kHeight, loss ? "KL" : "Accuracy");
  for (double share = least; share <= 1.0001; share *= 2) {
    out += fmt::format(
        "<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\" stroke=\"var(--line)\"/><text x=\"{0:.1f}\" "
        "y=\"{3:.1f}\" text-anchor=\"middle\">{4}</text>\n",
        x(share), kTop, kHeight - kBottom, kHeight - kBottom + 16, significant(100 * share) + " %");
  }
  for (int i = 0; i <= 4; ++i) {
    const double v = most * i / 4;
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n", kLeft - 6, y(v) + 4,
                       loss ? significant(v) : percent(v, 0));
  }
  for (const CacheScore* s : g) {
    const double v = loss ? s->kl : s->accuracy;
    out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"5\" fill=\"{}\"><title>{}: {}, {}</title></circle>\n",
                       x(std::min(1.0, s->bytes / dense)), y(v), s == g.front() ? "var(--before)" : "var(--after)",
                       escape(s->cache), print_size(static_cast<uint64_t>(s->bytes)),
                       loss ? "KL " + significant(v) : percent(v));
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", x(std::min(1.0, s->bytes / dense)) + 8, y(v) - 6,
                       escape(s->cache.substr(0, s->cache.find(':'))));
  }
  return out + "</svg>\n";
}

std::string score_table(const Group& g) {
  std::vector<Row> rows;
  const double dense = g.front()->bytes;
  const bool loss = g.front()->task == "ppl";
  for (const CacheScore* s : g) {
    const auto per_second = [](double v) { return v > 0 ? number(v, v < 100 ? 1 : 0) : std::string("–"); };
    rows.push_back({"<code>" + escape(s->cache) + "</code>", print_size(static_cast<uint64_t>(s->bytes)),
                    percent(s->bytes / dense), percent(s->accuracy), number(s->nll, 4),
                    s == g.front() ? "–" : significant(s->kl) + " ± " + significant(s->kl_error), percent(s->same_top),
                    per_second(s->prefill_per_second), percent(s->policy_share), per_second(s->decode_per_second)});
  }
  return "<div class=\"scroll\">" +
         table({"cache", "bytes", "of dense", loss ? "tokens right" : "answers right", "loss, nats", "KL",
                "same top token", "prefill tokens/s", "of it choosing", "decode tokens/s"},
               rows, "lnnnnnnnnn") +
         "</div>";
}

/// Accuracy by length (columns) and depth (rows) for one cache.
std::string heat_map(const std::vector<const CacheScore*>& lengths) {
  std::string out = "<table class=\"heat\" style=\"min-width:0\"><thead><tr><th></th>";
  for (const CacheScore* s : lengths) out += fmt::format("<th class=\"l\">{}</th>", s->length);
  out += "</tr></thead><tbody>\n";
  for (int d = 0; d < kDepths; ++d) {
    out += fmt::format("<tr><th>{}–{} %</th>", 100 * d / kDepths, 100 * (d + 1) / kDepths);
    for (const CacheScore* s : lengths) {
      double sum = 0;
      int n = 0;
      for (size_t i = 0; i < s->depths.size(); ++i) {
        if (std::min(kDepths - 1, static_cast<int>(s->depths[i] * kDepths)) != d) continue;
        sum += s->scores[i];
        ++n;
      }
      out += n == 0 ? std::string("<td class=\"none\"></td>")
                    : fmt::format("<td{} style=\"background:hsla(var(--heat),{:.2f})\">{}</td>",
                                  sum / n > 0.55 ? " class=\"high\"" : "", 0.07 + 0.88 * sum / n, percent(sum / n, 0));
    }
    out += "</tr>\n";
  }
  return out + "</tbody></table>";
}

}  // namespace

std::string cache_report_to_html(const CacheReport& r) {
  const auto groups = groups_of(r);
  std::string lead = "<b>" + escape(r.model) +
                     "</b>: the prompt is read, its cache made smaller, and what follows is "
                     "scored token by token over what is left. Every byte is counted: scales, positions, sums.";
  if (r.ask_after) lead += " The question came after the cache had been made smaller.";
  std::string out = page_begin(r.title) + page_header(r.title, lead, r.command) + "<div class=\"grid\">\n";
  for (const Group& g : groups) {
    const CacheScore& dense = *g.front();
    const bool loss = dense.task == "ppl";
    const std::string title = fmt::format("{} at {} tokens", loss ? "Loss on text" : dense.task, dense.length);
    std::string hint =
        fmt::format("{} items; the dense cache holds {}.", dense.items, print_size(static_cast<uint64_t>(dense.bytes)));
    if (!loss && dense.accuracy < 0.8)
      hint += fmt::format(" The dense cache itself answers {} right: below 80 % the model, not the cache, is measured.",
                          percent(dense.accuracy, 0));
    out += card("w12", title, hint, score_table(g));
    out += card("w6", loss ? "KL against bytes" : "Answers right against bytes", title, chart(g, loss));
    if (!loss) out += card("w6", "KL against bytes", title, chart(g, true));
  }
  // By cache and task: accuracy by depth and length.
  std::map<std::pair<std::string, std::string>, std::vector<const CacheScore*>> by_cache;
  for (const CacheScore& s : r.scores)
    if (!s.depths.empty()) by_cache[{s.task, s.cache}].push_back(&s);
  for (const auto& [key, lengths] : by_cache)
    out += card("w4", key.first + ": " + key.second, "Answers right by length of the prompt and depth of the fact.",
                heat_map(lengths));
  if (!r.notes.empty()) {
    std::string body = "<ul class=\"notes\">";
    for (const std::string& note : r.notes) body += "<li>" + escape(note) + "</li>";
    out += card("w12", "Notes", "", body + "</ul>");
  }
  return out + "</div>\n" + page_footer(r.version, r.machine, r.date) + "</body>\n</html>\n";
}

}  // namespace pith
