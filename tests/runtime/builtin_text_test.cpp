#include "runtime/builtin_text.h"

#include <gtest/gtest.h>

#include <set>

namespace pith {
namespace {

TEST(BuiltinText, CalibrationUnpacksAndIsAMixture) {
  const auto text = builtin_calibration_text();
  ASSERT_TRUE(text.ok()) << text.error().message;
  EXPECT_GT(text->size(), 400'000u);
  // The mixture is dealt out evenly: code and prose both occur in the first and in the last fifth.
  const size_t fifth = text->size() / 5;
  for (const std::string part : {text->substr(0, fifth), text->substr(4 * fifth)}) {
    EXPECT_NE(part.find("return "), std::string::npos);
    EXPECT_NE(part.find(" century"), std::string::npos);
  }
}

TEST(BuiltinText, HeldOutDomainsAreThereAndDisjointFromCalibration) {
  const auto calibration = builtin_calibration_text();
  ASSERT_TRUE(calibration.ok());
  std::set<std::string_view> domains;
  for (const HeldoutText& held : builtin_heldout_texts()) {
    domains.insert(held.domain);
    EXPECT_GT(held.text.size(), 50'000u) << held.domain;
    // No long paragraph of a held-out text may be found in the calibration text.
    size_t begin = 0;
    while (begin < held.text.size()) {
      size_t end = held.text.find("\n\n", begin);
      if (end == std::string_view::npos) end = held.text.size();
      const std::string_view paragraph = held.text.substr(begin, end - begin);
      if (paragraph.size() > 300) {
        EXPECT_EQ(calibration->find(paragraph), std::string::npos) << paragraph;
      }
      begin = end + 2;
    }
  }
  EXPECT_EQ(domains, (std::set<std::string_view>{"code", "documentation", "encyclopedia", "languages", "prose"}));
}

TEST(BuiltinText, ReadsByName) {
  const auto prose = read_named_text("builtin:prose");
  ASSERT_TRUE(prose.ok());
  EXPECT_GT(prose->size(), 50'000u);
  EXPECT_TRUE(read_named_text("builtin:calibration").ok());
  const auto wrong = read_named_text("builtin:pros");
  ASSERT_FALSE(wrong.ok());
  EXPECT_EQ(wrong.error().kind, ErrorKind::user);
  EXPECT_NE(wrong.error().message.find("prose"), std::string::npos);
  EXPECT_FALSE(read_named_text("/no/such/file.txt").ok());
}

}  // namespace
}  // namespace pith
