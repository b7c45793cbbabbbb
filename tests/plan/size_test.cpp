#include "plan/size.h"

#include <gtest/gtest.h>

#include <random>

namespace pith {
namespace {

TEST(Size, Parses) {
  const std::pair<const char*, uint64_t> good[] = {{"60MB", 60'000'000},
                                                   {"57MiB", 57ull << 20},
                                                   {"1.5GB", 1'500'000'000},
                                                   {"1.5 gb", 1'500'000'000},
                                                   {"4096", 4096},
                                                   {" 12 kB ", 12'000},
                                                   {"3k", 3000},
                                                   {"2M", 2'000'000},
                                                   {"7B", 7},
                                                   {"0", 0},
                                                   {"0.29kB", 290},
                                                   {"1.0000001MB", 1'000'000},
                                                   {".5MB", 500'000},
                                                   {"1TiB", 1ull << 40},
                                                   {"18446744073709551615", ~0ull}};
  for (const auto& [text, bytes] : good) {
    const auto r = parse_size(text);
    ASSERT_TRUE(r.ok()) << text;
    EXPECT_EQ(*r, bytes) << text;
  }
  for (const char* bad : {"", "MB", "-1MB", "60 M B", "60XB", "1e6", "1.2.3MB", "60MB60", "18446744073709551616",
                          "99999999999TB", "nan", "inf", "6,0MB", "."}) {
    const auto r = parse_size(bad);
    ASSERT_FALSE(r.ok()) << bad;
    EXPECT_EQ(r.error().kind, ErrorKind::user);
  }
}

TEST(Size, ExactPrintIsTheInverse) {
  EXPECT_EQ(print_exact_size(60'000'000), "60MB");
  EXPECT_EQ(print_exact_size(57ull << 20), "57MiB");
  EXPECT_EQ(print_exact_size(1234567), "1234567");
  EXPECT_EQ(print_exact_size(0), "0");
  std::mt19937_64 rng(1);
  for (int i = 0; i < 2000; ++i) {
    const uint64_t bytes = (rng() >> (rng() % 64)) / (i % 2 ? 1 : 1000) * (i % 2 ? 1 : 1000);
    EXPECT_EQ(*parse_size(print_exact_size(bytes)), bytes);
  }
}

TEST(Size, PrintsForPeople) {
  EXPECT_EQ(print_size(999), "999 B");
  EXPECT_EQ(print_size(1000), "1.00 kB");
  EXPECT_EQ(print_size(59'960'000), "60.0 MB");
  EXPECT_EQ(print_size(999'600), "1.00 MB");
  EXPECT_EQ(print_size(1'236'000'000), "1.24 GB");
  EXPECT_EQ(print_size(~0ull), "18.4 EB");
  EXPECT_EQ(print_duration(0.013), "13 ms");
  EXPECT_EQ(print_duration(4.21), "4.2 s");
  EXPECT_EQ(print_duration(83), "1 min 23 s");
  EXPECT_EQ(print_duration(7500), "2 h 05 min");
  EXPECT_EQ(print_count(134515008), "134,515,008");
  EXPECT_EQ(print_count(999), "999");
}

TEST(Size, Shares) {
  EXPECT_DOUBLE_EQ(*parse_share("2%"), 0.02);
  EXPECT_DOUBLE_EQ(*parse_share("0.02"), 0.02);
  EXPECT_DOUBLE_EQ(*parse_share(" 1.5 % "), 0.015);
  for (const char* bad : {"", "%", "-1%", "2%%", "nan", "two"}) EXPECT_FALSE(parse_share(bad).ok()) << bad;
}

}  // namespace
}  // namespace pith
