// Bad input of the commands that need the engine, end to end: one clear line, the right exit code, no file that came,
// went or changed. tests/cli/pith_test.cpp does the same for the torch-free commands.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <unistd.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "cli/program.h"
#include "represent/dense.h"
#include "runtime/model_file.h"

namespace pith {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using Words = std::vector<std::string>;

class BadInputTest : public ProgramTest {
 protected:
  void SetUp() override {
    if (!file_exists(PITH_BINARY_DIR "/pith-engine")) GTEST_SKIP() << "this build has no engine";
    model = tiny_model("llama", DType::f16, 1);
    good = root / "good.pith", gguf = root / "good.gguf", hf = root / "good-hf", out = root / "out.pith";
    ASSERT_TRUE(write_pith(model, good, false).ok());
    ASSERT_TRUE(write_gguf_model(model, gguf, false).ok());
    ASSERT_TRUE(write_hf_folder(model, hf, DType::f32, false).ok());
  }

  /// The commands that read a model, each in the form in which nothing else is wrong.
  std::vector<Words> commands(const std::string& path) const {
    return {{"compress", path, "--bits", "4", "-o", out},
            {"quantize", "rtn", path, "-o", out},
            {"prune", "magnitude", path, "--sparsity", "0.5", "-o", out},
            {"factorize", "eora", path, "--compressed", good, "-o", out}};
  }

  Model model;
  std::string good, gguf, hf, out;
};

TEST_F(BadInputTest, ModelsThatCannotBeRead) {
  const auto broken = [&](const std::string& name, const std::string& bytes) {
    spill(root / name, bytes);
    return root / name;
  };
  const std::string pith_bytes = slurp(good), gguf_bytes = slurp(gguf);
  for (const Words& c : commands(root / "missing.gguf")) fails(c, 2, "missing.gguf: no such file");
  for (const Words& c : commands(broken("cut.pith", pith_bytes.substr(0, pith_bytes.size() / 2))))
    fails(c, 3, "cut.pith");
  const auto refused = [&](const std::string& path, int code, const std::string& part) {
    fails({"compress", path, "--bits", "4", "-o", out}, code, part);
  };
  refused(broken("cut.gguf", gguf_bytes.substr(0, gguf_bytes.size() / 2)), 3, "cut.gguf");
  const std::string weights = slurp(hf + "/model.safetensors");
  refused(broken("cut.safetensors", weights.substr(0, weights.size() / 2)), 3, "cut.safetensors");
  refused(broken("empty.gguf", ""), 3, "empty.gguf");
  std::string bytes = gguf_bytes;
  bytes[0] = 'X';
  refused(broken("magic.gguf", bytes), 3, "magic.gguf: is neither GGUF nor safetensors nor .pith");
  // After the name come the number of dimensions, the dimensions and the type.
  const std::string_view name = "blk.0.attn_q.weight";
  bytes = gguf_bytes;
  bytes[bytes.find(name) + name.size() + 4 + 16] = 99;
  refused(broken("type.gguf", bytes), 3, "99");
  refused(root / "", 2, "without config.json");
}

TEST_F(BadInputTest, ModelsThatMakeNoSense) {
  const std::string config = hf + "/config.json", tokenizer = hf + "/tokenizer.json";
  const std::string good_config = slurp(config), good_tokenizer = slurp(tokenizer);
  const Words command = {"compress", hf, "--bits", "4", "-o", out};
  auto json = nlohmann::json::parse(good_config);
  json["model_type"] = "perceptron9000";
  json["architectures"] = {"Perceptron9000ForCausalLM"};
  spill(config, json.dump());
  fails(command, 3, "perceptron9000");
  json = nlohmann::json::parse(good_config);
  json["intermediate_size"] = json["intermediate_size"].get<int>() + 8;
  spill(config, json.dump());
  fails(command, 3, "mlp");
  spill(config, good_config);

  json = nlohmann::json::parse(good_tokenizer);
  json["model"].erase("merges");
  spill(tokenizer, json.dump());
  fails(command, 3, "merges");
  fs::remove(tokenizer);
  fails(command, 3, "tokenizer");
  spill(tokenizer, good_tokenizer);

  for (const float value : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    Model broken = tiny_model("llama", DType::f32, 2);
    ModelTensor& t = broken.tensors[3];
    auto values = decode_all(*t.node);
    values[5] = value;
    t.node = *Dense::from(DType::f32, t.node->rows(), t.node->cols(), values);
    ASSERT_TRUE(write_pith(broken, root / "nan.pith", true).ok());
    for (const Words& c : commands(root / "nan.pith")) fails(c, 3, "tensor '" + t.name + "' holds");
  }
}

TEST_F(BadInputTest, WrongUse) {
  const auto compress = [&](const Words& more) {
    Words words = {"compress", good, "-o", out};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  fails({"compress", good, "--bits", "4"}, 2, "--output is required");
  fails({"compress", "--bits", "4", "-o", out}, 2, "MODEL is required");
  fails(compress({}), 2, "needs a budget");
  fails(compress({"--bits", "4", "--size", "1MB"}), 2, "one of --size, --ram, --bits, --max-loss");
  fails(compress({"--bits", "0.01"}), 2, "can be asked for");
  fails(compress({"--bits", "40"}), 2, "can be asked for");
  fails(compress({"--size", "12"}), 2, "can be asked for");
  fails(compress({"--size", "7GB"}), 2, "can be asked for");
  for (const char* size : {"60 parsec", "MB", "-3MB", "", "nan", "1e99GB"})
    fails(compress({"--size", size}), 2, "--size");
  fails(compress({"--ram", "lots"}), 2, "--ram");
  fails(compress({"--bits", "four"}), 2, "--bits");
  fails(compress({"--max-loss", "much"}), 2, "--max-loss");
  fails(compress({"--max-loss", "-1%"}), 2, "--max-loss");
  fails(compress({"--bits", "4", "--sed", "1"}), 2, "did you mean '--seed'?");
  fails(compress({"--bits", "4", "--threads", "many"}), 2, "--threads");
  fails({"quantize", "gptqq", good, "-o", out}, 2, "did you mean 'gptq'?");
  fails({"quantize", "rtn", good, "-o", out, "--bit", "3"}, 2, "did you mean '--bits'?");
  fails({"quantize", "rtn", good, "-o", out, "--bits", "99"}, 2, "2..8");
  fails({"prune", "rtn", good, "-o", out}, 2, "'rtn'");
  fails({"prune", "wanda", good, "-o", out, "--pattern", "4:2"}, 2, "4:2");
  fails({"prune", "wanda", good, "-o", out, "--sparsity", "1.5"}, 2, "sparsity");
  fails({"factorize", "eora", good, "-o", out}, 2, "--compressed is required");
  for (const auto& [allow, part] :
       std::vector<std::pair<std::string, std::string>>{{"gptqq", "did you mean 'gptq'?"},
                                                        {"gptq:bit=3", "did you mean 'bits'?"},
                                                        {"gptq:bits=4..2", "4..2"},
                                                        {"gptq:bits=x", "bits"},
                                                        {"gptq:bits=2..999999999", "values"},
                                                        {":bits=3", "method"},
                                                        {"generate", "generate"},
                                                        {"eora", "--compressed"},
                                                        {"gptq:bits=3,bits=4", "twice"}})
    fails(compress({"--bits", "4", "--allow", allow}), 2, part);
}

TEST_F(BadInputTest, Texts) {
  const auto compress = [&](const Words& more) {
    Words words = {"compress", good, "--bits", "4", "-o", out};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  spill(root / "empty.txt", " \n\n");
  spill(root / "short.txt", "a b");
  fails(compress({"--calib", root / "missing.txt"}), 2, "missing.txt");
  fails(compress({"--calib", root / "empty.txt"}), 2, "empty.txt' is empty");
  fails(compress({"--calib", root / "short.txt"}), 2, "are needed");
  fails(compress({"--eval", root / "missing.txt"}), 2, "missing.txt");
}

TEST_F(BadInputTest, Places) {
  const Words command = {"compress", good, "--bits", "4", "-o"};
  const auto to = [&](const std::string& path, const Words& more = {}) {
    Words words = command;
    words.push_back(path);
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  spill(out, "something precious");
  fails(to(out), 2, "exists already");
  fs::create_directory(out + ".work");  // also not when an empty or foreign folder of that name is there
  spill(out + ".work/notes.txt", "mine");
  fails(to(out), 2, "exists already");
  EXPECT_EQ(slurp(out), "something precious");
  fails(to(root / "no/such/folder/out.pith"), 2, "out.pith: cannot write here");
  fails(to(root / ""), 2, "is a folder");
  fails(to("/proc/out.pith"), 2, "/proc/out.pith: cannot write here");
  fails(to(good), 2, "exists already");
  fails(to(root / "new.pith", {"--report", root / "no/such/report.html"}), 2, "report.html: cannot write here");
  fails(to(root / "new.pith", {"--report", good}), 2, "exists already");
  fails(to(root / "new.pith", {"--work", good}), 2, "is in the way");
  fails(to(root / "new.pith", {"--work", root / "no/such/work"}), 2, "work: cannot create the work folder");
  const Ran cache = run(to(root / "new.pith", {"--cache", good}));  // found after the pre-flight has said its part
  EXPECT_EQ(cache.code, 2) << cache.err;
  EXPECT_NE(cache.err.find("name another folder with --cache"), std::string::npos) << cache.err;
  EXPECT_FALSE(fs::exists(root / "new.pith.work"));
}

TEST_F(BadInputTest, Plans) {
  const auto follow = [&](const std::string& text) {
    spill(root / "plan.json", text);
    return Words{"compress", good, "--plan", root / "plan.json", "-o", out};
  };
  const std::string tensor = R"({"name": "model.layers.0.mlp.up_proj.weight", "method": "rtn:bits=3"})";
  const auto plan = [](const std::string& more, const std::string& tensors) {
    return "{\"pith_plan\": 1, " + more + "\"tensors\": [" + tensors + "]}";
  };
  fails({"compress", good, "--plan", root / "missing.json", "-o", out}, 2, "missing.json");
  fails(follow(""), 3, "plan.json");
  fails(follow("{\n\"pith_plan\": 1,\n]"), 3, "line 3");
  fails(follow("{}"), 3, "pith_plan");
  fails(follow(R"({"pith_plan": 77, "tensors": []})"), 3, "77");
  fails(follow(plan("", R"({"name": "model.layers.0.mlp.up_proj.weight", "method": "rtn:bit=3"})")), 2,
        "did you mean 'bits'?");
  fails(follow(plan("", R"({"name": "model.layers.0.mlp.upproj.weight", "method": "rtn"})")), 2, "up_proj");
  fails(follow(plan("", tensor + "," + tensor)), 3, "twice");
  fails(follow(plan("\"input_hash\": \"0123\", ", tensor)), 2, "another model");
}

TEST_F(BadInputTest, TwoRunsOnOneWorkFolder) {
  fs::create_directory(out + ".work");
  const int lock = ::open((out + ".work/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  ASSERT_EQ(::flock(lock, LOCK_EX | LOCK_NB), 0);
  fails({"compress", good, "--bits", "4", "-o", out}, 2, "another run is working there");
  fails({"compress", good, "--bits", "4", "-o", out, "--restart"}, 2, "another run is working there");
  ::close(lock);
}

TEST_F(BadInputTest, SharesThatDoNotExist) {
  for (const char* units : {"3/2", "0/2", "1", "1/2/3", "a/b", "-1/2"})
    fails({"compress", good, "--bits", "4", "-o", out, "--units", units}, 2, "is not I/N");
}

TEST_F(BadInputTest, SensitivityWithNothingToChoose) {
  fails({"compress", good, "--bits", "4", "-o", out, "--sensitivity", "measured"}, 2, "needs --allow");
  fails({"compress", good, "--bits", "4", "-o", out, "--sensitivity", "guessed"}, 2, "--sensitivity");
}

TEST_F(BadInputTest, FullDisks) {
  const std::string disk = root / "disk";
  fs::create_directory(disk);
  if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=16k") != 0) GTEST_SKIP() << "a small tmpfs needs root";
  const auto compress = [&](const Words& more) {
    Words words = {"compress", good, "--bits", "4", "--eval-chunks", "0"};
    words.insert(words.end(), more.begin(), more.end());
    return run(words);
  };
  const std::string work = root / "work";
  const Ran output = compress({"-o", disk + "/out.pith", "--work", work, "--keep-work"});
  const bool empty = fs::is_empty(disk);
  const Ran units = compress({"-o", out, "--work", disk + "/work"});
  fs::remove_all(disk + "/work");
  const Ran cache = compress({"-o", out, "--work", root / "work2", "--cache", disk + "/cache"});
  ::umount(disk.c_str());
  for (const Ran& r : {output, units, cache}) {
    EXPECT_EQ(r.code, 2) << r.err;
    EXPECT_NE(r.err.find("No space left"), std::string::npos) << r.err;
    EXPECT_EQ(r.err.find("pith: error: "), r.err.rfind("pith: error: ")) << r.err;
  }
  EXPECT_TRUE(empty);
  EXPECT_FALSE(fs::exists(out));
}

}  // namespace
}  // namespace pith
