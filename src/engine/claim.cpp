#include "engine/claim.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "base/threads.h"
#include "tensor/tensor.h"

namespace pith {
namespace {

constexpr std::string_view kHeader = "arm,metric,seed,value";

// "model name" of /proc/cpuinfo; the file has no size, so it is read as far as needed.
std::string cpu_name() {
  std::string name = "unknown CPU";
  if (std::FILE* f = std::fopen("/proc/cpuinfo", "r")) {
    char line[512];
    while (std::fgets(line, sizeof line, f)) {
      const std::string_view text(line);
      if (!text.starts_with("model name")) continue;
      const size_t colon = text.find(": ");
      if (colon != std::string_view::npos) name = std::string(text.substr(colon + 2));
      while (!name.empty() && name.back() == '\n') name.pop_back();
      break;
    }
    std::fclose(f);
  }
  return name;
}

std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

// A field that holds a comma or a quote is quoted, quotes doubled.
std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"') out += '"';
    out += c == '\n' ? ' ' : c;
  }
  return out + "\"";
}

// Fields of one line; false when a quote is left open.
bool split_csv(std::string_view line, std::vector<std::string>& out) {
  out.assign(1, "");
  bool quoted = false;
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (quoted) {
      if (c != '"') {
        out.back() += c;
      } else if (i + 1 < line.size() && line[i + 1] == '"') {
        out.back() += '"';
        ++i;
      } else {
        quoted = false;
      }
    } else if (c == '"') {
      quoted = true;
    } else if (c == ',') {
      out.emplace_back();
    } else {
      out.back() += c;
    }
  }
  return !quoted;
}

}  // namespace

const Claim* find_claim(std::string_view name) {
  for (const Claim* claim : all_claims())
    if (claim->name == name) return claim;
  return nullptr;
}

Ledger run_claim(const Claim& claim, const ClaimRun& run) {
  const auto begin = std::chrono::steady_clock::now();
  Ledger ledger;
  ledger.name = claim.name;
  ledger.result = claim.run(run);
  ledger.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const std::string& folder = run.model_folder;
  ledger.model = folder.empty() ? "testdata/lm-s" : folder.substr(folder.find_last_of('/') + 1);
  ledger.machine = fmt::format("{} cores, {}", usable_cores(), cpu_name());
  return ledger;
}

std::string print_ledger(const Ledger& ledger) {
  std::string out = fmt::format(
      "# claim: {}\n# statement: {}\n# holds: {}\n# found: {}\n# model: {}\n# machine: {}\n# seconds: {:.0f}\n",
      ledger.name, one_line(ledger.result.statement), ledger.result.holds ? "yes" : "no", one_line(ledger.result.found),
      one_line(ledger.model), one_line(ledger.machine), ledger.seconds);
  out += std::string(kHeader) + "\n";
  for (const ClaimRow& row : ledger.result.rows)
    out += fmt::format("{},{},{},{:.6g}\n", csv_field(row.arm), csv_field(row.metric), row.seed, row.value);
  for (const ClaimSummary& s : summarise(ledger.result.rows))
    out += fmt::format("# mean: {} {} {:.6g} +- {:.2g} over {} seeds\n", s.arm, s.metric, s.mean, s.spread, s.seeds);
  return out;
}

Result<Ledger> read_ledger(std::string_view text) {
  Ledger ledger;
  bool rows = false, verdict = false;
  std::vector<std::string> fields;
  for (int number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const auto wrong = [&](const std::string& expected) {
      return data_error(fmt::format("ledger: line {}: expected {}, found '{}'", number, expected, line));
    };
    if (line.starts_with("# ")) {
      const size_t colon = line.find(": ");
      if (colon == std::string_view::npos) return wrong("'# key: value'");
      const std::string_view key = line.substr(2, colon - 2), value = line.substr(colon + 2);
      if (key == "claim") ledger.name = value;
      if (key == "statement") ledger.result.statement = value;
      if (key == "found") ledger.result.found = value;
      if (key == "model") ledger.model = value;
      if (key == "machine") ledger.machine = value;
      if (key == "holds") {
        if (value != "yes" && value != "no") return wrong("yes or no");
        ledger.result.holds = value == "yes";
        verdict = true;
      }
      if (key == "seconds") {
        const auto r = std::from_chars(value.data(), value.data() + value.size(), ledger.seconds);
        if (r.ec != std::errc()) return wrong("a number of seconds");
      }
    } else if (line.empty()) {
      continue;
    } else if (!rows) {
      if (line != kHeader) return wrong("'" + std::string(kHeader) + "'");
      rows = true;
    } else {
      ClaimRow row;
      if (!split_csv(line, fields) || fields.size() != 4) return wrong("four fields");
      row.arm = fields[0];
      row.metric = fields[1];
      const auto seed = std::from_chars(fields[2].data(), fields[2].data() + fields[2].size(), row.seed);
      const auto value = std::from_chars(fields[3].data(), fields[3].data() + fields[3].size(), row.value);
      if (seed.ec != std::errc() || value.ec != std::errc()) return wrong("a seed and a value");
      ledger.result.rows.push_back(std::move(row));
    }
  }
  if (ledger.name.empty() || !verdict || !rows)
    return data_error("ledger: no name, verdict or table; expected the output of 'pith claim'");
  return ledger;
}

std::vector<ClaimSummary> summarise(std::span<const ClaimRow> rows) {
  std::vector<ClaimSummary> out;
  for (const ClaimRow& row : rows) {
    auto at = std::find_if(out.begin(), out.end(),
                           [&](const ClaimSummary& s) { return s.arm == row.arm && s.metric == row.metric; });
    if (at == out.end()) at = out.insert(out.end(), {row.arm, row.metric, 0, 0, 0});
    at->mean += row.value;
    ++at->seeds;
  }
  for (ClaimSummary& s : out) {
    s.mean /= s.seeds;
    double sum = 0;
    for (const ClaimRow& row : rows)
      if (s.arm == row.arm && s.metric == row.metric) sum += (row.value - s.mean) * (row.value - s.mean);
    s.spread = s.seeds > 1 ? std::sqrt(sum / (s.seeds - 1)) : 0;
  }
  return out;
}

double claim_mean(std::span<const ClaimRow> rows, std::string_view arm, std::string_view metric) {
  for (const ClaimSummary& s : summarise(rows))
    if (s.arm == arm && s.metric == metric) return s.mean;
  throw Failure(bug_error(fmt::format("claim: no rows of arm '{}', metric '{}'", arm, metric)));
}

double claim_value(std::span<const ClaimRow> rows, std::string_view arm, std::string_view metric, uint64_t seed) {
  for (const ClaimRow& row : rows)
    if (row.arm == arm && row.metric == metric && row.seed == seed) return row.value;
  throw Failure(bug_error(fmt::format("claim: no row of arm '{}', metric '{}', seed {}", arm, metric, seed)));
}

std::vector<std::string> compare_ledgers(const Ledger& committed, const Ledger& found, double tolerance) {
  std::vector<std::string> out;
  if (committed.name != found.name) out.push_back(fmt::format("claim '{}' against '{}'", committed.name, found.name));
  if (committed.result.holds != found.result.holds)
    out.push_back(fmt::format("verdict: committed {}, found {}", committed.result.holds ? "holds" : "fails",
                              found.result.holds ? "holds" : "fails"));
  const auto same = [](const ClaimRow& a, const ClaimRow& b) {
    return a.arm == b.arm && a.metric == b.metric && a.seed == b.seed;
  };
  for (const ClaimRow& was : committed.result.rows) {
    const auto at = std::find_if(found.result.rows.begin(), found.result.rows.end(),
                                 [&](const ClaimRow& row) { return same(row, was); });
    if (at == found.result.rows.end()) {
      out.push_back(fmt::format("{} {} seed {}: not found any more", was.arm, was.metric, was.seed));
      continue;
    }
    const double scale = std::max({std::fabs(was.value), std::fabs(at->value), 1e-12});
    if (!(std::fabs(was.value - at->value) <= tolerance * scale))
      out.push_back(fmt::format("{} {} seed {}: committed {:.6g}, found {:.6g}", was.arm, was.metric, was.seed,
                                was.value, at->value));
  }
  for (const ClaimRow& row : found.result.rows)
    if (std::none_of(committed.result.rows.begin(), committed.result.rows.end(),
                     [&](const ClaimRow& was) { return same(row, was); }))
      out.push_back(fmt::format("{} {} seed {}: new", row.arm, row.metric, row.seed));
  return out;
}

}  // namespace pith
