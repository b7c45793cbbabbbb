#include "base/file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

namespace pith {
namespace {

namespace fs = std::filesystem;

class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "pith-file-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root = name;
  }
  void TearDown() override { fs::remove_all(root); }
  std::set<std::string> listing() const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(root)) names.insert(entry.path().filename().string());
    return names;
  }
  std::string root;
};

TEST_F(FileTest, AppearsOnlyWhenComplete) {
  const std::string path = root + "/out";
  {
    auto file = AtomicFile::create(path, false);
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE(file->write("half").ok());
    EXPECT_FALSE(file_exists(path));
    AtomicFile moved = std::move(*file);
    ASSERT_TRUE(moved.write(" and half").ok());
    ASSERT_TRUE(moved.pad_to(16).ok());
    EXPECT_EQ(moved.position(), 16u);
    ASSERT_TRUE(moved.commit().ok());
  }
  EXPECT_EQ(*read_text(path, 100), std::string("half and half\0\0\0", 16));
  EXPECT_EQ(listing(), std::set<std::string>{"out"});
  {
    auto file = AtomicFile::create(path, true);
    ASSERT_TRUE(file->write("thrown away").ok());
  }
  EXPECT_EQ(listing(), std::set<std::string>{"out"});
  EXPECT_EQ(read_text(path, 100)->substr(0, 4), "half");
}

TEST_F(FileTest, ReplacesOnlyWhenAsked) {
  const std::string path = root + "/out";
  ASSERT_TRUE(write_file(path, "one", false).ok());
  EXPECT_FALSE(write_file(path, "two", false).ok());
  EXPECT_EQ(*read_text(path, 100), "one");
  ASSERT_TRUE(write_file(path, "three", true).ok());
  EXPECT_EQ(*read_text(path, 100), "three");
  // A file that came into being after create is not lost either.
  auto file = AtomicFile::create(root + "/late", false);
  ASSERT_TRUE(write_file(root + "/late", "first", false).ok());
  ASSERT_TRUE(file->write("second").ok());
  EXPECT_FALSE(file->commit().ok());
  EXPECT_EQ(*read_text(root + "/late", 100), "first");
}

TEST_F(FileTest, KilledWhileWritingNothingStays) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    auto file = AtomicFile::create(root + "/out", false);
    if (!file.ok() || !file->write(std::string(100'000, 'x')).ok()) ::_exit(1);
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  if (listing().size() == 1) GTEST_SKIP() << "this file system has no nameless files";
  EXPECT_TRUE(listing().empty());
}

TEST_F(FileTest, DroppedPagesComeBack) {
  const std::string path = root + "/mapped", text(1 << 20, 'x');
  ASSERT_TRUE(write_file(path, text, false).ok());
  const auto file = *MappedFile::open(path);
  const auto* bytes = reinterpret_cast<const char*>(file->bytes().data());
  const auto resident = [&] {
    std::ifstream in("/proc/self/smaps");
    bool here = false;
    for (std::string line; std::getline(in, line);) {
      if (line.find("mapped") != std::string::npos && line.find(root) != std::string::npos) here = true;
      if (here && line.starts_with("Rss:")) return std::stoi(line.substr(4));
    }
    return -1;
  };
  EXPECT_EQ(std::string_view(bytes, file->bytes().size()), text);
  EXPECT_GE(resident(), 1024);
  drop_mapped_pages(file->bytes());
  EXPECT_EQ(resident(), 0);
  EXPECT_EQ(std::string_view(bytes, file->bytes().size()), text);
  std::string own(1 << 20, 'y');  // not a mapping of ours: nothing may happen to it
  drop_mapped_pages(std::as_bytes(std::span(own)));
  EXPECT_EQ(own, std::string(1 << 20, 'y'));
  drop_mapped_pages({});
}

TEST_F(FileTest, BadPlaces) {
  EXPECT_FALSE(AtomicFile::create("", false).ok());
  EXPECT_FALSE(AtomicFile::create(root, false).ok());
  EXPECT_FALSE(AtomicFile::create(root + "/no/such/folder/out", false).ok());
  EXPECT_FALSE(AtomicFile::create("/proc/out", true).ok());
  EXPECT_FALSE(read_text(root + "/missing", 100).ok());
  EXPECT_FALSE(read_text(root, 100).ok());
  ASSERT_TRUE(write_file(root + "/long", std::string(101, 'x'), false).ok());
  EXPECT_FALSE(read_text(root + "/long", 100).ok());
  ASSERT_TRUE(write_file(root + "/empty", "", false).ok());
  EXPECT_EQ(*read_text(root + "/empty", 0), "");
}

}  // namespace
}  // namespace pith
