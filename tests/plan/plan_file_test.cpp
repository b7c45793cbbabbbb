#include "plan/plan_file.h"

#include <gtest/gtest.h>

#include <random>

namespace pith {
namespace {

const Param kTable[] = {{"bits", ParamType::integer, "4", 2, 8, "", "bits of one code"}};

Status check(const MethodSpec& spec) {
  if (spec.method != "rtn" && spec.method != "gptq")
    return user_error("method '" + spec.method + "' is unknown" + did_you_mean(spec.method, {"rtn", "gptq"}));
  const auto options = Options::parse(spec.options, kTable);
  if (!options.ok()) return options.error();
  return {};
}

Plan sample() {
  Plan plan;
  plan.input = "models/smol \"é\".gguf";
  plan.input_hash = "00112233445566778899aabbccddeeff";
  plan.budget = {Budget::Kind::size, 60'000'000};
  plan.settings = {{"calib", "builtin"}, {"seed", "1"}};
  plan.lower_bound = 0.1;
  plan.tensors = {{"model.embed_tokens.weight", "gptq:bits=3", 28311552, 10616832, 0.03125},
                  {"model.layers.0.self_attn.q_proj.weight", "rtn", {}, {}, {}},
                  {"model.norm.weight", "rtn:bits=8", 576, 1152, 0.0}};
  return plan;
}

TEST(PlanFile, PrintIsTheInverseOfParse) {
  std::mt19937_64 rng(1);
  for (int round = 0; round < 200; ++round) {
    Plan plan = sample();
    plan.budget = {static_cast<Budget::Kind>(round % 5),
                   round % 5 == 0 ? 0.0 : static_cast<double>(rng() % 1000000) / 64};
    for (PlanTensor& t : plan.tensors)
      if (rng() % 2) t.loss = static_cast<double>(rng()) * 1e-25, t.bytes = rng();
    if (round % 3 == 0) plan.lower_bound.reset();
    if (round % 7 == 0) plan.tensors.clear();
    const std::string text = print_plan(plan);
    const auto back = parse_plan(text, {}, check);
    ASSERT_TRUE(back.ok()) << back.error().message << "\n" << text;
    EXPECT_EQ(*back, plan) << text;
    EXPECT_EQ(print_plan(*back), text);
  }
}

TEST(PlanFile, OneTensorALine) {
  const std::string text = print_plan(sample());
  EXPECT_NE(
      text.find(
          "\n    {\"name\": \"model.norm.weight\", \"method\": \"rtn:bits=8\", \"weights\": 576, \"bytes\": 1152, "
          "\"loss\": 0.0}\n"),
      std::string::npos)
      << text;
}

TEST(PlanFile, PeopleMayWriteLess) {
  const auto plan = parse_plan(
      R"({"pith_plan": 1, "budget": {"ram": "80MB"}, "tensors": [{"name": "a", "method": "rtn"}]})", {}, check);
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_EQ(plan->budget, (Budget{Budget::Kind::ram, 80'000'000}));
  EXPECT_EQ(plan->budget.describe(), "80MB of memory");
  EXPECT_EQ(plan->tensors.size(), 1u);
}

TEST(PlanFile, HashFollowsWhatDecidesTheResult) {
  const Plan plan = sample();
  Plan other = plan;
  other.tensors[0].loss = 7;
  other.tensors[1].bytes = 5;
  other.input = "elsewhere";
  other.budget = {};
  EXPECT_EQ(other.hash(), plan.hash());  // predictions and words change nothing
  other = plan, other.tensors[1].method = "rtn:bits=3";
  EXPECT_NE(other.hash(), plan.hash());
  other = plan, other.settings["seed"] = "2";
  EXPECT_NE(other.hash(), plan.hash());
  other = plan, other.input_hash = "x";
  EXPECT_NE(other.hash(), plan.hash());
  other = plan, std::swap(other.tensors[0], other.tensors[1]);
  EXPECT_NE(other.hash(), plan.hash());
  other = plan, other.tensors[1].name += other.tensors[1].method, other.tensors[1].method = "";
  EXPECT_NE(other.hash(), plan.hash());
}

TEST(PlanFile, ErrorsSayWhereAndWhat) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "line 1"},
      {"{\n\"pith_plan\": 1,\n\"tensors\": [}", "line 3"},
      {"[]", "pith_plan"},
      {R"({"tensors": []})", "pith_plan"},
      {R"({"pith_plan": 2, "tensors": []})", "version 2"},
      {R"({"pith_plan": 1})", "'tensors'"},
      {R"({"pith_plan": 1, "tensors": {}})", "'tensors'"},
      {R"({"pith_plan": 1, "tensor": []})", "did you mean 'tensors'?"},
      {R"({"pith_plan": 1, "tensors": [3]})", "tensor 0"},
      {R"({"pith_plan": 1, "tensors": [{"method": "rtn"}]})", "no 'name'"},
      {R"({"pith_plan": 1, "tensors": [{"name": "w"}]})", "no 'method'"},
      {R"({"pith_plan": 1, "tensors": [{"name": "w", "method": "gptk"}]})",
       "tensor 0 (w): method 'gptk' is unknown; did you mean 'gptq'?"},
      {R"({"pith_plan": 1, "tensors": [{"name": "w", "method": "rtn:bit=3"}]})", "did you mean 'bits'?"},
      {R"({"pith_plan": 1, "tensors": [{"name": "w", "method": "rtn:bits=9"}]})", "2..8"},
      {R"({"pith_plan": 1, "tensors": [{"name": "w", "method": "rtn", "byts": 3}]})", "did you mean 'bytes'?"},
      {R"({"pith_plan": 1, "tensors": [{"name": "w", "method": "rtn", "bytes": -3}]})", "whole number"},
      {R"({"pith_plan": 1, "tensors": [{"name": "w", "method": "rtn", "loss": "x"}]})", "a number"},
      {R"({"pith_plan": 1, "tensors": [{"name": "w", "method": "rtn"}, {"name": "w", "method": "rtn"}]})", "twice"},
      {R"({"pith_plan": 1, "budget": {"sise": 3}, "tensors": []})", "did you mean 'size'?"},
      {R"({"pith_plan": 1, "budget": {"size": "60XB"}, "tensors": []})", "60XB"},
      {R"({"pith_plan": 1, "budget": {"size": -1}, "tensors": []})", "positive"},
      {R"({"pith_plan": 1, "settings": {"seed": 1}, "tensors": []})", "settings 'seed'"},
  };
  for (const auto& [text, part] : cases) {
    const auto plan = parse_plan(text, {}, check);
    ASSERT_FALSE(plan.ok()) << text;
    EXPECT_NE(plan.error().message.find(part), std::string::npos) << plan.error().message;
  }
  const auto missing = read_plan("/nowhere/plan.json", {}, check);
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.error().message.find("/nowhere/plan.json"), std::string::npos);
}

TEST(PlanFile, HostileTextIsRefusedQuietly) {
  Limits limits;
  limits.max_header_bytes = 1000;
  EXPECT_FALSE(parse_plan(std::string(1001, ' '), limits, check).ok());
  EXPECT_FALSE(parse_plan(std::string(10'000'000, '['), {}, check).ok());
  EXPECT_FALSE(parse_plan("{\"pith_plan\":" + std::string(100'000, '['), {}, check).ok());
  const std::string good = print_plan(sample());
  for (size_t n = 0; n + 2 < good.size(); ++n) EXPECT_FALSE(parse_plan(good.substr(0, n), {}, check).ok());
  std::mt19937 rng(3);
  for (int round = 0; round < 20000; ++round) {
    std::string text = good;
    for (unsigned k = 0; k < 1 + round % 4u; ++k) text[rng() % text.size()] = static_cast<char>(rng());
    const auto plan = parse_plan(text, {}, check);  // any answer but a crash
    if (plan.ok()) {
      EXPECT_TRUE(parse_plan(print_plan(*plan), {}, check).ok());
    }
  }
}

}  // namespace
}  // namespace pith
