// Attention by tiles against the formula in double precision.
#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "represent/memory_sections.h"

namespace pith::test {
namespace {

struct Case {
  int64_t queries, dim, tokens;
  float softcap = 0;
  int64_t window = 0;
  bool bf16 = false;
  int64_t value_dim = 0;  // 0: dim
};

void check(const Case& c, Isa isa, double tolerance) {
  SCOPED_TRACE(std::string(isa_name(isa)) + ": " + std::to_string(c.queries) + " queries, dim " +
               std::to_string(c.dim) + ", " + std::to_string(c.tokens) + " tokens, window " + std::to_string(c.window));
  const Ops& o = ops(isa);
  Random random(static_cast<uint64_t>(c.queries * 1000 + c.dim + c.tokens));
  const auto floats = [&](int64_t n) {
    std::vector<float> v(static_cast<size_t>(n));
    for (float& f : v) f = random.real() * 1.5f;
    return v;
  };
  const int64_t width = c.value_dim > 0 ? c.value_dim : c.dim;
  const auto q = floats(c.queries * c.dim), k = floats(c.tokens * c.dim), v = floats(c.tokens * width);
  std::vector<int32_t> key_position(static_cast<size_t>(c.tokens)), position(static_cast<size_t>(c.queries));
  int32_t at = 0;
  for (auto& p : key_position) p = at += static_cast<int32_t>(random.between(1, 2));  // some tokens were dropped
  // The first query sees nothing, the last one everything.
  for (int64_t i = 0; i < c.queries; ++i) {
    position[static_cast<size_t>(i)] = static_cast<int32_t>(i * (at + 1) / std::max<int64_t>(c.queries - 1, 1));
  }
  if (c.queries == 1) position[0] = at;

  const int64_t padded = (c.queries + 15) / 16 * 16;
  std::vector<float> out(static_cast<size_t>(padded * width)), top(static_cast<size_t>(c.queries)), sum(top);
  std::vector<float> scratch(static_cast<size_t>(attention_scratch(c.queries, c.dim)) + 32, NAN);
  std::vector<uint16_t> narrow(static_cast<size_t>(padded * c.dim));
  AttentionQueries queries{q.data(), position.data(), c.queries, c.dim, width, c.softcap, c.window, nullptr};
  if (c.bf16) {
    o.f32_to_bf16(q.data(), c.queries * c.dim, narrow.data());
    queries.bf16 = narrow.data();
  }
  AttentionState state{out.data(), top.data(), sum.data()};
  attention_begin(queries, state);
  std::vector<int64_t> tiles((static_cast<size_t>(c.tokens) + kAttentionTile - 1) / kAttentionTile);
  std::iota(tiles.begin(), tiles.end(), 0);
  std::reverse(tiles.begin(), tiles.end());  // any order of tiles gives the same
  auto* aligned = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
  for (int64_t t : tiles) {
    const int64_t i = t * kAttentionTile, count = std::min(kAttentionTile, c.tokens - i);
    attention_tile(o, queries, k.data() + i * c.dim, v.data() + i * width, key_position.data() + i, count, aligned,
                   state);
  }
  attention_end(o, queries, state);

  for (int64_t i = 0; i < c.queries; ++i) {
    std::vector<double> want(static_cast<size_t>(width)), p(static_cast<size_t>(c.tokens));
    double total = 0;
    for (int64_t j = 0; j < c.tokens; ++j) {
      const int32_t kp = key_position[static_cast<size_t>(j)], qp = position[static_cast<size_t>(i)];
      if (kp > qp || (c.window > 0 && kp <= qp - c.window)) continue;
      double s = 0;
      for (int64_t d = 0; d < c.dim; ++d) {
        s += static_cast<double>(q[static_cast<size_t>(i * c.dim + d)]) * k[static_cast<size_t>(j * c.dim + d)];
      }
      if (c.softcap > 0) s = c.softcap * std::tanh(s / c.softcap);
      total += p[static_cast<size_t>(j)] = std::exp(s);
    }
    for (int64_t j = 0; j < c.tokens; ++j) {
      for (int64_t d = 0; d < width && total > 0; ++d) {
        want[static_cast<size_t>(d)] += p[static_cast<size_t>(j)] / total * v[static_cast<size_t>(j * width + d)];
      }
    }
    for (int64_t d = 0; d < width; ++d) {
      ASSERT_NEAR(out[static_cast<size_t>(i * width + d)], want[static_cast<size_t>(d)], tolerance)
          << "query " << i << ", channel " << d;
    }
    if (total > 0 && !c.bf16) {
      EXPECT_NEAR(top[static_cast<size_t>(i)] + std::log(sum[static_cast<size_t>(i)]), std::log(total), 1e-4);
    }
  }
}

TEST(Attention, EqualsTheFormula) {
  for (Isa isa : available_isas()) {
    for (int64_t queries : {1, 3, 7, 24}) {
      for (int64_t dim : {8, 16, 22, 64}) {
        for (int64_t tokens : {1, 64, 150}) {
          check({queries, dim, tokens, 0, 0, false, 40}, isa, 2e-5);
          check({queries, dim, tokens}, isa, 2e-5);
          check({queries, dim, tokens, 5.0f, 0}, isa, 2e-5);
          check({queries, dim, tokens, 0, 20}, isa, 2e-5);
        }
      }
    }
  }
}

TEST(Attention, TilesOfBf16StayClose) {
  for (Isa isa : available_isas()) {
    for (int64_t queries : {12, 37, 96}) {
      for (int64_t dim : {32, 64, 128}) {
        if (!attention_takes_bf16(ops(isa), queries, dim, dim)) continue;
        for (int64_t tokens : {1, 31, 64, 77, 150}) {
          check({queries, dim, tokens, 0, 0, true, 96}, isa, 0.06);
          check({queries, dim, tokens, 0, 0, true}, isa, 0.06);
          check({queries, dim, tokens, 5.0f, 20, true}, isa, 0.06);
        }
      }
    }
  }
}

}  // namespace
}  // namespace pith::test
