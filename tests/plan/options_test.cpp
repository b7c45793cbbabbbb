#include "plan/options.h"

#include <gtest/gtest.h>

#include <random>

namespace pith {
namespace {

const Param kTable[] = {
    {"bits", ParamType::integer, "4", 2, 8, "", "bits of one code"},
    {"group", ParamType::integer, "128", -1, 4096, "", "columns that share a scale"},
    {"damp", ParamType::real, "0.01", 0, 1, "", "share of the mean diagonal added to H"},
    {"act-order", ParamType::boolean, "false", 0, 0, "", "columns by falling diagonal"},
    {"grid", ParamType::choice, "asym", 0, 0, "asym|sym|nf", "kind of levels"},
    {"note", ParamType::text, "", 0, 0, "", "free text"},
};

TEST(Options, DefaultsAreTheTable) {
  ASSERT_TRUE(check_params(kTable).ok());
  const Options o = Options::defaults(kTable);
  EXPECT_EQ(o.integer("bits"), 4);
  EXPECT_EQ(o.real("damp"), 0.01);
  EXPECT_FALSE(o.flag("act-order"));
  EXPECT_EQ(o.text("grid"), "asym");
  EXPECT_EQ(o.print(), "");
}

TEST(Options, ParsesAndPrints) {
  auto o = Options::parse(" bits = 3 , group=+016,act_order, damp=1e-2,grid=nf", kTable);
  ASSERT_TRUE(o.ok()) << o.error().message;
  EXPECT_EQ(o->integer("bits"), 3);
  EXPECT_EQ(o->integer("group"), 16);
  EXPECT_TRUE(o->flag("act_order"));
  EXPECT_EQ(o->print(), "bits=3,group=16,act-order=true,grid=nf");  // damp equals its default however it is written
  EXPECT_EQ(Options::parse("", kTable)->print(), "");
}

TEST(Options, PrintIsTheInverseOfParse) {
  std::mt19937 rng(7);
  const std::string letters = "ab ,;:=\\.|\t'\"3-é";
  for (int round = 0; round < 3000; ++round) {
    Options o = Options::defaults(kTable);
    ASSERT_TRUE(o.set("bits", std::to_string(2 + rng() % 7)).ok());
    ASSERT_TRUE(o.set("group", std::to_string(static_cast<int>(rng() % 4098) - 1)).ok());
    ASSERT_TRUE(o.set("damp", std::to_string(static_cast<double>(rng()) / 4294967296.0)).ok());
    ASSERT_TRUE(o.set("act-order", rng() % 2 ? "yes" : "off").ok());
    ASSERT_TRUE(o.set("grid", rng() % 2 ? "sym" : "asym").ok());
    std::string note;
    for (unsigned i = rng() % 6; i > 0; --i) note += letters[rng() % letters.size()];
    ASSERT_TRUE(o.set("note", note).ok());
    const std::string printed = o.print();
    auto back = Options::parse(printed, kTable);
    ASSERT_TRUE(back.ok()) << printed << ": " << back.error().message;
    EXPECT_EQ(back->print(), printed);
    EXPECT_EQ(back->text("note"), note) << printed;
    EXPECT_EQ(back->integer("group"), o.integer("group"));
    EXPECT_EQ(back->real("damp"), o.real("damp"));
    EXPECT_EQ(back->flag("act-order"), o.flag("act-order"));
    // The same text survives inside a method spec and an --allow list.
    const MethodSpec spec{"gptq", printed};
    EXPECT_EQ(split_spec(spec.print()), spec);
    const auto allowed = parse_allow("rtn;" + spec.print() + ";spqr");
    ASSERT_TRUE(allowed.ok());
    ASSERT_EQ(allowed->size(), 3u) << printed;
    EXPECT_EQ((*allowed)[1], spec);
  }
}

void expect_error(std::string_view text, std::string_view part) {
  const auto o = Options::parse(text, kTable);
  ASSERT_FALSE(o.ok()) << text;
  EXPECT_EQ(o.error().kind, ErrorKind::user);
  EXPECT_NE(o.error().message.find(part), std::string::npos) << o.error().message;
}

TEST(Options, ErrorsSayWhatToDo) {
  expect_error("grup=3", "did you mean 'group'?");
  expect_error("zzzzzz=3", "known: bits, group");
  expect_error("bits=9", "expected integer 2..8, found '9'");
  expect_error("bits=", "expected integer 2..8");
  expect_error("bits=3x", "found '3x'");
  expect_error("bits=3.0", "found '3.0'");
  expect_error("bits=99999999999999999999", "expected integer");
  expect_error("damp=nan", "expected number 0..1");
  expect_error("damp=inf", "expected number");
  expect_error("grid=sim", "did you mean 'sym'?");
  expect_error("act-order=maybe", "true|false");
  expect_error("bits", "needs a value");
  expect_error("bits=3,bits=4", "given twice");
  expect_error("act-order,act_order=no", "given twice");
  expect_error("bits=3,,group=2", "name=value");
  expect_error("=3", "name=value");
}

TEST(Options, TablesAreChecked) {
  const Param outside[] = {{"bits", ParamType::integer, "9", 2, 8, "", "x"}};
  const Param twice[] = {{"a", ParamType::text, "", 0, 0, "", "x"}, {"a", ParamType::text, "", 0, 0, "", "x"}};
  const Param capital[] = {{"Bits", ParamType::text, "", 0, 0, "", "x"}};
  const Param choice[] = {{"c", ParamType::choice, "c", 0, 0, "a|b", "x"}};
  EXPECT_FALSE(check_params(outside).ok());
  EXPECT_FALSE(check_params(twice).ok());
  EXPECT_FALSE(check_params(capital).ok());
  EXPECT_FALSE(check_params(choice).ok());
}

TEST(Options, AllowSpreadsRanges) {
  const auto list = parse_allow(" gptq:bits=2..4 ; spqr ; rtn:bits=3..4,group=64,x=1..2");
  ASSERT_TRUE(list.ok());
  std::vector<std::string> printed;
  for (const auto& s : *list) printed.push_back(s.print());
  const std::vector<std::string> expected = {"gptq:bits=2",
                                             "gptq:bits=3",
                                             "gptq:bits=4",
                                             "spqr",
                                             "rtn:bits=3,group=64,x=1",
                                             "rtn:bits=3,group=64,x=2",
                                             "rtn:bits=4,group=64,x=1",
                                             "rtn:bits=4,group=64,x=2"};
  EXPECT_EQ(printed, expected);
  EXPECT_TRUE(parse_allow("")->empty());
  EXPECT_EQ(parse_allow("a:path=../x..y")->size(), 1u);
  EXPECT_EQ(parse_allow("a:x=-2..-1")->size(), 2u);
  EXPECT_FALSE(parse_allow("a:x=4..2").ok());
  EXPECT_FALSE(parse_allow("a:x=0..4096").ok());
  EXPECT_FALSE(parse_allow("a:x=-9223372036854775808..9223372036854775807").ok());
  EXPECT_FALSE(parse_allow("a:x=1..100,y=1..100").ok());
  EXPECT_FALSE(parse_allow(":x=1").ok());
}

TEST(Options, NearestNames) {
  const std::vector<std::string> known = {"compress", "quantize", "prune", "inspect", "verify", "export", "eval"};
  EXPECT_EQ(nearest_names("compres", known), std::vector<std::string>{"compress"});
  EXPECT_EQ(nearest_names("qauntize", known), std::vector<std::string>{"quantize"});
  EXPECT_EQ(nearest_names("comp", known), std::vector<std::string>{"compress"});
  EXPECT_EQ(nearest_names("evla", known).front(), "eval");
  EXPECT_TRUE(nearest_names("banana", known).empty());
  EXPECT_TRUE(nearest_names("", known).empty());
  EXPECT_TRUE(nearest_names(std::string(1 << 20, 'x'), known).empty());
}

}  // namespace
}  // namespace pith
