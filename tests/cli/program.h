// The real program as a child process: what it says, its exit code, which files came and went.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "represent/tiny_model.h"

namespace pith::test {

namespace fs = std::filesystem;

struct Ran {
  int code = -1;
  std::string out, err;
};

inline std::string slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline void spill(const std::string& path, std::string_view content) {
  std::ofstream(path, std::ios::binary) << content;
}

inline std::string quoted(const std::string& word) {
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

class ProgramTest : public testing::Test {
 protected:
  Ran run(const std::vector<std::string>& arguments, const std::string& environment = "") {
    std::string command =
        environment + " XDG_CACHE_HOME=" + quoted(logs / "cache") + " " + quoted(PITH_BINARY_DIR "/pith");
    for (const std::string& a : arguments) command += " " + quoted(a);
    const int status =
        std::system((command + " >" + quoted(logs / "out") + " 2>" + quoted(logs / "err") + " </dev/null").c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, slurp(logs / "out"), slurp(logs / "err")};
  }

  std::set<std::string> listing() const {
    std::set<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(root / "."))
      names.insert(entry.path().string() + (entry.is_regular_file() ? " " + std::to_string(entry.file_size()) : ""));
    return names;
  }

  /// One clear line on stderr, nothing on stdout, the right exit code, and no file came, went or changed its size.
  void fails(const std::vector<std::string>& arguments, int code, const std::string& part) {
    const auto before = listing();
    const Ran r = run(arguments);
    std::string line;
    for (const auto& a : arguments) line += a + " ";
    EXPECT_EQ(r.code, code) << line << "\n" << r.err;
    EXPECT_EQ(r.out, "") << line;
    EXPECT_EQ(r.err.find("pith: error: "), 0u) << line << "\n" << r.err;
    EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 1) << line << "\n" << r.err;
    EXPECT_NE(r.err.find(part), std::string::npos) << line << "\n" << r.err;
    EXPECT_EQ(listing(), before) << line;
  }

  TempFolder root, logs;
};

}  // namespace pith::test
