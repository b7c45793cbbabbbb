#include "tensor/parallel.h"

#include <atomic>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

namespace pith {
namespace {
thread_local bool inside_task = false;
}  // namespace

OneThread::OneThread() : before_(at::get_num_threads()) {
  if (before_ != 1) at::set_num_threads(1);
}

OneThread::~OneThread() {
  if (before_ != 1) at::set_num_threads(before_);
}

void parallel_tasks(int64_t n, const std::function<void(int64_t)>& body, unsigned threads) {
  if (n <= 0) return;
  if (threads == 0) threads = static_cast<unsigned>(at::get_num_threads());
  if (inside_task) threads = 1;
  threads = static_cast<unsigned>(std::min<int64_t>(threads, n));
  const OneThread one;
  if (threads == 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  const bool grad = at::GradMode::is_enabled();
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  int64_t first_failed = n;
  std::exception_ptr error;
  auto work = [&] {
    const bool outer = inside_task;
    inside_task = true;
    const at::AutoGradMode mode(grad);
    at::init_num_threads();  // a new thread takes over the setting of OneThread
    while (!failed) {
      const int64_t i = next.fetch_add(1);
      if (i >= n) break;
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
  };
  std::vector<std::thread> helpers;
  helpers.reserve(threads - 1);
  for (unsigned t = 1; t < threads; ++t) helpers.emplace_back(work);
  work();
  for (auto& helper : helpers) helper.join();
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
