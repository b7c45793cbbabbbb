// What the pages of reports are put together from: escaped text, numbers, cards, tables. Internal to src/measure.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace pith::html {

std::string escape(std::string_view text);
/// JSON that can stand inside <script>: no '<' at all.
std::string script_json(const nlohmann::json& json);

std::string number(double v, int digits);
/// Three significant digits, without exponents where people can do without.
std::string significant(double v);
/// "−31 %"; a real minus sign.
std::string change(double before, double after);

std::string tile(std::string_view label, std::string_view value, std::string_view sub, bool main = false);
std::string card(std::string_view width, std::string_view title, std::string_view hint, std::string_view body);
/// Height 0: as much as its card has to give.
std::string canvas(std::string_view id, std::string_view label, int height);

using Row = std::vector<std::string>;
/// `kinds` (a letter a column: 'l' or 'n') tells text from numbers. Cells are HTML already.
std::string table(const Row& head, const std::vector<Row>& rows, std::string_view kinds);
std::string details(std::string_view summary, std::string_view body);

/// From the doctype to the beginning of <main>, with the style of all reports.
std::string page_begin(std::string_view title);
/// The <header>: brand, title, a sentence in HTML, the command line.
std::string page_header(std::string_view title, std::string_view lead, std::string_view command);
/// "Pith 0.1 · 2 cores · date" as the end of <main>.
std::string page_footer(std::string_view version, std::string_view machine, std::string_view date);

}  // namespace pith::html
