#include "runtime/model_file.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/file.h"
#include "entropy/codes.h"
#include "represent/blocks.h"
#include "represent/dense.h"
#include "represent/grid.h"
#include "represent/samples.h"
#include "represent/tiny_model.h"

namespace pith::test {
namespace {

std::string message(const Status& status) { return status.ok() ? "" : status.error().message; }

Model open(const std::string& path) {
  auto model = open_model(path);
  EXPECT_TRUE(model.ok()) << model.error().message;
  if (!model.ok()) return {};
  return std::move(model).value();
}

void expect_verified(const std::string& path) {
  for (const Check& check : verify_model(path)) EXPECT_TRUE(check.passed) << check.name << ": " << check.detail;
}

std::string bytes_of(const std::string& path) { return read_text(path, 1 << 28).value(); }

/// Every matrix another tree, one in four with entropy-coded codes.
Model mixed_model(const std::string& architecture, uint64_t seed) {
  Model model = tiny_model(architecture, DType::f16, seed);
  Random random(seed);
  CodeModelBuilder builder;
  struct Coded {
    size_t tensor;
    std::vector<int16_t> codes;
    CodeClasses classes;
  };
  std::vector<Coded> coded;
  for (size_t i = 0; i < model.tensors.size(); ++i) {
    ModelTensor& tensor = model.tensors[i];
    const int64_t rows = tensor.node->rows(), cols = tensor.node->cols();
    if (random.between(1, 4) > 1) {
      tensor.node = any_sample(random, rows, cols, 2).node;
      continue;
    }
    Coded c{i, std::vector<int16_t>(static_cast<size_t>(rows * cols)), {}};
    for (auto& v : c.codes) v = static_cast<int16_t>(std::lround(3 * (random.real() + random.real())));
    c.classes = builder.add(c.codes.data(), rows, cols);
    coded.push_back(std::move(c));
  }
  builder.finish();
  for (const Coded& c : coded) {
    NodePtr& node = model.tensors[c.tensor].node;
    const int64_t rows = node->rows(), cols = node->cols();
    const std::vector<uint8_t> row(static_cast<size_t>(rows), 16), col(static_cast<size_t>(cols), 8);
    node = Grid::make(builder.encode(c.codes.data(), rows, cols, c.classes), {},
                      RowColField::make(0.01f, row, col).value())
               .value();
  }
  return model;
}

TEST(ModelFile, PithKeepsEveryTree) {
  TempFolder folder;
  uint64_t seed = 1;
  for (const char* architecture : kArchitectures) {
    SCOPED_TRACE(architecture);
    Model model = mixed_model(architecture, seed++);
    model.plan_json = R"({"plan":1})";
    model.report_json = R"({"report":2})";
    const std::string path = folder / (std::string(architecture) + ".pith");
    ASSERT_EQ(message(write_pith(model, path, false)), "");
    EXPECT_EQ(pith_model_bytes(model).value(), bytes_of(path).size());
    const Model back = open(path);
    expect_same_weights(model, back);
    EXPECT_EQ(back.config, model.config);
    EXPECT_EQ(back.tokenizer.tokens, model.tokenizer.tokens);
    EXPECT_EQ(back.tokenizer.merges, model.tokenizer.merges);
    EXPECT_EQ(back.plan_json, model.plan_json);
    EXPECT_EQ(back.report_json, model.report_json);
    EXPECT_EQ(back.bits().total(), model.bits().total());
    EXPECT_EQ(back.content_hash(), model.content_hash());
    expect_verified(path);
    // Written again it is the same file.
    ASSERT_EQ(message(write_pith(back, folder / "again.pith", true)), "");
    EXPECT_EQ(bytes_of(folder / "again.pith"), bytes_of(path));
    EXPECT_NE(message(write_pith(model, path, false)).find("exists already"), std::string::npos);
  }
}

TEST(ModelFile, GgufKeepsWeightsOfEveryArchitecture) {
  TempFolder folder;
  for (const char* architecture : kArchitectures)
    for (const DType type : {DType::f16, DType::bf16, DType::f32}) {
      SCOPED_TRACE(architecture);
      const Model model = tiny_model(architecture, type, 5);
      const std::string path = folder / "m.gguf";
      ASSERT_EQ(message(write_gguf_model(model, path, true)), "");
      EXPECT_EQ(gguf_model_bytes(model).value(), bytes_of(path).size());
      EXPECT_EQ(sniff(path).value(), ModelKind::gguf);
      const Model back = open(path);
      if (model.config.norm_plus_one && type == DType::f32) {
        // Gemma's norms go out as 1 + w, which rounds w to the step of numbers near 2, once.
        for (size_t i = 0; i < model.tensors.size(); ++i) {
          const auto a = decode_all(*model.tensors[i].node), b = decode_all(*back.tensors[i].node);
          ASSERT_EQ(a.size(), b.size());
          for (size_t k = 0; k < a.size(); ++k) ASSERT_NEAR(a[k], b[k], 0x1p-23) << model.tensors[i].name;
        }
        ASSERT_EQ(message(write_gguf_model(back, folder / "again.gguf", true)), "");
        EXPECT_EQ(bytes_of(path), bytes_of(folder / "again.gguf"));
      } else {
        expect_same_weights(model, back);
      }
      // llama.cpp calls Mistral and Mixtral Llama.
      EXPECT_EQ(back.config.hidden, model.config.hidden);
      EXPECT_EQ(back.config.experts, model.config.experts);
      expect_verified(path);
    }
}

TEST(ModelFile, GgufBlocksGoThroughUntouched) {
  TempFolder folder;
  Model model = tiny_model("llama", DType::f16, 5);
  for (ModelTensor& tensor : model.tensors)
    if (tensor.shape.size() == 2)
      tensor.node =
          Blocks::quantize(GgmlType::q4_0, tensor.node->rows(), tensor.node->cols(), decode_all(*tensor.node)).value();
  ASSERT_EQ(message(write_gguf_model(model, folder / "a.gguf", false)), "");
  const Model back = open(folder / "a.gguf");
  expect_same_weights(model, back);
  for (const ModelTensor& tensor : back.tensors) {
    EXPECT_EQ(tensor.node->kind(), tensor.shape.size() == 2 ? "blocks" : "dense") << tensor.name;
  }
  ASSERT_EQ(message(write_gguf_model(back, folder / "b.gguf", false)), "");
  EXPECT_EQ(bytes_of(folder / "a.gguf"), bytes_of(folder / "b.gguf"));
  // Through .pith and out again.
  ASSERT_EQ(message(write_pith(back, folder / "c.pith", false)), "");
  ASSERT_EQ(message(write_gguf_model(open(folder / "c.pith"), folder / "d.gguf", false)), "");
  EXPECT_EQ(bytes_of(folder / "a.gguf"), bytes_of(folder / "d.gguf"));
}

TEST(ModelFile, GgufRefusesWhatItCannotHold) {
  TempFolder folder;
  Model model = tiny_model("llama", DType::f16, 5);
  const NodePtr dense = model.tensors[2].node;
  const std::vector<int16_t> codes(static_cast<size_t>(dense->rows() * dense->cols()), 1);
  const std::vector<float> scale(static_cast<size_t>(dense->rows()), 1.0f);
  model.tensors[2].node =
      Grid::make(PackedCodes::pack(dense->rows(), dense->cols(), 4, 0, codes).value(), {},
                 AffineField::from(dense->rows(), dense->cols(), dense->cols(), DType::f16, scale).value())
          .value();
  const Status status = write_gguf_model(model, folder / "a.gguf", false);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().kind, ErrorKind::user);
  EXPECT_NE(status.error().message.find(model.tensors[2].name), std::string::npos);
  EXPECT_FALSE(file_exists(folder / "a.gguf"));
}

TEST(ModelFile, HuggingFaceFolderKeepsWeights) {
  TempFolder folder;
  for (const char* architecture : kArchitectures)
    for (const DType type : {DType::f16, DType::bf16, DType::f32}) {
      SCOPED_TRACE(architecture);
      Model model = tiny_model(architecture, type, 9);
      model.config.name = "hf";  // a folder without a name of its own lends its own
      const std::string path = folder / "hf";
      ASSERT_EQ(message(write_hf_folder(model, path, type, true)), "");
      EXPECT_EQ(sniff(path).value(), ModelKind::hf_folder);
      const Model back = open(path);
      expect_same_weights(model, back);
      EXPECT_EQ(back.config, model.config);
      EXPECT_EQ(back.tokenizer.tokens, model.tokenizer.tokens);
      expect_verified(path);
      EXPECT_EQ(sniff(path + "/model.safetensors").value(), ModelKind::safetensors);
      expect_same_weights(model, open(path + "/model.safetensors"));
    }
}

TEST(ModelFile, EveryDamagedByteIsNoticed) {
  TempFolder folder;
  const Model model = mixed_model("llama", 77);
  ASSERT_EQ(message(write_pith(model, folder / "good.pith", false)), "");
  const std::string good = bytes_of(folder / "good.pith");
  Random random(4);
  for (int i = 0; i < 60; ++i) {
    std::string bad = good;
    const size_t at = random.next() % bad.size();
    bad[at] = static_cast<char>(bad[at] ^ (1 << random.between(0, 7)));
    ASSERT_EQ(message(write_file(folder / "bad.pith", bad, true)), "");
    bool all_passed = true;
    for (const Check& check : verify_model(folder / "bad.pith")) all_passed &= check.passed;
    // Spaces that fill the header up carry nothing.
    if (all_passed) {
      EXPECT_EQ(good[at], ' ') << "a changed bit at byte " << at << " goes unnoticed";
    }
  }
}

TEST(ModelFile, CutShortIsAnErrorEverywhere) {
  TempFolder folder;
  const Model model = tiny_model("qwen2", DType::f16, 3);
  ASSERT_EQ(message(write_pith(mixed_model("qwen2", 3), folder / "m.pith", false)), "");
  ASSERT_EQ(message(write_gguf_model(model, folder / "m.gguf", false)), "");
  for (const char* name : {"m.pith", "m.gguf"}) {
    const std::string whole = bytes_of(folder / name);
    for (size_t part = 0; part < 64; ++part) {
      ASSERT_EQ(message(write_file(folder / "cut", whole.substr(0, whole.size() * part / 64), true)), "");
      const auto model_or = open_model(folder / "cut");
      ASSERT_FALSE(model_or.ok()) << name << " cut to " << part << "/64";
      EXPECT_NE(model_or.error().message.find("cut"), std::string::npos) << "the file is named";
      EXPECT_FALSE(verify_model(folder / "cut").back().passed);
    }
  }
}

TEST(ModelFile, SniffSaysWhatItExpects) {
  TempFolder folder;
  EXPECT_EQ(sniff(folder / "nothing").error().kind, ErrorKind::user);
  EXPECT_NE(sniff(folder / ".").error().message.find("config.json"), std::string::npos);
  ASSERT_EQ(message(write_file(folder / "text", "hello there", false)), "");
  EXPECT_EQ(sniff(folder / "text").error().kind, ErrorKind::data);
}

}  // namespace
}  // namespace pith::test
