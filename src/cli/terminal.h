// What the user sees: progress, notes, errors. This and the commands in src/cli are the only code that prints.
#pragma once

#include <pith/result.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/progress.h"

namespace pith {

enum class ProgressStyle {
  automatic,  ///< a bar on a terminal, else one line each 10 s
  json,       ///< one JSON object a line, for programs
  none,
};
Result<ProgressStyle> parse_progress_style(std::string_view text);

/// Exit code of a run that Ctrl-C ended: 128 + SIGINT, as shells expect.
constexpr int kInterrupted = 130;

/// Draws progress on stderr. May be called from several threads. A bar left on the screen is wiped by the destructor.
class Terminal : public Progress {
 public:
  /// Everything that tests want to replace.
  struct Device {
    FILE* out = stderr;
    bool tty = false;
    int width = 80;
    std::function<double()> now;  ///< seconds, monotonic
    std::function<bool()> interrupted;
  };

  explicit Terminal(ProgressStyle style);
  Terminal(ProgressStyle style, Device device);
  ~Terminal() override;

  /// False after Ctrl-C: the job stops at the end of this unit, and what is finished stays in its work folder.
  bool step(const ProgressEvent& event) override;
  /// A line that stays ("pith: note: …").
  void note(std::string_view message) override;
  /// Wipes the bar; call before printing to stdout.
  void clear();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// From now on the first SIGINT or SIGTERM asks the job to stop (interrupted() becomes true), the second one ends the
/// process at once.
void catch_interrupts();
bool interrupted();

/// Prints "pith: error: …" (or "pith: internal error: …" with a request to report it) and returns the exit code: 2 the
/// user's mistake, 3 a broken file, 70 a bug of ours; after Ctrl-C kInterrupted.
int fail(const Error& error);
/// Prints text to stdout; a closed pipe or a full disk becomes an error.
Status print_out(std::string_view text);

/// A table for people: columns as wide as their content, numbers to the right, `|` free, one line a row.
/// Example: {{"tensor","bits"},{"embed","4.5"}} with right = {false,true}.
std::string format_table(const std::vector<std::vector<std::string>>& rows, const std::vector<bool>& right);

}  // namespace pith
