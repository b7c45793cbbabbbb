#include "measure/report.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>

#include "base/file.h"

namespace pith {
namespace {

namespace fs = std::filesystem;

/// A report as `pith compress` would write it, of a model with the shapes of SmolLM2-135M. The numbers are made up.
Report sample_report() {
  Report r;
  r.title = "SmolLM2-135M-Instruct in 60 MB";
  r.budget = "60MB of file";
  r.command = "pith compress SmolLM2-135M-Instruct.Q4_1.gguf --size 60MB -o smollm2-60mb.pith";
  r.version = "0.1.0";
  r.machine = "2 cores, AVX-512";
  r.before = {"SmolLM2-135M-Instruct.Q4_1.gguf", 98'300'000, 104'000'000, 5.85, 61.3};
  r.after = {"smollm2-60mb.pith", 59'940'000, 71'500'000, 3.56, 74.9};
  r.texts = {{"encyclopedia", 65'536, 17.93, 19.51, 0.0871, 0.0011, 0.862},
             {"fiction", 65'536, 28.41, 31.02, 0.0912, 0.0013, 0.851},
             {"source code", 65'536, 4.87, 5.42, 0.0764, 0.0019, 0.884}};
  r.stages = {{"calibrate", 71.2}, {"plan", 38.5}, {"quantize", 102.7}, {"evaluate", 61.0}};
  r.seconds = 273.4;
  r.peak_memory = 912'000'000;
  r.loss_unit = "nats a token";
  std::mt19937 rng(1);
  std::normal_distribution<double> normal;
  const auto add = [&](std::string name, uint64_t weights, double bits, double loss) {
    ReportTensor t;
    t.name = std::move(name);
    t.weights = weights;
    t.bytes_before = weights * 5 / 8;
    t.bytes = static_cast<uint64_t>(static_cast<double>(weights) * bits / 8);
    t.method = "ec:step=" + std::to_string(std::exp2(-bits)).substr(0, 6);
    t.tree = "grid, entropy-coded " + std::to_string(bits).substr(0, 4) + " bit";
    t.predicted_loss = loss;
    t.measured_loss = loss * std::exp(0.22 * normal(rng));
    r.tensors.push_back(std::move(t));
  };
  add("model.embed_tokens.weight", 28'311'552, 3.9, 0.011);
  const std::tuple<const char*, uint64_t, double> kinds[] = {
      {"self_attn.q_proj", 331'776, 3.0}, {"self_attn.k_proj", 110'592, 3.4}, {"self_attn.v_proj", 110'592, 4.1},
      {"self_attn.o_proj", 331'776, 3.5}, {"mlp.gate_proj", 884'736, 3.1},    {"mlp.up_proj", 884'736, 3.3},
      {"mlp.down_proj", 884'736, 3.6}};
  for (int layer = 0; layer < 30; ++layer)
    for (const auto& [name, weights, bits] : kinds) {
      const double edge = layer < 2 || layer > 27 ? 0.6 : 0;
      add("model.layers." + std::to_string(layer) + "." + name + ".weight", weights,
          bits + edge + 0.18 * normal(rng) - 0.01 * layer,
          6e-4 * std::exp(0.9 * normal(rng)) * std::sqrt(static_cast<double>(weights) / 884'736));
    }
  add("model.norm.weight", 576, 32, 1e-9);
  r.tensors.back().predicted_loss.reset(), r.tensors.back().measured_loss.reset();
  double predicted = 0, measured = 0;
  for (const ReportTensor& t : r.tensors)
    predicted += t.predicted_loss.value_or(0), measured += t.measured_loss.value_or(0);
  r.predicted_loss = predicted, r.measured_loss = measured, r.lower_bound = predicted * 0.99998;
  uint64_t bytes = 0;
  for (const ReportTensor& t : r.tensors) bytes += t.bytes;
  for (int i = -12; i <= 20; ++i) {
    const double bits = 8.0 * static_cast<double>(bytes) / 134.5e6 + i * 0.12;
    r.curve.push_back({static_cast<uint64_t>(bits * 134.5e6 / 8), predicted * std::exp2(-1.6 * i * 0.12)});
  }
  r.samples = {{"What is the capital of France, and why is it famous?",
                "The capital of France is Paris. It is famous for the Eiffel Tower, the Louvre with the Mona Lisa, and "
                "its cafés along the Seine.",
                "The capital of France is Paris. It is known for the Eiffel Tower, its museums such as the Louvre, and "
                "its food and fashion."}};
  r.notes = {"The original is already on a 4-bit grid (Q4_1); a float original would gain more."};
  return r;
}

TEST(Report, JsonIsTheInverse) {
  for (const Report& r : {sample_report(), Report{}}) {
    const std::string text = report_to_json(r);
    const auto back = report_from_json(text, {});
    ASSERT_TRUE(back.ok()) << back.error().message;
    EXPECT_EQ(report_to_json(*back), text);
    EXPECT_EQ(report_to_html(*back), report_to_html(r));
  }
  const auto back = report_from_json(report_to_json(sample_report()), {});
  EXPECT_EQ(back->tensors.size(), 212u);
  EXPECT_EQ(*back->after.loaded_bytes, 71'500'000u);
  EXPECT_EQ(back->texts[2].name, "source code");
  EXPECT_EQ(*back->texts[2].top1, 0.884);
  EXPECT_FALSE(back->tensors.back().predicted_loss.has_value());
}

TEST(Report, BrokenJsonIsRefused) {
  const std::string good = report_to_json(sample_report());
  for (size_t n = 0; n + 2 < good.size(); n += 1 + good.size() / 64)
    EXPECT_FALSE(report_from_json(good.substr(0, n), {}).ok());
  for (const char* bad : {"", "[]", "{}", "{\"pith_report\": 2}", "{\"pith_report\": 1}"})
    EXPECT_FALSE(report_from_json(bad, {}).ok()) << bad;
  std::string typed = good;
  typed.replace(typed.find("\"seconds\": 71.2"), 15, "\"seconds\": true");
  const auto error = report_from_json(typed, {});
  ASSERT_FALSE(error.ok());
  EXPECT_NE(error.error().message.find("stages[0].seconds"), std::string::npos) << error.error().message;
  EXPECT_FALSE(report_from_json(std::string(5'000'000, '['), {}).ok());
}

TEST(Report, NamesOfTensors) {
  EXPECT_EQ(tensor_kind("model.layers.3.self_attn.q_proj.weight"), "attention q");
  EXPECT_EQ(tensor_kind("model.layers.3.self_attn.q_norm.weight"), "norm");
  EXPECT_EQ(tensor_kind("model.layers.3.self_attn.q_proj.bias"), "bias");
  EXPECT_EQ(tensor_kind("model.layers.3.mlp.down_proj.weight"), "mlp down");
  EXPECT_EQ(tensor_kind("model.layers.3.block_sparse_moe.experts.2.w1.weight"), "mlp gate");
  EXPECT_EQ(tensor_kind("model.layers.3.block_sparse_moe.gate.weight"), "router");
  EXPECT_EQ(tensor_kind("lm_head.weight"), "head");
  EXPECT_EQ(tensor_kind("something"), "other");
  EXPECT_EQ(tensor_layer("model.layers.13.mlp.up_proj.weight"), 13);
  EXPECT_EQ(tensor_layer("model.norm.weight"), -1);
  EXPECT_EQ(tensor_layer("model.layers.x"), -1);
  EXPECT_EQ(tensor_layer("model.layers.99999999999"), -1);
}

TEST(Report, TextFromModelsCannotBecomeMarkup) {
  Report r = sample_report();
  const std::string evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\xff";
  r.title = r.command = r.notes[0] = r.samples[0].after = r.samples[0].prompt = evil;
  r.tensors[0].name = r.tensors[0].method = r.tensors[0].tree = r.texts[0].name = r.before.name = evil;
  const std::string html = report_to_html(r);
  EXPECT_EQ(html.find("<script>alert"), std::string::npos);
  EXPECT_EQ(html.find("<img"), std::string::npos);
}

TEST(Report, NothingMeasuredIsNothingShown) {
  Report r;
  r.title = "empty";
  const std::string html = report_to_html(r);
  for (const char* word : {"Perplexity", "KL", "Memory", "nan", "inf", "Time to make"})
    EXPECT_EQ(html.substr(0, html.find("id=\"data\"")).find(word, html.find("<main>")), std::string::npos) << word;
}

TEST(Report, StandsAlone) {
  const std::string html = report_to_html(sample_report());
  // No address that a browser would load.
  for (const char* word : {" src=", "href=", "@import", "url("})
    EXPECT_EQ(html.substr(0, html.find("id=\"data\"")).find(word), std::string::npos) << word;
}

/// Runs a program, returns its stdout; nullopt when it does not exist or takes longer than `seconds`.
std::optional<std::string> run(const std::string& command, int seconds) {
  FILE* pipe = ::popen(("timeout " + std::to_string(seconds) + " " + command + " 2>/dev/null").c_str(), "r");
  if (pipe == nullptr) return std::nullopt;
  std::string out;
  char buffer[65536];
  for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, n);
  return ::pclose(pipe) == 0 ? std::optional(out) : std::nullopt;
}

TEST(Report, ABrowserDrawsItWithoutErrors) {
  if (!run("chromium --version", 20)) GTEST_SKIP() << "chromium is not installed";
  const fs::path folder = fs::path(PITH_BINARY_DIR) / "report-test";
  fs::remove_all(folder);
  fs::create_directories(folder);
  const std::string page = (folder / "report.html").string();
  ASSERT_TRUE(write_file(page, report_to_html(sample_report()), true).ok());
  ASSERT_TRUE(write_file((folder / "report.json").string(), report_to_json(sample_report()), true).ok());
  const auto dom = run("chromium --headless=new --no-sandbox --disable-gpu --no-first-run --user-data-dir=" +
                           (folder / "profile").string() +
                           " --window-size=1240,900 --virtual-time-budget=4000 --dump-dom file://" + page,
                       120);
  fs::remove_all(folder / "profile");
  ASSERT_TRUE(dom.has_value()) << "chromium failed";
  EXPECT_NE(dom->find("data-errors=\"0\""), std::string::npos);
  EXPECT_NE(dom->find("data-charts=\"4/4\""), std::string::npos) << dom->substr(0, 300);
}

}  // namespace
}  // namespace pith
