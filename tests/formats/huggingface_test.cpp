#include "formats/huggingface.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "formats/json_text.h"
#include "represent/tiny_model.h"

namespace pith {
namespace {

using test::TempFolder;

// Values that tell tensor, row and column apart and that fp32 holds.
Status numbered(const TensorSpec& spec, int64_t r0, int64_t r1, float* out) {
  const float base = static_cast<float>(std::hash<std::string>{}(spec.name) % 1000);
  const int64_t cols = spec.shape.back();
  for (int64_t i = r0 * cols; i < r1 * cols; ++i) *out++ = base + static_cast<float>(i) / 8;
  return {};
}

LmConfig small_config(const std::string& architecture) { return test::tiny_config(architecture); }

TEST(HuggingFace, FoldersOfEveryArchitectureReadBack) {
  for (const char* architecture : test::kArchitectures) {
    TempFolder folder;
    const LmConfig config = small_config(architecture);
    ASSERT_TRUE(write_huggingface(folder / "m", config, test::tiny_tokenizer(), DType::f32, numbered, false).ok());
    auto model = open_huggingface(folder / "m", {});
    ASSERT_TRUE(model.ok()) << architecture << ": " << model.error().message;
    LmConfig want = config;
    want.name = model->config.name;  // the folder's
    EXPECT_EQ(model->config, want) << architecture;
    EXPECT_EQ(model->tokenizer.tokens, test::tiny_tokenizer().tokens);
    EXPECT_EQ(model->tokenizer.merges, test::tiny_tokenizer().merges);
    for (const auto& spec : expected_tensors(config)) {
      const auto found = model->find(spec.name);
      ASSERT_TRUE(found.has_value()) << spec.name;
      const int64_t rows = spec.shape.size() > 1 ? spec.shape[0] : 1;
      std::vector<float> values(static_cast<size_t>(rows * spec.shape.back()));
      ASSERT_TRUE(numbered(spec, 0, rows, values.data()).ok());
      EXPECT_TRUE(std::ranges::equal(found->data().as<float>(), values)) << spec.name;
    }
    // A single file with config.json beside it is a model as well.
    EXPECT_TRUE(open_huggingface(folder / "m/model.safetensors", {}).ok());
  }
}

TEST(HuggingFace, NothingIsReplacedWithoutBeingAsked) {
  TempFolder folder;
  const auto config = small_config("llama");
  const auto write = [&](bool overwrite) {
    return write_huggingface(folder / "m", config, {}, DType::f16, numbered, overwrite);
  };
  ASSERT_TRUE(write(false).ok());
  EXPECT_EQ(write(false).error().kind, ErrorKind::user);
  EXPECT_TRUE(write(true).ok());
  std::filesystem::remove(folder / "m/config.json");
  const auto foreign = write(true);
  ASSERT_FALSE(foreign.ok());
  EXPECT_NE(foreign.error().message.find("no model folder"), std::string::npos);
  // A failure in the middle leaves nothing behind.
  const auto failing = write_huggingface(
      folder / "other", config, {}, DType::f16,
      [](const TensorSpec& s, int64_t, int64_t, float*) -> Status { return data_error("cannot read " + s.name); },
      false);
  ASSERT_FALSE(failing.ok());
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder / ""), {}), 1);
}

TEST(HuggingFace, ErrorsNameWhatIsMissing) {
  TempFolder folder;
  const auto fails = [&](const std::string& path, const std::string& words) {
    auto r = open_huggingface(path, {});
    ASSERT_FALSE(r.ok()) << words;
    EXPECT_NE(r.error().message.find(words), std::string::npos) << r.error().message;
  };
  fails(folder / "nowhere", "does not exist");
  std::filesystem::create_directory(folder / "m");
  fails(folder / "m", "config.json is missing");
  auto config = small_config("llama");
  const auto set_config = [&](const LmConfig& c) {
    ASSERT_TRUE(write_file(folder / "m/config.json", json_text(lm_config_to_hf(c)), true).ok());
  };
  set_config(config);
  fails(folder / "m", "model.safetensors");
  ASSERT_TRUE(write_file(folder / "m/pytorch_model.bin", "x", true).ok());
  fails(folder / "m", "PyTorch");
  ASSERT_TRUE(write_huggingface(folder / "n", config, test::tiny_tokenizer(), DType::bf16, numbered, false).ok());
  std::filesystem::copy(folder / "n/model.safetensors", folder / "m/model.safetensors");
  EXPECT_TRUE(open_huggingface(folder / "m", {}).ok());
  config.layers += 1;
  set_config(config);
  fails(folder / "m", "model.layers." + std::to_string(config.layers - 1) + ".input_layernorm.weight");
  config.layers -= 1;
  config.intermediate *= 2;
  set_config(config);
  fails(folder / "m", "has the shape");
  ASSERT_TRUE(write_file(folder / "n/tokenizer.json", "{}", true).ok());
  fails(folder / "n", "tokenizer.json");
  ASSERT_TRUE(write_file(folder / "n/config.json", "{", true).ok());
  fails(folder / "n", "config.json");
}

}  // namespace
}  // namespace pith
