#include "runtime/export_peft.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/file.h"
#include "formats/huggingface.h"
#include "formats/safetensors.h"
#include "represent/combine.h"
#include "represent/dense.h"
#include "represent/low_rank.h"
#include "represent/tiny_model.h"
#include "runtime/model_file.h"

namespace pith::test {
namespace {

NodePtr small_matrix(int64_t rows, int64_t cols, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(rows * cols));
  for (float& v : values) v = static_cast<float>(random.between(-8, 8)) / 64;
  return Dense::from(DType::f16, rows, cols, values).value();
}

std::vector<float> tensor(const SafetensorsFile& file, const std::string& name) {
  const auto* entry = file.find(name);
  if (entry == nullptr) return {};
  std::vector<float> values(static_cast<size_t>(entry->shape[0] * entry->shape[1]));
  to_float(DType::f32, file.data(*entry).data(), static_cast<int64_t>(values.size()), values.data());
  return values;
}

TEST(ExportPeft, BaseAndAdapterTogetherAreTheModel) {
  Model model = tiny_model("llama", DType::f16, 1);
  std::map<std::string, int64_t> ranks;
  for (ModelTensor& t : model.tensors) {
    const bool q = t.name.ends_with("q_proj.weight");
    if (!q && !t.name.ends_with("down_proj.weight")) continue;
    const int64_t rank = q ? 3 : 5, rows = t.node->rows(), cols = t.node->cols();
    ranks[t.name] = rank;
    t.node =
        Sum::make({t.node, LowRank::make(small_matrix(rows, rank, 2), small_matrix(rank, cols, 3)).value()}).value();
  }
  const TempFolder folder;
  const std::string out = folder / "out";
  ASSERT_TRUE(write_peft(model, out, DType::f32, false).ok());
  const auto config = nlohmann::json::parse(read_text(out + "/adapter/adapter_config.json", 1 << 20).value());
  EXPECT_EQ(config["r"], 5);
  EXPECT_EQ(config["lora_alpha"], 5);
  EXPECT_EQ(config["target_modules"], (std::vector<std::string>{"down_proj", "q_proj"}));
  EXPECT_EQ(config["rank_pattern"]["model.layers.0.self_attn.q_proj"], 3);
  EXPECT_FALSE(config["rank_pattern"].contains("model.layers.0.mlp.down_proj"));

  const Model base = open_model(out).value();
  const auto adapter = SafetensorsFile::open(out + "/adapter/adapter_model.safetensors", Limits{}).value();
  for (const ModelTensor& t : model.tensors) {
    std::vector<float> expected = decode_all(*t.node), got = decode_all(*base.find(t.name)->node);
    if (const auto found = ranks.find(t.name); found != ranks.end()) {
      const std::string module = "base_model.model." + t.name.substr(0, t.name.size() - 7);
      const auto a = tensor(adapter, module + ".lora_A.weight"), b = tensor(adapter, module + ".lora_B.weight");
      const auto rank = static_cast<size_t>(found->second), cols = static_cast<size_t>(t.node->cols());
      ASSERT_EQ(a.size(), rank * cols);
      for (size_t i = 0; i < got.size(); ++i)
        for (size_t k = 0; k < rank; ++k) got[i] += b[i / cols * rank + k] * a[k * cols + i % cols];
    }
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 1e-5) << t.name;
  }
}

TEST(ExportPeft, RefusesAModelWithoutLowRankParts) {
  const TempFolder folder;
  const Status status = write_peft(tiny_model("llama", DType::f16, 1), folder / "out", DType::f16, false);
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().message.find("lq-lora"), std::string::npos);
  EXPECT_FALSE(is_directory(folder / "out"));
}

}  // namespace
}  // namespace pith::test
