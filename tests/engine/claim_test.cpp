#include "engine/claim.h"

#include <gtest/gtest.h>

#include "tensor/tensor.h"

namespace pith {
namespace {

Ledger sample() {
  Ledger ledger;
  ledger.name = "spqr";
  ledger.model = "lm-m";
  ledger.machine = "2 cores, Some CPU";
  ledger.seconds = 83;
  ledger.result = {{{"spqr", "ppl", 1, 9.25},
                    {"spqr", "ppl", 2, 9.75},
                    {"gptq group=64, \"best\"", "ppl", 1, 11},
                    {"gptq group=64, \"best\"", "ppl", 2, 1.5e-7}},
                   true,
                   "ppl(spqr) < ppl(gptq)",
                   "9.5 against 5.5"};
  return ledger;
}

TEST(Claim, LedgersReadBack) {
  const Ledger was = sample();
  const std::string text = print_ledger(was);
  const Result<Ledger> back = read_ledger(text);
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(print_ledger(*back), text);
  EXPECT_EQ(back->result.rows[2].arm, "gptq group=64, \"best\"");
  EXPECT_TRUE(back->result.holds);
  EXPECT_TRUE(compare_ledgers(was, *back, 1e-5).empty());
}

TEST(Claim, BrokenLedgersAreRefusedWithTheLine) {
  const std::string good = print_ledger(sample());
  for (const auto& [from, to] : {std::pair<std::string, std::string>{"arm,metric,seed,value", "arm,seed"},
                                 {"spqr,ppl,1,9.25", "spqr,ppl,1"},
                                 {"spqr,ppl,1,9.25", "spqr,ppl,one,9.25"},
                                 {"spqr,ppl,1,9.25", "\"spqr,ppl,1,9.25"},
                                 {"# holds: yes", "# holds: maybe"}}) {
    std::string bad = good;
    bad.replace(bad.find(from), from.size(), to);
    const Result<Ledger> read = read_ledger(bad);
    ASSERT_FALSE(read.ok()) << to;
    EXPECT_NE(read.error().message.find("line "), std::string::npos) << read.error().message;
  }
  EXPECT_FALSE(read_ledger("").ok());
  EXPECT_FALSE(read_ledger("# claim: x\n").ok());
}

TEST(Claim, MeanAndSpreadOverSeeds) {
  const auto summary = summarise(sample().result.rows);
  ASSERT_EQ(summary.size(), 2u);
  EXPECT_DOUBLE_EQ(summary[0].mean, 9.5);
  EXPECT_NEAR(summary[0].spread, 0.353553, 1e-6);
  EXPECT_EQ(summary[1].seeds, 2);
  EXPECT_DOUBLE_EQ(claim_value(sample().result.rows, "spqr", "ppl", 2), 9.75);
  EXPECT_THROW(claim_mean(sample().result.rows, "spqr", "kl"), Failure);
}

TEST(Claim, ComparisonNamesWhatChanged) {
  const Ledger was = sample();
  Ledger is = sample();
  is.result.rows[0].value = 9.26;
  EXPECT_TRUE(compare_ledgers(was, is, 0.01).empty());
  EXPECT_EQ(compare_ledgers(was, is, 1e-4).size(), 1u);
  is.result.holds = false;
  is.result.rows.pop_back();
  is.result.rows.push_back({"new arm", "ppl", 1, 1});
  EXPECT_EQ(compare_ledgers(was, is, 0.01).size(), 3u);  // verdict, one gone, one new
}

}  // namespace
}  // namespace pith
