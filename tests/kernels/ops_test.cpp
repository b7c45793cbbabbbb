// The loops of every instruction set against plain formulas, at all lengths around the register sizes.
#include "kernels/ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <vector>

#include "base/half.h"
#include "represent/memory_sections.h"

namespace pith::test {
namespace {

std::vector<float> floats(Random& random, int64_t n, float scale) {
  std::vector<float> v(static_cast<size_t>(n));
  for (float& f : v) f = random.real() * scale;
  return v;
}

template <class Body>
void each_isa(Body body) {
  for (Isa isa : available_isas()) {
    SCOPED_TRACE(isa_name(isa));
    Random random(11);
    body(ops(isa), random);
  }
}

TEST(Ops, ElementwiseFunctions) {
  each_isa([](const Ops& o, Random& random) {
    for (int64_t n : {1, 3, 4, 7, 8, 15, 16, 17, 31, 33, 100}) {
      const auto a = floats(random, n, 12), b = floats(random, n, 2);
      auto silu = a, gelu = a, cap = a, added = a, scaled = a, axpy = a, e = a;
      o.silu_mul(silu.data(), b.data(), n);
      o.gelu_mul(gelu.data(), b.data(), n);
      o.softcap(cap.data(), n, 5.0f);
      o.add(b.data(), n, added.data());
      o.scale(scaled.data(), n, -1.5f);
      o.axpy(0.5f, b.data(), n, axpy.data());
      const float top = o.max(a.data(), n);
      EXPECT_EQ(top, *std::max_element(a.begin(), a.end()));
      const double sum = o.exp_sum(e.data(), n, top);
      double dot = 0, squares = 0, exps = 0;
      for (size_t i = 0; i < a.size(); ++i) {
        const double x = a[i], y = b[i];
        EXPECT_NEAR(silu[i], x / (1 + std::exp(-x)) * y, 1e-5);
        EXPECT_NEAR(gelu[i], 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))) * y, 1e-5);
        EXPECT_NEAR(cap[i], 5 * std::tanh(x / 5), 5e-6);
        EXPECT_EQ(added[i], a[i] + b[i]);
        EXPECT_EQ(scaled[i], a[i] * -1.5f);
        EXPECT_NEAR(axpy[i], x + 0.5 * y, 1e-6);
        EXPECT_NEAR(e[i], std::exp(x - top), 3e-7);
        dot += x * y, squares += x * x, exps += std::exp(x - top);
      }
      EXPECT_NEAR(sum, exps, 1e-6 * static_cast<double>(n));
      EXPECT_NEAR(o.dot(a.data(), b.data(), n), dot, 1e-4);
      std::vector<float> norm(a.size());
      o.rms_norm(a.data(), b.data(), n, 1e-5f, norm.data());
      for (size_t i = 0; i < a.size(); ++i) {
        EXPECT_NEAR(norm[i], a[i] * b[i] / std::sqrt(squares / static_cast<double>(n) + 1e-5), 1e-5);
      }
    }
  });
}

TEST(Ops, ExtremeArgumentsStayFinite) {
  each_isa([](const Ops& o, Random&) {
    std::vector<float> x = {1e30f, -1e30f, 88.0f, -88.0f, 0.0f, 1e4f, -1e4f, 3e38f, -3e38f};
    const std::vector<float> ones(x.size(), 1.0f);
    auto silu = x, cap = x, e = x;
    o.silu_mul(silu.data(), ones.data(), 9);
    o.softcap(cap.data(), 9, 30.0f);
    EXPECT_GE(o.exp_sum(e.data(), 9, 3e38f), 1.0f);
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_TRUE(std::isfinite(cap[i]) && std::isfinite(e[i]) && std::isfinite(silu[i])) << x[i];
      EXPECT_LE(std::abs(cap[i]), 30.001f);
    }
  });
}

TEST(Ops, RotationKeepsLengthsAndTurnsPairs) {
  each_isa([](const Ops& o, Random& random) {
    for (int64_t half : {1, 4, 5, 16, 32, 37}) {
      const auto x = floats(random, 2 * half, 3), angle = floats(random, half, 3);
      std::vector<float> c, s;
      for (float a : angle) c.push_back(std::cos(a)), s.push_back(std::sin(a));
      auto y = x;
      o.rope(y.data(), c.data(), s.data(), half);
      for (size_t i = 0; i < c.size(); ++i) {
        const size_t j = i + static_cast<size_t>(half);
        EXPECT_NEAR(y[i], x[i] * c[i] - x[j] * s[i], 1e-6);
        EXPECT_NEAR(y[j], x[j] * c[i] + x[i] * s[i], 1e-6);
      }
    }
  });
}

TEST(Ops, HalfPrecisionConversionsAreTheReferences) {
  each_isa([](const Ops& o, Random& random) {
    std::vector<uint16_t> all;
    for (uint32_t h = 0; h < 65536; ++h) {
      if ((h & 0x7c00u) != 0x7c00u) all.push_back(static_cast<uint16_t>(h));  // finite ones
    }
    std::vector<float> wide(all.size());
    o.half_to_f32(all.data(), static_cast<int64_t>(all.size()), wide.data());
    std::vector<uint16_t> back(all.size());
    o.f32_to_half(wide.data(), static_cast<int64_t>(all.size()), back.data());
    EXPECT_EQ(back, all);
    for (size_t i = 0; i < all.size(); ++i) ASSERT_EQ(wide[i], half_to_float(all[i]));
    for (int64_t n : {1, 7, 16, 33}) {
      const auto x = floats(random, n, 100);
      std::vector<uint16_t> h(x.size()), b(x.size());
      o.f32_to_half(x.data(), n, h.data());
      for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(h[i], float_to_half(x[i]));
      if (o.f32_to_bf16 == nullptr) continue;
      o.f32_to_bf16(x.data(), n, b.data());
      for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(b[i], float_to_bf16(x[i]));
    }
  });
}

TEST(Ops, ActivationsRoundToEightBits) {
  each_isa([](const Ops& o, Random& random) {
    auto x = floats(random, 4 * 32, 3);
    std::fill(x.begin() + 32, x.begin() + 64, 0.0f);
    x[70] = -40;
    std::vector<int8_t> q(x.size());
    std::vector<float> d(4), s(8);
    o.quantize(x.data(), 4, q.data(), d.data(), s.data());
    for (size_t c = 0; c < 4; ++c) {
      float top = 0;
      for (size_t i = 0; i < 32; ++i) top = std::max(top, std::abs(x[c * 32 + i]));
      EXPECT_FLOAT_EQ(d[c], top / 127);
      for (size_t h = 0; h < 2; ++h) {
        int sum = 0;
        for (size_t i = c * 32 + h * 16; i < c * 32 + h * 16 + 16; ++i) {
          EXPECT_LE(std::abs(q[i] * d[c] - x[i]), d[c] * 0.5001f);
          sum += q[i];
        }
        EXPECT_FLOAT_EQ(s[2 * c + h], d[c] * static_cast<float>(sum));
      }
    }
  });
}

TEST(Ops, MatrixKernelsAndPanels) {
  each_isa([](const Ops& o, Random& random) {
    for (int64_t m : {1, 2, 5, 12, 13, 30}) {
      for (int64_t k : {1, 17, 64}) {
        const auto a = floats(random, m * (k + 3), 1), panel = floats(random, k * 16, 1);
        std::vector<float> c(static_cast<size_t>(m * 20), 2.0f), sum(c);
        o.gemm_f32(a.data(), k + 3, m, panel.data(), 16, k, c.data(), 20, false);
        o.gemm_f32(a.data(), k + 3, m, panel.data(), 16, k, sum.data(), 20, true);
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t r = 0; r < 20; ++r) {
            double want = 0;
            for (int64_t j = 0; j < k && r < 16; ++j) {
              want +=
                  static_cast<double>(a[static_cast<size_t>(i * (k + 3) + j)]) * panel[static_cast<size_t>(j * 16 + r)];
            }
            const auto at = static_cast<size_t>(i * 20 + r);
            EXPECT_NEAR(c[at], r < 16 ? want : 2.0, 1e-5);
            EXPECT_NEAR(sum[at], r < 16 ? want + 2 : 2.0, 1e-5);
          }
        }
      }
    }
    for (int64_t rows : {0, 1, 9, 16}) {
      const auto in = floats(random, 16 * 40, 1);
      std::vector<float> out(33 * 16, -1.0f);
      o.transpose16(in.data(), 40, rows, 33, out.data());
      for (int64_t j = 0; j < 33; ++j) {
        for (int64_t r = 0; r < 16; ++r) {
          EXPECT_EQ(out[static_cast<size_t>(j * 16 + r)], r < rows ? in[static_cast<size_t>(r * 40 + j)] : 0.0f);
        }
      }
    }
    if (o.pack_bf16 == nullptr) return;
    const auto panel = floats(random, 64 * 20, 1), rows = floats(random, 16 * 70, 1);
    std::vector<uint16_t> packed(64 * 16), turned(64 * 16);
    o.pack_bf16(panel.data(), 20, 63, packed.data());
    o.pack_rows_bf16(rows.data(), 70, 64, turned.data());
    for (size_t j = 0; j < 64; ++j) {
      for (size_t r = 0; r < 16; ++r) {
        const size_t at = j / 2 * 32 + r * 2 + j % 2;
        EXPECT_EQ(packed[at], j < 63 ? float_to_bf16(panel[j * 20 + r]) : 0);
        EXPECT_EQ(turned[at], float_to_bf16(rows[r * 70 + j]));
      }
    }
    for (int64_t m : {16, 32, 48}) {
      for (bool add : {false, true}) {
        std::vector<uint16_t> a(static_cast<size_t>(m * 64));
        for (auto& v : a) v = float_to_bf16(random.real());
        std::vector<float> c(static_cast<size_t>(m * 40), 3.0f);
        o.gemm_bf16(a.data(), 64, m, packed.data(), turned.data(), 64, c.data(), 40, add);
        for (size_t i = 0; i < static_cast<size_t>(m); ++i) {
          for (size_t r = 0; r < 40; ++r) {
            double want = r >= 32 || add ? 3 : 0;
            for (size_t j = 0; j < 64 && r < 32; ++j) {
              const auto& w = r < 16 ? packed : turned;
              want +=
                  static_cast<double>(bf16_to_float(a[i * 64 + j])) * bf16_to_float(w[j / 2 * 32 + r % 16 * 2 + j % 2]);
            }
            EXPECT_NEAR(c[i * 40 + r], want, 1e-4);
          }
        }
      }
    }
  });
}

TEST(Cpu, NamesAndOrder) {
  const auto& isas = available_isas();
  ASSERT_FALSE(isas.empty());
  EXPECT_EQ(isas.front(), Isa::scalar);
  for (size_t i = 1; i < isas.size(); ++i) EXPECT_LT(isas[i - 1], isas[i]);
  for (Isa isa : isas) EXPECT_EQ(isa_from_name(isa_name(isa)), isa);
  EXPECT_FALSE(isa_from_name("avx1024").has_value());
  if (std::getenv("PITH_ISA") == nullptr) {
    EXPECT_EQ(default_isa(), isas.back());
  }
}

}  // namespace
}  // namespace pith::test
