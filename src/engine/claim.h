// A paper's central statement as a seeded experiment (`pith claim NAME`, `make claims`).
#pragma once

#include <pith/result.h>

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/progress.h"

namespace pith {

/// One measured number of a claim: a row of the committed ledger <name>_claim.csv.
struct ClaimRow {
  std::string arm;     ///< "spqr", "gptq group=64", "ablation: no outliers"
  std::string metric;  ///< "ppl", "kl", "bits"
  uint64_t seed = 0;
  double value = 0;
};

struct ClaimResult {
  std::vector<ClaimRow> rows;
  bool holds = false;     ///< the inequality below, evaluated on the rows
  std::string statement;  ///< "ppl(spqr) < ppl(gptq) at equal total bits on 3/3 seeds"
  std::string found;      ///< what came out, in one sentence with the numbers
};

struct ClaimRun {
  bool quick = false;        ///< 10 s at most: one seed, smallest model; runs in `make test`
  std::string model_folder;  ///< recipe model; empty = testdata/lm-s
  Progress* progress = nullptr;
};

struct Claim {
  std::string_view name;
  std::string_view statement;
  ClaimResult (*run)(const ClaimRun& run);
};

std::span<const Claim* const> all_claims();
const Claim* find_claim(std::string_view name);

/// What a claim gave when it was last run in full: committed as <name>_claim.csv beside the method.
struct Ledger {
  std::string name;
  ClaimResult result;
  std::string model;    ///< name of the model's folder, or "testdata/lm-s"
  std::string machine;  ///< "2 cores, Intel Xeon …, avx512"
  double seconds = 0;
};

/// Runs a claim and notes machine and time.
Ledger run_claim(const Claim& claim, const ClaimRun& run);

/// As CSV: '#' lines with name, statement, verdict, machine, seconds, then arm,metric,seed,value rows, then '#' lines
/// with mean and spread over seeds for people to read. read_ledger(print_ledger(l)) gives l, values to 6 digits.
std::string print_ledger(const Ledger& ledger);
Result<Ledger> read_ledger(std::string_view text);

/// One arm and metric over its seeds.
struct ClaimSummary {
  std::string arm, metric;
  double mean = 0;
  double spread = 0;  ///< standard deviation of a sample; 0 with one seed
  int seeds = 0;
};
/// In the order of first appearance.
std::vector<ClaimSummary> summarise(std::span<const ClaimRow> rows);
/// The mean of one arm and metric; throws Failure (a bug) when there is none.
double claim_mean(std::span<const ClaimRow> rows, std::string_view arm, std::string_view metric);
/// The value of one seed; throws Failure (a bug) when there is none.
double claim_value(std::span<const ClaimRow> rows, std::string_view arm, std::string_view metric, uint64_t seed);

/// What differs between a committed ledger and a new run, one line each: verdict, rows missing or new, values apart by
/// more than `tolerance` (relative). Empty: the run repeats the ledger.
std::vector<std::string> compare_ledgers(const Ledger& committed, const Ledger& found, double tolerance);

}  // namespace pith
