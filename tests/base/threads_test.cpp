#include "base/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace pith::test {
namespace {

TEST(ThreadPool, DoesEveryPieceOnceBeforeItReturns) {
  for (unsigned threads : {1u, 2u, 5u}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (int64_t n = 0; n < 2000; ++n) {
      std::vector<int> done(static_cast<size_t>(n % 67));  // plain numbers: what workers wrote must be there
      pool.parallel_for(n % 67, [&](int64_t i) { ++done[static_cast<size_t>(i)]; });
      ASSERT_EQ(done, std::vector<int>(done.size(), 1)) << threads << " threads, job " << n;
    }
  }
}

TEST(ThreadPool, WakesWorkersThatSleep) {
  ThreadPool pool(2);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // longer than they spin
    // Two pieces that wait for each other: the caller alone would not end.
    std::atomic<int> here{0};
    pool.parallel_for(2, [&](int64_t) {
      ++here;
      while (here.load() < 2) std::this_thread::yield();
    });
    EXPECT_EQ(here.load(), 2);
  }
}

TEST(ThreadPool, DoesNotWaitForWorkersThatDoNotCome) {
  ThreadPool pool(64);  // more than can come while the caller counts to one
  std::atomic<int> calls{0};
  for (int i = 0; i < 200; ++i) pool.run([&] { ++calls; });
  EXPECT_GE(calls.load(), 200);
  EXPECT_LT(calls.load(), 200 * 64);
}

}  // namespace
}  // namespace pith::test
