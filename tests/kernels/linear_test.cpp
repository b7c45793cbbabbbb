// Every representation multiplies like its decoded matrix, with every instruction set that this CPU has.
#include "kernels/linear.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/ops.h"
#include "represent/samples.h"

namespace pith::test {
namespace {

double uniform(Random& random) { return static_cast<double>(random.next() >> 11) * 0x1p-53; }
double normal(Random& random) {
  const double u = uniform(random) + 1e-18, v = uniform(random);
  return std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * v);
}

LinearPtr prepared(const NodePtr& node, const KernelOptions& options) {
  auto made = prepare_linear(node, options);
  EXPECT_TRUE(made.ok()) << made.error().message;
  return std::move(made).value();
}

std::vector<float> random_floats(Random& random, int64_t n, double scale = 1) {
  std::vector<float> v(static_cast<size_t>(n));
  for (float& f : v) f = static_cast<float>(scale * normal(random));
  return v;
}

struct Product {
  std::vector<double> y, magnitude;  ///< sum of x w, and of |x w|
};

Product plain_product(const std::vector<float>& w, const std::vector<float>& x, int64_t n, int64_t rows, int64_t cols) {
  Product p;
  p.y.resize(static_cast<size_t>(n * rows));
  p.magnitude.resize(p.y.size());
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0, all = 0;
      for (int64_t j = 0; j < cols; ++j) {
        const double v =
            static_cast<double>(w[static_cast<size_t>(r * cols + j)]) * x[static_cast<size_t>(k * cols + j)];
        sum += v, all += std::abs(v);
      }
      p.y[static_cast<size_t>(k * rows + r)] = sum;
      p.magnitude[static_cast<size_t>(k * rows + r)] = all;
    }
  }
  return p;
}

std::vector<float> run(const Linear& linear, const std::vector<float>& x, int64_t n, unsigned threads = 1) {
  ThreadPool pool(threads);
  std::vector<float> y(static_cast<size_t>(n * linear.rows()), 123.0f);
  linear.multiply(x.data(), n, y.data(), pool);
  return y;
}

// Root mean square of the error over root mean square of the magnitudes' share that random rounding keeps.
double relative_error(const std::vector<float>& y, const std::vector<double>& want) {
  double error = 0, power = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    error += (y[i] - want[i]) * (y[i] - want[i]);
    power += want[i] * want[i];
  }
  return power > 0 ? std::sqrt(error / power) : std::sqrt(error);
}

// Grids and blocks as real matrices have them, beside the random trees of represent/samples.h.
std::vector<NodePtr> realistic_nodes(Random& random, int64_t rows, int64_t cols) {
  std::vector<NodePtr> nodes;
  const auto w = random_floats(random, rows * cols, 0.05);
  const auto add = [&](Result<NodePtr> node) {
    ASSERT_TRUE(node.ok()) << node.error().message;
    nodes.push_back(*node);
  };
  for (const GgmlTraits& t : all_ggml_types()) {
    if (t.writable && t.elements > 1 && cols % t.elements == 0) add(Blocks::quantize(t.type, rows, cols, w));
  }
  const auto codes = [&](int64_t columns, unsigned bits, int offset) {
    std::vector<int16_t> c(static_cast<size_t>(rows * columns));
    for (auto& v : c) v = static_cast<int16_t>(offset + random.between(0, (1 << bits) - 1));
    return *PackedCodes::pack(rows, columns, bits, offset, c);
  };
  const auto field = [&](int64_t group, DType type, double low, double high) {
    const int64_t groups = (cols + group - 1) / group;
    std::vector<float> v(static_cast<size_t>(rows * groups));
    for (float& f : v) f = static_cast<float>(low + (high - low) * uniform(random));
    return *AffineField::from(rows, cols, group, type, v);
  };
  for (unsigned bits = 1; bits <= 8; ++bits) {
    const int half = 1 << (bits - 1);
    add(Grid::make(codes(cols, bits, -half), {}, field(32, DType::f16, 0.01, 0.02)));
    add(Grid::make(codes(cols, bits, 0), {}, field(16, DType::f16, 0.01, 0.02), field(16, DType::f16, 0, half)));
    add(Grid::make(codes(cols, bits, 0), {}, field(64, DType::f32, 0.01, 0.02), field(64, DType::f32, 0, half)));
    add(Grid::make(codes(cols, bits, -half), {}, field(cols, DType::f32, 0.01, 0.02)));
  }
  add(Grid::make(codes(cols, 4, 0), {}, field(cols, DType::bf16, 0.01, 0.02), field(cols, DType::f16, 5, 9)));
  add(Grid::make(codes(cols, 4, 0), normal_float_levels(4), field(32, DType::f16, 0.01, 0.02)));
  {  // SpQR: two-level statistics, some rows of them cut short, and outliers
    const int64_t group = 16, stat = std::min<int64_t>(16, rows), groups = (cols + group - 1) / group,
                  stat_rows = (rows + stat - 1) / stat;
    const auto two_level = [&](float scale, float zero) {
      std::vector<float> stats(static_cast<size_t>(2 * stat_rows * groups));
      for (size_t i = 0; i < stats.size(); ++i) {
        stats[i] = (i < stats.size() / 2 ? scale : zero) * static_cast<float>(1 + uniform(random));
      }
      return *TwoLevelField::make(cols, group, stat, codes(groups, 3, 0),
                                  *FloatArray::from(DType::f16, stats, "statistics"));
    };
    add(Grid::make(codes(cols, 3, 0), {}, two_level(0.005f, -1.5f), two_level(0.6f, -0.5f)));
    std::vector<uint32_t> start = {0}, columns;
    std::vector<float> values;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        if (uniform(random) > 0.02) continue;
        columns.push_back(static_cast<uint32_t>(c));
        values.push_back(static_cast<float>(normal(random)));
      }
      start.push_back(static_cast<uint32_t>(columns.size()));
    }
    add(Override::make(nodes.back(), *Csr::from(rows, cols, start, columns, values)));
    const NodePtr spqr = nodes.back();
    std::vector<uint32_t> order(static_cast<size_t>(cols));
    for (uint32_t i = 0; i < order.size(); ++i) order[i] = (i * 7 + 3) % static_cast<uint32_t>(cols);
    if (cols % 7 != 0) add(Permuted::from(spqr, Axis::cols, order));
  }
  for (const auto& [books, bits, length] : {std::tuple<int64_t, unsigned, int64_t>{2, 3, 8}, {1, 9, 4}, {1, 4, 7}}) {
    const int64_t entries = int64_t{1} << bits, groups = (cols + length - 1) / length;
    add(Codebook::make(cols, books, entries, length, codes(groups * books, bits, 0),
                       *FloatArray::from(DType::f16, random_floats(random, books * entries * length, 0.05), "books")));
  }
  {  // entropy-coded grid: Gaussian codes of very different widths, a few far outside
    std::vector<uint8_t> row_log(static_cast<size_t>(rows)), col_log(static_cast<size_t>(cols));
    for (auto& l : row_log) l = static_cast<uint8_t>(random.between(0, 60));
    for (auto& l : col_log) l = static_cast<uint8_t>(random.between(0, 60));
    std::vector<int16_t> c(static_cast<size_t>(rows * cols));
    for (size_t i = 0; i < c.size(); ++i) {
      const double width = 0.5 + static_cast<double>(i / static_cast<size_t>(cols) / 16 % 3) * 4;
      c[i] = static_cast<int16_t>(std::lround(width * normal(random)));
      if (uniform(random) < 0.001) c[i] = static_cast<int16_t>(random.between(-32768, 32767));
    }
    add(Grid::make(*PackedCodes::pack(rows, cols, 16, -32768, c), {}, *RowColField::make(0.001f, row_log, col_log)));
  }
  for (DType type : {DType::f32, DType::f16, DType::bf16}) add(Dense::from(type, rows, cols, w));
  return nodes;
}

template <class Body>
void for_nodes(Body body) {
  uint64_t seed = 1;
  for (const SampleMaker& maker : sample_makers()) {
    for (int made = 0; made < 6; ++seed) {
      Random random(seed);
      const Sample sample = maker.make(random, random.between(1, 40), random.coin() ? 64 : random.between(1, 90), 2);
      if (sample.node == nullptr) continue;
      ++made;
      SCOPED_TRACE(std::string(maker.kind) + ", seed " + std::to_string(seed) + ": " + sample.node->describe());
      body(random, sample.node);
    }
  }
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{37, 256}, {16, 96}, {48, 100}, {5, 512}}) {
    Random random(static_cast<uint64_t>(rows));
    for (const NodePtr& node : realistic_nodes(random, rows, cols)) {
      SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(cols) + ": " + node->describe());
      body(random, node);
    }
  }
}

bool has_dynamic_int8(const Node& node) {
  if (node.kind() == "dynamic_int8") return true;
  for (const auto& child : node.children()) {
    if (has_dynamic_int8(*child)) return true;
  }
  return false;
}

TEST(Linear, ExactProductsEqualThoseOfTheDecodedMatrix) {
  for_nodes([](Random& random, const NodePtr& node) {
    const bool rounds = has_dynamic_int8(*node);
    const auto w = decode_all(*node);
    for (Isa isa : available_isas()) {
      const auto linear = prepare_linear(node, {Precision::exact, isa});
      ASSERT_TRUE(linear.ok()) << linear.error().message;
      for (int64_t n : {1, 3, 14, 33}) {
        const auto x = random_floats(random, n * node->cols());
        const auto y = run(**linear, x, n);
        const Product want = plain_product(w, x, n, node->rows(), node->cols());
        for (size_t i = 0; i < y.size(); ++i) {
          ASSERT_NEAR(y[i], want.y[i], (rounds ? 0.1 : 4e-6) * want.magnitude[i] + 1e-30)
              << isa_name(isa) << ", " << n << " tokens, place " << i << ", " << (*linear)->describe();
        }
      }
    }
  });
}

TEST(Linear, FastProductsStayWithinTheRoundingOfActivations) {
  Random random(3);
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{37, 256}, {64, 512}, {33, 100}}) {
    for (const NodePtr& node : realistic_nodes(random, rows, cols)) {
      SCOPED_TRACE(node->describe());
      const auto w = decode_all(*node);
      for (int64_t n : {1, 2, 7, 40}) {
        const auto x = random_floats(random, n * cols);
        const Product want = plain_product(w, x, n, rows, cols);
        for (Isa isa : available_isas()) {
          const auto linear = prepare_linear(node, {Precision::fast, isa});
          ASSERT_TRUE(linear.ok());
          // 8-bit rounding in groups of 32: error about max / 127 / sqrt(12) a value, 0.6 % of the rms; bf16: 0.2 %.
          // A grid whose zero is far from its values loses the digits that cancel.
          EXPECT_LT(relative_error(run(**linear, x, n), want.y), 0.02)
              << isa_name(isa) << ", " << n << " tokens, " << (*linear)->describe();
        }
      }
    }
  }
}

TEST(Linear, IntegerKernelsAgreeOnAllInstructionSets) {
  Random random(4);
  const int64_t rows = 32, cols = 256;
  for (const NodePtr& node : realistic_nodes(random, rows, cols)) {
    const auto scalar = prepared(node, {Precision::fast, Isa::scalar});
    for (int64_t n : {1, 2, 5}) {
      const auto x = random_floats(random, n * cols);
      const auto want = run(*scalar, x, n);
      std::vector<double> wide(want.begin(), want.end());
      for (Isa isa : available_isas()) {
        const auto linear = prepared(node, {Precision::fast, isa});
        const std::string kind = linear->describe();
        if (kind.find("int tiles") == std::string::npos && kind.find("coded tiles") == std::string::npos) continue;
        // AMX takes more than two tokens through bf16 where a kind has no integer products.
        const double bound = isa == Isa::amx && n > 2 ? 5e-3 : 2e-6;
        EXPECT_LT(relative_error(run(*linear, x, n), wide), bound) << isa_name(isa) << ", " << node->describe();
      }
    }
  }
}

TEST(Linear, RowsDecodeAndMemoryIsWhatWasPlanned) {
  for_nodes([](Random&, const NodePtr& node) {
    const auto linear = prepared(node, {});
    EXPECT_EQ(linear->ram_bytes(), planned_ram_bytes(*node)) << linear->describe();
    const auto w = decode_all(*node);
    std::vector<float> row(static_cast<size_t>(node->cols()));
    for (int64_t r = 0; r < node->rows(); ++r) {
      linear->decode_row(r, row.data());
      for (int64_t c = 0; c < node->cols(); ++c) {
        const float want = w[static_cast<size_t>(r * node->cols() + c)];
        ASSERT_NEAR(row[static_cast<size_t>(c)], want, 2e-5 * std::abs(want) + 1e-5) << r << ", " << c;
      }
    }
  });
}

TEST(Linear, ThreadsDoNotChangeTheResult) {
  Random random(5);
  for (const NodePtr& node : realistic_nodes(random, 200, 256)) {
    for (Precision precision : {Precision::exact, Precision::fast}) {
      const auto linear = prepared(node, {precision, {}});
      for (int64_t n : {1, 20}) {
        const auto x = random_floats(random, n * 256);
        const auto y = run(*linear, x, n);
        EXPECT_EQ(y, run(*linear, x, n, 2)) << node->describe();
        EXPECT_EQ(y, run(*linear, x, n, 3)) << node->describe();
      }
    }
  }
}

TEST(Linear, EntropyCodedGridStaysNearItsEntropy) {
  Random random(6);
  const int64_t rows = 576, cols = 1536;
  for (double sigma : {1.15, 1.5, 2.9, 6.0}) {
    std::vector<int16_t> c(static_cast<size_t>(rows * cols));
    for (auto& v : c) v = static_cast<int16_t>(std::lround(sigma * normal(random)));
    const std::vector<uint8_t> row_log(static_cast<size_t>(rows), 7), col_log(static_cast<size_t>(cols), 9);
    const NodePtr node =
        *Grid::make(*PackedCodes::pack(rows, cols, 16, -32768, c), {}, *RowColField::make(0.01f, row_log, col_log));
    std::vector<double> count(65536);
    for (auto v : c) ++count[static_cast<size_t>(v + 32768)];
    double entropy = 0;
    for (double k : count) {
      if (k > 0) entropy -= k * std::log2(k / static_cast<double>(c.size()));
    }
    EXPECT_LT(8.0 * static_cast<double>(planned_ram_bytes(*node)), 1.4 * entropy) << "sigma " << sigma;
  }
}

// Codes of all widths with a few far outside, steps that are powers of two, activations that 8 bits hold: every sum is
// an integer that fp32 holds, so that nothing may differ.
TEST(Linear, CodedTilesAreExact) {
  Random random(10);
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 1}, {1, 576}, {16, 32}, {5, 31}, {37, 100}, {64, 577}, {200, 64}}) {
    for (bool sorted_columns : {false, true}) {
      SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(cols));
      std::vector<uint8_t> row_log(static_cast<size_t>(rows)), col_log(static_cast<size_t>(cols), 32);
      for (auto& l : row_log) l = static_cast<uint8_t>(16 * random.between(0, 9));
      std::vector<int16_t> codes(static_cast<size_t>(rows * cols));
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          const int64_t bits = sorted_columns ? c % 9 : (r / 16 + c / 32) % 9;
          const int64_t low = bits == 0 ? 0 : -(int64_t{1} << (bits - 1)), high = bits == 0 ? 0 : -1 - low;
          int64_t code = random.between(low, high);
          if (uniform(random) < 0.01) code = random.between(-700, 700);
          codes[static_cast<size_t>(r * cols + c)] = static_cast<int16_t>(code);
        }
      }
      const NodePtr node =
          *Grid::make(*PackedCodes::pack(rows, cols, 16, -32768, codes), {}, *RowColField::make(1, row_log, col_log));
      const auto w = decode_all(*node);
      std::vector<float> row(static_cast<size_t>(cols));
      for (int64_t n : {1, 2, 7, 33}) {
        std::vector<float> x(static_cast<size_t>(n * cols));
        for (float& v : x) v = random.coin() ? 127.0f : -127.0f;
        const Product want = plain_product(w, x, n, rows, cols);
        const std::vector<float> y(want.y.begin(), want.y.end());
        for (Isa isa : available_isas()) {
          for (bool keep_rows : {false, true}) {
            for (Precision precision : {Precision::exact, Precision::fast}) {
              if (precision == Precision::fast && ops(isa).gemm_bf16 != nullptr && n > 7) continue;  // rounds to bf16
              const auto linear = prepared(node, {precision, isa, keep_rows});
              ASSERT_EQ(linear->describe().substr(0, 11), "coded tiles");
              ASSERT_EQ(run(*linear, x, n), y) << isa_name(isa) << ", " << n << " tokens";
              ASSERT_EQ(linear->ram_bytes(), planned_ram_bytes(*node, keep_rows));
              for (int64_t r = 0; r < rows; ++r) {
                linear->decode_row(r, row.data());
                ASSERT_TRUE(std::equal(row.begin(), row.end(), w.begin() + r * cols)) << "row " << r;
              }
            }
          }
        }
      }
    }
  }
}

// Steps 1 to 5 of LLM.int8() in double precision.
TEST(Linear, DynamicInt8FollowsThePaper) {
  Random random(7);
  const int64_t rows = 40, cols = 96, n = 6;
  std::vector<int16_t> codes(static_cast<size_t>(rows * cols));
  for (auto& v : codes) v = static_cast<int16_t>(random.between(-127, 127));
  std::vector<float> scale(static_cast<size_t>(rows));
  for (auto& s : scale) s = static_cast<float>(0.001 + 0.001 * uniform(random));
  const NodePtr grid = *Grid::make(*PackedCodes::pack(rows, cols, 8, -128, codes), {},
                                   *AffineField::from(rows, cols, cols, DType::f32, scale));
  for (float threshold : {6.0f, 0.0f}) {
    auto x = random_floats(random, n * cols);
    x[5] = 30;  // token 0, column 5
    x[3 * cols + 17] = -9;
    std::vector<double> want(static_cast<size_t>(n * rows));
    std::vector<bool> outlier(static_cast<size_t>(cols));
    for (int64_t i = 0; i < n * cols; ++i) {
      if (threshold > 0 && std::abs(x[static_cast<size_t>(i)]) >= threshold)
        outlier[static_cast<size_t>(i % cols)] = true;
    }
    for (int64_t t = 0; t < n; ++t) {
      double top = 0;
      for (int64_t j = 0; j < cols; ++j) {
        const double a = std::abs(x[static_cast<size_t>(t * cols + j)]);
        if (threshold <= 0 || a < threshold) top = std::max(top, a);
      }
      for (int64_t r = 0; r < rows; ++r) {
        double integers = 0, high = 0;
        for (int64_t j = 0; j < cols; ++j) {
          const double v = x[static_cast<size_t>(t * cols + j)], code = codes[static_cast<size_t>(r * cols + j)];
          if (outlier[static_cast<size_t>(j)]) {
            high += v * code;
          } else {
            integers += std::nearbyint(127 * v / top) * code;
          }
        }
        want[static_cast<size_t>(t * rows + r)] = (integers * top / 127 + high) * scale[static_cast<size_t>(r)];
      }
    }
    for (Isa isa : available_isas()) {
      const auto linear = prepared(*DynamicInt8::make(grid, threshold), {Precision::exact, isa});
      EXPECT_LT(relative_error(run(*linear, x, n), want), 1e-3) << isa_name(isa) << ", threshold " << threshold;
    }
  }
}

TEST(Linear, SeveralMatricesInOneRegion) {
  Random random(8);
  const auto nodes = realistic_nodes(random, 50, 256);
  std::vector<LinearPtr> held;
  std::vector<const Linear*> matrices;
  std::vector<std::vector<float>> ys;
  std::vector<float*> into;
  for (const auto& node : nodes) {
    held.push_back(prepared(node, {Precision::fast, {}}));
    matrices.push_back(held.back().get());
    ys.emplace_back(50 * 2);
  }
  for (auto& y : ys) into.push_back(y.data());
  const auto x = random_floats(random, 2 * 256);
  ThreadPool pool(2);
  multiply_all(matrices, x.data(), 2, into, pool);
  for (size_t i = 0; i < nodes.size(); ++i) EXPECT_EQ(ys[i], run(*matrices[i], x, 2)) << nodes[i]->describe();
}

TEST(Linear, RefusesAnInstructionSetThatIsNotThere) {
  if (available_isas().back() == Isa::amx) GTEST_SKIP() << "this CPU has them all";
  Random random(9);
  const NodePtr node = *Dense::from(DType::f32, 2, 2, std::vector<float>{1, 2, 3, 4});
  const auto linear = prepare_linear(node, {Precision::exact, Isa::amx});
  ASSERT_FALSE(linear.ok());
  EXPECT_EQ(linear.error().kind, ErrorKind::user);
}

}  // namespace
}  // namespace pith::test
