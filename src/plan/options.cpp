#include "plan/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

namespace pith {

namespace {

constexpr size_t kMaxAlternatives = 4096;

std::string_view trim(std::string_view s) {
  while (!s.empty() && (s.front() == ' ' || s.front() == '\t' || s.front() == '\n')) s.remove_prefix(1);
  while (!s.empty() && (s.back() == ' ' || s.back() == '\t' || s.back() == '\n')) s.remove_suffix(1);
  return s;
}

std::string slug(std::string_view name) {
  std::string out(name);
  std::replace(out.begin(), out.end(), '_', '-');
  return out;
}

/// Splits at `separator` where no backslash stands before it; the pieces keep their backslashes.
std::vector<std::string_view> split_unescaped(std::string_view text, char separator) {
  std::vector<std::string_view> pieces;
  size_t begin = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i == text.size() || text[i] == separator) {
      pieces.push_back(text.substr(begin, i - begin));
      begin = i + 1;
    } else if (text[i] == '\\') {
      ++i;  // whatever follows is literal; a lone backslash at the end stands for itself
      if (i == text.size()) pieces.push_back(text.substr(begin));
    }
  }
  return pieces;
}

std::string unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size()) ++i;
    out += text[i];
  }
  return out;
}

std::string escape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const bool edge = i == 0 || i + 1 == text.size();  // spaces at the ends would be trimmed
    if (c == ',' || c == ';' || c == ':' || c == '\\' || (edge && (c == ' ' || c == '\t' || c == '\n'))) out += '\\';
    out += c;
  }
  return out;
}

/// Like trim, but an escaped space at the end is content.
std::string_view trim_value(std::string_view s) {
  const std::string_view t = trim(s);
  const size_t end = static_cast<size_t>(t.data() - s.data()) + t.size();
  size_t backslashes = 0;
  while (backslashes < t.size() && t[t.size() - 1 - backslashes] == '\\') ++backslashes;
  if (backslashes % 2 == 1 && end < s.size()) return std::string_view(t.data(), t.size() + 1);
  return t;
}

bool parse_integer(std::string_view text, int64_t& out) {
  if (!text.empty() && text.front() == '+') text.remove_prefix(1);
  const auto r = std::from_chars(text.data(), text.data() + text.size(), out);
  return r.ec == std::errc() && r.ptr == text.data() + text.size() && !text.empty();
}

bool parse_real(std::string_view text, double& out) {
  if (!text.empty() && text.front() == '+') text.remove_prefix(1);
  const auto r = std::from_chars(text.data(), text.data() + text.size(), out);
  return r.ec == std::errc() && r.ptr == text.data() + text.size() && !text.empty() && std::isfinite(out);
}

std::string print_real(double v) {
  char buffer[32];
  const auto r = std::to_chars(buffer, buffer + sizeof buffer, v);
  return std::string(buffer, r.ptr);
}

std::vector<std::string> split_choices(std::string_view choices) {
  std::vector<std::string> out;
  size_t begin = 0;
  for (size_t i = 0; i <= choices.size(); ++i)
    if (i == choices.size() || choices[i] == '|') {
      out.emplace_back(choices.substr(begin, i - begin));
      begin = i + 1;
    }
  return out;
}

Error bad_value(const Param& p, std::string_view value) {
  return user_error("option '" + std::string(p.name) + "': expected " + describe_values(p) + ", found '" +
                    std::string(value) + "'");
}

bool outside(const Param& p, double v) { return !(p.low == 0 && p.high == 0) && (v < p.low || v > p.high); }

/// The one spelling of a value: "03" is "3", "yes" is "true". Equal options then compare and print equal.
Result<std::string> canonical(const Param& p, std::string_view value) {
  switch (p.type) {
    case ParamType::integer: {
      int64_t v = 0;
      if (!parse_integer(value, v) || outside(p, static_cast<double>(v))) return bad_value(p, value);
      return std::to_string(v);
    }
    case ParamType::real: {
      double v = 0;
      if (!parse_real(value, v) || outside(p, v)) return bad_value(p, value);
      return print_real(v == 0 ? 0 : v);  // no "-0"
    }
    case ParamType::boolean:
      for (const char* yes : {"true", "yes", "on", "1"})
        if (value == yes) return std::string("true");
      for (const char* no : {"false", "no", "off", "0"})
        if (value == no) return std::string("false");
      return bad_value(p, value);
    case ParamType::choice: {
      const auto choices = split_choices(p.choices);
      if (std::find(choices.begin(), choices.end(), value) != choices.end()) return std::string(value);
      Error error = bad_value(p, value);
      const auto near = nearest_names(value, choices);
      if (!near.empty()) error.message += "; did you mean '" + near.front() + "'?";
      return error;
    }
    case ParamType::text:
      return std::string(value);
  }
  return bug_error("option '" + std::string(p.name) + "' has no type");
}

std::string default_value(const Param& p) {
  auto value = canonical(p, p.fallback);
  return value.ok() ? std::move(value).value() : std::string(p.fallback);
}

const Param* find_param(std::span<const Param> table, std::string_view name) {
  const std::string wanted = slug(name);
  for (const Param& p : table)
    if (slug(p.name) == wanted) return &p;
  return nullptr;
}

/// Optimal string alignment distance: insert, delete, replace, swap of neighbours.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i)
    for (size_t j = 1; j <= b.size(); ++j) {
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  return d[a.size()][b.size()];
}

}  // namespace

Options Options::defaults(std::span<const Param> table) {
  Options options;
  options.table_ = table;
  for (const Param& p : table) options.values_[slug(p.name)] = default_value(p);
  return options;
}

Result<Options> Options::parse(std::string_view text, std::span<const Param> table) {
  Options options = defaults(table);
  if (trim(text).empty()) return options;
  std::vector<std::string> seen;
  for (std::string_view item : split_unescaped(text, ',')) {
    const size_t equal = item.find('=');
    const std::string name = slug(trim(item.substr(0, equal)));
    if (name.empty())
      return user_error("options '" + std::string(text) + "': expected name=value, found '" + std::string(trim(item)) +
                        "'");
    if (std::find(seen.begin(), seen.end(), name) != seen.end())
      return user_error("option '" + name + "' is given twice");
    seen.push_back(name);
    if (equal == std::string_view::npos) {
      const Param* p = find_param(table, name);
      if (p != nullptr && p->type != ParamType::boolean)
        return user_error("option '" + name + "' needs a value: " + name + "=" + describe_values(*p));
      PITH_TRY(options.set(name, "true"));
    } else {
      PITH_TRY(options.set(name, unescape(trim_value(item.substr(equal + 1)))));
    }
  }
  return options;
}

Status Options::set(std::string_view name, std::string_view value) {
  const Param* p = find_param(table_, name);
  if (p == nullptr) {
    if (table_.empty()) return user_error("option '" + std::string(name) + "' is unknown; there are no options here");
    std::vector<std::string> known;
    for (const Param& q : table_) known.emplace_back(q.name);
    return user_error("option '" + std::string(name) + "' is unknown" + did_you_mean(name, known));
  }
  PITH_ASSIGN(values_[slug(p->name)], canonical(*p, value));
  return {};
}

const std::string& Options::at(std::string_view name) const {
  const auto it = values_.find(slug(name));
  if (it == values_.end()) std::abort();  // a method asks for a parameter that its own table lacks: only a bug in Pith
  return it->second;
}

int64_t Options::integer(std::string_view name) const {
  int64_t v = 0;
  parse_integer(at(name), v);
  return v;
}

double Options::real(std::string_view name) const {
  double v = 0;
  parse_real(at(name), v);
  return v;
}

bool Options::flag(std::string_view name) const { return at(name) == "true"; }

const std::string& Options::text(std::string_view name) const { return at(name); }

std::string Options::print() const {
  std::string out;
  for (const Param& p : table_) {
    const std::string& value = at(p.name);
    if (value == default_value(p)) continue;
    if (!out.empty()) out += ',';
    out += slug(p.name) + '=' + escape(value);
  }
  return out;
}

Status check_params(std::span<const Param> table) {
  for (size_t i = 0; i < table.size(); ++i) {
    const Param& p = table[i];
    const std::string where = "parameter " + std::to_string(i) + " ('" + std::string(p.name) + "')";
    if (p.name.empty()) return bug_error(where + " has no name");
    for (char c : p.name)
      if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'))
        return bug_error(where + ": names are lower-case letters, digits and '-'");
    if (find_param(table, p.name) != &p) return bug_error(where + " stands twice in its table");
    if (p.type == ParamType::choice && p.choices.empty()) return bug_error(where + " has no choices");
    if (p.low > p.high) return bug_error(where + ": its range is empty");
    if (p.help.empty()) return bug_error(where + " has no help");
    PITH_TRY(canonical(p, p.fallback).context(where + ": default"));
  }
  return {};
}

std::string describe_values(const Param& p) {
  const bool ranged = !(p.low == 0 && p.high == 0);
  const std::string range = ranged ? " " + print_real(p.low) + ".." + print_real(p.high) : "";
  switch (p.type) {
    case ParamType::integer:
      return "integer" + range;
    case ParamType::real:
      return "number" + range;
    case ParamType::boolean:
      return "true|false";
    case ParamType::choice:
      return std::string(p.choices);
    case ParamType::text:
      return "text";
  }
  return "text";
}

MethodSpec split_spec(std::string_view text) {
  text = trim_value(text);
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos) return {std::string(text), ""};
  return {std::string(trim(text.substr(0, colon))), std::string(trim_value(text.substr(colon + 1)))};
}

Result<std::vector<MethodSpec>> parse_allow(std::string_view text) {
  std::vector<MethodSpec> out;
  if (trim(text).empty()) return out;
  for (std::string_view alternative : split_unescaped(text, ';')) {
    if (trim(alternative).empty()) continue;
    const MethodSpec spec = split_spec(alternative);
    if (spec.method.empty())
      return user_error("'" + std::string(alternative) + "': expected method:option=value,…, found no method name");
    std::vector<std::string> options = {""};  // all combinations so far
    bool first = true;
    for (std::string_view item : split_unescaped(spec.options, ',')) {
      if (spec.options.empty()) break;
      std::vector<std::string> values = {std::string(item)};
      const size_t equal = item.find('=');
      const size_t dots = equal == std::string_view::npos ? equal : item.find("..", equal + 1);
      int64_t low = 0, high = 0;
      if (dots != std::string_view::npos && parse_integer(trim(item.substr(equal + 1, dots - equal - 1)), low) &&
          parse_integer(trim(item.substr(dots + 2)), high)) {
        if (low > high)
          return user_error("'" + std::string(item) + "': the range is empty, write the smaller number first");
        // Unsigned difference: the range -2^63..2^63-1 must not overflow.
        if (static_cast<uint64_t>(high) - static_cast<uint64_t>(low) >= kMaxAlternatives)
          return user_error("'" + std::string(item) + "': more than " + std::to_string(kMaxAlternatives) + " values");
        values.clear();
        for (int64_t v = low;; ++v) {
          values.push_back(std::string(item.substr(0, equal + 1)) + std::to_string(v));
          if (v == high) break;
        }
      }
      if (options.size() * values.size() > kMaxAlternatives)
        return user_error("'" + spec.print() + "': more than " + std::to_string(kMaxAlternatives) + " combinations");
      std::vector<std::string> next;
      for (const std::string& before : options)
        for (const std::string& value : values) next.push_back(first ? value : before + "," + value);
      options = std::move(next);
      first = false;
    }
    for (std::string& o : options) out.push_back({spec.method, std::move(o)});
    if (out.size() > kMaxAlternatives)
      return user_error("more than " + std::to_string(kMaxAlternatives) + " alternatives are allowed at once");
  }
  return out;
}

std::vector<std::string> nearest_names(std::string_view word, const std::vector<std::string>& known) {
  word = word.substr(0, 64);  // longer words are no slip of the finger, and the distance is quadratic
  std::vector<std::pair<size_t, std::string>> ranked;
  for (const std::string& name : known) {
    if (name.empty() || name.size() > 64) continue;
    size_t distance = edit_distance(slug(word), slug(name));
    // A beginning ("comp" for "compress") is as good as one slip.
    if (word.size() >= 2 && name.size() > word.size() && name.compare(0, word.size(), word) == 0) distance = 1;
    if (distance <= std::max<size_t>(1, std::min(word.size(), name.size()) / 3)) ranked.emplace_back(distance, name);
  }
  std::sort(ranked.begin(), ranked.end());
  std::vector<std::string> out;
  for (auto& [distance, name] : ranked)
    if (out.size() < 3 && (out.empty() || out.back() != name)) out.push_back(std::move(name));
  return out;
}

std::string did_you_mean(std::string_view word, const std::vector<std::string>& known) {
  const auto near = nearest_names(word, known);
  std::string out;
  if (!near.empty()) {
    for (size_t i = 0; i < near.size(); ++i)
      out += (i == 0 ? "; did you mean '" : i + 1 == near.size() ? "' or '" : "', '") + near[i];
    return out + "'?";
  }
  for (size_t i = 0; i < known.size() && i < 20; ++i) out += (i == 0 ? "; known: " : ", ") + known[i];
  if (known.size() > 20) out += ", …";
  return out;
}

}  // namespace pith
