// Progress as the library sees it: a sink that somebody else draws. Libraries never print.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace pith {

/// One step of a long job.
struct ProgressEvent {
  std::string_view stage;  ///< "calibrate", "quantize", "evaluate"
  std::string_view unit;   ///< what was just finished: a block, a tensor, a chunk
  uint64_t done = 0;       ///< units finished
  uint64_t total = 0;      ///< units in this stage
};

/// Receives events and warnings; returning false from `step` asks the job to stop cleanly (Ctrl-C).
class Progress {
 public:
  virtual ~Progress() = default;
  virtual bool step(const ProgressEvent&) { return true; }
  virtual void note(std::string_view /*message*/) {}
};

/// Asks `ready` three times a second until it says yes; false when the user stopped it first. `why` is told once, when
/// there is something to wait for and it is not empty.
bool wait_until(Progress& progress, std::string_view why, const std::function<bool()>& ready);

/// A sink that ignores everything.
inline Progress& quiet_progress() {
  static Progress quiet;
  return quiet;
}

}  // namespace pith
