#include "formats/pith_file.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/base64.h"
#include "base/file.h"
#include "formats/safetensors.h"

namespace pith {
namespace {

Bytes bytes_of(size_t n, unsigned seed) {
  std::vector<uint8_t> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = static_cast<uint8_t>((i * 131 + seed * 77) >> 2);
  return Bytes::own(std::move(v));
}

PithContents sample() {
  PithContents c;
  c.config = R"({"hidden_size":64,"model_type":"llama"})";
  c.plan = R"({"budget":"60MB"})";
  c.report = R"({"ppl":[1.25,1.5]})";
  c.tokenizer = "not really a tokenizer";
  c.tensors.push_back({"norm.weight",
                       {33},
                       R"({"kind":"dense","section":"norm.weight.v"})",
                       {{"norm.weight.v", DType::f16, {1, 33}, bytes_of(66, 1)}}});
  c.tensors.push_back({"a.weight",
                       {8, 16},
                       R"({"kind":"grid"})",
                       {{"a.weight.codes", DType::u8, {100}, bytes_of(100, 2)},
                        {"a.weight.scale", DType::f16, {8, 4}, bytes_of(64, 3)},
                        {"a.weight.none", DType::u32, {0}, bytes_of(0, 3)}}});
  c.tensors.push_back({"b.weight", {8, 16}, R"({"kind":"grid","shared":"t"})", {}});
  c.tensors.push_back({"wide.weight", {3, 5}, R"({"kind":"dense"})", {{"wide", DType::f32, {3, 5}, bytes_of(60, 4)}}});
  c.shared.push_back({"tables", DType::u16, {7}, bytes_of(14, 5)});
  return c;
}

std::string temporary(const char* name) { return testing::TempDir() + "/" + name; }

void expect_same(const PithSection& a, const PithSection& b) {
  EXPECT_EQ(a.name, b.name);
  EXPECT_EQ(a.type, b.type);
  EXPECT_EQ(a.shape, b.shape);
  ASSERT_EQ(a.data.size(), b.data.size());
  if (a.data.size() > 0) {
    EXPECT_EQ(std::memcmp(a.data.data(), b.data.data(), a.data.size()), 0);
  }
}

TEST(PithFile, ReadsBackWhatWasWritten) {
  const auto c = sample();
  const std::string path = temporary("sample.pith");
  ASSERT_TRUE(write_pith(path, c, true).ok());
  auto f = PithFile::open(path, {});
  ASSERT_TRUE(f.ok()) << f.error().message;
  EXPECT_EQ(f->version(), 1);
  EXPECT_EQ(f->config(), c.config);
  EXPECT_EQ(f->plan(), c.plan);
  EXPECT_EQ(f->report(), c.report);
  EXPECT_EQ(f->tokenizer(), c.tokenizer);
  ASSERT_EQ(f->tensors().size(), c.tensors.size());
  for (size_t i = 0; i < c.tensors.size(); ++i) {
    const auto &a = c.tensors[i], &b = f->tensors()[i];
    EXPECT_EQ(a.name, b.name);
    EXPECT_EQ(a.shape, b.shape);
    EXPECT_EQ(a.tree, b.tree);
    ASSERT_EQ(a.sections.size(), b.sections.size());
    for (size_t k = 0; k < a.sections.size(); ++k) {
      expect_same(a.sections[k], b.sections[k]);
      ASSERT_NE(f->find(a.sections[k].name), nullptr);
      expect_same(*f->find(a.sections[k].name), a.sections[k]);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(b.sections[k].data.data()) % dtype_size(b.sections[k].type), 0u);
    }
    EXPECT_EQ(f->tensor(a.name), &b);
  }
  ASSERT_NE(f->find("tables"), nullptr);
  expect_same(*f->find("tables"), c.shared[0]);
  EXPECT_EQ(f->find("nowhere"), nullptr);
  EXPECT_TRUE(f->verify().ok());
  EXPECT_TRUE(PithFile::recognise(path));
}

TEST(PithFile, SizeIsKnownAndBytesAreDeterministic) {
  const auto c = sample();
  const auto size = pith_file_bytes(c);
  ASSERT_TRUE(size.ok());
  ASSERT_TRUE(write_pith(temporary("one.pith"), c, true).ok());
  ASSERT_TRUE(write_pith(temporary("two.pith"), sample(), true).ok());
  const auto one = read_text(temporary("one.pith"), 1 << 20), two = read_text(temporary("two.pith"), 1 << 20);
  EXPECT_EQ(*one, *two);
  EXPECT_EQ(one->size(), *size);
}

// Any safetensors reader sees plain tensors as they are.
TEST(PithFile, IsASafetensorsFile) {
  ASSERT_TRUE(write_pith(temporary("st.pith"), sample(), true).ok());
  auto f = SafetensorsFile::open(temporary("st.pith"), {});
  ASSERT_TRUE(f.ok()) << f.error().message;
  const auto* norm = f->find("norm.weight");
  ASSERT_NE(norm, nullptr);
  EXPECT_EQ(norm->type, DType::f16);
  EXPECT_EQ(norm->shape, std::vector<int64_t>{33});
  EXPECT_EQ(f->metadata().at("format"), "pith");
  ASSERT_NE(f->find("a.weight"), nullptr);
  EXPECT_EQ(f->find("a.weight")->begin % 64, 0u);
  EXPECT_EQ(f->find("b.weight"), nullptr);
  EXPECT_EQ(f->entries().size(), 5u);
}

// 272 tensors of 4 sections each: everything that is neither section nor tokenizer stays below 0.2 % of 60 MB.
TEST(PithFile, ManifestIsSmall) {
  PithContents c;
  c.config = R"({"hidden_size":576})";
  uint64_t payload = 0;
  for (int i = 0; i < 272; ++i) {
    PithTensor t;
    t.name = "model.layers." + std::to_string(i / 9) + ".self_attn.q" + std::to_string(i % 9) + "_proj.weight";
    t.shape = {576, 576};
    t.tree =
        R"({"kind":"permuted","base":{"kind":"override","base":{"kind":"grid","rows":576,"cols":576,"codes":{"kind":"rans","stream":")" +
        t.name + R"(.0.codes","model":"shared.0"},"scale":{"kind":"affine","group":16,"values":")" + t.name +
        R"(.0.scale"}},"sparse":{"kind":"csr","values":")" + t.name + R"(.1.values","columns":")" + t.name +
        R"(.1.columns"}}})";
    for (const char* part : {".0.codes", ".0.scale", ".1.values", ".1.columns"}) {
      const int64_t n = 100 + i * 37 % 1000;
      t.sections.push_back({t.name + part, DType::u8, {n}, bytes_of(static_cast<size_t>(n), 1)});
      payload += static_cast<uint64_t>(n);
    }
    c.tensors.push_back(std::move(t));
  }
  const auto size = pith_file_bytes(c);
  ASSERT_TRUE(size.ok());
  EXPECT_LT(*size - payload, 120'000u);
}

TEST(PithFile, DamageIsNoticed) {
  const std::string path = temporary("damage.pith");
  ASSERT_TRUE(write_pith(path, sample(), true).ok());
  const auto good = read_text(path, 1 << 20);
  auto file = PithFile::open(path, {});
  ASSERT_TRUE(file.ok());
  // Every bit of the data is covered by a hash of verify; no bit of the manifest can change unnoticed.
  for (size_t i = 0; i < good->size(); ++i) {
    std::vector<char> bad(good->begin(), good->end());
    bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
    auto f = PithFile::parse(Bytes::own(std::move(bad)), "damaged", {});
    if (i >= file->header_bytes()) {
      ASSERT_TRUE(f.ok()) << i << f.error().message;
      EXPECT_FALSE(f->verify().ok()) << i;
    } else if (f.ok()) {
      // A name in the safetensors header, or white space: found when the tensor is asked for, or harmless.
      (void)f->verify();
    } else {
      EXPECT_NE(f.error().message.find("damaged"), std::string::npos);
    }
  }
}

TEST(PithFile, RefusesOtherVersionsAndFiles) {
  const std::string path = temporary("version.pith");
  auto header = safetensors_header({}, {{"pith_version", "2"}, {"pith", ""}});
  ASSERT_TRUE(header.ok());
  ASSERT_TRUE(write_file(path, *header, true).ok());
  auto f = PithFile::open(path, {});
  ASSERT_FALSE(f.ok());
  EXPECT_NE(f.error().message.find("newer Pith"), std::string::npos) << f.error().message;
  header = safetensors_header({}, {{"format", "pt"}});
  ASSERT_TRUE(write_file(path, *header, true).ok());
  EXPECT_FALSE(PithFile::open(path, {}).ok());
  EXPECT_FALSE(PithFile::recognise(path));
}

TEST(PithFile, WriterRefusesNonsense) {
  auto c = sample();
  c.tensors[1].sections[0].shape = {99};
  EXPECT_FALSE(write_pith(temporary("x.pith"), c, true).ok());
  c = sample();
  c.tensors[0].name = "a.weight";
  EXPECT_FALSE(write_pith(temporary("x.pith"), c, true).ok());
  c = sample();
  c.shared[0].name = "wide";
  EXPECT_FALSE(write_pith(temporary("x.pith"), c, true).ok());
  c = sample();
  c.tensors[0].tree = "{";
  EXPECT_FALSE(write_pith(temporary("x.pith"), c, true).ok());
  EXPECT_FALSE(file_exists(temporary("x.pith")));
}

TEST(Base64, BothWays) {
  for (const char* text : {"", "f", "fo", "foo", "foob", "fooba", "foobar"})
    EXPECT_EQ(from_base64(to_base64(text)), text);
  EXPECT_EQ(to_base64("foobar"), "Zm9vYmFy");
  EXPECT_EQ(to_base64("fo"), "Zm8=");
  EXPECT_FALSE(from_base64("ab*d").has_value());
}

}  // namespace
}  // namespace pith
