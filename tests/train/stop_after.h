// Asks a training to stop after so many steps.
#pragma once

#include "base/progress.h"

namespace pith::test {

class StopAfter : public Progress {
 public:
  explicit StopAfter(uint64_t step) : step_(step) {}
  bool step(const ProgressEvent& event) override { return event.done < step_; }

 private:
  uint64_t step_;
};

}  // namespace pith::test
