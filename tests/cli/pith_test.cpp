// The real program on tiny inputs: what it says, its exit code, and that nothing half-written stays behind.
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "cli/program.h"
#include "represent/dense.h"
#include "represent/tiny_model.h"
#include "runtime/model_file.h"

namespace pith {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

class PithTest : public ProgramTest {
 protected:
  void SetUp() override {
    model = test::tiny_model("llama", DType::f16, 1);
    pith = root / "tiny.pith", gguf = root / "tiny.gguf", hf = root / "tiny-hf", text = root / "text.txt";
    ASSERT_TRUE(write_pith(model, pith, false).ok());
    ASSERT_TRUE(write_gguf_model(model, gguf, false).ok());
    ASSERT_TRUE(write_hf_folder(model, hf, DType::f32, false).ok());
    std::string words;
    for (int i = 0; i < 400; ++i) words += "the cat sat on mat " + std::to_string(i * i) + "\n";
    spill(text, words);
  }

  Model model;
  std::string pith, gguf, hf, text;
};

TEST_F(PithTest, InspectShowsEveryTensor) {
  for (const std::string& path : {pith, gguf, hf, hf + "/model.safetensors"}) {
    const Ran r = run({"inspect", path});
    ASSERT_EQ(r.code, 0) << r.err;
    EXPECT_NE(r.out.find("llama"), std::string::npos);
    for (const ModelTensor& t : model.tensors)
      EXPECT_NE(r.out.find(t.name), std::string::npos) << path << " " << t.name;
    const Ran json = run({"inspect", path, "--json"});
    ASSERT_EQ(json.code, 0) << json.err;
    const auto j = nlohmann::json::parse(json.out);
    EXPECT_EQ(j["tensors"].size(), model.tensors.size());
    EXPECT_EQ(j["weights"], model.parameters());
    uint64_t bits = 0;
    for (const auto& t : j["tensors"]) bits += t["bits"]["total"].get<uint64_t>();
    EXPECT_EQ(j["bits"]["total"], bits);
    EXPECT_LE(bits / 8, j["file_bytes"].get<uint64_t>());
  }
  const Ran brief = run({"inspect", "--brief", pith});
  EXPECT_EQ(brief.out.find("model.layers.0"), std::string::npos);
}

TEST_F(PithTest, StartsInMilliseconds) {
  double best = 1e9;  // processor time of the fastest of some runs: other programs may keep this machine busy
  for (int i = 0; i < 5; ++i) {
    rusage before{}, after{};
    ::getrusage(RUSAGE_CHILDREN, &before);
    ASSERT_EQ(run({"inspect", gguf}).code, 0);
    ::getrusage(RUSAGE_CHILDREN, &after);
    const auto seconds = [](const rusage& r) {
      return static_cast<double>(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
             1e-6 * static_cast<double>(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
    };
    best = std::min(best, seconds(after) - seconds(before));
  }
  EXPECT_LT(best, 0.05);
}

TEST_F(PithTest, VerifyPassesWhatIsWholeAndFindsEveryFlippedBit) {
  for (const std::string& path : {pith, gguf, hf}) EXPECT_EQ(run({"verify", path}).code, 0) << path;
  const std::string good = slurp(pith);
  int refused = 0, rounds = 0;
  for (size_t at = good.size() / 2; at < good.size(); at += good.size() / 16, ++rounds) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 4);
    spill(root / "bad.pith", bad);
    const Ran r = run({"verify", root / "bad.pith"});
    refused += r.code == 3 && r.err.find("pith: error: ") == 0;
  }
  EXPECT_EQ(refused, rounds);
}

TEST_F(PithTest, EvalAndGenerateRun) {
  const Ran ppl = run({"eval", "ppl", pith, "--text", text, "--context", "64", "--chunks", "4", "--threads", "1",
                       "--json", "--progress", "none"});
  ASSERT_EQ(ppl.code, 0) << ppl.err;
  const double value = nlohmann::json::parse(ppl.out)["texts"][0]["perplexity"];
  EXPECT_GT(value, 1);
  // The same model through another door: the same perplexity, and no distance at all.
  const Ran kl = run({"eval", "kl", gguf, "--against", pith, "--text", text, "--context", "64", "--chunks", "4",
                      "--threads", "1", "--json", "--progress", "none"});
  ASSERT_EQ(kl.code, 0) << kl.err;
  const auto j = nlohmann::json::parse(kl.out)["texts"][0];
  EXPECT_NEAR(j["model"]["perplexity"].get<double>(), value, 1e-3 * value);
  EXPECT_LT(j["mean_kl"].get<double>(), 1e-6);
  EXPECT_GT(j["same_top"].get<double>(), 0.99);
  const Ran one = run({"generate", pith, "-p", "the cat", "-n", "12", "--raw", "--progress", "none"});
  const Ran two = run({"generate", pith, "-p", "the cat", "-n", "12", "--raw", "--progress", "none", "--threads", "1"});
  ASSERT_EQ(one.code, 0) << one.err;
  EXPECT_EQ(one.out, two.out);
  EXPECT_GT(one.out.size(), 1u);
}

TEST_F(PithTest, ExportRoundTrips) {
  ASSERT_EQ(run({"export", pith, "--to", "gguf", "-o", root / "out.gguf"}).code, 0);
  ASSERT_EQ(run({"export", gguf, "--to", "hf", "--dtype", "f32", "-o", root / "out-hf"}).code, 0);
  const auto a = open_model(root / "out.gguf"), b = open_model(root / "out-hf");
  ASSERT_TRUE(a.ok() && b.ok());
  test::expect_same_weights(*a, model);
  test::expect_same_weights(*b, model);
  fails({"export", pith, "--to", "gguf", "-o", root / "out.gguf"}, 2, "exists already");
  fails({"export", pith, "--to", "hf", "-o", root / "out-hf"}, 2, "exists already");
  EXPECT_EQ(run({"export", pith, "--to", "gguf", "-o", root / "out.gguf", "--force"}).code, 0);
  EXPECT_EQ(run({"export", pith, "--to", "hf", "-o", root / "out-hf", "--force"}).code, 0);
  fails({"export", pith, "--to", "gguf", "-o", root / "no/such/folder/out.gguf"}, 2, "cannot write");
  fails({"export", pith, "--to", "gguf", "-o", "/proc/out.gguf"}, 2, "cannot write");
  fails({"export", pith, "--to", "onnx", "-o", root / "x"}, 2, "onnx");
}

TEST_F(PithTest, ADiskThatIsFullLeavesNothing) {
  const std::string disk = root / "disk";
  fs::create_directory(disk);
  if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=8k") != 0) GTEST_SKIP() << "a small tmpfs needs root";
  const Ran r = run({"export", pith, "--to", "gguf", "-o", disk + "/out.gguf"});
  const Ran folder = run({"export", pith, "--to", "hf", "-o", disk + "/out-hf"});
  const bool empty = fs::is_empty(disk);
  ::umount(disk.c_str());
  EXPECT_EQ(r.code, 2) << r.err;
  EXPECT_NE(r.err.find("No space left"), std::string::npos) << r.err;
  EXPECT_EQ(folder.code, 2) << folder.err;
  EXPECT_TRUE(empty);
}

TEST_F(PithTest, SmallerCaches) {
  std::string prompt;
  for (int i = 0; i < 12; ++i) prompt += "the cat ";
  const auto generate = [&](std::vector<std::string> more) {
    std::vector<std::string> words{"generate", pith, "-p", prompt, "-n", "8", "--raw", "--progress", "none"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  const Ran dense = run(generate({}));
  ASSERT_EQ(dense.code, 0) << dense.err;
  EXPECT_EQ(run(generate({"--cache", "full"})).out, dense.out);
  EXPECT_EQ(run(generate({"--cache", "h2o:budget=100%"})).out, dense.out);
  spill(root / "prompt.txt", prompt);
  EXPECT_EQ(run({"generate", pith, "-p", "@" + (root / "prompt.txt"), "-n", "8", "--raw", "--progress", "none"}).out,
            dense.out);
  const std::string saved = root / "prompt.kv";
  const Ran small = run(generate({"--cache", "snapkv:budget=50%,window=4;q8:window=4", "--save-cache", saved}));
  ASSERT_EQ(small.code, 0) << small.err;
  const std::string file = slurp(saved);
  EXPECT_GT(file.size(), 1000u);
  EXPECT_EQ(run({"generate", pith, "-p", "the", "-n", "4", "--load-cache", saved, "--progress", "none"}).code, 0);
  fails(generate({"--save-cache", saved}), 2, "exists already");
  spill(root / "cut.kv", file.substr(0, file.size() - 9));
  fails({"generate", pith, "-p", "the", "--load-cache", root / "cut.kv"}, 3, "cut short");
  spill(root / "other.kv", "PITHXX" + file.substr(6));
  fails({"generate", pith, "-p", "the", "--load-cache", root / "other.kv"}, 3, "no cache file");
  fails({"generate", pith, "-p", "the", "--load-cache", root / "none.kv"}, 2, "No such file");
  fails(generate({"--cache", "snapkw"}), 2, "did you mean 'snapkv'");
  fails(generate({"--cache", "snapkv:budget=4,window=4"}), 2, "always kept");
  fails(generate({"--cache", "snapkv:budget=lots"}), 2, "budget 'lots'");
  fails(generate({"--cache", "q4;q8"}), 2, "how tokens are stored");
  fails(generate({"--context", "9"}), 2, "--context can hold 9");
  fails(generate({"--context", "100k"}), 2, "the model can hold");
  fails(generate({"--context", "few"}), 2, "no number of tokens");
  fails({"generate", pith, "-p", "@" + (root / "none.txt")}, 2, "No such file");
  fails({"cache", "evil"}, 2, "'eval'");
  fails({"cache", "snapkv"}, 2, "--cache snapkv");
  EXPECT_EQ(run({"cache", "snapkv", "--help"}).code, 0);
  fails({"cache", "eval", pith}, 2, "--cache");
  fails({"cache", "eval", pith, "--cache", "q4", "--tasks", "paskey"}, 2, "passkey");
  fails({"cache", "eval", pith, "--cache", "q4", "--lengths", "many"}, 2, "no number of tokens");
  fails({"cache", "eval", pith, "--cache", "q4", "-o", root / "out.txt"}, 2, ".html or .json");
}

TEST_F(PithTest, WrongUse) {
  fails({"inspct", pith}, 2, "did you mean 'inspect'?");
  fails({"inspect"}, 2, "FILE");
  fails({"inspect", pith, "--jsn"}, 2, "did you mean '--json'?");
  fails({"inspect", pith, gguf}, 2, "one argument too many");
  fails({"methods", "no-such-method-at-all"}, 2, "unknown");
  fails({"eval", "pl", pith}, 2, "'ppl'");
  fails({"eval", "ppl", pith, "--context", "zero"}, 2, "context");
  fails({"generate", pith}, 2, "--prompt");
  fails({"generate", pith, "-p", "x", "--top-p", "7"}, 2, "top-p");
  fails({"eval", "kl", pith}, 2, "--against");
  EXPECT_EQ(run({}).code, 2);
  EXPECT_EQ(run({"--help"}).code, 0);
  EXPECT_EQ(run({"--version"}).out.find("pith "), 0u);
  for (const char* command : {"inspect", "verify", "generate", "export", "methods"}) {
    const Ran r = run({command, "--help"});
    EXPECT_EQ(r.code, 0);
    EXPECT_NE(r.out.find("Example:"), std::string::npos) << command;
  }
  for (const char* what : {"ppl", "kl"}) EXPECT_EQ(run({"eval", what, "--help"}).code, 0);
}

TEST_F(PithTest, MissingAndBrokenFiles) {
  const std::string missing = root / "missing.pith", empty = root / "empty.gguf", junk = root / "junk.gguf";
  spill(empty, "");
  spill(junk, "This is no model, but a text that somebody gave the wrong ending.");
  for (const char* command : {"inspect", "verify"}) {
    fails({command, missing}, 2, missing);
    fails({command, empty}, 3, empty);
    fails({command, junk}, 3, junk);
  }
  fails({"eval", "ppl", missing, "--text", text}, 2, missing);
  fails({"eval", "ppl", pith, "--text", root / "missing.txt"}, 2, "missing.txt");
  fails({"eval", "kl", pith, "--against", junk, "--text", text}, 3, junk);
  fails({"generate", junk, "-p", "x"}, 3, junk);
  fails({"export", junk, "--to", "gguf", "-o", root / "out.gguf"}, 3, junk);
  for (const std::string& path : {pith, gguf, hf + "/model.safetensors"}) {
    const std::string good = slurp(path), cut = path + ".cut";
    for (size_t part = 1; part < 8; ++part) {
      spill(cut, good.substr(0, good.size() * part / 8));
      const Ran r = run({"inspect", cut});
      EXPECT_EQ(r.code, 3) << path << " " << part << " " << r.err;
      EXPECT_EQ(r.err.find("pith: error: "), 0u);
      EXPECT_EQ(run({"verify", cut}).code, 3);
    }
    fs::remove(cut);
  }
}

TEST_F(PithTest, TextsThatCannotBeMeasured) {
  spill(root / "nothing.txt", "");
  fails({"eval", "ppl", pith, "--text", root / "nothing.txt"}, 2, "nothing.txt");
  spill(root / "short.txt", "a few words");
  fails({"eval", "ppl", pith, "--text", root / "short.txt"}, 2, "short.txt");
  fails({"eval", "ppl", pith, "--text", "builtin:nothing"}, 2, "encyclopedia");
}

TEST_F(PithTest, ModelsThatMakeNoSense) {
  const std::string config = hf + "/config.json", tokenizer = hf + "/tokenizer.json";
  const std::string good_config = slurp(config), good_tokenizer = slurp(tokenizer);
  auto json = nlohmann::json::parse(good_config);
  json["model_type"] = "perceptron9000";
  json["architectures"] = {"Perceptron9000ForCausalLM"};
  spill(config, json.dump());
  fails({"inspect", hf}, 3, "perceptron9000");
  json = nlohmann::json::parse(good_config);
  json["intermediate_size"] = json["intermediate_size"].get<int>() + 8;
  spill(config, json.dump());
  fails({"inspect", hf}, 3, "mlp");
  spill(config, "{");
  fails({"inspect", hf}, 3, "config.json");
  fs::remove(config);
  EXPECT_NE(run({"inspect", hf}).code, 0);
  spill(config, good_config);

  json = nlohmann::json::parse(good_tokenizer);
  json["model"].erase("merges");
  spill(tokenizer, json.dump());
  fails({"generate", hf, "-p", "the cat"}, 3, "merges");
  spill(tokenizer, good_tokenizer);

  // A tensor type that nobody knows: after the name come the number of dimensions, the dimensions and the type.
  std::string bytes = slurp(gguf);
  const size_t name = bytes.find("blk.0.attn_q.weight");
  ASSERT_NE(name, std::string::npos);
  bytes[name + std::string_view("blk.0.attn_q.weight").size() + 4 + 16] = 99;
  spill(root / "type.gguf", bytes);
  fails({"inspect", root / "type.gguf"}, 3, "99");
  bytes = slurp(gguf);
  bytes[0] = 'X';
  spill(root / "magic.gguf", bytes);
  fails({"inspect", root / "magic.gguf"}, 3, "magic.gguf");

  Model broken = test::tiny_model("llama", DType::f32, 2);
  ModelTensor& t = broken.tensors[3];
  auto values = decode_all(*t.node);
  values[5] = std::numeric_limits<float>::quiet_NaN();
  t.node = *Dense::from(DType::f32, t.node->rows(), t.node->cols(), values);
  ASSERT_TRUE(write_pith(broken, root / "nan.pith", false).ok());
  const Ran r = run({"verify", root / "nan.pith"});
  EXPECT_EQ(r.code, 3);
  EXPECT_NE(r.err.find(t.name), std::string::npos) << r.err;
}

TEST_F(PithTest, CommandsOfTheEngineNeedTheEngine) {
  const Ran r = run({"compress", pith, "-o", root / "x"}, "PITH_ENGINE=/nowhere/pith-engine");
  EXPECT_EQ(r.code, 2);
  EXPECT_NE(r.err.find("/nowhere/pith-engine"), std::string::npos);
  // Arguments arrive as they were given.
  spill(root / "engine.sh", "#!/bin/sh\nfor a in \"$@\"; do echo \"[$a]\"; done\nexit 7\n");
  fs::permissions(root / "engine.sh", fs::perms::owner_all);
  const Ran script = run({"quantize", "rtn", "a b", "--bits", "3"}, "PITH_ENGINE=" + quoted(root / "engine.sh"));
  EXPECT_EQ(script.code, 7);
  EXPECT_EQ(script.out, "[quantize]\n[rtn]\n[a b]\n[--bits]\n[3]\n");
}

}  // namespace
}  // namespace pith
