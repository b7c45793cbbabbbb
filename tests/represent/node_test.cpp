// What is special to single node kinds.
#include <gtest/gtest.h>

#include <bit>
#include <nlohmann/json.hpp>

#include "represent/samples.h"

namespace pith::test {
namespace {

CodesPtr codes(int64_t rows, int64_t cols, unsigned width, int offset, std::vector<int16_t> values) {
  return PackedCodes::pack(rows, cols, width, offset, values).value();
}

FieldPtr per_row(int64_t rows, int64_t cols, float value) {
  const std::vector<float> values(static_cast<size_t>(rows), value);
  return AffineField::from(rows, cols, cols, DType::f32, values).value();
}

TEST(PackedCodes, LayoutIsLowBitsFirstRowsOnBytes) {
  const auto packed = codes(2, 3, 3, 0, {1, 2, 3, 4, 5, 6});
  const auto& p = static_cast<const PackedCodes&>(*packed);
  ASSERT_EQ(p.row_bytes(), 2);
  EXPECT_EQ(static_cast<int>(p.row_data(0)[0]), (1 | 2 << 3 | 3 << 6) & 255);
  EXPECT_EQ(static_cast<int>(p.row_data(0)[1]), 3 >> 2);
  EXPECT_EQ(static_cast<int>(p.row_data(1)[0]), (4 | 5 << 3 | 6 << 6) & 255);
}

TEST(PackedCodes, EveryWidthKeepsItsExtremes) {
  for (unsigned width = 1; width <= 16; ++width) {
    const int offset = width == 16 ? -32768 : -(1 << (width - 1));
    const int top = offset + (1 << width) - 1;
    std::vector<int16_t> values;
    for (int i = 0; i < 37; ++i)
      values.push_back(static_cast<int16_t>(i % 3 == 0 ? offset : i % 3 == 1 ? top : offset + i % (1 << width)));
    const auto packed = codes(1, 37, width, offset, values);
    EXPECT_EQ(packed->range(), std::pair(offset, top));
    std::vector<int16_t> back(37);
    packed->read_rows(0, 1, back.data());
    EXPECT_EQ(back, values) << width << " bits";
  }
  const std::vector<int16_t> too_big = {8};
  EXPECT_FALSE(PackedCodes::pack(1, 1, 3, 0, too_big).ok());
  EXPECT_FALSE(PackedCodes::make(1, 8, 16, 0, Bytes::own(std::vector<std::byte>(16))).ok()) << "values above int16";
}

TEST(FloatArray, HalfConversionMatchesTheScalarOne) {
  std::vector<uint16_t> all(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  std::vector<float> values(all.size());
  half_to_float(all.data(), 65536, values.data());
  for (size_t i = 0; i < all.size(); ++i)
    ASSERT_EQ(std::bit_cast<uint32_t>(values[i]), std::bit_cast<uint32_t>(half_to_float(all[i]))) << i;
}

TEST(Grid, NormalFloat4IsThatOfQlora) {
  const std::vector<double> nf4 = {-1.0,
                                   -0.6961928009986877,
                                   -0.5250730514526367,
                                   -0.39491748809814453,
                                   -0.28444138169288635,
                                   -0.18477343022823334,
                                   -0.09105003625154495,
                                   0.0,
                                   0.07958029955625534,
                                   0.16093020141124725,
                                   0.24611230194568634,
                                   0.33791524171829224,
                                   0.44070982933044434,
                                   0.5626170039176941,
                                   0.7229568362236023,
                                   1.0};
  const auto levels = normal_float_levels(4);
  ASSERT_EQ(levels.size(), 16u);
  for (size_t i = 0; i < 16; ++i) EXPECT_NEAR(levels[i], nf4[i], 2e-6) << i;
  for (unsigned bits = 2; bits <= 8; ++bits) {
    const auto l = normal_float_levels(bits);
    ASSERT_EQ(l.size(), size_t{1} << bits);
    EXPECT_TRUE(std::is_sorted(l.begin(), l.end()));
    EXPECT_EQ(l.front(), -1.0f);
    EXPECT_EQ(l.back(), 1.0f);
  }
}

TEST(Grid, RefusesCodesWithoutALevelAndFieldsOfAnotherShape) {
  const std::vector<float> levels = {-1, 0, 1};
  EXPECT_TRUE(Grid::make(codes(1, 3, 2, 0, {0, 1, 2}), levels, per_row(1, 3, 1)).ok());
  EXPECT_FALSE(Grid::make(codes(1, 3, 2, 0, {0, 1, 3}), levels, per_row(1, 3, 1)).ok());
  EXPECT_FALSE(Grid::make(codes(1, 3, 2, -1, {0, 1, -1}), levels, per_row(1, 3, 1)).ok());
  EXPECT_FALSE(Grid::make(codes(1, 3, 2, 0, {0, 1, 2}), levels, per_row(1, 4, 1)).ok());
  const float nan = std::nanf("");
  EXPECT_FALSE(AffineField::from(1, 1, 1, DType::f32, std::span(&nan, 1)).ok());
}

TEST(Csr, RefusesWhatIsNoMatrix) {
  const auto make = [](std::vector<uint32_t> start, std::vector<uint32_t> columns) {
    return Csr::from(2, 4, start, columns, std::vector<float>(columns.size(), 1.0f));
  };
  EXPECT_TRUE(make({0, 2, 3}, {0, 3, 1}).ok());
  EXPECT_FALSE(make({0, 2, 3}, {0, 4, 1}).ok()) << "column outside";
  EXPECT_FALSE(make({0, 2, 3}, {3, 0, 1}).ok()) << "columns fall";
  EXPECT_FALSE(make({0, 2, 3}, {3, 3, 1}).ok()) << "column twice";
  EXPECT_FALSE(make({0, 2, 2}, {0, 3, 1}).ok()) << "entry in no row";
  EXPECT_FALSE(make({0, 4, 3}, {0, 3, 1}).ok()) << "row starts fall";
}

TEST(Csr, StoresTheNarrowestTypes) {
  const std::vector<uint32_t> start = {0, 1}, narrow = {200}, wide = {65536};
  const std::vector<float> one = {1};
  EXPECT_EQ(Csr::from(1, 256, start, narrow, one).value()->bits().total(), 8u + 8u + 16u);
  EXPECT_EQ(Csr::from(1, 65536, start, narrow, one).value()->bits().total(), 8u + 16u + 16u);
  EXPECT_EQ(Csr::from(1, 65537, start, wide, one).value()->bits().total(), 8u + 32u + 16u);
}

TEST(NMask, PatternsAreCountedExactly) {
  EXPECT_EQ(nm_pattern_bits(2, 4), 3u);
  EXPECT_EQ(nm_pattern_bits(1, 4), 2u);
  EXPECT_EQ(nm_pattern_bits(4, 8), 7u);
  EXPECT_EQ(nm_pattern_bits(8, 16), 14u);
  EXPECT_EQ(nm_pattern_bits(4, 4), 1u);
  EXPECT_EQ(nm_patterns(2, 4), (std::vector<uint8_t>{0, 1, 0, 2, 0, 3, 1, 2, 1, 3, 2, 3}));
  const auto values = Dense::from(DType::f32, 1, 2, std::vector<float>{1, 2}).value();
  EXPECT_TRUE(NMask::make(2, 4, codes(1, 1, 3, 0, {5}), values).ok());
  EXPECT_FALSE(NMask::make(2, 4, codes(1, 1, 3, 0, {6}), values).ok()) << "there are 6 patterns";
}

TEST(Permuted, RefusesWhatIsNoPermutation) {
  const auto child = Dense::from(DType::f32, 1, 3, std::vector<float>{1, 2, 3}).value();
  const auto make = [&](std::vector<uint32_t> order) { return Permuted::from(child, Axis::cols, order); };
  ASSERT_TRUE(make({2, 0, 1}).ok());
  EXPECT_EQ(decode_all(*make({2, 0, 1}).value()), (std::vector<float>{2, 3, 1}));
  EXPECT_FALSE(make({2, 0, 0}).ok());
  EXPECT_FALSE(make({2, 0, 3}).ok());
  EXPECT_FALSE(make({0, 1}).ok());
}

TEST(Override, ReplacesAndDoesNotAdd) {
  const auto base = Dense::from(DType::f32, 1, 2, std::vector<float>{5, 7}).value();
  const std::vector<uint32_t> start = {0, 1}, column = {1};
  const std::vector<float> zero = {0};
  const auto node = Override::make(base, Csr::from(1, 2, start, column, zero).value()).value();
  EXPECT_EQ(decode_all(*node), (std::vector<float>{5, 0}));
  EXPECT_FALSE(Override::make(base, base).ok()) << "the sparse part must be sparse";
}

TEST(Nodes, SpqrTreeCountsWhatThePaperCounts) {
  // 3 bit codes, 3 bit scale and zero for each 16 columns, four fp16 numbers a 16 x 16 tile: 3.625 bits a weight.
  const int64_t n = 64;
  const auto field = [&] {
    std::vector<float> stats(static_cast<size_t>(2 * n / 16 * n / 16), 0.5f);
    return TwoLevelField::make(n, 16, 16,
                               codes(n, n / 16, 3, 0, std::vector<int16_t>(static_cast<size_t>(n * n / 16), 3)),
                               FloatArray::from(DType::f16, stats, "stats").value())
        .value();
  };
  const auto grid =
      Grid::make(codes(n, n, 3, 0, std::vector<int16_t>(static_cast<size_t>(n * n), 1)), {}, field(), field()).value();
  // Four codes of 3 bits a row pad to two bytes, so the two fields take 16 instead of 12 bits a row of 64 here.
  EXPECT_EQ(grid->bits().total(), static_cast<uint64_t>(n * n * 3 + 2 * n * 16 + 2 * 2 * 16 * (n / 16) * (n / 16)));
}

// A code of 16 bits is a signed number: entry 0 of a full book is code -32768.
TEST(Codebook, SixtyFiveThousandEntriesAreCountedFromTheLowestCode) {
  std::vector<float> book(65536);
  for (size_t e = 0; e < book.size(); ++e) book[e] = static_cast<float>(e);
  const auto made = Codebook::make(3, 1, 65536, 1, codes(1, 3, 16, -32768, {-32768, 0, 32767}),
                                   FloatArray::from(DType::f32, book, "book").value());
  ASSERT_TRUE(made.ok()) << made.error().message;
  EXPECT_EQ(decode_all(**made), (std::vector<float>{0, 32768, 65535}));
  book.pop_back();
  EXPECT_FALSE(Codebook::make(3, 1, 65535, 1, codes(1, 3, 16, -32768, {-32768, 0, 32767}),
                              FloatArray::from(DType::f32, book, "book").value())
                   .ok());
}

TEST(LowRank, MeanIsKeptButNotDecoded) {
  const auto u = Dense::from(DType::f32, 2, 1, std::vector<float>{1, 2}).value();
  const auto v = Dense::from(DType::f32, 1, 2, std::vector<float>{3, 4}).value();
  const auto mean = Dense::from(DType::f32, 1, 2, std::vector<float>{100, 200}).value();
  const auto node = LowRank::make(u, v, mean).value();
  EXPECT_EQ(decode_all(*node), (std::vector<float>{3, 4, 6, 8}));
  EXPECT_EQ(node->children().size(), 3u);
  EXPECT_FALSE(LowRank::make(u, u).ok());
  EXPECT_FALSE(LowRank::make(u, v, u).ok());
}

TEST(ParseNode, NamesWhatItDoesNotKnow) {
  MemorySections sections;
  const Limits limits;
  const auto error = [&](const char* text) {
    const auto node = parse_node(nlohmann::json::parse(text), ParseContext{sections, limits, {}});
    return node.ok() ? std::string() : node.error().message;
  };
  EXPECT_NE(error(R"({"node":"hologram"})").find("'hologram'"), std::string::npos);
  EXPECT_NE(error(R"({"node":"dense","rows":0,"cols":1,"section":"x"})").find("'rows'"), std::string::npos);
  EXPECT_NE(error(R"({"node":"dense","rows":1,"cols":1,"section":"x"})").find("'x'"), std::string::npos);
  EXPECT_NE(error(R"([1,2])"), "");
  EXPECT_NE(error(R"({"node":"grid","rows":1,"cols":1,"codes":{"codes":"morse"},"scale":{}})").find("'morse'"),
            std::string::npos);
}

}  // namespace
}  // namespace pith::test
