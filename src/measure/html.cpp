#include "measure/html.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace pith {

// Written by cmake/Embed.cmake from src/measure/report/.
extern const std::string_view report_style;

}  // namespace pith

namespace pith::html {

std::string escape(std::string_view text) {
  std::string out;
  for (const char c : text) switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\0':
        break;
      default:
        out += c;
    }
  return out;
}

std::string script_json(const nlohmann::json& json) {
  std::string out;
  for (const char c : json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)) {
    if (c == '<')
      out += "\\u003c";
    else
      out += c;
  }
  return out;
}

std::string number(double v, int digits) {
  std::string s = fmt::format("{:.{}f}", v, digits);
  return s;
}

std::string significant(double v) {
  if (v == 0) return "0";
  const double a = std::abs(v);
  if (a < 1e-4 || a >= 1e6) return fmt::format("{:.1e}", v);
  const int before_point = static_cast<int>(std::floor(std::log10(a))) + 1;
  return fmt::format("{:.{}f}", v, std::max(0, 3 - before_point));
}

std::string change(double before, double after) {
  const double share = (after / before - 1) * 100;
  return fmt::format("{}{:.{}f} %", share < 0 ? "−" : "+", std::abs(share), std::abs(share) < 9.95 ? 1 : 0);
}

std::string tile(std::string_view label, std::string_view value, std::string_view sub, bool main) {
  return fmt::format(
      "<div class=\"tile{}\"><div class=\"label\">{}</div><div class=\"value\">{}</div><div "
      "class=\"sub\">{}</div></div>\n",
      main ? " main" : "", label, value, sub);
}

std::string card(std::string_view width, std::string_view title, std::string_view hint, std::string_view body) {
  return fmt::format("<section class=\"card {}\"><h2>{}</h2><p class=\"hint\">{}</p>\n{}</section>\n", width, title,
                     hint, body);
}

std::string canvas(std::string_view id, std::string_view label, int height) {
  if (height == 0)
    return fmt::format("<div class=\"chart fill\"><canvas id=\"{}\" role=\"img\" aria-label=\"{}\"></canvas></div>\n",
                       id, label);
  return fmt::format(
      "<div class=\"chart\" style=\"height:{}px\"><canvas id=\"{}\" role=\"img\" aria-label=\"{}\"></canvas></div>\n",
      height, id, label);
}

std::string table(const Row& head, const std::vector<Row>& rows, std::string_view kinds) {
  const auto cell = [&](const char* tag, size_t i, const std::string& text) {
    return fmt::format("<{}{}>{}</{}>", tag, i < kinds.size() && kinds[i] == 'n' ? " class=\"n\"" : "", text, tag);
  };
  std::string out = "<table><thead><tr>";
  for (size_t i = 0; i < head.size(); ++i) out += cell("th", i, head[i]);
  out += "</tr></thead><tbody>\n";
  for (const Row& row : rows) {
    out += "<tr>";
    for (size_t i = 0; i < row.size(); ++i) out += cell("td", i, row[i]);
    out += "</tr>\n";
  }
  return out + "</tbody></table>\n";
}

std::string details(std::string_view summary, std::string_view body) {
  return fmt::format("<details><summary>{}</summary><div class=\"scroll\">{}</div></details>\n", summary, body);
}

std::string page_begin(std::string_view title) {
  return "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>" +
         escape(title) + "</title>\n<style>\n" + std::string(report_style) +
         "</style>\n<script>document.documentElement.classList.add('js')</script>\n</head>\n<body>\n<main>\n";
}

std::string page_header(std::string_view title, std::string_view lead, std::string_view command) {
  std::string out = "<header><p class=\"brand\">Pith report</p><h1>" + escape(title) + "</h1>\n<p class=\"lead\">" +
                    std::string(lead) + "</p>";
  if (!command.empty()) out += "<pre class=\"command\">$ " + escape(command) + "</pre>";
  return out + "</header>\n";
}

std::string page_footer(std::string_view version, std::string_view machine, std::string_view date) {
  std::string foot = "Pith " + std::string(version);
  for (const std::string_view part : {machine, date})
    if (!part.empty()) foot += " · " + std::string(part);
  return "<footer>" + escape(foot) + "</footer>\n</main>\n";
}

}  // namespace pith::html
