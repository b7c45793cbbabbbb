// The main job's ways to a .gguf: budgets, tensors that stay as they are, another method for embedding and head.
#include "engine/compress.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "formats/ggml_blocks.h"
#include "represent/blocks.h"
#include "runtime/model_file.h"
#include "tensor/tensor.h"

namespace pith {
namespace {

class CompressToGguf : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("pith-compress-test-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  CompressRequest request(const std::string& input, const std::string& output) const {
    CompressRequest r;
    r.input = input;
    r.output = path(output);
    r.calibration = std::string(PITH_SOURCE_DIR) + "/testdata/lm-s/calib.txt";
    r.calibration_sequences = 8, r.fisher_sequences = 4, r.sequence_length = 128;
    r.cache_folder = path("cache");
    r.eval_chunks = 0;
    return r;
  }

  static GgmlType type_of(const Model& model, const std::string& name) {
    return static_cast<const Blocks&>(*model.find(name)->node).type();
  }

  const std::string lm_s_ = std::string(PITH_SOURCE_DIR) + "/testdata/lm-s";
  std::filesystem::path folder_;
};

TEST_F(CompressToGguf, EmbeddingMayGetAnotherType) {
  CompressRequest r = request(lm_s_, "mixed.gguf");
  r.allow = {{"gguf", "type=Q4_0"}};
  r.ends = {"gguf", "type=Q8_0"};
  compress(r);
  const Model model = must(open_model(r.output));
  EXPECT_EQ(type_of(model, "model.embed_tokens.weight"), GgmlType::q8_0);
  EXPECT_EQ(type_of(model, "model.layers.0.self_attn.q_proj.weight"), GgmlType::q4_0);
  EXPECT_EQ(type_of(model, "model.layers.4.mlp.down_proj.weight"), GgmlType::q4_0);
}

TEST_F(CompressToGguf, TensorsStayAsTheyAreWhereTheBudgetAllows) {
  CompressRequest first = request(lm_s_, "first.gguf");
  first.allow = {{"gguf", "type=Q5_1"}};
  first.ends = {"gguf", "type=Q8_0"};
  compress(first);
  const auto size = std::filesystem::file_size(first.output);
  CompressRequest second = request(first.output, "second.gguf");
  second.budget = {Budget::Kind::size, static_cast<double>(size) * 0.95};
  compress(second);
  EXPECT_LE(std::filesystem::file_size(second.output), static_cast<double>(size) * 0.95);
  const Model before = must(open_model(first.output)), after = must(open_model(second.output));
  int kept = 0, changed = 0;
  for (const ModelTensor& t : before.tensors) {
    if (t.node->kind() != "blocks") continue;
    const auto& a = static_cast<const Blocks&>(*t.node);
    const auto& b = static_cast<const Blocks&>(*after.find(t.name)->node);
    // The same type again can only mean that nothing was rounded a second time.
    if (a.type() == b.type()) {
      EXPECT_EQ(decode_all(a), decode_all(b)) << t.name;
      ++kept;
    } else {
      ++changed;
    }
  }
  EXPECT_GT(kept, 0);
  EXPECT_GT(changed, 0);
}

}  // namespace
}  // namespace pith
