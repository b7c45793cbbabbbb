#include "formats/safetensors.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/half.h"
#include "represent/tiny_model.h"

namespace pith {
namespace {

using test::TempFolder;

// A file in memory: length, header as given, then `data` bytes that count up.
Result<SafetensorsFile> parse(const std::string& header, size_t data, const Limits& limits = {}) {
  std::vector<uint8_t> file(8 + header.size() + data);
  const uint64_t length = header.size();
  std::memcpy(file.data(), &length, 8);
  std::memcpy(file.data() + 8, header.data(), header.size());
  for (size_t i = 0; i < data; ++i) file[8 + header.size() + i] = static_cast<uint8_t>(i);
  return SafetensorsFile::parse(Bytes::own(std::move(file)), "f", limits);
}

void refused(const Result<SafetensorsFile>& r, const std::string& words) {
  ASSERT_FALSE(r.ok()) << words;
  EXPECT_EQ(r.error().kind, ErrorKind::data);
  EXPECT_NE(r.error().message.find(words), std::string::npos) << r.error().message;
  EXPECT_TRUE(r.error().message.starts_with("f:")) << r.error().message;
}

TEST(Safetensors, WriterAndReaderAgree) {
  TempFolder folder;
  const std::vector<SafetensorsDecl> decls = {{"a", DType::f32, {2, 3}},
                                              {"nothing", DType::i64, {0, 7}},
                                              {"\"quoted\"\n", DType::u8, {5}},
                                              {"scalar", DType::f16, {}}};
  auto writer = SafetensorsWriter::create(folder / "x.safetensors", decls, {{"k", "v"}}, false);
  ASSERT_TRUE(writer.ok()) << writer.error().message;
  std::vector<std::byte> data(24 + 5 + 2);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i);
  ASSERT_TRUE(writer->write(std::span(data).first(7)).ok());  // pieces of any size
  EXPECT_FALSE(std::filesystem::exists(folder / "x.safetensors"));
  ASSERT_TRUE(writer->write(std::span(data).subspan(7)).ok());
  ASSERT_TRUE(writer->finish().ok());
  auto file = SafetensorsFile::open(folder / "x.safetensors", {});
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(file->header_bytes() % 64, 0u);
  EXPECT_EQ(file->metadata().at("k"), "v");
  size_t at = 0;
  for (const auto& d : decls) {
    const auto* e = file->find(d.name);
    ASSERT_NE(e, nullptr) << d.name;
    EXPECT_EQ(e->type, d.type);
    EXPECT_EQ(e->shape, d.shape);
    for (const std::byte b : file->data(*e).view) EXPECT_EQ(b, data[at++]);
  }
  EXPECT_EQ(at, data.size());
  EXPECT_EQ(file->find("b"), nullptr);
}

TEST(Safetensors, WriterRefusesWrongAmounts) {
  TempFolder folder;
  const std::vector<std::byte> data(8);
  auto more = SafetensorsWriter::create(folder / "more", {{"a", DType::u8, {4}}}, {}, false);
  EXPECT_FALSE(more->write(data).ok());
  auto less = SafetensorsWriter::create(folder / "less", {{"a", DType::u8, {9}}}, {}, false);
  EXPECT_TRUE(less->write(data).ok());
  EXPECT_FALSE(less->finish().ok());
  EXPECT_FALSE(
      SafetensorsWriter::create(folder / "twice", {{"a", DType::u8, {1}}, {"a", DType::u8, {1}}}, {}, false).ok());
  { const auto gone = std::move(*more); }
  { const auto gone = std::move(*less); }
  EXPECT_TRUE(std::filesystem::is_empty(folder / ""));
}

TEST(Safetensors, RefusalsSayWhatIsWrong) {
  refused(SafetensorsFile::parse({}, "f", {}), "8 bytes of length");
  refused(parse("[]", 0), "does not begin with '{'");
  refused(parse("{\"a\":", 0), "JSON");
  refused(parse(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 3), "outside");
  refused(parse(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4), "takes 8 bytes");
  refused(parse(R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4), "F33");
  refused(parse(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,4]}})", 4), "shape");
  refused(parse(R"({"a":{"dtype":"U8","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}})", 4),
          "too large");
  refused(parse(R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", 1), "9 dimensions");
  refused(parse(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}})", 4), "outside");
  refused(
      parse(
          R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
          6),
      "inside the tensor before");
  refused(
      parse(
          R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}})",
          6),
      "hole");
  refused(parse(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 6), "the tensors end at");
  refused(
      parse(
          R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
          2),
      "twice");
  refused(parse(R"({"__metadata__":{"x":1}})", 0), "should be a string");
  std::string deep = "{\"a\":";
  for (int i = 0; i < 100; ++i) deep += "[";
  refused(parse(deep, 0), "nested deeper");
  Limits few;
  few.max_header_bytes = 10;
  refused(parse(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2, few), "at most 10");
}

// A file of 8 GiB that takes no space on disk opens at once: nothing but the header is read.
TEST(Safetensors, LargeFilesAreMapped) {
  TempFolder folder;
  const std::string path = folder / "large.safetensors";
  const int64_t items = int64_t{4} << 30;
  auto header = safetensors_header({{"w", DType::f16, {items}}}, {});
  ASSERT_TRUE(header.ok());
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT, 0600);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::write(fd, header->data(), header->size()), static_cast<ssize_t>(header->size()));
  ASSERT_EQ(::ftruncate(fd, static_cast<off_t>(header->size()) + 2 * items), 0);
  ::close(fd);
  auto file = SafetensorsFile::open(path, {});
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(file->entries()[0].bytes, static_cast<uint64_t>(2 * items));
  EXPECT_EQ(file->data(file->entries()[0]).view.back(), std::byte{0});
}

TEST(ShardedSafetensors, FindsTensorsOfAllFilesAndSaysWhatIsMissing) {
  TempFolder folder;
  const auto write = [&](const std::string& name, const std::string& tensor) {
    auto w = SafetensorsWriter::create(folder / name, {{tensor, DType::u8, {3}}}, {}, true);
    const std::vector<std::byte> data(3, std::byte{7});
    ASSERT_TRUE(w->write(data).ok());
    ASSERT_TRUE(w->finish().ok());
  };
  const auto index = [&](const std::string& map) {
    ASSERT_TRUE(write_file(folder / "model.safetensors.index.json", "{\"weight_map\":" + map + "}", true).ok());
  };
  const auto fails = [&](const std::string& words) {
    auto r = ShardedSafetensors::open(folder / "", {});
    ASSERT_FALSE(r.ok()) << words;
    EXPECT_NE(r.error().message.find(words), std::string::npos) << r.error().message;
  };
  fails("neither model.safetensors");
  write("one.safetensors", "a");
  write("two.safetensors", "b");
  index(R"({"a":"one.safetensors","b":"two.safetensors"})");
  auto model = ShardedSafetensors::open(folder / "", {});
  ASSERT_TRUE(model.ok()) << model.error().message;
  EXPECT_EQ(model->all().size(), 2u);
  ASSERT_TRUE(model->find("b").has_value());
  EXPECT_EQ(model->find("b")->data().view[2], std::byte{7});
  EXPECT_FALSE(model->find("c").has_value());
  index(R"({"a":"one.safetensors","b":"three.safetensors"})");
  fails("three.safetensors\" is missing");
  index(R"({"a":"one.safetensors","c":"two.safetensors"})");
  fails("\"c\" is not in two.safetensors");
  index(R"({"a":"../one.safetensors"})");
  fails("in this folder");
  index(R"([])");
  fails("weight_map");
  write("two.safetensors", "a");
  index(R"({"a":"one.safetensors","b":"two.safetensors"})");
  fails("another file");
}

TEST(DType, FloatsOfEveryTypeConvert) {
  const float values[] = {0.0f, -1.5f, 448.0f, 0.015625f};
  for (DType type : {DType::f64, DType::f32, DType::f16, DType::bf16}) {
    std::byte bytes[32];
    float back[4];
    from_float(type, values, 4, bytes);
    to_float(type, bytes, 4, back);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(back[i], values[i]) << dtype_name(type);
  }
  const uint8_t e4m3[] = {0x00, 0x38, 0xb8, 0x7e, 0x01, 0x7f}, e5m2[] = {0x3c, 0xbc, 0x7b, 0x7c};
  float out[6];
  to_float(DType::f8_e4m3, reinterpret_cast<const std::byte*>(e4m3), 6, out);
  EXPECT_EQ(out[0], 0);
  EXPECT_EQ(out[1], 1);
  EXPECT_EQ(out[2], -1);
  EXPECT_EQ(out[3], 448);
  EXPECT_EQ(out[4], 0x1p-9f);
  EXPECT_TRUE(std::isnan(out[5]));
  to_float(DType::f8_e5m2, reinterpret_cast<const std::byte*>(e5m2), 4, out);
  EXPECT_EQ(out[0], 1);
  EXPECT_EQ(out[1], -1);
  EXPECT_EQ(out[2], 57344);
  EXPECT_TRUE(std::isinf(out[3]));
  for (int i = 0; i < 15; ++i) EXPECT_EQ(dtype_from_name(dtype_name(static_cast<DType>(i))), static_cast<DType>(i));
  EXPECT_FALSE(dtype_from_name("F4").has_value());
}

}  // namespace
}  // namespace pith
