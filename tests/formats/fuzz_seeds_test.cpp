// The seeds of fuzz/corpus that need Pith's own writers.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "formats/gguf_model.h"
#include "formats/json_text.h"
#include "formats/pith_file.h"
#include "plan/plan_file.h"
#include "represent/samples.h"
#include "represent/tiny_model.h"

namespace pith {
namespace {

using test::Random;

// Writes the seeds that need our own writers (the others: fuzz/make_corpus.py, make_corpus_peers.py). Run once by hand:
//   pith_tests --gtest_also_run_disabled_tests --gtest_filter='*WriteSeeds'
TEST(FuzzCorpus, DISABLED_WriteSeeds) {
  const auto folder = [](const char* target) {
    const std::string path = std::string(PITH_SOURCE_DIR) + "/fuzz/corpus/" + target;
    std::filesystem::create_directories(path);
    return path + "/";
  };
  const auto save = [](const std::string& path, const std::string& text) {
    ASSERT_TRUE(write_file(path, text, true).ok());
  };

  // Trees of every kind, wrapped: manifest, newline, data.
  uint64_t seed = 100;
  for (const auto& maker : test::sample_makers()) {
    test::Sample sample;
    while (sample.node == nullptr) {
      Random random(seed++);
      sample = maker.make(random, 3, 32, 1);
    }
    test::MemorySections sections;
    const auto tree = sample.node->serialize("s", sections);
    std::string data;
    nlohmann::json list = nlohmann::json::array();
    for (const auto& [name, s] : sections.sections) {
      list.push_back({name, std::string(dtype_name(s.type)), s.shape});
      data.append(reinterpret_cast<const char*>(s.data.data()), s.data.size());
      data.resize((data.size() + 63) / 64 * 64, '\0');
    }
    nlohmann::json manifest;
    manifest["tensors"] = nlohmann::json::array({nlohmann::json::array({"t", {3, 32}, tree, list})});
    save(folder("pith") + "tree-" + std::string(maker.kind), "\x01" + manifest.dump() + "\n" + data);
  }
  PithContents contents;
  contents.config = json_text(lm_config_to_hf(test::tiny_config("llama")));
  contents.tokenizer = pack_tokenizer(test::tiny_tokenizer());
  contents.tensors.push_back(
      {"w", {4}, R"({"kind":"dense"})", {{"w.v", DType::f32, {4}, Bytes::own(std::vector<float>{1, 2, 3, 4})}}});
  ASSERT_TRUE(write_pith(folder("pith") + "file.pith", contents, true).ok());

  save(folder("tokenizer_json") + "packed.tokenizer", "\x01" + pack_tokenizer(test::tiny_tokenizer()));
  save(folder("tokenizer_json") + "tiny.json", json_text(tokenizer_to_hf(test::tiny_tokenizer())));
  for (const char* architecture : test::kArchitectures)
    save(folder("config") + architecture + ".json", json_text(lm_config_to_hf(test::tiny_config(architecture))));

  Plan plan;
  save(folder("plan") + "empty.json", print_plan(plan));
  plan.input = "model", plan.input_hash = "00112233445566778899aabbccddeeff";
  plan.budget = {Budget::Kind::size, 6e7};
  plan.settings["seed"] = "1";
  plan.tensors.push_back({"model.layers.0.mlp.up_proj.weight", "rtn:bits=3", 4096, 1536, 0.25});
  plan.lower_bound = 0.2;
  save(folder("plan") + "one.json", print_plan(plan));
  plan.tensors.push_back({"model.norm.weight", "keep", {}, {}, {}});
  save(folder("plan") + "two.json", print_plan(plan));

  // A whole small model as GGUF.
  for (const char* architecture : {"llama", "gemma3", "mixtral"}) {
    LmConfig c = test::tiny_config(architecture);
    c.layers = 1, c.vocab = 300, c.hidden = 32, c.intermediate = 32, c.heads = 2, c.kv_heads = 1, c.head_dim = 16;
    c.sliding_layers.clear();
    if (c.embedding_scale != 1) c.embedding_scale = std::sqrt(32.0);
    auto metadata = gguf_metadata_from_config(c);
    ASSERT_TRUE(metadata.ok()) << metadata.error().message;
    if (std::string(architecture) == "llama") {
      ASSERT_TRUE(gguf_metadata_from_tokenizer(test::tiny_tokenizer(), *metadata).ok());
    }
    auto layout = gguf_layout(c);
    ASSERT_TRUE(layout.ok());
    std::vector<GgufDecl> decls;
    for (const auto& e : *layout)
      decls.push_back({e.name, e.shape.size() > 1 ? GgmlType::q4_0 : GgmlType::f32, e.shape});
    auto writer = GgufWriter::create(folder("gguf") + architecture + ".gguf", *metadata, decls, true);
    ASSERT_TRUE(writer.ok());
    for (const auto& d : decls) {
      int64_t items = 1;
      for (int64_t n : d.shape) items *= n;
      ASSERT_TRUE(writer->write(std::vector<std::byte>(*ggml_row_bytes(d.type, items), std::byte{0x31})).ok());
    }
    ASSERT_TRUE(writer->finish().ok());
  }
}

}  // namespace
}  // namespace pith
