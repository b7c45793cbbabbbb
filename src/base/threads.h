// One pool of threads for a whole process. Work is split by index, so results do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace pith {

class ThreadPool {
 public:
  /// `threads` = 0 takes the number of usable cores. One thread means: run in the caller.
  explicit ThreadPool(unsigned threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  unsigned size() const;

  /// Calls body(i) for every i in [0, n), items handed out dynamically. Returns when all are done. Not re-entrant.
  void parallel_for(int64_t n, const std::function<void(int64_t)>& body);

  /// Calls body() in the caller and in each thread that comes before the caller has returned from it; nobody waits for
  /// the others. So body takes pieces of work from a counter until there are none left.
  void run(const std::function<void()>& body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The cores that this process may use.
unsigned usable_cores();

}  // namespace pith
