// Matrix products by representation, against what the memory can deliver: time of one token in bytes of weights a
// second and as a share of a plain read of as many bytes, and of 512 tokens in multiply-adds a second.
// usage: kernels_bench [threads]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "kernels/linear.h"
#include "kernels/ops.h"
#include "represent/blocks.h"
#include "represent/codebook.h"
#include "represent/combine.h"
#include "represent/dense.h"
#include "represent/grid.h"
#include "represent/low_rank.h"
#include "represent/sparse.h"

namespace pith {
namespace {

constexpr int64_t kRows = 2048, kCols = 2048;
// Enough copies that the weights do not stay in the nearer caches.
constexpr uint64_t kTotalBytes = 192ull << 20;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <class F>
double best_time(int repeats, F run) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const double start = seconds();
    run();
    best = std::min(best, seconds() - start);
  }
  return best;
}

struct Normal {
  uint64_t state = 1;
  double uniform() {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (static_cast<double>(state >> 11) + 0.5) * 0x1p-53;
  }
  double operator()() { return std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307179586 * uniform()); }
};

// A dot product of two long arrays does nothing but read.
double read_bandwidth(ThreadPool& pool) {
  const Ops& o = ops(default_isa());
  const std::vector<float> memory(kTotalBytes / 4, 1.0f);
  std::vector<float> sums(pool.size());
  const double t = best_time(7, [&] {
    pool.parallel_for(pool.size(), [&](int64_t i) {
      const auto part = static_cast<size_t>(i);
      const size_t n = memory.size() / pool.size() / 2;
      const float* p = memory.data() + part * 2 * n;
      sums[part] = o.dot(p, p + n, static_cast<int64_t>(n));
    });
  });
  return static_cast<double>(kTotalBytes) / t;
}

NodePtr must(Result<NodePtr> node) {
  if (node.ok()) return *node;
  fmt::print(stderr, "{}\n", node.error().message);
  std::exit(70);
}

void measure(const char* name, const NodePtr& node, double bandwidth, ThreadPool& pool) {
  std::vector<LinearPtr> copies;
  uint64_t bytes = 0;
  while (bytes < kTotalBytes && copies.size() < 512) {
    auto made = prepare_linear(node, {Precision::fast, {}});
    if (!made.ok()) return;
    copies.push_back(std::move(made).value());
    bytes += copies.back()->ram_bytes();
  }
  constexpr int64_t kTokens = 512;
  std::vector<float> x(static_cast<size_t>(kTokens * kCols)), y(static_cast<size_t>(kTokens * kRows));
  Normal normal;
  for (float& v : x) v = static_cast<float>(normal());
  const double one = best_time(5, [&] {
    for (const auto& m : copies) m->multiply(x.data(), 1, y.data(), pool);
  });
  const double many = best_time(3, [&] { copies[0]->multiply(x.data(), kTokens, y.data(), pool); });
  const double rate = static_cast<double>(bytes) / one;
  fmt::print("{:<34} {:>6.2f} {:>8.1f} {:>6.0f} % {:>9.1f} {:>9.0f}\n", name,
             8.0 * static_cast<double>(copies[0]->ram_bytes()) / (kRows * kCols), rate / 1e9, 100 * rate / bandwidth,
             static_cast<double>(kRows * kCols) * static_cast<double>(copies.size()) / one / 1e9,
             static_cast<double>(kRows * kCols * kTokens) / many / 1e9);
}

int run(unsigned threads) {
  ThreadPool pool(threads);
  const double bandwidth = read_bandwidth(pool);
  fmt::print("{} threads, {} kernels, {} x {}, reading memory: {:.1f} GB/s\n", pool.size(), isa_name(default_isa()),
             kRows, kCols, bandwidth / 1e9);
  fmt::print("{:<34} {:>6} {:>8} {:>8} {:>9} {:>9}\n", "representation", "bits", "GB/s", "of read", "Gmac/s 1",
             "Gmac/s 512");
  Normal normal;
  std::vector<float> w(static_cast<size_t>(kRows * kCols));
  for (float& v : w) v = static_cast<float>(0.02 * normal());
  for (DType t : {DType::f32, DType::f16, DType::bf16}) {
    measure(std::string(dtype_name(t)).c_str(), must(Dense::from(t, kRows, kCols, w)), bandwidth, pool);
  }
  for (const char* name : {"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}) {
    measure(name, must(Blocks::quantize(*ggml_type_from_name(name), kRows, kCols, w)), bandwidth, pool);
  }
  const auto codes = [&](unsigned bits, int64_t cols) {
    std::vector<int16_t> c(static_cast<size_t>(kRows * cols));
    for (auto& v : c) v = static_cast<int16_t>(normal.uniform() * (1 << bits));
    return *PackedCodes::pack(kRows, cols, bits, 0, c);
  };
  const auto field = [&](int64_t group, float low, float high) {
    std::vector<float> v(static_cast<size_t>(kRows * (kCols / group)));
    for (float& f : v) f = low + (high - low) * static_cast<float>(normal.uniform());
    return *AffineField::from(kRows, kCols, group, DType::f16, v);
  };
  for (unsigned bits : {2u, 3u, 4u, 8u}) {
    measure(fmt::format("grid {} bit, fp16 scale and zero, g32", bits).c_str(),
            must(Grid::make(codes(bits, kCols), {}, field(32, 0.01f, 0.02f), field(32, 0, 4))), bandwidth, pool);
  }
  measure("grid NF4 g32 (decoded tiles)",
          must(Grid::make(codes(4, kCols), normal_float_levels(4), field(32, 0.01f, 0.02f))), bandwidth, pool);
  // Rows and columns differ in spread as those of a network do: within a factor of 4.
  for (const double step : {0.35, 0.7, 1.4}) {
    std::vector<uint8_t> row(kRows), col(kCols);
    for (uint8_t& l : row) l = static_cast<uint8_t>(32 * normal.uniform());
    for (uint8_t& l : col) l = static_cast<uint8_t>(32 * normal.uniform());
    std::vector<int16_t> c(static_cast<size_t>(kRows * kCols));
    for (size_t i = 0; i < c.size(); ++i) {
      const double spread = std::exp2((16 - row[i / kCols]) / 16.0 + (16 - col[i % kCols]) / 16.0);
      c[i] = static_cast<int16_t>(std::lround(normal() * spread / step));
    }
    measure(fmt::format("ec, spread of {:.1f} steps", 1 / step).c_str(),
            must(Grid::make(*PackedCodes::pack(kRows, kCols, c), {}, *RowColField::make(0.01f, row, col))), bandwidth,
            pool);
  }
  for (int64_t books : {1, 2}) {
    const auto values = FloatArray::from(DType::f16, std::span(w).first(static_cast<size_t>(books * 256 * 8)), "books");
    measure(fmt::format("codebook {}x8g8", books).c_str(),
            must(Codebook::make(kCols, books, 256, 8, codes(8, books * kCols / 8), *values)), bandwidth, pool);
  }
  const NodePtr base = must(Grid::make(codes(3, kCols), {}, field(16, 0.01f, 0.02f), field(16, 0, 4)));
  std::vector<uint32_t> start = {0}, columns;
  for (int64_t r = 0; r < kRows; ++r) {
    for (uint32_t c = 0; c < kCols; ++c) {
      if (normal.uniform() < 0.01) columns.push_back(c);
    }
    start.push_back(static_cast<uint32_t>(columns.size()));
  }
  const std::vector<float> values(columns.size(), 0.1f);
  measure("override(3 bit g16, 1 % outliers)",
          must(Override::make(base, must(Csr::from(kRows, kCols, start, columns, values)))), bandwidth, pool);
  const NodePtr u = must(Dense::from(DType::f16, kRows, 64, std::span(w).first(kRows * 64)));
  const NodePtr v = must(Dense::from(DType::f16, 64, kCols, std::span(w).first(64 * kCols)));
  measure("sum(3 bit g16, low rank 64)", must(Sum::make({base, must(LowRank::make(u, v))})), bandwidth, pool);
  for (double sigma : {1.2, 2.0, 2.9}) {
    std::vector<int16_t> c(static_cast<size_t>(kRows * kCols));
    for (auto& q : c) q = static_cast<int16_t>(std::lround(sigma * normal()));
    const std::vector<uint8_t> row_log(kRows, 9), col_log(kCols, 5);
    measure(fmt::format("entropy-coded grid, {:.2f} bit of entropy", std::log2(sigma * 4.1327)).c_str(),
            must(Grid::make(*PackedCodes::pack(kRows, kCols, 16, -32768, c), {},
                            *RowColField::make(0.001f, row_log, col_log))),
            bandwidth, pool);
  }
  return 0;
}

}  // namespace
}  // namespace pith

int main(int argc, char** argv) { return pith::run(argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : 0); }
