#include "tensor/parallel.h"

#include <atomic>
#include <exception>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

namespace pith {
namespace {

thread_local bool inside_task = false;
/// Threads of a call that has no more tasks for them; calls inside its last tasks take them.
std::atomic<int> spare{0};

bool take_spare() {
  int n = spare.load();
  while (n > 0 && !spare.compare_exchange_weak(n, n - 1)) continue;
  return n > 0;
}

}  // namespace

OneThread::OneThread() : before_(at::get_num_threads()) {
  if (before_ != 1) at::set_num_threads(1);
}

OneThread::~OneThread() {
  if (before_ != 1) at::set_num_threads(before_);
}

void parallel_tasks(int64_t n, const std::function<void(int64_t)>& body, unsigned threads) {
  if (n <= 0) return;
  const bool nested = inside_task;
  const int64_t limit = threads == 0 ? std::numeric_limits<int64_t>::max() : threads;
  const int64_t all = nested ? 1 : threads == 0 ? at::get_num_threads() : threads;
  const OneThread one;
  if (limit == 1 || (nested && n == 1) || (!nested && all == 1)) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  const bool grad = at::GradMode::is_enabled();
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  int64_t first_failed = n;
  std::exception_ptr error;
  std::vector<std::thread> helpers;
  const std::function<void(bool)> work = [&](bool caller) {
    const bool outer = inside_task;
    inside_task = true;
    const at::AutoGradMode mode(grad);
    at::init_num_threads();  // a new thread takes over the setting of OneThread
    while (!failed) {
      const int64_t i = next.fetch_add(1);
      if (i >= n) break;
      if (nested && caller)
        while (static_cast<int64_t>(helpers.size()) + 1 < std::min(limit, n - i) && take_spare())
          helpers.emplace_back([&work] { work(false); });
      try {
        body(i);
      } catch (...) {
        failed = true;
        const std::lock_guard lock(mutex);
        if (i < first_failed) {
          first_failed = i;
          error = std::current_exception();
        }
      }
    }
    inside_task = outer;
    if (!nested || !caller) spare.fetch_add(1);
  };
  const int64_t begin = std::min(all, n);
  spare.fetch_add(static_cast<int>(all - begin));
  for (int64_t t = 1; t < begin; ++t) helpers.emplace_back([&work] { work(false); });
  work(true);
  for (auto& helper : helpers) helper.join();
  if (!nested) spare.fetch_sub(static_cast<int>(all));
  if (error) std::rethrow_exception(error);
}

void Turns::turn(const std::string& key, int64_t index, const std::function<void()>& action) {
  std::unique_lock lock(mutex_);
  int64_t& next = next_[key];  // references into a map stay valid
  moved_.wait(lock, [&] { return failed_ || next == index; });
  if (failed_) throw Failure(bug_error("another task failed"));
  lock.unlock();
  action();
  lock.lock();
  ++next;
  moved_.notify_all();
}

void Turns::fail() {
  const std::lock_guard lock(mutex_);
  failed_ = true;
  moved_.notify_all();
}

bool fast_bf16() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

}  // namespace pith
