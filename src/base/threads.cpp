#include "base/threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pith {

static inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

unsigned usable_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

// Workers spin for a short while before they sleep: decoding one token is hundreds of small jobs, and a futex
// wake-up costs more than many of them. A job is open while its caller works on it: a worker that is late, because
// other programs have its core, finds it closed, and nobody has waited for it.
struct ThreadPool::State {
  static constexpr int kSpin = 20000, kSpinForOthers = 1000;
  static constexpr uint64_t kOpen = 1ull << 31, kNumber = 1ull << 32;

  unsigned total = 1;
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> job{0};  ///< its number, kOpen, and how many workers are in it
  std::atomic<bool> stop{false};
  const std::function<void()>* body = nullptr;

  // A job that is open and not number `seen`.
  static bool is_new(uint64_t j, uint64_t seen) { return (j & kOpen) != 0 && j / kNumber != seen; }

  void work() {
    uint64_t seen = 0;
    for (int spins = 0; !stop.load(std::memory_order_relaxed);) {
      uint64_t now = job.load(std::memory_order_acquire);
      if (is_new(now, seen)) {
        if (!job.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) continue;
        seen = now / kNumber;
        (*body)();
        job.fetch_sub(1, std::memory_order_release);
        spins = 0;
      } else if (++spins < kSpin) {
        relax();
      } else {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return is_new(job.load(std::memory_order_acquire), seen) || stop.load(); });
      }
    }
  }
};

ThreadPool::ThreadPool(unsigned threads) : state_(std::make_unique<State>()) {
  state_->total = threads == 0 ? usable_cores() : threads;
  for (unsigned i = 1; i < state_->total; ++i) state_->workers.emplace_back([this] { state_->work(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_all();
  for (auto& t : state_->workers) t.join();
}

unsigned ThreadPool::size() const { return state_->total; }

void ThreadPool::run(const std::function<void()>& body) {
  State& s = *state_;
  if (s.total == 1) {
    body();
    return;
  }
  s.body = &body;
  {
    std::lock_guard lock(s.mutex);
    const uint64_t number = s.job.load(std::memory_order_relaxed) / State::kNumber + 1;
    s.job.store(number * State::kNumber | State::kOpen, std::memory_order_release);
  }
  s.wake.notify_all();
  body();
  s.job.fetch_and(~State::kOpen, std::memory_order_acq_rel);
  for (int spins = 0; (s.job.load(std::memory_order_acquire) & (State::kOpen - 1)) != 0;) {
    relax();
    if (++spins > State::kSpinForOthers) std::this_thread::yield();
  }
}

void ThreadPool::parallel_for(int64_t n, const std::function<void(int64_t)>& body) {
  if (n <= 1 || state_->total == 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  std::atomic<int64_t> next{0};
  run([&] {
    for (int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) body(i);
  });
}

}  // namespace pith
