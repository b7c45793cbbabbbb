// Replays the fuzz targets without an engine: the committed corpus, truncations, bit flips, spliced and random bytes.
// Every allocation through operator new is watched: none may be out of proportion to the input.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "formats/gguf_model.h"
#include "formats/json_text.h"
#include "formats/pith_file.h"
#include "fuzz.h"
#include "plan/plan_file.h"
#include "represent/samples.h"
#include "represent/tiny_model.h"

namespace {
std::atomic<size_t> largest_allocation{0};  // since it was last set to 0
}

// The whole test program allocates through these; the cost is one comparison.
void* operator new(size_t n) {
  if (n > largest_allocation.load(std::memory_order_relaxed)) largest_allocation.store(n, std::memory_order_relaxed);
  if (void* p = std::malloc(n > 0 ? n : 1)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace pith {
namespace {

using test::Random;

struct Target {
  const char* name;
  int (*run)(const uint8_t*, size_t);
  const char* magic;  ///< random headers begin with this
};
constexpr Target kTargets[] = {
    {"gguf", fuzz_gguf, "GGUF\x03"},
    {"safetensors", fuzz_safetensors, ""},
    {"tokenizer", fuzz_tokenizer, "{\"model\":{"},
    {"config", fuzz_config, "{\"model_type\":\"llama\","},
    {"pith", fuzz_pith, "\x01{\"tensors\":[["},
    {"plan", fuzz_plan, "{\"pith_plan\":1,"},
};

std::string corpus_folder(const Target& t) { return std::string(PITH_SOURCE_DIR) + "/fuzz/corpus/" + t.name; }

std::vector<std::string> corpus(const Target& t) {
  std::vector<std::string> paths, texts;
  for (const auto& e : std::filesystem::directory_iterator(corpus_folder(t))) paths.push_back(e.path().string());
  std::sort(paths.begin(), paths.end());
  for (const auto& p : paths) texts.push_back(*read_text(p, 1 << 24));
  return texts;
}

// Runs one input. 16 MiB are free: tables that every tokenizer or codebook needs.
void run(const Target& t, const std::string& input) {
  largest_allocation = 0;
  t.run(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  const size_t bound = (size_t{16} << 20) + 1024 * input.size();
  ASSERT_LE(largest_allocation.load(), bound) << t.name << ": input of " << input.size() << " bytes";
}

class FuzzReplay : public testing::TestWithParam<Target> {};
INSTANTIATE_TEST_SUITE_P(All, FuzzReplay, testing::ValuesIn(kTargets),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(FuzzReplay, Corpus) {
  const auto inputs = corpus(GetParam());
  ASSERT_GE(inputs.size(), 3u) << "fuzz/corpus/" << GetParam().name;
  for (const auto& text : inputs) run(GetParam(), text);
}

TEST_P(FuzzReplay, TruncatedAtEvery64th) {
  for (const auto& text : corpus(GetParam()))
    for (size_t k = 0; k < 64; ++k) run(GetParam(), text.substr(0, text.size() * k / 64));
}

TEST_P(FuzzReplay, Mutations) {
  const auto inputs = corpus(GetParam());
  Random random(7);
  for (int round = 0; round < 1500; ++round) {
    std::string text = inputs[static_cast<size_t>(random.between(0, static_cast<int64_t>(inputs.size()) - 1))];
    if (text.size() > 40000 && round % 8 != 0) continue;  // large seeds take longer
    const int64_t changes = random.between(1, 6);
    for (int64_t c = 0; c < changes && !text.empty(); ++c) {
      const auto at = static_cast<size_t>(random.between(0, static_cast<int64_t>(text.size()) - 1));
      switch (random.between(0, 5)) {
        case 0:
          text[at] = static_cast<char>(text[at] ^ (1 << random.between(0, 7)));
          break;
        case 1:
          text[at] = static_cast<char>(random.next());
          break;
        case 2:
          text.erase(at, static_cast<size_t>(random.between(1, 16)));
          break;
        case 3:
          text.insert(at, text.substr(at, static_cast<size_t>(random.between(1, 16))));
          break;
        case 4: {  // numbers at the edges
          static constexpr const char* edges[] = {
              "0", "-1", "4294967295", "9223372036854775807", "18446744073709551615", "1e308"};
          text.replace(at, 1, edges[random.between(0, 5)]);
          break;
        }
        default:
          for (size_t i = at; i < std::min(at + 8, text.size()); ++i)
            text[i] = static_cast<char>(random.coin() ? 0xff : 0);
      }
    }
    run(GetParam(), text);
  }
}

TEST_P(FuzzReplay, RandomHeaders) {
  Random random(11);
  const std::string magic = GetParam().magic;
  for (int round = 0; round < 100'000; ++round) {
    std::string text = magic;
    const int64_t n = random.between(0, 60);
    // Mostly small numbers: they come further than noise.
    for (int64_t i = 0; i < n; ++i) {
      const int64_t kind = random.between(0, 3);
      text.push_back(static_cast<char>(kind == 0   ? random.next()
                                       : kind == 1 ? 0
                                       : kind == 2 ? random.between(0, 15)
                                                   : "{}[]\",:0123"[random.between(0, 10)]));
    }
    if (magic.empty() && text.size() > 8) {  // safetensors: a length that is possible
      const uint64_t length = static_cast<uint64_t>(text.size() - 8);
      std::memcpy(text.data(), &length, 8);
      text[8] = '{';
    }
    run(GetParam(), text);
  }
}

// Writes the seeds that need our own writers (the others are made by fuzz/make_corpus.py). Run once by hand:
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
    save(folder("pith") + "tree_" + std::string(maker.kind), "\x01" + manifest.dump() + "\n" + data);
  }
  PithContents contents;
  contents.config = json_text(lm_config_to_hf(test::tiny_config("llama")));
  contents.tokenizer = pack_tokenizer(test::tiny_tokenizer());
  contents.tensors.push_back(
      {"w", {4}, R"({"kind":"dense"})", {{"w.v", DType::f32, {4}, Bytes::own(std::vector<float>{1, 2, 3, 4})}}});
  ASSERT_TRUE(write_pith(folder("pith") + "file", contents, true).ok());

  save(folder("tokenizer") + "packed", "\x01" + pack_tokenizer(test::tiny_tokenizer()));
  save(folder("tokenizer") + "tiny", json_text(tokenizer_to_hf(test::tiny_tokenizer())));
  for (const char* architecture : test::kArchitectures)
    save(folder("config") + architecture, json_text(lm_config_to_hf(test::tiny_config(architecture))));

  Plan plan;
  save(folder("plan") + "empty", print_plan(plan));
  plan.input = "model", plan.input_hash = "00112233445566778899aabbccddeeff";
  plan.budget = {Budget::Kind::size, 6e7};
  plan.settings["seed"] = "1";
  plan.tensors.push_back({"model.layers.0.mlp.up_proj.weight", "rtn:bits=3", 4096, 1536, 0.25});
  plan.lower_bound = 0.2;
  save(folder("plan") + "one", print_plan(plan));
  plan.tensors.push_back({"model.norm.weight", "keep", {}, {}, {}});
  save(folder("plan") + "two", print_plan(plan));

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
    auto writer = GgufWriter::create(folder("gguf") + architecture, *metadata, decls, true);
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
