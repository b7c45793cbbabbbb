// Every claim's quick variant runs, and every committed ledger reads back and repeats its claim's statement. Whether a
// claim holds is what its ledger says: a failed claim stays a failed claim, not a failed test.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "base/file.h"
#include "engine/claim.h"

namespace pith {
namespace {

TEST(ClaimsQuick, RunOnTheRecipeModel) {
  for (const Claim* claim : all_claims()) {
    SCOPED_TRACE(claim->name);
    ClaimRun run;
    run.quick = true;
    run.model_folder = std::string(PITH_SOURCE_DIR) + "/testdata/lm-s";
    const Ledger ledger = run_claim(*claim, run);
    EXPECT_EQ(ledger.result.statement, claim->statement);
    EXPECT_FALSE(ledger.result.found.empty());
    EXPECT_GE(ledger.result.rows.size(), 4u);
    for (const ClaimRow& row : ledger.result.rows)
      EXPECT_TRUE(std::isfinite(row.value)) << row.arm << " " << row.metric;
    EXPECT_TRUE(read_ledger(print_ledger(ledger)).ok());
  }
}

TEST(ClaimsQuick, CommittedLedgersReadBack) {
  int ledgers = 0;
  const std::string list = PITH_SOURCE_DIR "/scripts/known_gaps.txt";
  const std::string gaps = file_exists(list) ? must(read_text(list, 1 << 20)) : "";
  for (const Claim* claim : all_claims()) {
    std::string file(claim->name);
    for (char& c : file)
      if (c == '-') c = '_';
    std::string path;  // in the folder of its method
    for (const auto& entry : std::filesystem::recursive_directory_iterator(PITH_SOURCE_DIR "/methods"))
      if (entry.path().filename() == file + "_claim.csv") path = entry.path();
    if (path.empty() && gaps.find("/" + file + "_claim.csv") != std::string::npos)
      continue;  // still to be run; guards.py wants the list true
    ASSERT_FALSE(path.empty()) << claim->name;
    const auto text = read_text(path, 1 << 20);
    ASSERT_TRUE(text.ok());
    const auto ledger = read_ledger(*text);
    ASSERT_TRUE(ledger.ok()) << path << ": " << ledger.error().message;
    EXPECT_EQ(ledger->name, claim->name);
    EXPECT_EQ(ledger->result.statement, claim->statement);
    // Means are rounded once more when they come from the rounded values of a file.
    const std::string again = print_ledger(*ledger);
    EXPECT_EQ(again.substr(0, again.find("# mean")), text->substr(0, text->find("# mean")));
    ++ledgers;
  }
  EXPECT_GE(ledgers, 5);
}

}  // namespace
}  // namespace pith
