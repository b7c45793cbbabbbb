// Runs a fuzz target without an engine: replay CORPUS_DIR [ROUNDS]. Each seed as it is, cut at every 1/64, then ROUNDS
// variants with flipped bits, changed bytes and copied stretches (a fixed seed), then random bytes behind the first
// bytes of each seed. A fault ends the process; memory is limited, so that a huge allocation is one, and no single
// allocation may be out of proportion to the input.
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "fuzz.h"

namespace {

using Input = std::vector<uint8_t>;

size_t largest_allocation = 0;  // through operator new since it was last set to 0

// 16 MiB are free: tables that any tokenizer or codebook needs.
void run(const Input& input) {
  largest_allocation = 0;
  LLVMFuzzerTestOneInput(input.data(), input.size());
  if (largest_allocation > (size_t{16} << 20) + 1024 * input.size()) {
    std::fprintf(stderr, "an input of %zu bytes led to an allocation of %zu\n", input.size(), largest_allocation);
    std::abort();
  }
}

Input mutate(const Input& seed, std::mt19937_64& random) {
  Input out = seed;
  if (out.empty()) out.push_back(0);
  const auto place = [&] { return static_cast<size_t>(random() % out.size()); };
  const uint64_t changes = 1 + random() % 4;
  for (uint64_t i = 0; i < changes; ++i) {
    switch (random() % 5) {
      case 0:
        out[place()] ^= static_cast<uint8_t>(1u << (random() % 8));
        break;
      case 1:
        out[place()] = static_cast<uint8_t>(random());
        break;
      case 2:
        out[place()] = random() % 2 != 0 ? 0xff : 0;
        break;
      case 3: {  // a stretch of 0xff: lengths that cannot be
        const size_t at = place();
        std::fill(out.begin() + static_cast<std::ptrdiff_t>(at),
                  out.begin() + static_cast<std::ptrdiff_t>(std::min(out.size(), at + 8)), 0xff);
        break;
      }
      default: {  // a stretch copied elsewhere
        const size_t from = place(), to = place(), n = std::min(out.size() - std::max(from, to), size_t{16});
        std::copy_n(Input(out).begin() + static_cast<std::ptrdiff_t>(from), n,
                    out.begin() + static_cast<std::ptrdiff_t>(to));
      }
    }
  }
  return out;
}

}  // namespace

// noinline: GCC sees malloc and free on both sides of a container otherwise, and warns.
[[gnu::noinline]] void* operator new(size_t n) {
  largest_allocation = std::max(largest_allocation, n);
  if (void* p = std::malloc(n > 0 ? n : 1)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept { std::free(p); }

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: replay CORPUS_DIR [ROUNDS]\n");
    return 2;
  }
  const uint64_t rounds = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 20000;
#if !defined(__SANITIZE_ADDRESS__)  // ASan reserves terabytes of address space
  const rlimit limit{uint64_t{2} << 30, uint64_t{2} << 30};
  setrlimit(RLIMIT_AS, &limit);
#endif
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<Input> seeds;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  if (seeds.empty()) {
    std::fprintf(stderr, "no seeds in %s\n", argv[1]);
    return 2;
  }
  std::mt19937_64 random(1);
  run({});
  for (const Input& seed : seeds) {
    run(seed);
    for (size_t part = 0; part < 64; ++part) {
      run(Input(seed.begin(), seed.begin() + static_cast<std::ptrdiff_t>(seed.size() * part / 64)));
    }
  }
  for (uint64_t i = 0; i < rounds; ++i) run(mutate(seeds[i % seeds.size()], random));
  for (uint64_t i = 0; i < rounds; ++i) {  // a true begin, then noise: random headers
    const Input& seed = seeds[i % seeds.size()];
    Input input(seed.begin(), seed.begin() + static_cast<std::ptrdiff_t>(std::min<size_t>(seed.size(), random() % 24)));
    const uint64_t more = random() % 96;
    for (uint64_t k = 0; k < more; ++k) input.push_back(static_cast<uint8_t>(random() % 3 != 0 ? random() : 0));
    run(input);
  }
  std::printf("%zu seeds, %llu variants\n", seeds.size(),
              static_cast<unsigned long long>(2 * rounds + 65 * seeds.size() + 1));
  return 0;
}
