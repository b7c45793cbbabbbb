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
// wake-up costs more than many of them.
struct ThreadPool::State {
  static constexpr int kSpin = 20000;

  unsigned total = 1;
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};
  std::atomic<unsigned> running{0};
  std::atomic<bool> stop{false};
  const std::function<void(unsigned, unsigned)>* body = nullptr;

  void work(unsigned part) {
    uint64_t seen = 0;
    for (;;) {
      int spins = 0;
      while (generation.load(std::memory_order_acquire) == seen) {
        if (stop.load(std::memory_order_relaxed)) return;
        if (++spins < kSpin) {
          relax();
          continue;
        }
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen || stop.load(); });
      }
      seen = generation.load(std::memory_order_acquire);
      (*body)(part, total);
      running.fetch_sub(1, std::memory_order_release);
    }
  }
};

ThreadPool::ThreadPool(unsigned threads) : state_(std::make_unique<State>()) {
  state_->total = threads == 0 ? usable_cores() : threads;
  for (unsigned i = 1; i < state_->total; ++i) state_->workers.emplace_back([this, i] { state_->work(i); });
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

void ThreadPool::run(const std::function<void(unsigned, unsigned)>& body) {
  State& s = *state_;
  if (s.total == 1) {
    body(0, 1);
    return;
  }
  s.body = &body;
  s.running.store(s.total - 1, std::memory_order_relaxed);
  {
    std::lock_guard lock(s.mutex);
    s.generation.fetch_add(1, std::memory_order_release);
  }
  s.wake.notify_all();
  body(0, s.total);
  for (int spins = 0; s.running.load(std::memory_order_acquire) != 0;) {
    relax();
    if (++spins > State::kSpin) std::this_thread::yield();
  }
}

void ThreadPool::parallel_for(int64_t n, const std::function<void(int64_t)>& body) {
  if (n <= 1 || state_->total == 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  std::atomic<int64_t> next{0};
  run([&](unsigned, unsigned) {
    for (int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) body(i);
  });
}

}  // namespace pith
