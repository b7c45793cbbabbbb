#include "base/progress.h"

#include <chrono>
#include <thread>

namespace pith {

bool wait_until(Progress& progress, std::string_view why, const std::function<bool()>& ready) {
  for (bool told = why.empty(); !ready(); told = true) {
    if (!told) progress.note(why);
    if (!progress.step({"wait", "", 0, 0})) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
  }
  return true;
}

}  // namespace pith
