// compress_memory [GB [FOLDER [argument of pith compress…]]], from the root of the tree: writes a Llama-type model of
// GB gigabytes (8) of random bf16 weights into FOLDER, lets `pith compress` cut it to 3.5 bits a weight, and prints
// what that took: resident and anonymous memory while it ran, against 1.5 GB + 3 x the largest block in fp32. The curve
// stays as FOLDER/memory.csv, everything else is removed.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "formats/huggingface.h"

namespace {

using pith::LmConfig;
using pith::TensorSpec;

constexpr double kGB = 1e9;

/// Blocks of Llama 3.2 3B; their number makes the size.
LmConfig config_of_size(LmConfig like, double bytes) {
  like.hidden = 3072, like.heads = 24, like.kv_heads = 8, like.head_dim = 128, like.intermediate = 8192;
  like.vocab = 32768, like.context = 4096;
  like.tied_embeddings = true;
  like.layers = 1;
  const auto weights = [](const LmConfig& c) {
    double n = 0;
    for (const TensorSpec& t : pith::expected_tensors(c)) {
      double size = 1;
      for (const int64_t d : t.shape) size *= static_cast<double>(d);
      n += size;
    }
    return n;
  };
  const double one = weights(like);
  like.layers = 2;
  const double block = weights(like) - one;
  like.layers = std::max<int64_t>(1, std::lround((bytes / 2 - one) / block) + 1);
  return like;
}

/// Close to normal, of standard deviation `scale`: four 16-bit parts of one random number, summed.
class Normal {
 public:
  explicit Normal(uint64_t seed) : state_(seed) {}
  float next(float scale) {
    state_ += 0x9e3779b97f4a7c15;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    z ^= z >> 31;
    const auto sum = static_cast<float>((z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48));
    return (sum - 131070.0f) * (scale / 37837.0f);
  }

 private:
  uint64_t state_;
};

/// "VmRSS:  1234 kB" of /proc/PID/status, in bytes.
uint64_t status_field(pid_t pid, const std::string& key) {
  std::ifstream in(fmt::format("/proc/{}/status", pid));
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(key + ":")) return std::strtoull(line.c_str() + key.size() + 1, nullptr, 10) * 1024;
  return 0;
}

int fail(const std::string& message) {
  fmt::print(stderr, "{}\n", message);
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string pith = "build/release/pith", tiny = "testdata/lm-s";  // tokenizer, calibration and held-out text
  const double gigabytes = argc > 1 ? std::atof(argv[1]) : 8;
  const std::string folder = argc > 2 ? argv[2] : "/tmp/pith-compress-memory";
  if (!(gigabytes > 0)) return fail("usage: compress_memory [GB [FOLDER [argument of pith compress...]]]");
  std::filesystem::create_directories(folder);
  const auto like = pith::open_huggingface(tiny, {});
  if (!like.ok()) return fail(like.error().message);
  const LmConfig config = config_of_size(like->config, gigabytes * kGB);
  const std::string model = folder + "/model";
  double weights = 0, block = 0, embedding = 0;
  for (const TensorSpec& t : pith::expected_tensors(config)) {
    double size = 1;
    for (const int64_t d : t.shape) size *= static_cast<double>(d);
    weights += size;
    if (t.name.starts_with("model.layers.0.")) block += size;
    if (t.name.find("embed_tokens") != std::string::npos) embedding += size;
  }
  const double bar = 1.5 * kGB + 3 * 4 * std::max(block, embedding);
  fmt::print("{} blocks, {:.2f} G weights, {:.2f} GB as bf16; largest block {:.0f} MB in fp32; bar {:.2f} GB\n",
             config.layers, weights / 1e9, weights * 2 / kGB, 4 * std::max(block, embedding) / 1e6, bar / kGB);
  if (!std::filesystem::exists(model)) {
    Normal normal(1);
    const auto written = pith::write_huggingface(
        model, config, like->tokenizer, pith::DType::bf16,
        [&](const TensorSpec& t, int64_t r0, int64_t r1, float* out) -> pith::Status {
          const auto cols = static_cast<size_t>(t.shape.back());
          const size_t n = static_cast<size_t>(r1 - r0) * cols;
          const float scale =
              t.name.find("embed") != std::string::npos ? 0.02f : 1 / std::sqrt(static_cast<float>(cols));
          for (size_t i = 0; i < n; ++i) out[i] = t.shape.size() == 1 ? 1.0f : normal.next(scale);
          return {};
        },
        false);
    if (!written.ok()) return fail(written.error().message);
  }
  std::vector<std::string> args = {pith, "compress", model, "-o", folder + "/out.pith", "--cache", folder + "/cache"};
  const std::vector<std::string> defaults = {"--bits",
                                             "3.5",
                                             "--calib",
                                             tiny + "/calib.txt",
                                             "--calib-sequences",
                                             "8",
                                             "--fisher-sequences",
                                             "4",
                                             "--eval",
                                             tiny + "/test.txt",
                                             "--eval-chunks",
                                             "1",
                                             "--force",
                                             "--restart"};
  args.insert(args.end(), defaults.begin(), defaults.end());
  for (int i = 3; i < argc; ++i) args.emplace_back(argv[i]);
  std::vector<char*> raw;
  for (std::string& a : args) raw.push_back(a.data());
  raw.push_back(nullptr);

  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  const pid_t child = ::fork();
  if (child == 0) {
    ::execv(raw[0], raw.data());
    ::_exit(127);
  }
  std::ofstream curve(folder + "/memory.csv");
  curve << "seconds,resident,anonymous\n";
  uint64_t resident = 0, anonymous = 0;
  double next_line = 0;
  int status = 0;
  struct rusage used {};
  while (::wait4(child, &status, WNOHANG, &used) == 0) {
    const uint64_t r = status_field(child, "VmRSS"), a = status_field(child, "RssAnon");
    resident = std::max(resident, r), anonymous = std::max(anonymous, a);
    if (seconds() >= next_line) {
      curve << fmt::format("{:.1f},{},{}\n", seconds(), r, a) << std::flush;
      next_line = seconds() + 1;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  for (const char* made : {"/model", "/cache", "/out.pith", "/out.pith.work"})
    std::filesystem::remove_all(folder + made);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return fail("pith compress failed");
  const double peak = static_cast<double>(used.ru_maxrss) * 1024;
  fmt::print("time {:.0f} s (CPU {:.0f} s)\n", seconds(),
             static_cast<double>(used.ru_utime.tv_sec + used.ru_stime.tv_sec));
  fmt::print("peak resident memory {:.2f} GB, anonymous {:.2f} GB (seen every 20 ms); bar {:.2f} GB: {}\n", peak / kGB,
             static_cast<double>(anonymous) / kGB, bar / kGB, peak <= bar ? "met" : "MISSED");
  return 0;
}
