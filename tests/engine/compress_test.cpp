// The main job's ways to a .gguf: budgets, tensors that stay as they are, another method for embedding and head. And
// runs that share their units, and tuning, as the last stage and alone.
#include "engine/compress.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <mutex>
#include <thread>

#include "base/file.h"
#include "formats/ggml_blocks.h"
#include "represent/blocks.h"
#include "runtime/model_file.h"
#include "tensor/tensor.h"

namespace pith {
namespace {

class CompressTest : public ::testing::Test {
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

TEST_F(CompressTest, EmbeddingOfAGgufMayGetAnotherType) {
  CompressRequest r = request(lm_s_, "mixed.gguf");
  r.allow = {{"gguf", "type=Q4_0"}};
  r.ends = {"gguf", "type=Q8_0"};
  compress(r);
  const Model model = must(open_model(r.output));
  EXPECT_EQ(type_of(model, "model.embed_tokens.weight"), GgmlType::q8_0);
  EXPECT_EQ(type_of(model, "model.layers.0.self_attn.q_proj.weight"), GgmlType::q4_0);
  EXPECT_EQ(type_of(model, "model.layers.4.mlp.down_proj.weight"), GgmlType::q4_0);
}

TEST_F(CompressTest, GgufTensorsStayAsTheyAreWhereTheBudgetAllows) {
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

TEST_F(CompressTest, PreflightOfAGgufBudgetForetellsSizeAndLoss) {
  CompressRequest r = request(lm_s_, "never.gguf");
  double last = 1e300;
  for (const double bits : {3.5, 6.0}) {
    r.budget = {Budget::Kind::bits, bits};
    const Preflight p = preflight(r);
    ASSERT_TRUE(p.predicted_loss.has_value());
    EXPECT_GT(*p.predicted_loss, 0);
    EXPECT_LT(*p.predicted_loss, last);
    last = *p.predicted_loss;
    EXPECT_GT(p.seconds, 0);
    EXPECT_LE(p.expected_bytes, p.target_bytes);
    EXPECT_GT(static_cast<double>(p.expected_bytes), 0.8 * static_cast<double>(p.target_bytes));
  }
  EXPECT_FALSE(std::filesystem::exists(r.output));
}

// lm-s at 3.2 bits out of two methods, weighed both ways: the same bytes within a percent, other choices, a smaller
// distance between what is foretold and what one matrix alone really costs.
TEST_F(CompressTest, MeasuredSensitivityScalesPredictedLosses) {
  CompressRequest r = request(lm_s_, "predicted.pith");
  r.budget = {Budget::Kind::bits, 4.0};
  r.allow = {{"rtn", "bits=3,group=64"}, {"rtn", "bits=4,group=64"}, {"rtn", "bits=6,group=64"}};
  const Report predicted = compress(r);
  r.output = path("measured.pith");
  r.measured_sensitivity = true;
  const Report measured = compress(r);
  const auto target = 4.0 / 8 * static_cast<double>(must(open_model(lm_s_)).parameters());
  for (const Report* report : {&predicted, &measured}) {
    EXPECT_LE(static_cast<double>(report->after.file_bytes), target);
    EXPECT_GE(static_cast<double>(report->after.file_bytes), 0.98 * target);
  }
  ASSERT_TRUE(predicted.predicted_loss && measured.predicted_loss);
  EXPECT_NE(*predicted.predicted_loss, *measured.predicted_loss);
  // Second-order prediction is right within a small factor, so scaling by measurements moves it little.
  EXPECT_GT(*measured.predicted_loss, 0.3 * *predicted.predicted_loss);
  EXPECT_LT(*measured.predicted_loss, 3 * *predicted.predicted_loss);
}

// The first unit of the one waits for the first of the other, so that both have something to do.
struct Pace {
  std::mutex mutex;
  std::condition_variable changed;
  bool helped = false;
};

struct FirstShare : Progress {
  explicit FirstShare(Pace& p) : pace(p) {}
  bool step(const ProgressEvent& event) override {
    std::unique_lock lock(pace.mutex);
    return event.stage != "quantize" ||
           pace.changed.wait_for(lock, std::chrono::seconds(120), [&] { return pace.helped; });
  }
  Pace& pace;
};

struct OtherShare : Progress {
  explicit OtherShare(Pace& p) : pace(p) {}
  bool step(const ProgressEvent& event) override {
    const std::lock_guard lock(pace.mutex);
    if (event.stage == "help") pace.helped = true;
    pace.changed.notify_all();
    return true;
  }
  Pace& pace;
};

TEST_F(CompressTest, HelpersFitUnitsAndChangeNothing) {
  CompressRequest alone = request(lm_s_, "alone.pith");
  alone.budget = {Budget::Kind::bits, 3.0};
  compress(alone);

  CompressRequest first = alone, second = alone;
  first.output = second.output = path("shared.pith");
  first.shares = second.shares = 2;
  second.share = 2;
  Pace pace;
  int64_t fitted = 0;
  std::exception_ptr error;
  std::thread helper([&] {
    OtherShare progress(pace);
    try {
      fitted = help_compress(second, progress);
    } catch (...) {
      error = std::current_exception();
    }
  });
  FirstShare progress(pace);
  compress(first, progress);
  helper.join();
  if (error) std::rethrow_exception(error);
  EXPECT_GT(fitted, 0);
  const auto a = must(MappedFile::open(alone.output)), b = must(MappedFile::open(first.output));
  EXPECT_TRUE(std::ranges::equal(a->bytes(), b->bytes()));
  EXPECT_FALSE(std::filesystem::exists(first.output + ".work"));
}

// Tuning is a stage of the main job, and a job of its own for a file that is there already.
class CompressAndTune : public CompressTest {};

TEST_F(CompressAndTune, KeepsTheBudgetAndSaysWhatItGained) {
  CompressRequest r = request(lm_s_, "tuned.pith");
  r.budget = {Budget::Kind::size, 700e3};
  r.tune_steps = 3, r.tune_batch = 8;
  const Report report = compress(r);
  EXPECT_LE(std::filesystem::file_size(r.output), 700'000u);
  ASSERT_EQ(report.notes.size(), 1u);
  double before = 0, after = 0;
  long tokens = 0;
  ASSERT_EQ(std::sscanf(report.notes[0].c_str(),
                        "tuned by distillation: KL on %ld held-out calibration tokens %lf before, %lf after", &tokens,
                        &before, &after),
            3)
      << report.notes[0];
  EXPECT_GT(before, 0.01);
  EXPECT_LT(after, before);
}

TEST_F(CompressAndTune, TunesAFileThatIsThereAlreadyInItsOwnForm) {
  for (const MethodSpec& spec : {MethodSpec{"ec", "step=0.001"}, MethodSpec{"gguf", "type=Q2_K"},
                                 MethodSpec{"aqlm", "books=2,bits=4,rounds=0,clusters=3"},
                                 MethodSpec{"lq-lora", "bits=2,rank=2,iterations=1,fisher=false"}}) {
    SCOPED_TRACE(spec.method);
    const std::string ending = "-" + spec.method + (spec.method == "gguf" ? ".gguf" : ".pith");
    CompressRequest first = request(lm_s_, "plain" + ending);
    first.allow = {spec};
    compress(first);
    CompressRequest r = request(lm_s_, "tuned" + ending);
    r.base = first.output;
    r.tune_codes = spec.method != "lq-lora";
    r.tune_steps = 2, r.tune_batch = 4;
    const Report report = compress(r);
    EXPECT_EQ(report.notes.size(), 1u);
    EXPECT_LE(std::filesystem::file_size(r.output), std::filesystem::file_size(first.output));
    const Model before = must(open_model(first.output)), after = must(open_model(r.output));
    int moved = 0;
    for (const ModelTensor& t : before.tensors) {
      EXPECT_EQ(after.find(t.name)->node->kind(), t.node->kind()) << t.name;
      moved += decode_all(*after.find(t.name)->node) != decode_all(*t.node) ? 1 : 0;
      if (spec.method == "lq-lora" && t.node->kind() == "sum") {
        // Codes are kept: the grid is as it was, the low-rank part has moved.
        EXPECT_EQ(decode_all(*after.find(t.name)->node->children()[0]), decode_all(*t.node->children()[0]));
      }
    }
    EXPECT_GT(moved, 30);
  }
}

TEST_F(CompressAndTune, WrongQuestionsFailBeforeTheWork) {
  const auto refused = [](const CompressRequest& r, const std::string& part) {
    try {
      compress(r);
      ADD_FAILURE() << "not refused: " << part;
    } catch (const Failure& failure) {
      EXPECT_NE(failure.error().message.find(part), std::string::npos) << failure.error().message;
    }
  };
  CompressRequest r = request(lm_s_, "out.pith");
  r.budget = {Budget::Kind::size, 700e3};
  r.tune_steps = 1;
  r.device = "abacus";
  refused(r, "'abacus'");
  r.device = "cpu";
  r.calibration = path("short.txt");
  must(write_file(r.calibration, must(read_text(request("", "").calibration, 1 << 20)).substr(0, 500), true));
  refused(r, "two sequences");
  EXPECT_FALSE(std::filesystem::exists(r.output));
}

}  // namespace
}  // namespace pith
