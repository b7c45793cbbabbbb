#include "cli/terminal.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/command.h"

namespace pith {
namespace {

/// A terminal that writes into memory, with a clock of its own.
class Screen {
 public:
  explicit Screen(ProgressStyle style, bool tty) {
    Terminal::Device device;
    file_ = ::open_memstream(&text_, &size_);
    device.out = file_;
    device.tty = tty;
    device.width = 100;
    device.now = [this] { return now; };
    device.interrupted = [this] { return stop; };
    terminal = std::make_unique<Terminal>(style, device);
  }
  ~Screen() {
    terminal.reset();
    std::fclose(file_);
    std::free(text_);
  }
  std::string text() {
    std::fflush(file_);
    return std::string(text_, size_);
  }
  std::unique_ptr<Terminal> terminal;
  double now = 100;
  bool stop = false;

 private:
  FILE* file_ = nullptr;
  char* text_ = nullptr;
  size_t size_ = 0;
};

TEST(Terminal, LinesEveryTenSecondsWithoutATerminal) {
  Screen s(ProgressStyle::automatic, false);
  for (uint64_t i = 1; i <= 60; ++i) {
    s.now += 0.5;
    EXPECT_TRUE(s.terminal->step({"quantize", "layers.3", i, 60}));
  }
  EXPECT_EQ(s.text(),
            "quantize: 21/60  2.0/s  20 s left  layers.3\nquantize: 41/60  2.0/s  9.5 s left  layers.3\n"
            "quantize: 60/60  2.0/s  in 30 s\n");
}

TEST(Terminal, AWaitHasNoEndInSight) {
  Screen s(ProgressStyle::automatic, false);
  for (int i = 0; i < 25; ++i) {
    s.now += 0.5;
    EXPECT_TRUE(s.terminal->step({"wait", "", 0, 0}));
  }
  EXPECT_EQ(s.text(), "wait: ...\n");
}

TEST(Terminal, ResumedUnitsDoNotCountAsSpeed) {
  Screen s(ProgressStyle::json, false);
  s.now += 2;
  s.terminal->step({"quantize", "u", 151, 200});
  s.now += 2;
  s.terminal->step({"quantize", "u", 152, 200});
  std::istringstream lines(s.text());
  std::string first, second;
  std::getline(lines, first);
  std::getline(lines, second);
  const auto json = nlohmann::json::parse(second);
  EXPECT_EQ(json["stage"], "quantize");
  EXPECT_EQ(json["done"], 152);
  EXPECT_DOUBLE_EQ(json["seconds"], 4);
  EXPECT_DOUBLE_EQ(json["left"], 96);  // 48 units at half a unit a second
}

TEST(Terminal, ABarOnATerminal) {
  Screen s(ProgressStyle::automatic, true);
  for (uint64_t i = 1; i <= 4; ++i) {
    s.now += 1;
    s.terminal->step({"evaluate", std::string(300, 'x'), i, 4});
    s.now += 0.01;
    s.terminal->step({"evaluate", "not drawn, too soon", i, 4});
  }
  const std::string text = s.text();
  EXPECT_NE(text.find("50 %"), std::string::npos);
  EXPECT_NE(text.find("████████████░"), std::string::npos);
  EXPECT_EQ(text.find("2/4  2"), std::string::npos);
  for (size_t at = 0, end; (end = text.find("\x1b[K", at)) != std::string::npos; at = end + 3) {
    size_t columns = 0;
    for (const char c : text.substr(at, end - at)) columns += (c & 0xc0) != 0x80 && c != '\r' && c != '\n';
    EXPECT_LE(columns, 99u);
  }
}

TEST(Terminal, NotesWipeTheBarAndInterruptsStop) {
  Screen s(ProgressStyle::automatic, true);
  s.now += 1;
  s.terminal->step({"evaluate", "a", 1, 4});
  s.terminal->note("two texts are empty");
  EXPECT_NE(s.text().find("\r\x1b[Kpith: note: two texts are empty\n"), std::string::npos);
  s.stop = true;
  EXPECT_FALSE(s.terminal->step({"evaluate", "b", 2, 4}));
  Screen none(ProgressStyle::none, true);
  none.stop = true;
  EXPECT_FALSE(none.terminal->step({"evaluate", "b", 2, 4}));
  EXPECT_EQ(none.text(), "");
}

TEST(Terminal, Tables) {
  EXPECT_EQ(format_table({{"kind", "bits"}, {"é", "4.5"}, {"embedding", ""}}, {false, true}),
            "kind       bits\né           4.5\nembedding\n");
}

const Param kParams[] = {{"bits", ParamType::integer, "4", 2, 8, "", "bits of one code"},
                         {"act-order", ParamType::boolean, "false", 0, 0, "", "columns by falling diagonal"},
                         {"grid", ParamType::choice, "asym", 0, 0, "asym|sym", "kind of levels"}};
const Method kMethod = {"spqr", "quantize", "sparse outliers", "", kParams, {}, false, "pith quantize spqr m -o out",
                        ""};

std::optional<int> parse(const Arguments& arguments, std::map<std::string, std::string>& given, std::string& model) {
  const auto app = new_app("quantize spqr", "test", "");
  app->add_option("MODEL", model, "model")->required();
  add_method_options(*app, kMethod, given);
  return parse_arguments(*app, arguments);
}

TEST(Command, MethodOptionsComeFromTheTable) {
  std::map<std::string, std::string> given;
  std::string model;
  EXPECT_EQ(parse({"--act-order", "m.gguf", "--bits", "3"}, given, model), std::nullopt);
  EXPECT_EQ(model, "m.gguf");
  auto options = method_options(kMethod, given);
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(options->print(), "bits=3,act-order=true");

  given = {{"bits", "9"}};
  options = method_options(kMethod, given);
  ASSERT_FALSE(options.ok());
  EXPECT_EQ(options.error().message, "spqr: option 'bits': expected integer 2..8, found '9'");
}

TEST(Command, WrongArgumentsAreExitCodeTwo) {
  std::map<std::string, std::string> given;
  std::string model;
  for (const Arguments& bad :
       std::vector<Arguments>{{}, {"m", "--bit", "3"}, {"m", "n"}, {"m", "--bits"}, {"m", "-x"}}) {
    testing::internal::CaptureStderr();
    EXPECT_EQ(parse(bad, given, model), std::optional<int>(2));
    const std::string text = testing::internal::GetCapturedStderr();
    EXPECT_EQ(text.find("pith: error: pith quantize spqr: "), 0u) << text;
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
    if (bad.size() > 1 && bad[1] == "--bit") {
      EXPECT_NE(text.find("did you mean '--bits'?"), std::string::npos) << text;
    }
  }
}

}  // namespace
}  // namespace pith
