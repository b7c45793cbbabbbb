// A paper's central statement as a seeded experiment (`pith claim NAME`, `make claims`).
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/progress.h"

namespace pith {

/// One measured number of a claim: a row of the committed ledger <name>_claim.csv.
struct ClaimRow {
  std::string arm;      ///< "spqr", "gptq group=64", "ablation: no outliers"
  std::string metric;   ///< "ppl", "kl", "bits"
  uint64_t seed = 0;
  double value = 0;
};

struct ClaimResult {
  std::vector<ClaimRow> rows;
  bool holds = false;        ///< the inequality below, evaluated on the rows
  std::string statement;     ///< "ppl(spqr) < ppl(gptq) at equal total bits on 3/3 seeds"
  std::string found;         ///< what came out, in one sentence with the numbers
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

}  // namespace pith
