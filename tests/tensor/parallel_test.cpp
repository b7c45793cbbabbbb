#include "tensor/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

namespace pith {
namespace {

TEST(ParallelTasks, VisitsEachTaskOnceOnOneThreadEach) {
  at::set_num_threads(3);
  std::vector<std::atomic<int>> seen(100);
  std::atomic<int> widest{0};
  parallel_tasks(100, [&](int64_t i) {
    ++seen[static_cast<size_t>(i)];
    widest = std::max(widest.load(), at::get_num_threads());
    parallel_tasks(2, [&](int64_t) { EXPECT_EQ(at::get_num_threads(), 1); });
  });
  for (const auto& s : seen) EXPECT_EQ(s.load(), 1);
  EXPECT_EQ(widest.load(), 1);
  EXPECT_EQ(at::get_num_threads(), 3);
}

// Three threads and one task: the two others join the call inside it, once each, and are gone afterwards.
TEST(ParallelTasks, IdleThreadsJoinACallInsideTheLastTask) {
  at::set_num_threads(3);
  for (int round = 0; round < 20; ++round) {
    std::mutex mutex;
    std::condition_variable entered;
    std::set<std::thread::id> threads;
    std::vector<std::atomic<int>> seen(50);
    parallel_tasks(1, [&](int64_t) {
      parallel_tasks(50, [&](int64_t i) {
        ++seen[static_cast<size_t>(i)];
        EXPECT_EQ(at::get_num_threads(), 1);
        std::unique_lock lock(mutex);
        threads.insert(std::this_thread::get_id());
        entered.notify_all();
        entered.wait_for(lock, std::chrono::seconds(20), [&] { return threads.size() == 3; });
      });
    });
    EXPECT_EQ(threads.size(), 3u);
    for (const auto& s : seen) EXPECT_EQ(s.load(), 1);
  }
}

TEST(ParallelTasks, ThrowsTheFirstFailure) {
  at::set_num_threads(3);
  for (int round = 0; round < 20; ++round) {
    try {
      parallel_tasks(50, [&](int64_t i) {
        if (i % 7 == 5) throw Failure(data_error(std::to_string(i)));
      });
      FAIL();
    } catch (const Failure& f) {
      EXPECT_EQ(f.error().message, "5");
    }
  }
  EXPECT_EQ(at::get_num_threads(), 3);
}

TEST(ParallelTasks, TurnsKeepTheOrderOfSums) {
  at::set_num_threads(4);
  Turns turns;
  std::vector<int64_t> order;
  parallel_tasks(64, [&](int64_t i) {
    turns.turn("a", i, [&] { order.push_back(i); });
    turns.turn("b", i, [&] {});
  });
  for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
}

// A failing task must not leave the others waiting for its turn.
TEST(ParallelTasks, AFailedTurnFreesTheOthers) {
  at::set_num_threads(4);
  Turns turns;
  EXPECT_THROW(parallel_tasks(64,
                              [&](int64_t i) {
                                try {
                                  if (i == 10) throw Failure(data_error("ten"));
                                  turns.turn("a", i, [] {});
                                } catch (...) {
                                  turns.fail();
                                  throw;
                                }
                              }),
               Failure);
}

TEST(ParallelTasks, GradModeIsTheCallers) {
  at::set_num_threads(2);
  const at::NoGradGuard no_grad;
  parallel_tasks(4, [&](int64_t) { EXPECT_FALSE(at::GradMode::is_enabled()); });
}

}  // namespace
}  // namespace pith
