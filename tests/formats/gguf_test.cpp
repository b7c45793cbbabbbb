#include "formats/gguf.h"

#include <gtest/gtest.h>

#include <cstring>

#include "represent/tiny_model.h"

namespace pith {
namespace {

using test::TempFolder;

// Lays a file out by hand, so that faults can be put in.
struct Layout {
  std::string bytes = "GGUF";
  template <class T>
  Layout& put(T v) {
    bytes.append(reinterpret_cast<const char*>(&v), sizeof v);
    return *this;
  }
  Layout& u32(uint32_t v) { return put(v); }
  Layout& u64(uint64_t v) { return put(v); }
  Layout& text(std::string_view v) {
    u64(v.size());
    bytes += v;
    return *this;
  }
  Layout& head(uint64_t tensors, uint64_t pairs, uint32_t version = 3) { return u32(version).u64(tensors).u64(pairs); }
  Layout& pad(size_t extra = 0) {
    bytes.resize((bytes.size() + 31) / 32 * 32 + extra, '\0');
    return *this;
  }
  Result<GgufFile> parse(const Limits& limits = {}) const {
    return GgufFile::parse(Bytes::own(std::vector<char>(bytes.begin(), bytes.end())), "f", limits);
  }
};

void refused(const Result<GgufFile>& r, const std::string& words) {
  ASSERT_FALSE(r.ok()) << words;
  EXPECT_EQ(r.error().kind, ErrorKind::data);
  EXPECT_NE(r.error().message.find(words), std::string::npos) << r.error().message;
  EXPECT_TRUE(r.error().message.starts_with("f:")) << r.error().message;
}

GgufMetadata some_metadata() {
  GgufMetadata m;
  m.set("general.architecture", GgufValue::string("llama"));
  m.set("u8", GgufValue::u8(200));
  m.set("u32", GgufValue::u32(4000000000u));
  m.set("i32", GgufValue::i32(-7));
  m.set("u64", GgufValue::u64(uint64_t{1} << 63));
  m.set("f32", GgufValue::f32(1.5f));
  m.set("yes", GgufValue::boolean(true));
  m.set("words", GgufValue::strings(std::vector<std::string>{"a", "", "ccc"}));
  m.set("numbers", GgufValue::i32s(std::vector<int32_t>{1, -2}));
  m.set("reals", GgufValue::f32s(std::vector<float>{0.5f, 2.0f}));
  m.set("flags", GgufValue::bools(std::vector<uint8_t>{1, 0, 1}));
  return m;
}

TEST(Gguf, WriterAndReaderAgree) {
  TempFolder folder;
  const std::vector<GgufDecl> decls = {{"a", GgmlType::f32, {3}},
                                       {"q", GgmlType::q4_k, {2, 512}},
                                       {"none", GgmlType::f16, {0}},
                                       {"e", GgmlType::q8_0, {2, 3, 32}}};
  auto writer = GgufWriter::create(folder / "x.gguf", some_metadata(), decls, false);
  ASSERT_TRUE(writer.ok()) << writer.error().message;
  std::vector<std::byte> data(12 + 2 * 288 + 6 * 34);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 7);
  for (size_t i = 0; i < data.size(); i += 100)
    ASSERT_TRUE(writer->write(std::span(data).subspan(i, std::min<size_t>(100, data.size() - i))).ok());
  ASSERT_TRUE(writer->finish().ok());
  auto file = GgufFile::open(folder / "x.gguf", {});
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(file->file_bytes(), *gguf_file_bytes(some_metadata(), decls));
  size_t at = 0;
  for (const auto& d : decls) {
    const auto* t = file->find(d.name);
    ASSERT_NE(t, nullptr);
    EXPECT_EQ(t->type, d.type);
    EXPECT_EQ(t->shape, d.shape);
    EXPECT_EQ(t->begin % 32, 0u);
    for (const std::byte b : file->data(*t).view) ASSERT_EQ(b, data[at++]);
  }
  EXPECT_EQ(file->find("e")->rows(), 6);
  EXPECT_EQ(file->find("e")->row_bytes(), 34u);
  const auto& m = file->metadata();
  EXPECT_EQ(m.items().size(), some_metadata().items().size());
  EXPECT_EQ(*m.get_string("general.architecture"), "llama");
  EXPECT_EQ(*m.get_u32("u32"), 4000000000u);
  EXPECT_EQ(*m.get_u32("u8"), 200u);
  EXPECT_EQ(m.find("i32")->as_i64(), -7);
  EXPECT_EQ(m.find("u64")->as_u64(), uint64_t{1} << 63);
  EXPECT_FALSE(m.find("u64")->as_i64().has_value());
  EXPECT_EQ(*m.get_f64("f32"), 1.5);
  EXPECT_TRUE(*m.get_bool("yes"));
  EXPECT_EQ(m.find("words")->as_strings(), (std::vector<std::string_view>{"a", "", "ccc"}));
  EXPECT_EQ(m.find("numbers")->as_i64s(), (std::vector<int64_t>{1, -2}));
  EXPECT_EQ(m.find("flags")->as_i64s(), (std::vector<int64_t>{1, 0, 1}));
  EXPECT_EQ(m.find("reals")->as_f32s(), (std::vector<float>{0.5f, 2.0f}));
  // Wrong types are refused by name, a missing key takes the fallback.
  EXPECT_NE(m.get_u32("f32").error().message.find("f32"), std::string::npos);
  EXPECT_NE(m.get_string("absent").error().message.find("absent"), std::string::npos);
  EXPECT_EQ(*m.get_u32("absent", 5), 5u);
  EXPECT_FALSE(m.get_u32("words", 5).ok());
  EXPECT_FALSE(m.get_u32("i32").ok());
}

TEST(Gguf, MetadataReplacesAndErases) {
  auto m = some_metadata();
  const size_t n = m.items().size();
  m.set("u8", GgufValue::u32(1));
  EXPECT_EQ(m.items().size(), n);
  EXPECT_EQ(*m.get_u32("u8"), 1u);
  EXPECT_TRUE(m.erase("general.architecture"));
  EXPECT_FALSE(m.erase("general.architecture"));
  for (const auto& [key, value] : m.items()) EXPECT_EQ(m.find(key), &value);
}

TEST(Gguf, RefusalsSayWhatIsWrong) {
  refused(GgufFile::parse(Bytes::own(std::vector<char>{'G', 'G'}), "f", {}), "does not begin with");
  refused(Layout().head(0, 0, 1).parse(), "version 1");
  refused(Layout().head(0, 0, 3u << 24).parse(), "big-endian");
  refused(Layout().u32(3).u64(1).parse(), "metadata keys");
  refused(Layout().head(uint64_t{1} << 40, 0).parse(), "tensors, at most");
  refused(Layout().head(0, uint64_t{1} << 40).parse(), "metadata keys, at most");
  refused(Layout().head(0, 1).u64(uint64_t{1} << 50).parse(), "claims");
  refused(Layout().head(0, 1).u64(100).parse(), "the file ends inside it");
  refused(Layout().head(0, 1).text("k").u32(13).parse(), "value type 13");
  refused(Layout().head(0, 1).text("k").u32(9).u32(4).u64(uint64_t{1} << 60).parse(), "items, at most");
  refused(Layout().head(0, 1).text("k").u32(9).u32(4).u64(1000).parse(), "the file ends inside it");
  refused(Layout().head(0, 2).text("k").u32(4).u32(1).text("k").u32(4).u32(1).parse(), "occurs twice");
  refused(Layout().head(0, 1).text("general.alignment").u32(4).u32(12).parse(), "power of two");
  Layout nested;
  nested.head(0, 1).text("k").u32(9);
  for (int i = 0; i < 10; ++i) nested.u32(9).u64(1);
  refused(nested.parse(), "nested deeper");
  const auto tensor = [](uint64_t d0, uint64_t d1, uint32_t type, uint64_t offset, size_t data) {
    return Layout().head(1, 0).text("t").u32(2).u64(d0).u64(d1).u32(type).u64(offset).pad(data).parse();
  };
  EXPECT_TRUE(tensor(8, 2, 0, 0, 64).ok());
  refused(tensor(8, 2, 0, 0, 63), "truncated");
  refused(tensor(8, 2, 4, 0, 64), "removed from ggml");
  refused(tensor(8, 2, 8, 0, 64), "no multiple of the 32");
  refused(tensor(8, 2, 0, 5, 100), "alignment");
  refused(tensor(8, 2, 0, uint64_t{1} << 63, 100), "truncated");
  refused(tensor(uint64_t{1} << 63, 2, 0, 0, 64), "claims a dimension");
  refused(tensor(uint64_t{1} << 39, uint64_t{1} << 39, 0, 0, 64), "elements");
  refused(Layout().head(1, 0).text("t").u32(9).parse(), "9 dimensions");
  refused(
      Layout().head(2, 0).text("t").u32(1).u64(8).u32(0).u64(0).text("t").u32(1).u64(8).u32(0).u64(32).pad(64).parse(),
      "occurs twice");
  refused(
      Layout().head(2, 0).text("t").u32(1).u64(16).u32(0).u64(0).text("u").u32(1).u64(8).u32(0).u64(32).pad(64).parse(),
      "overlap");
}

TEST(Gguf, WriterRefusesNonsense) {
  TempFolder folder;
  const auto fails = [&](std::vector<GgufDecl> decls, const std::string& words) {
    auto w = GgufWriter::create(folder / "x.gguf", {}, decls, false);
    ASSERT_FALSE(w.ok()) << words;
    EXPECT_NE(w.error().message.find(words), std::string::npos) << w.error().message;
  };
  fails({{"a", GgmlType::q4_k, {2, 128}}}, "multiple of the 256");
  fails({{"a", GgmlType::f32, {2}}, {"a", GgmlType::f32, {2}}}, "twice");
  fails({{"a", GgmlType::f32, {1, 1, 1, 1, 1}}}, "5 dimensions");
  fails({{std::string(64, 'x'), GgmlType::f32, {1}}}, "longer than");
  auto w = GgufWriter::create(folder / "y.gguf", {}, {{"a", GgmlType::f32, {2}}}, false);
  ASSERT_TRUE(w.ok());
  EXPECT_FALSE(w->finish().ok());
  const std::vector<std::byte> nine(9);
  EXPECT_FALSE(w->write(nine).ok());
}

}  // namespace
}  // namespace pith
