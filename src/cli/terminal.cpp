#include "cli/terminal.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <nlohmann/json.hpp>

#include "plan/size.h"

namespace pith {

namespace {

std::atomic<bool> stop_requested{false};

void on_signal(int) {
  stop_requested.store(true);
  // Async-signal-safe words; the bar is wiped by whoever notices the flag.
  static constexpr char text[] = "\npith: stopping at the end of this unit (once more to stop at once)\n";
  [[maybe_unused]] const ssize_t n = ::write(STDERR_FILENO, text, sizeof text - 1);
}

double monotonic_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Columns that UTF-8 text takes, one a code point: enough for names and our own bar.
size_t columns(std::string_view text) {
  size_t n = 0;
  for (const char c : text) n += (static_cast<unsigned char>(c) & 0xc0u) != 0x80u;
  return n;
}

std::string cut(std::string_view text, size_t width) {
  if (columns(text) <= width) return std::string(text);
  if (width == 0) return "";
  std::string out;
  size_t n = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xc0u) != 0x80u && ++n >= width) break;
    out += text[i];
  }
  return out + "…";
}

std::string bar(double share, int width) {
  static constexpr const char* eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const int filled = static_cast<int>(std::clamp(share, 0.0, 1.0) * width * 8);
  std::string out;
  for (int i = 0; i < filled / 8; ++i) out += "█";
  if (filled % 8 != 0) out += eighths[filled % 8];
  for (int i = (filled + 7) / 8; i < width; ++i) out += "░";
  return out;
}

std::string print_rate(double per_second) {
  if (per_second >= 100) return fmt::format("{:.0f}/s", per_second);
  if (per_second >= 1) return fmt::format("{:.1f}/s", per_second);
  return fmt::format("{} each", print_duration(1 / per_second));
}

}  // namespace

Result<ProgressStyle> parse_progress_style(std::string_view text) {
  if (text == "auto") return ProgressStyle::automatic;
  if (text == "json") return ProgressStyle::json;
  if (text == "none") return ProgressStyle::none;
  return user_error("--progress: expected auto, json or none, found '" + std::string(text) + "'");
}

struct Terminal::State {
  ProgressStyle style;
  Device device;
  std::mutex mutex;
  std::string stage;
  double stage_began = 0;   // when the unit that the first event reported was started
  uint64_t stage_base = 0;  // units that were already there (a resumed run)
  uint64_t stage_done = 0;
  double last_shown = -1e9;
  double last_event = 0;
  bool bar_visible = false;

  void wipe() {
    if (!bar_visible) return;
    std::fputs("\r\x1b[K", device.out);
    std::fflush(device.out);
    bar_visible = false;
  }
};

Terminal::Terminal(ProgressStyle style)
    : Terminal(style, [] {
        Device device;
        device.tty = ::isatty(STDERR_FILENO) == 1;
        winsize size{};
        if (device.tty && ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20)
          device.width = size.ws_col;
        return device;
      }()) {}

Terminal::Terminal(ProgressStyle style, Device device) : state_(std::make_unique<State>()) {
  state_->style = style;
  if (!device.now) device.now = monotonic_seconds;
  if (!device.interrupted) device.interrupted = pith::interrupted;
  state_->device = std::move(device);
  state_->last_event = state_->device.now();
}

Terminal::~Terminal() { clear(); }

void Terminal::clear() {
  const std::lock_guard lock(state_->mutex);
  state_->wipe();
}

bool Terminal::step(const ProgressEvent& event) {
  State& s = *state_;
  const std::lock_guard lock(s.mutex);
  const double now = s.device.now();
  if (s.stage != event.stage || event.done < s.stage_done) {  // another stage, or the same one for another text
    s.stage = event.stage;
    s.stage_began = s.last_event;
    s.stage_base = event.done > 0 ? event.done - 1 : 0;
    s.last_shown = s.device.tty ? -1e9 : now;  // lines: the first one after 10 s
  }
  s.last_event = now;
  s.stage_done = event.done;
  const double seconds = now - s.stage_began;
  const double fresh = static_cast<double>(event.done - std::min(event.done, s.stage_base));
  const double rate = seconds > 0 ? fresh / seconds : 0;
  const double left = rate > 0 && event.total > event.done ? static_cast<double>(event.total - event.done) / rate : 0;
  const bool last = event.total > 0 && event.done >= event.total;

  if (s.style == ProgressStyle::json) {
    nlohmann::json line = {{"stage", event.stage}, {"unit", event.unit}, {"done", event.done},
                           {"total", event.total}, {"seconds", seconds}, {"left", left}};
    std::fprintf(s.device.out, "%s\n", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    std::fflush(s.device.out);
  } else if (s.style == ProgressStyle::automatic) {
    const double share = event.total > 0 ? static_cast<double>(event.done) / static_cast<double>(event.total) : 0;
    // Nobody knows how long a wait takes.
    std::string numbers = event.total > 0 ? fmt::format("{}/{}", event.done, event.total) : "...";
    if (rate > 0) numbers += "  " + print_rate(rate);
    numbers += last ? "  in " + print_duration(seconds) : rate > 0 ? "  " + print_duration(left) + " left" : "";
    const bool stays = last && seconds >= 1;  // a stage that took no time is not worth a line
    if (s.device.tty) {
      if (now - s.last_shown >= 0.1 || last) {
        std::string line = fmt::format("{:<10} {} {:3.0f} %  {}  ", event.stage, bar(share, 24), share * 100, numbers);
        const size_t width = static_cast<size_t>(std::max(20, s.device.width - 1));
        const size_t used = columns(line);
        line = used < width ? line + cut(event.unit, width - used) : cut(line, width);
        std::fprintf(s.device.out, "\r%s\x1b[K", line.c_str());
        s.bar_visible = true;
        s.last_shown = now;
        if (stays) {
          std::fputc('\n', s.device.out);
          s.bar_visible = false;
        }
        std::fflush(s.device.out);
      }
    } else if (now - s.last_shown >= 10 || stays) {
      std::fprintf(s.device.out, "%s: %s%s%s\n", std::string(event.stage).c_str(), numbers.c_str(),
                   event.unit.empty() || last ? "" : "  ", last ? "" : std::string(event.unit).c_str());
      std::fflush(s.device.out);
      s.last_shown = now;
    }
  }
  return !s.device.interrupted();
}

void Terminal::note(std::string_view message) {
  State& s = *state_;
  const std::lock_guard lock(s.mutex);
  if (s.style == ProgressStyle::json) {
    const nlohmann::json line = {{"note", message}};
    std::fprintf(s.device.out, "%s\n", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    s.wipe();
    std::fprintf(s.device.out, "pith: note: %s\n", std::string(message).c_str());
  }
  std::fflush(s.device.out);
}

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESETHAND | SA_RESTART;  // the second signal meets the default action: the process ends
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool interrupted() { return stop_requested.load(); }

int fail(const Error& error) {
  if (interrupted() && error.kind == ErrorKind::user) {  // "stopped; …", after Ctrl-C
    std::fprintf(stderr, "pith: %s\n", error.message.c_str());
    return kInterrupted;
  }
  if (error.kind == ErrorKind::bug)
    std::fprintf(stderr, "pith: internal error: %s\nThis is a bug in Pith; please report it with the command line.\n",
                 error.message.c_str());
  else
    std::fprintf(stderr, "pith: error: %s\n", error.message.c_str());
  return static_cast<int>(error.kind);
}

Status print_out(std::string_view text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  if (!written) return user_error(std::string("standard output: cannot write: ") + std::strerror(errno));
  return {};
}

std::string format_table(const std::vector<std::vector<std::string>>& rows, const std::vector<bool>& right) {
  std::vector<size_t> width;
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) {
      if (i >= width.size()) width.push_back(0);
      width[i] = std::max(width[i], columns(row[i]));
    }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string space(width[i] - columns(row[i]), ' ');
      if (i > 0) line += "  ";
      line += i < right.size() && right[i] ? space + row[i] : row[i] + space;
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    out += line + '\n';
  }
  return out;
}

}  // namespace pith
