#include "entropy/rans.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "entropy/codes.h"

namespace pith {
namespace {

// Codes whose rms is a product of row and column terms, with some far outliers.
std::vector<int16_t> sample_codes(int64_t rows, int64_t cols, double scale, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<double> normal;
  std::vector<double> a(rows), b(cols);
  for (double& v : a) v = scale * std::exp2(normal(rng) * 0.5);
  for (double& v : b) v = std::exp2(normal(rng) * 0.7);
  std::vector<int16_t> codes(rows * cols);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      codes[r * cols + c] = static_cast<int16_t>(std::clamp(std::lround(normal(rng) * a[r] * b[c]), -32768l, 32767l));
  for (int i = 0; i < 5; ++i) codes[rng() % codes.size()] = static_cast<int16_t>(rng());
  return codes;
}

struct Memory : SectionSink, SectionSource {
  std::map<std::string, Section, std::less<>> sections;
  void add(std::string name, DType type, std::vector<int64_t> shape, Bytes data) override {
    sections[name] = {type, std::move(shape), std::move(data)};
  }
  std::string add_shared(std::string key, DType type, std::vector<int64_t> shape, Bytes data) override {
    sections["shared." + key] = {type, std::move(shape), std::move(data)};
    return "shared." + key;
  }
  Result<Section> find(std::string_view name) const override {
    const auto it = sections.find(name);
    if (it == sections.end()) return data_error("no section " + std::string(name));
    return it->second;
  }
};

TEST(CodeTable, FrequenciesAreTheBestIntegers) {
  // Brute force over all splits of 2^12 (one goes to the escape) beats fit() by less than a twentieth of a bit in all.
  std::map<int, uint64_t> histogram{{0, 9000}, {1, 700}};
  const CodeTable t = CodeTable::fit(histogram);
  double best = 1e18;
  const auto cost = [&](double f0, double f1) { return -9000 * std::log2(f0 / 4096) - 700 * std::log2(f1 / 4096); };
  for (int f0 = 1; f0 < 4095; ++f0) best = std::min(best, cost(f0, 4096 - 1 - f0));
  EXPECT_NEAR(cost(t.frequencies()[0], t.frequencies()[1]), best, 0.05);
}

TEST(CodeTable, RefusesFrequenciesThatDoNotSumUp) {
  EXPECT_FALSE(CodeTable::make(0, 0, {1, 2}).ok());
  EXPECT_FALSE(CodeTable::make(0, 0, {4096, 0}).ok());
  EXPECT_TRUE(CodeTable::make(0, 0, {4096}).ok());
}

TEST(Rans, RoundTripsAllShapesAndScales) {
  for (const auto& [rows, cols] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {1, 1000}, {7, 33}, {64, 576}, {700, 576}})
    for (const double scale : {0.02, 0.4, 3.0, 50.0, 3000.0}) {
      const auto codes = sample_codes(rows, cols, scale, 1);
      CodeModelBuilder builder;
      const CodeClasses classes = builder.add(codes.data(), rows, cols);
      builder.finish();
      const CodesPtr coded = builder.encode(codes.data(), rows, cols, classes);
      std::vector<int16_t> back(codes.size());
      coded->read_rows(0, rows, back.data());
      EXPECT_EQ(back, codes) << rows << "x" << cols << " scale " << scale;
      for (int64_t r = 0; r < rows; r += 3) {  // by single rows, through the chunk cache
        coded->read_rows(r, r + 1, back.data());
        EXPECT_TRUE(std::equal(back.begin(), back.begin() + cols, codes.begin() + r * cols));
      }
    }
}

TEST(Rans, SizeIsCloseToTheEntropyOfTheTrueModel) {
  const int64_t rows = 1000, cols = 1000;
  std::mt19937_64 rng(3);
  std::normal_distribution<double> normal;
  std::vector<int16_t> codes(rows * cols);
  std::map<int, double> p;
  for (int16_t& c : codes) c = static_cast<int16_t>(std::lround(1.3 * normal(rng)));
  for (const int16_t c : codes) p[c] += 1.0 / static_cast<double>(codes.size());
  double entropy = 0;
  for (const auto& [code, q] : p) entropy -= q * std::log2(q);
  CodeModelBuilder builder;
  const auto classes = builder.add(codes.data(), rows, cols);
  const double estimate = builder.estimated_bits();
  builder.finish();
  const auto coded = builder.encode(codes.data(), rows, cols, classes);
  const double bits =
      static_cast<double>(coded->bits().total()) + 8.0 * static_cast<double>(builder.model().serialize().size());
  EXPECT_LT(bits, entropy * static_cast<double>(codes.size()) * 1.002 + 8 * 700);
  EXPECT_NEAR(bits, estimate, 0.002 * bits);
}

TEST(Rans, SerialisedCodesParseBackAndDamageIsNoticed) {
  const int64_t rows = 300, cols = 200;
  const auto codes = sample_codes(rows, cols, 1.0, 5);
  CodeModelBuilder builder;
  const auto classes = builder.add(codes.data(), rows, cols);
  builder.finish();
  Memory memory;
  const auto tree = builder.encode(codes.data(), rows, cols, classes)->serialize("w", memory);
  const Limits limits;
  const ParseContext context{memory, limits, entropy_codes_formats()};
  const auto parsed = RansCodes::parse(tree, rows, cols, context);
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  std::vector<int16_t> back(codes.size());
  parsed.value()->read_rows(0, rows, back.data());
  EXPECT_EQ(back, codes);
  EXPECT_TRUE(static_cast<const RansCodes&>(*parsed.value()).intact());

  // Truncation anywhere is an error; a flipped bit is an error or shows in intact(); neither crashes.
  const Bytes whole = memory.sections["w.codes"].data;
  for (int i = 0; i < 64; ++i) {
    memory.sections["w.codes"].data = whole.slice(0, whole.size() * i / 64);
    EXPECT_FALSE(RansCodes::parse(tree, rows, cols, context).ok()) << i;
  }
  std::mt19937_64 rng(9);
  int noticed = 0;
  for (int i = 0; i < 200; ++i) {
    std::vector<std::byte> damaged(whole.view.begin(), whole.view.end());
    damaged[rng() % damaged.size()] ^= static_cast<std::byte>(1u << rng() % 8);
    memory.sections["w.codes"].data = Bytes::own(std::move(damaged));
    const auto again = RansCodes::parse(tree, rows, cols, context);
    if (!again.ok() || !static_cast<const RansCodes&>(*again.value()).intact()) ++noticed;
  }
  // The end state is a 256-bit check, not a hash of the header: a flip that picks an equal table changes nothing.
  EXPECT_GE(noticed, 196);
}

TEST(RansModel, ParsesBackAndRefusesEveryTruncation) {
  const auto codes = sample_codes(64, 64, 2.0, 8);
  CodeModelBuilder builder;
  builder.add(codes.data(), 64, 64);
  builder.finish();
  const auto bytes = builder.model().serialize();
  const auto parsed = RansModel::parse(bytes);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed.value()->serialize(), bytes);
  for (size_t n = 0; n < bytes.size(); n += 7) EXPECT_FALSE(RansModel::parse(std::span(bytes).first(n)).ok());
}

}  // namespace
}  // namespace pith
