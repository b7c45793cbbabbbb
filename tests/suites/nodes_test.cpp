// What every node kind promises, tested for all of them: values, sizes, reading back, and bad input.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "entropy/codes.h"
#include "represent/samples.h"

namespace pith::test {
namespace {

using nlohmann::json;

Result<NodePtr> parse(const json& tree, const SectionSource& sections) {
  const Limits limits;
  return parse_node(tree, ParseContext{sections, limits, entropy_codes_formats()});
}

// Calls body with random samples of every kind, and with deep mixed trees.
template <class Body>
void for_all(int rounds, Body body) {
  uint64_t seed = 1;
  for (const SampleMaker& maker : sample_makers())
    for (int made = 0; made < rounds; ++seed) {
      Random random(seed);
      const int64_t rows = random.between(1, 19);
      const int64_t cols = random.coin() ? 32 * random.between(1, 3) : random.between(1, 90);
      Sample sample = maker.make(random, rows, cols, 1);
      if (sample.node == nullptr) continue;  // this kind cannot have this shape
      ++made;
      SCOPED_TRACE(std::string(maker.kind) + ", seed " + std::to_string(seed) + ": " + sample.node->describe());
      body(random, sample);
    }
  for (int i = 0; i < 20; ++i) {
    Random random(1000000 + static_cast<uint64_t>(i));
    Sample sample = any_sample(random, random.between(1, 12), 32 * random.between(1, 2), 4);
    SCOPED_TRACE("mixed tree " + std::to_string(i) + ": " + sample.node->describe());
    body(random, sample);
  }
}

TEST(Nodes, EveryKindHasASample) {
  std::set<std::string_view> made;
  for (const SampleMaker& maker : sample_makers()) {
    made.insert(maker.kind);
    Random random(7);
    for (;;)
      if (const Sample sample = maker.make(random, 4, 32, 1); sample.node != nullptr) {
        EXPECT_EQ(sample.node->kind(), maker.kind);
        break;
      }
  }
  const auto kinds = node_kinds();
  EXPECT_EQ(made, std::set<std::string_view>(kinds.begin(), kinds.end()))
      << "a node kind without a sample in tests/represent/samples_test.cpp";
}

TEST(Nodes, DecodeLikePlainLoops) {
  for_all(25, [](Random&, const Sample& sample) {
    const auto values = decode_all(*sample.node);
    ASSERT_EQ(values.size(), sample.reference.size());
    double largest = 0;
    for (const double v : sample.reference) largest = std::max(largest, std::abs(v));
    for (size_t i = 0; i < values.size(); ++i)
      if (sample.exact)
        ASSERT_EQ(values[i], static_cast<float>(sample.reference[i])) << "element " << i;
      else
        ASSERT_NEAR(values[i], sample.reference[i], 2e-5 * (largest + 1e-3)) << "element " << i;
  });
}

TEST(Nodes, AnyRangeOfRowsGivesTheSameBits) {
  for_all(6, [](Random& random, const Sample& sample) {
    const auto all = decode_all(*sample.node);
    const int64_t rows = sample.node->rows(), cols = sample.node->cols();
    for (int k = 0; k < 4; ++k) {
      const int64_t r0 = random.between(0, rows), r1 = random.between(r0, rows);
      std::vector<float> part(static_cast<size_t>((r1 - r0) * cols) + 1, 42.0f);
      sample.node->decode_rows(r0, r1, part.data());
      EXPECT_EQ(part.back(), 42.0f) << "wrote past its rows";
      EXPECT_EQ(std::memcmp(part.data(), all.data() + r0 * cols, (part.size() - 1) * sizeof(float)), 0);
    }
  });
}

TEST(Nodes, ReadBackTheSame) {
  for_all(12, [](Random&, const Sample& sample) {
    MemorySections first, second;
    const json tree = sample.node->serialize("t", first);
    // The way of a file: JSON as text, sections at odd addresses.
    MemorySections stored = first;
    for (auto& [name, section] : stored.sections) section.data = misaligned(section.data);
    const auto back = parse(json::parse(tree.dump()), stored);
    ASSERT_TRUE(back.ok()) << back.error().message;
    const json again = (*back)->serialize("t", second);
    EXPECT_EQ(tree.dump(), again.dump());
    EXPECT_TRUE(first == second) << "sections differ";
    EXPECT_EQ((*back)->describe(), sample.node->describe());
    const auto a = decode_all(*sample.node), b = decode_all(**back);
    ASSERT_EQ(a.size(), b.size());
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0);
  });
}

TEST(Nodes, BitsAreTheBytesWritten) {
  for_all(12, [](Random&, const Sample& sample) {
    MemorySections sections;
    (void)sample.node->serialize("t", sections);
    EXPECT_EQ(sample.node->bits().total(), 8 * sections.own_bytes());
  });
}

TEST(Nodes, SectionsCutShortAreRefused) {
  for_all(4, [](Random& random, const Sample& sample) {
    MemorySections sections;
    const json tree = sample.node->serialize("t", sections);
    for (const auto& [name, section] : sections.sections) {
      const size_t size = section.data.size();
      for (const size_t length : {size_t{0}, size / 2, size - 1, static_cast<size_t>(random.next() % (size + 1))}) {
        if (length >= size) continue;
        MemorySections cut = sections;
        cut.sections[name].data = section.data.slice(0, length);
        const auto back = parse(tree, cut);
        ASSERT_FALSE(back.ok()) << name << " cut from " << size << " to " << length << " bytes was accepted";
        EXPECT_EQ(back.error().kind, ErrorKind::data) << back.error().message;
      }
      MemorySections without = sections;
      without.sections.erase(name);
      EXPECT_FALSE(parse(tree, without).ok());
    }
  });
}

TEST(Nodes, DamagedSectionsNeverCrash) {
  for_all(10, [](Random& random, const Sample& sample) {
    MemorySections sections;
    const json tree = sample.node->serialize("t", sections);
    for (const auto& [name, section] : sections.sections) {
      if (section.data.size() == 0) continue;
      std::vector<std::byte> bytes(section.data.view.begin(), section.data.view.end());
      for (int64_t flips = random.between(1, 8); flips > 0; --flips)
        bytes[random.next() % bytes.size()] ^= static_cast<std::byte>(random.between(1, 255));
      MemorySections damaged = sections;
      damaged.sections[name].data = Bytes::own(std::move(bytes));
      if (const auto back = parse(tree, damaged); back.ok()) (void)decode_all(**back);
    }
  });
}

// All places in a tree, as JSON pointers.
void places(const json& j, const json::json_pointer& at, std::vector<json::json_pointer>& out) {
  out.push_back(at);
  if (j.is_object())
    for (const auto& [key, value] : j.items()) places(value, at / key, out);
  if (j.is_array())
    for (size_t i = 0; i < j.size(); ++i) places(j[i], at / i, out);
}

// An empty sparse matrix of 2^40 columns is a fine tree (the model refuses its shape), but nothing to decode here.
void parse_and_decode(const json& tree, const SectionSource& sections) {
  const auto back = parse(tree, sections);
  if (back.ok() && (*back)->rows() * (*back)->cols() < 1 << 20) (void)decode_all(**back);
}

TEST(Nodes, DamagedTreesNeverCrash) {
  const std::vector<json> strange = {
      nullptr, -1,    0,  1,   2,       17,       65536, int64_t{1} << 40, ~uint64_t{0},
      0.5,     1e300, "", "t", "dense", "packed", true,  json::array(),    json::object()};
  for_all(3, [&](Random&, const Sample& sample) {
    MemorySections sections;
    const json tree = sample.node->serialize("t", sections);
    std::vector<json::json_pointer> all;
    places(tree, json::json_pointer(), all);
    for (const auto& at : all) {
      for (const json& value : strange) {
        json damaged = tree;
        damaged[at] = value;
        parse_and_decode(damaged, sections);
      }
      if (at.empty()) continue;
      json damaged = tree;
      json& parent = damaged[at.parent_pointer()];
      if (!parent.is_object()) continue;
      parent.erase(at.back());
      parse_and_decode(damaged, sections);
    }
  });
}

TEST(Nodes, CodesOfTwoModelsMeetInOneTree) {
  const auto grid = [](int16_t largest) {
    Random random(static_cast<uint64_t>(largest));
    std::vector<int16_t> codes(600);
    for (auto& v : codes) v = static_cast<int16_t>(random.between(-largest, largest));
    CodeModelBuilder builder;
    const CodeClasses classes = builder.add(codes.data(), 20, 30);
    builder.finish();
    const std::vector<uint8_t> row(20, 0), col(30, 0);
    return Grid::make(builder.encode(codes.data(), 20, 30, classes), {}, RowColField::make(1, row, col).value())
        .value();
  };
  const NodePtr node = Sum::make({grid(3), grid(40)}).value();
  MemorySections sections;
  const auto back = parse(node->serialize("t", sections), sections);
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(decode_all(**back), decode_all(*node));
}

TEST(Nodes, CodedCodesDoNotAllocateWhatTheTreeClaims) {
  const std::vector<int16_t> zeros(64, 0);
  CodeModelBuilder builder;
  const CodeClasses classes = builder.add(zeros.data(), 8, 8);
  builder.finish();
  MemorySections sections;
  const json tree = builder.encode(zeros.data(), 8, 8, classes)->serialize("t", sections);
  const Limits limits;
  const ParseContext context{sections, limits, entropy_codes_formats()};
  EXPECT_TRUE(parse_codes(tree, 8, 8, context).ok());
  EXPECT_FALSE(parse_codes(tree, int64_t{1} << 39, 1, context).ok());
  EXPECT_FALSE(parse_codes(tree, 1, int64_t{1} << 39, context).ok());
  EXPECT_FALSE(parse_codes(tree, int64_t{1} << 19, int64_t{1} << 20, context).ok());
}

TEST(Nodes, DepthBombIsRefused) {
  MemorySections sections;
  Random random(3);
  json tree = sample_makers()[4].make(random, 2, 2, 0).node->serialize("t", sections);
  const Limits limits;
  for (uint32_t i = 1; i < limits.max_tree_depth; ++i)
    tree = json{{"node", "dynamic_int8"}, {"threshold", 0.0}, {"child", std::move(tree)}};
  EXPECT_TRUE(parse(tree, sections).ok());
  for (int i = 0; i < 100000; ++i) {
    json outer = {{"node", "sum"}, {"terms", json::array()}};
    outer["terms"].push_back(std::move(tree));
    tree = std::move(outer);
  }
  const auto back = parse(tree, sections);
  ASSERT_FALSE(back.ok());
  EXPECT_NE(back.error().message.find("nested deeper than"), std::string::npos);
}

}  // namespace
}  // namespace pith::test
