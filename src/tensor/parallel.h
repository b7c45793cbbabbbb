// Threads for tensor work whose bits do not depend on their number. libtorch's own threads change the order of sums in
// some products and in all factorisations; so work is cut into tasks whose number is fixed by the data, each task runs
// its tensor operations on one thread, and sums over tasks are taken in the order of the tasks.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>

#include "tensor/tensor.h"

namespace pith {

/// While it lives, every tensor operation of this process runs on one thread.
class OneThread {
 public:
  OneThread();
  ~OneThread();
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

/// Calls body(i) for all i in [0, n), handed out in ascending order to `threads` threads (0 = at::get_num_threads()),
/// tensor operations on one thread each. Under OneThread it is a plain loop; inside another such call it begins as one,
/// and threads for which that call has no tasks left join it, so that one large task does not end alone. Grad mode is
/// that of the caller. The exception of the smallest failing i is thrown after all threads have stopped.
void parallel_tasks(int64_t n, const std::function<void(int64_t)>& body, unsigned threads = 0);

/// Lets tasks do something in the order of their index: turn(key, i, action) runs action after turn(key, i - 1, …).
/// Every task must take every key it shares with others exactly once, in the same order of keys.
class Turns {
 public:
  /// Throws when another task has failed, so that nobody waits for it.
  void turn(const std::string& key, int64_t index, const std::function<void()>& action);
  /// Called by a task that fails (parallel_tasks's body catches and rethrows).
  void fail();

 private:
  std::mutex mutex_;
  std::condition_variable moved_;
  std::map<std::string, int64_t> next_;
  bool failed_ = false;
};

/// True where bf16 products are faster than fp32 ones (AVX512-BF16 or AMX); elsewhere they are very slow.
bool fast_bf16();

}  // namespace pith
