#include "plan/work_folder.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "base/file.h"
#include "base/hash.h"
#include "base/threads.h"

namespace pith {
namespace {

namespace fs = std::filesystem;

class WorkFolderTest : public testing::Test {
 protected:
  void SetUp() override {
    // In memory where that is possible: kill -9 loses nothing that a file system holds, and a busy disk makes fsync
    // slow.
    const bool memory = ::access("/dev/shm", W_OK) == 0;
    std::string name = ((memory ? fs::path("/dev/shm") : fs::temp_directory_path()) / "pith-work-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root = name;
  }
  void TearDown() override { fs::remove_all(root); }
  std::string folder() const { return root + "/out.work"; }
  std::string root;
};

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto raw = std::as_bytes(std::span(text.data(), text.size()));
  return {raw.begin(), raw.end()};
}

std::string text_of(const Bytes& bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

TEST_F(WorkFolderTest, UnitsSurvive) {
  {
    auto work = WorkFolder::open(folder(), "p", "i", false);
    ASSERT_TRUE(work.ok()) << work.error().message;
    EXPECT_TRUE(work->done().empty());
    ASSERT_TRUE(work->commit("b/../b", bytes_of("two")).ok());
    ASSERT_TRUE(work->commit("b_..:b", bytes_of("another name, same letters")).ok());
    ASSERT_TRUE(work->commit("a", {}).ok());
    ASSERT_TRUE(work->commit("a", bytes_of("later")).ok());
  }
  auto work = WorkFolder::open(folder(), "p", "i", false);
  ASSERT_TRUE(work.ok());
  EXPECT_EQ(work->done(), (std::vector<std::string>{"a", "b/../b", "b_..:b"}));
  EXPECT_TRUE(work->has("a"));
  EXPECT_FALSE(work->has("c"));
  EXPECT_EQ(text_of(*work->read("a")), "later");
  EXPECT_EQ(text_of(*work->read("b/../b")), "two");
  EXPECT_FALSE(work->read("c").ok());
  ASSERT_TRUE(work->remove().ok());
  EXPECT_FALSE(fs::exists(folder()));
}

TEST_F(WorkFolderTest, OthersMayJoinARunThatIsAtWork) {
  EXPECT_FALSE(WorkFolder::join(folder(), "p", "i")->has_value());  // there is no folder
  std::optional<WorkFolder> joined;
  {
    auto owner = WorkFolder::open(folder(), "p", "i", false);
    ASSERT_TRUE(owner.ok());
    ASSERT_TRUE(owner->commit("a", bytes_of("1")).ok());
    EXPECT_FALSE(WorkFolder::join(folder(), "p2", "i").ok());
    auto found = WorkFolder::join(folder(), "p", "i");
    ASSERT_TRUE(found.ok() && found->has_value());
    joined.emplace(std::move(**found));
    EXPECT_TRUE(joined->owner_at_work());
    EXPECT_FALSE(owner->owner_at_work());
    EXPECT_EQ(text_of(*joined->read("a")), "1");
    EXPECT_FALSE(owner->has("b"));
    ASSERT_TRUE(joined->commit("b", bytes_of("2")).ok());
    EXPECT_TRUE(owner->has("b"));
    EXPECT_EQ(text_of(*owner->read("b")), "2");
    ASSERT_TRUE(owner->commit("a", bytes_of("later")).ok());
    EXPECT_EQ(text_of(*joined->read("a")), "later");
  }
  EXPECT_FALSE(joined->owner_at_work());
  joined.reset();
  EXPECT_FALSE(WorkFolder::join(folder(), "p", "i")->has_value());     // nobody works there
  EXPECT_TRUE(WorkFolder::open(folder(), "p", "i", false)->has("b"));  // and leaving has removed nothing
}

TEST_F(WorkFolderTest, ChangesAreNoticed) {
  { ASSERT_TRUE(WorkFolder::open(folder(), "p", "i", false)->commit("a", bytes_of("1")).ok()); }
  const auto plan = WorkFolder::open(folder(), "p2", "i", false);
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.error().kind, ErrorKind::user);
  EXPECT_NE(plan.error().message.find("another plan"), std::string::npos);
  EXPECT_NE(plan.error().message.find("--restart"), std::string::npos);
  const auto input = WorkFolder::open(folder(), "p", "i2", false);
  ASSERT_FALSE(input.ok());
  EXPECT_NE(input.error().message.find("another input"), std::string::npos);
  // Refusing changed nothing; --restart throws the old units away.
  EXPECT_TRUE(WorkFolder::open(folder(), "p", "i", false)->has("a"));
  {
    auto other = WorkFolder::open(folder(), "p2", "i", true);
    EXPECT_FALSE(other->has("a"));
    ASSERT_TRUE(other->commit("b", bytes_of("2")).ok());
  }
  EXPECT_FALSE(WorkFolder::open(folder(), "p", "i", false).ok());
}

TEST_F(WorkFolderTest, WithoutAFinishedUnitNothingStays) {
  { ASSERT_TRUE(WorkFolder::open(folder(), "p", "i", false).ok()); }
  EXPECT_FALSE(fs::exists(folder()));
  // What a run leaves that was killed before its first unit belongs to nobody.
  fs::create_directory(folder());
  std::ofstream(folder() + "/work.json") << R"({"pith_work":1,"plan":"p2","input":"i"})";
  EXPECT_TRUE(WorkFolder::open(folder(), "p", "i", false).ok());
  EXPECT_FALSE(fs::exists(folder()));
}

TEST_F(WorkFolderTest, OneRunAtATime) {
  auto first = WorkFolder::open(folder(), "p", "i", false);
  ASSERT_TRUE(first.ok());
  const auto second = WorkFolder::open(folder(), "p", "i", false);
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.error().message.find("another run"), std::string::npos);
  EXPECT_FALSE(WorkFolder::open(folder(), "p", "i", true).ok());  // not even with --restart
}

TEST_F(WorkFolderTest, DamagedUnitsAreDoneAgain) {
  {
    auto work = WorkFolder::open(folder(), "p", "i", false);
    for (const char* name : {"a", "b", "c", "d"}) ASSERT_TRUE(work->commit(name, bytes_of("some content")).ok());
  }
  std::vector<fs::path> units;
  for (const auto& entry : fs::directory_iterator(folder()))
    if (entry.path().extension() == ".unit") units.push_back(entry.path());
  std::sort(units.begin(), units.end());
  ASSERT_EQ(units.size(), 4u);
  fs::resize_file(units[0], 3);
  fs::resize_file(units[1], fs::file_size(units[1]) - 1);
  std::fstream file(units[2], std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(fs::file_size(units[2])) - 2);
  file.put('X');
  file.close();
  std::ofstream(folder() + "/7.tmp") << "half written";
  std::ofstream(folder() + "/work.json.part.1") << "half written";
  auto work = WorkFolder::open(folder(), "p", "i", false);
  ASSERT_TRUE(work.ok());
  EXPECT_EQ(work->done(), std::vector<std::string>{"d"});
  EXPECT_EQ(work->dropped().size(), 3u);
  EXPECT_FALSE(fs::exists(folder() + "/7.tmp"));
  EXPECT_TRUE(work->remove().ok());
  EXPECT_FALSE(fs::exists(folder()));
}

TEST_F(WorkFolderTest, BadPlaces) {
  std::ofstream(root + "/file") << "x";
  EXPECT_FALSE(WorkFolder::open(root + "/file", "p", "i", false).ok());
  EXPECT_FALSE(WorkFolder::open(root + "/no/where/out.work", "p", "i", false).ok());
  EXPECT_FALSE(WorkFolder::open("/proc/out.work", "p", "i", false).ok());
  { ASSERT_TRUE(WorkFolder::open(folder(), "p", "i", false)->commit("a", {}).ok()); }
  std::ofstream(folder() + "/work.json") << "{]";
  const auto damaged = WorkFolder::open(folder(), "p", "i", false);
  ASSERT_FALSE(damaged.ok());
  EXPECT_EQ(damaged.error().kind, ErrorKind::data);
  EXPECT_TRUE(WorkFolder::open(folder(), "p", "i", true).ok());
}

TEST_F(WorkFolderTest, ThreadsMayCommit) {
  auto work = WorkFolder::open(folder(), "p", "i", false);
  ASSERT_TRUE(work.ok());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i)
        EXPECT_TRUE(work->commit(std::to_string(t * 10 + i), bytes_of(std::to_string(t * 10 + i))).ok());
    });
  for (auto& t : threads) t.join();
  EXPECT_EQ(work->done().size(), 40u);
  for (int i = 0; i < 40; ++i) EXPECT_EQ(text_of(*work->read(std::to_string(i))), std::to_string(i));
}

// ---- kill -9
// ---------------------------------------------------------------------------------------------------------

constexpr int kUnits = 30;

/// A unit depends on those before it, as layers do on a compressed prefix. Returns the number of units it computed.
Result<int> run_job(const std::string& out, int microseconds) {
  PITH_ASSIGN(auto work, WorkFolder::open(out + ".work", "plan", "input", false));
  int computed = 0;
  std::string chain = "begin";
  for (int i = 0; i < kUnits; ++i) {
    const std::string unit = "layer." + std::to_string(i);
    if (!work.has(unit)) {
      ::usleep(static_cast<useconds_t>(microseconds));
      std::string data;
      for (int k = 0; k < 200; ++k)
        data += Hasher().add(chain).add(uint64_t{static_cast<uint64_t>(i * 1000 + k)}).hex();
      PITH_TRY(work.commit(unit, bytes_of(data)));
      ++computed;
    }
    PITH_ASSIGN(const Bytes stored, work.read(unit));
    chain = text_of(stored);
  }
  PITH_ASSIGN(auto file, AtomicFile::create(out, false));
  for (int i = 0; i < kUnits; ++i) {
    PITH_ASSIGN(const Bytes stored, work.read("layer." + std::to_string(i)));
    PITH_TRY(file.write(stored.view));
  }
  PITH_TRY(file.commit());
  PITH_TRY(work.remove());
  return computed;
}

TEST_F(WorkFolderTest, KilledAtTwentyRandomMomentsTheBytesAreTheSame) {
  ASSERT_TRUE(run_job(root + "/whole", 0).ok());
  const std::string expected = *read_text(root + "/whole", 1 << 24);
  std::mt19937 rng(11);
  int kills = 0, resumed = 0;
  for (int round = 0; kills < 20; ++round) {
    ASSERT_LT(round, 40);
    const std::string out = root + "/out" + std::to_string(round);
    while (!file_exists(out)) {
      const pid_t child = ::fork();
      ASSERT_GE(child, 0);
      if (child == 0) ::_exit(run_job(out, 500).ok() ? 0 : 1);
      ::usleep(static_cast<useconds_t>(rng() % 20'000));
      ::kill(child, SIGKILL);
      int status = 0;
      ASSERT_EQ(::waitpid(child, &status, 0), child);
      if (WIFSIGNALED(status)) {
        ++kills;
        EXPECT_TRUE(!file_exists(out) || *read_text(out, 1 << 24) == expected);  // never a half-written result
      } else {
        ASSERT_EQ(WEXITSTATUS(status), 0);
      }
      if (!file_exists(out) && rng() % 3 == 0) {  // sometimes the next run is left alone
        const auto computed = run_job(out, 0);
        ASSERT_TRUE(computed.ok()) << computed.error().message;
        resumed += *computed < kUnits;
      }
    }
    EXPECT_EQ(*read_text(out, 1 << 24), expected);
  }
  EXPECT_GT(resumed, 0);  // work of killed runs was used
}

}  // namespace
}  // namespace pith
