// Coded rows of keys and values: rounding errors within half a step, every instruction set like the reference, and
// attention on codes like attention on what they decode to.
#include "kernels/kv_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/half.h"
#include "kernels/attention.h"
#include "represent/memory_sections.h"

namespace pith::test {
namespace {

std::vector<float> floats(Random& random, int64_t n, float by = 1.5f) {
  std::vector<float> v(static_cast<size_t>(n));
  for (float& f : v) f = random.real() * by;
  return v;
}

struct Stored {
  KvGrid grid;
  int64_t dim;
  std::vector<uint8_t> codes;
  std::vector<uint16_t> d, m;
  Stored(const KvGrid& g, const std::vector<float>& rows, int64_t width) : grid(g), dim(width) {
    const int64_t n = static_cast<int64_t>(rows.size()) / dim;
    codes.resize(static_cast<size_t>(n * kv_row_bytes(g, dim)));
    d.resize(static_cast<size_t>(kv_scales(g, n, dim)));
    if (!g.centred) m.resize(d.size());
    kv_encode(g, rows.data(), n, dim, codes.data(), d.data(), m.data());
  }
  KvRows view() const { return {grid, dim, codes.data(), d.data(), grid.centred ? nullptr : m.data()}; }
};

const std::vector<KvGrid>& grids() {
  static const std::vector<KvGrid> all = {{8, false, true, 32},  {4, false, true, 32},  {2, false, true, 32},
                                          {8, false, false, 16}, {4, false, false, 64}, {2, false, false, 600},
                                          {8, true, true, 32},   {4, true, false, 32},  {2, true, false, 16}};
  return all;
}

TEST(KvRows, RoundsToTheNearestStep) {
  Random random(5);
  for (const KvGrid& g : grids()) {
    for (int64_t dim : {16, 22, 64, 80}) {
      if (!kv_grid_fits(g, dim)) continue;
      const int64_t n = 70;  // the last group along channels is short
      const auto rows = floats(random, n * dim);
      const Stored stored(g, rows, dim);
      std::vector<float> back(rows.size());
      kv_row_ops_scalar().decode(stored.view(), 0, n, back.data());
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t c = 0; c < dim; ++c) {
          const int64_t at = g.by_channel ? i / g.group * dim + c : i * kv_row_groups(g, dim) + c / g.group;
          const float step = std::fabs(half_to_float(stored.d[static_cast<size_t>(at)]));
          const auto k = static_cast<size_t>(i * dim + c);
          // A centred grid reaches one step less far on the side of its sign, and fp16 rounds its ends.
          const float most = g.centred && g.bits < 8 ? 1.02f * step : 0.52f * step;
          ASSERT_LE(std::fabs(back[k] - rows[k]), most) << int{g.bits} << " bits, dim " << dim;
        }
      }
      const Stored again(g, back, dim);
      EXPECT_EQ(again.codes, stored.codes) << "what was rounded once stays";
    }
  }
}

TEST(KvRows, LayoutIsFixed) {
  // One row of 16 channels at 4 bits: byte j holds channels j and j + 8. Scale 15 / 15 = 1 from 0.
  std::vector<float> row(16);
  for (int i = 0; i < 16; ++i) row[static_cast<size_t>(i)] = static_cast<float>(i);
  const Stored stored({4, false, false, 16}, row, 16);
  EXPECT_EQ(stored.codes, (std::vector<uint8_t>{0x80, 0x91, 0xa2, 0xb3, 0xc4, 0xd5, 0xe6, 0xf7}));
  EXPECT_EQ(half_to_float(stored.d[0]), 1.0f);
  EXPECT_EQ(half_to_float(stored.m[0]), 0.0f);
}

TEST(KvRows, EveryInstructionSetLikeTheReference) {
  Random random(6);
  const KvRowOps& reference = kv_row_ops_scalar();
  for (Isa isa : available_isas()) {
    const KvRowOps& o = kv_row_ops(isa);
    for (const KvGrid& g : grids()) {
      for (int64_t dim : {16, 22, 64, 128}) {
        if (!kv_grid_fits(g, dim)) continue;
        SCOPED_TRACE(testing::Message() << isa_name(isa) << ", " << int{g.bits} << " bits, dim " << dim);
        const int64_t n = 150;
        const Stored stored(g, floats(random, n * dim), dim);
        std::vector<float> a(static_cast<size_t>(n * dim)), b(a);
        o.decode(stored.view(), 3, n, a.data());
        reference.decode(stored.view(), 3, n, b.data());
        for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-5);
        for (int64_t queries = 1; queries <= kKvFewQueries; ++queries) {
          for (auto [i0, count] : {std::pair<int64_t, int64_t>{0, 64}, {64, 64}, {128, 22}, {30, 7}}) {
            const auto q = floats(random, queries * dim), p = floats(random, queries * kKvTile);
            std::vector<float> s(static_cast<size_t>(queries * kKvTile)), want(s);
            o.dot(stored.view(), i0, count, q.data(), queries, s.data(), kKvTile);
            reference.dot(stored.view(), i0, count, q.data(), queries, want.data(), kKvTile);
            for (size_t i = 0; i < s.size(); ++i) ASSERT_NEAR(s[i], want[i], 2e-4);
            if (g.by_channel) continue;
            auto out = floats(random, queries * dim), expected = out;
            o.axpy(stored.view(), i0, count, p.data(), kKvTile, queries, out.data());
            reference.axpy(stored.view(), i0, count, p.data(), kKvTile, queries, expected.data());
            for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected[i], 4e-4);
          }
        }
      }
    }
  }
}

TEST(KvRows, HadamardIsItsOwnInverseAndKeepsProducts) {
  Random random(7);
  for (int64_t dim : {1, 22, 64, 96, 128}) {
    const auto a = floats(random, 3 * dim), b = floats(random, 3 * dim);
    auto ha = a, hb = b;
    hadamard_rows(ha.data(), 3, dim);
    hadamard_rows(hb.data(), 3, dim);
    double before = 0, after = 0;
    for (size_t i = 0; i < a.size(); ++i) before += double{a[i]} * b[i], after += double{ha[i]} * hb[i];
    EXPECT_NEAR(before, after, 1e-4);
    hadamard_rows(ha.data(), 3, dim);
    for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(ha[i], a[i], 1e-5);
  }
  std::vector<float> spike(64, 0.0f);
  spike[5] = 8;
  hadamard_rows(spike.data(), 1, 64);
  for (float v : spike) EXPECT_EQ(std::fabs(v), 1.0f);
}

// A half of the tokens coded and rotated, the other half plain, each with its own sums: like all of them decoded.
TEST(KvRows, AttentionOnCodesLikeOnWhatTheyDecodeTo) {
  Random random(8);
  for (Isa isa : available_isas()) {
    const Ops& o = ops(isa);
    for (int64_t queries : {1, 3, 5, 9, 40}) {
      for (const KvGrid& g : grids()) {
        const KvGrid values{g.bits, false, g.centred, 32};
        const int64_t dim = 64, n = 100, padded = (queries + 15) / 16 * 16;
        const auto q = floats(random, queries * dim, 0.5f), k = floats(random, 2 * n * dim),
                   v = floats(random, 2 * n * dim);
        std::vector<float> turned_k(k.begin(), k.begin() + n * dim), turned_v(v.begin(), v.begin() + n * dim);
        hadamard_rows(turned_k.data(), n, dim);
        hadamard_rows(turned_v.data(), n, dim);
        const Stored keys(g, turned_k, dim), vals(values, turned_v, dim);
        std::vector<float> wide_k = k, wide_v = v;
        kv_row_ops(isa).decode(keys.view(), 0, n, wide_k.data());
        kv_row_ops(isa).decode(vals.view(), 0, n, wide_v.data());
        hadamard_rows(wide_k.data(), n, dim);
        hadamard_rows(wide_v.data(), n, dim);
        std::vector<int32_t> at(static_cast<size_t>(2 * n)), asks(static_cast<size_t>(queries), int32_t(2 * n));
        for (size_t i = 0; i < at.size(); ++i) at[i] = static_cast<int32_t>(i);
        for (size_t i = 1; i < asks.size(); i += 2) asks[i] = 70;  // does not see all
        std::vector<float> scratch(static_cast<size_t>(attention_scratch(queries, dim)));
        std::vector<float> tile(static_cast<size_t>(kAttentionTile * 2 * dim));
        struct Sums {
          std::vector<float> out, top, sum;
          AttentionState state() { return {out.data(), top.data(), sum.data()}; }
        };
        const auto room = [&] {
          return Sums{std::vector<float>(static_cast<size_t>(padded * dim)),
                      std::vector<float>(static_cast<size_t>(padded)), std::vector<float>(static_cast<size_t>(padded))};
        };
        Sums want = room(), plain = room(), coded = room();
        const AttentionQueries ask{q.data(), asks.data(), queries, dim, dim, 0, 0, nullptr};
        attention_begin(ask, want.state());
        for (int64_t i = 0; i < 2 * n; i += kAttentionTile) {
          attention_tile(o, ask, wide_k.data() + i * dim, wide_v.data() + i * dim, at.data() + i,
                         std::min(kAttentionTile, 2 * n - i), scratch.data(), want.state());
        }
        auto turned_q = q;
        hadamard_rows(turned_q.data(), queries, dim);
        AttentionQueries ask_turned = ask;
        ask_turned.q = turned_q.data();
        attention_begin(ask, plain.state());
        attention_begin(ask, coded.state());
        for (int64_t i = 0; i < n; i += kAttentionTile) {
          const int64_t count = std::min(kAttentionTile, n - i);
          attention_tile(o, ask, k.data() + (n + i) * dim, v.data() + (n + i) * dim, at.data() + n + i, count,
                         scratch.data(), plain.state());
          attention_tile_coded(o, kv_row_ops(isa), ask_turned, keys.view(), vals.view(), i, at.data() + i, count,
                               scratch.data(), tile.data(), coded.state());
        }
        hadamard_rows(coded.out.data(), queries, dim);
        attention_merge(o, ask, coded.state(), plain.state());
        for (int64_t i = 0; i < queries; ++i) {
          const auto row = static_cast<size_t>(i);
          ASSERT_NEAR(plain.top[row] + std::log(plain.sum[row]), want.top[row] + std::log(want.sum[row]), 1e-4);
        }
        attention_end(o, ask, want.state());
        attention_end(o, ask, plain.state());
        for (int64_t i = 0; i < queries * dim; ++i) {
          ASSERT_NEAR(plain.out[static_cast<size_t>(i)], want.out[static_cast<size_t>(i)], 2e-4)
              << isa_name(isa) << ", " << queries << " queries, " << int{g.bits} << " bits";
        }
      }
    }
  }
}

}  // namespace
}  // namespace pith::test
