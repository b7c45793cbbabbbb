// The loops over integer codes, written once over a handful of primitives of the instruction set: a register of 16
// lanes (or two of 8) that holds one number a row. Included like vector_ops.h, after these are defined:
//   struct F16          16 floats: load/store/splat/half/from_i8/from_u8, +, *, fma, smaller
//   struct I16          16 integers: u16/u8 from memory, +, bits above and below (signed), gather
//   struct Levels<Table>       the table of 16 levels in a register, when there is one
//   struct Quads<Bits, Table>  the 8 quads of a chunk as bytes, unpacked from its planes:
//     dot<A, B>(x)             sum over quads [A, B) of (level - kBias) * x, as F16
//     dot_once(p, levels, x)   the same of all quads, without keeping them
//     levels4(q, w)            the four columns of a quad as floats, no bias

/// d and m - zero * d of groups [g0, g1) of a tile.
void tile_scales(const IntTile& t, int zero_level, int64_t g0, int64_t g1, float* d, float* m) {
  const F16 zero = F16::splat(static_cast<float>(zero_level));
  for (int64_t g = g0; g < g1; ++g, d += kTileRows, m += kTileRows) {
    const int64_t at = g * kTileRows, super = g / t.groups_per_super * kTileRows;
    F16 dv = F16::splat(0), mv = F16::splat(0);
    switch (t.scale) {
      case ScaleKind::row:
        dv = F16::load(t.row_scale);
        break;
      case ScaleKind::f32:
        dv = F16::load(t.d32 + at);
        if (t.min == MinKind::add) mv = F16::load(t.m32 + at);
        if (t.min == MinKind::zero) mv = F16::splat(0) - dv * F16::load(t.m32 + at);
        break;
      case ScaleKind::f16:
        dv = F16::half(t.d + at);
        if (t.min == MinKind::add) mv = F16::half(t.m + at);
        if (t.min == MinKind::zero) mv = F16::splat(0) - dv * F16::half(t.m + at);
        break;
      case ScaleKind::block:
        dv = F16::half(t.d + super) * F16::from_i8(t.d_code + at);
        if (t.min != MinKind::none) mv = F16::splat(0) - F16::half(t.m + super) * F16::from_u8(t.m_code + at);
        break;
      case ScaleKind::two_level:
        dv = F16::splat_half(t.d_stats[2 * g]) *
             (F16::from_u8(reinterpret_cast<const uint8_t*>(t.d_code) + at) - F16::splat_half(t.d_stats[2 * g + 1]));
        if (t.min != MinKind::none) {
          mv = F16::splat(0) - dv * (F16::splat_half(t.m_stats[2 * g]) *
                                     (F16::from_u8(t.m_code + at) - F16::splat_half(t.m_stats[2 * g + 1])));
        }
        break;
    }
    dv.store(d);
    (mv - zero * dv).store(m);
  }
}

constexpr int64_t kScaleBlock = 32;  // groups whose scales are held on the stack at a time

// Weights are read once and in order; asking for them early lifts one core's share of the memory bandwidth by a third.
template <int Bits>
inline void prefetch_codes(const uint8_t* chunk) {
  constexpr int kAhead = Bits * 512;  // eight chunks
  for (int i = 0; i < Bits; ++i) __builtin_prefetch(chunk + kAhead + 64 * i);
}

// The sums of a chunk with N tokens.
template <int Bits, bool Table, int N>
inline void dot_chunk(const uint8_t* codes, const Levels<Table>& levels, const int8_t* q, int64_t stride, F16* dots) {
  using Unpacked = Quads<Bits, Table>;
  if constexpr (N == 1) {
    dots[0] = Unpacked::dot_once(codes, levels, q);
  } else {
    const Unpacked u(codes, levels);
    for (int k = 0; k < N; ++k) dots[k] = u.template dot<0, 8>(q + k * stride);
  }
}

// sum[k] += level * x and total[k] += x over chunks [c0, c1) of `stride` chunks of x a token; codes are those of c0.
template <int Bits, bool Table, int N>
inline void dot_chunks(const uint8_t* codes, const Levels<Table>& levels, const IntInput& x, int64_t stride, int64_t c0,
                       int64_t c1, F16* sum, float* total) {
  for (int64_t c = c0; c < c1; ++c, codes += Bits * 64) {
    prefetch_codes<Bits>(codes);
    F16 dots[N];
    dot_chunk<Bits, Table, N>(codes, levels, x.q + c * kChunk, stride * kChunk, dots);
    for (int k = 0; k < N; ++k) {
      const int64_t at = k * stride + c;
      sum[k] = fma(dots[k], F16::splat(x.d[at]), sum[k]);
      total[k] += x.s[2 * at] + x.s[2 * at + 1];
    }
  }
}

template <int Bits, bool Table, int N>
void dot_tile(const IntTile& t, const IntInput& x, float* y, int64_t ldy) {
  alignas(64) float d[kScaleBlock * kTileRows], m[kScaleBlock * kTileRows];
  const int64_t halves = 2 * t.chunks, gh = t.group_halves, groups = (halves + gh - 1) / gh;
  F16 out[N];
  for (int k = 0; k < N; ++k) out[k] = F16::splat(0);
  const Levels<Table> levels(t.table);
  for (int64_t g0 = 0; g0 < groups; g0 += kScaleBlock) {
    const int64_t g1 = g0 + kScaleBlock < groups ? g0 + kScaleBlock : groups;
    tile_scales(t, t.zero - Quads<Bits, Table>::kBias, g0, g1, d, m);
    if (gh == 1) {  // two groups a chunk
      for (int64_t g = g0; g < g1; g += 2) {
        const int64_t c = g / 2;
        prefetch_codes<Bits>(t.codes + c * Bits * 64);
        const Quads<Bits, Table> u(t.codes + c * Bits * 64, levels);
        const float *d0 = d + (g - g0) * kTileRows, *m0 = m + (g - g0) * kTileRows;
        const bool second = g + 1 < g1;
        for (int k = 0; k < N; ++k) {
          const int8_t* q = x.q + (k * t.chunks + c) * kChunk;
          const float dx = x.d[k * t.chunks + c];
          const float* sx = x.s + 2 * (k * t.chunks + c);
          out[k] = fma(u.template dot<0, 4>(q) * F16::splat(dx), F16::load(d0), out[k]);
          out[k] = fma(F16::splat(sx[0]), F16::load(m0), out[k]);
          if (second) {
            out[k] = fma(u.template dot<4, 8>(q) * F16::splat(dx), F16::load(d0 + kTileRows), out[k]);
            out[k] = fma(F16::splat(sx[1]), F16::load(m0 + kTileRows), out[k]);
          }
        }
      }
      continue;
    }
    const int64_t gc = gh / 2;  // chunks of a group
    for (int64_t g = g0; g < g1; ++g) {
      F16 sum[N];
      float total[N] = {};
      for (int k = 0; k < N; ++k) sum[k] = F16::splat(0);
      const int64_t c1 = (g + 1) * gc < t.chunks ? (g + 1) * gc : t.chunks;
      dot_chunks<Bits, Table, N>(t.codes + g * gc * Bits * 64, levels, x, t.chunks, g * gc, c1, sum, total);
      for (int k = 0; k < N; ++k) {
        out[k] = fma(sum[k], F16::load(d + (g - g0) * kTileRows), out[k]);
        out[k] = fma(F16::splat(total[k]), F16::load(m + (g - g0) * kTileRows), out[k]);
      }
    }
  }
  for (int k = 0; k < N; ++k) out[k].store(y + k * ldy);
}

// Groups of one chunk with fp16 numbers, as most GGUF types have them: their scales go straight into the sums.
template <int Bits, bool Table, int N>
void dot_tile_f16(const IntTile& t, const IntInput& x, float* y, int64_t ldy) {
  const Levels<Table> levels(t.table);
  const auto zero = static_cast<float>(t.zero - Quads<Bits, Table>::kBias);
  F16 out[N];
  for (int k = 0; k < N; ++k) out[k] = F16::splat(0);
  for (int64_t c = 0; c < t.chunks; ++c) {
    prefetch_codes<Bits>(t.codes + c * Bits * 64);
    F16 dots[N];
    dot_chunk<Bits, Table, N>(t.codes + c * Bits * 64, levels, x.q + c * kChunk, t.chunks * kChunk, dots);
    const F16 d = F16::half(t.d + c * kTileRows);
    const F16 m = t.min == MinKind::none ? F16::splat(0) : F16::half(t.m + c * kTileRows);
    for (int k = 0; k < N; ++k) {
      const int64_t at = k * t.chunks + c;
      const float s = x.s[2 * at] + x.s[2 * at + 1];
      F16 sum = fma(dots[k], F16::splat(x.d[at]), F16::splat(-zero * s));
      if (t.min == MinKind::zero) sum = sum - m * F16::splat(s);
      if (t.min == MinKind::add) out[k] = fma(F16::splat(s), m, out[k]);
      out[k] = fma(sum, d, out[k]);
    }
  }
  for (int k = 0; k < N; ++k) out[k].store(y + k * ldy);
}

// call<N>(x and y from token k on) for 4, 2 or 1 tokens at a time.
template <class Call>
void by_tokens(const IntTile& t, const IntInput& x, int64_t n, float* y, int64_t ldy, Call call) {
  int64_t k = 0;
  const auto from = [&](int64_t i) {
    return IntInput{x.q + i * t.chunks * kChunk, x.d + i * t.chunks, x.s + i * t.chunks * 2};
  };
  for (; k + 4 <= n; k += 4) call.template operator()<4>(from(k), y + k * ldy);
  for (; k + 2 <= n; k += 2) call.template operator()<2>(from(k), y + k * ldy);
  for (; k < n; ++k) call.template operator()<1>(from(k), y + k * ldy);
}

// Calls sink(column, weights of the 16 rows) for all columns of a tile.
template <int Bits, bool Table, class Sink>
void decode_tile(const IntTile& t, Sink sink) {
  alignas(64) float d[kTileRows], m[kTileRows];
  const Levels<Table> levels(t.table);
  const int64_t gh = t.group_halves;
  F16 dv = F16::splat(0), mv = F16::splat(0);
  for (int64_t c = 0; c < t.chunks; ++c) {
    const Quads<Bits, Table> u(t.codes + c * Bits * 64, levels);
    for (int half = 0; half < 2; ++half) {
      const int64_t h = 2 * c + half;
      if (h % gh == 0) {
        tile_scales(t, t.zero, h / gh, h / gh + 1, d, m);
        dv = F16::load(d), mv = F16::load(m);
      }
      for (int q = 4 * half; q < 4 * half + 4; ++q) {
        F16 w[4];
        u.levels4(q, w);
        for (int j = 0; j < 4; ++j) w[j] = fma(w[j], dv, mv);
        sink(c * kChunk + 4 * q, w);
      }
    }
  }
}

template <class Call>
void by_bits(const IntTile& t, Call call) {
  if (t.table) return call.template operator()<4, true>();
  switch (t.bits) {
    case 1:
      return call.template operator()<1, false>();
    case 2:
      return call.template operator()<2, false>();
    case 3:
      return call.template operator()<3, false>();
    case 4:
      return call.template operator()<4, false>();
    case 5:
      return call.template operator()<5, false>();
    case 6:
      return call.template operator()<6, false>();
    case 7:
      return call.template operator()<7, false>();
    default:
      return call.template operator()<8, false>();
  }
}

// A tile whose chunks differ in width.
template <int N>
void dot_widths(const IntTile& t, const IntInput& x, float* y, int64_t ldy) {
  F16 out[N];
  for (int k = 0; k < N; ++k) out[k] = F16::splat(0);
  each_run(t, [&](const IntTile& run, int64_t c) {
    by_bits(run, [&]<int Bits, bool Table>() {
      float total[N] = {};
      dot_chunks<Bits, Table, N>(run.codes, Levels<Table>(run.table), x, t.chunks, c, c + run.chunks, out, total);
      const auto zero = static_cast<float>(run.zero - Quads<Bits, Table>::kBias);
      for (int k = 0; k < N; ++k) out[k] = out[k] - F16::splat(zero * total[k]);
    });
  });
  for (int k = 0; k < N; ++k) (out[k] * F16::load(t.row_scale)).store(y + k * ldy);
}

void dot_int(const IntTile& t, const IntInput& x, int64_t n, float* y, int64_t ldy) {
  if (t.widths != nullptr) {
    by_tokens(t, x, n, y, ldy, [&]<int N>(const IntInput& from, float* to) { dot_widths<N>(t, from, to, ldy); });
    return;
  }
  by_bits(t, [&]<int Bits, bool Table>() {
    const bool plain = t.scale == ScaleKind::f16 && t.group_halves == 2;
    by_tokens(t, x, n, y, ldy, [&]<int N>(const IntInput& from, float* to) {
      plain ? dot_tile_f16<Bits, Table, N>(t, from, to, ldy) : dot_tile<Bits, Table, N>(t, from, to, ldy);
    });
  });
}

void decode_int(const IntTile& t, float* panel) {
  if (t.widths != nullptr) {
    __builtin_memset(panel, 0, static_cast<size_t>(t.chunks * kChunk * kTileRows) * sizeof(float));
    each_run(t, [&](const IntTile& run, int64_t c) { decode_int(run, panel + c * kChunk * kTileRows); });
    return;
  }
  by_bits(t, [&]<int Bits, bool Table>() {
    decode_tile<Bits, Table>(t, [&](int64_t column, const F16* w) {
      for (int j = 0; j < 4; ++j) w[j].store(panel + (column + j) * kTileRows);
    });
  });
}

void dot_corrections(const CorrectionList& list, const float* x, float* y) {
  constexpr int kBits = CorrectionList::kBits;
  const F16 one = F16::splat(1), most = F16::splat(CorrectionList::kMaxUnit), times = F16::splat(1 << kBits);
  F16 sum = F16::splat(0), unit = F16::splat(1.0f / (1 << kBits));
  I16 column = I16::zero();
  for (int64_t k = 0; k < list.steps; ++k) {
    const I16 entry = I16::u8(list.entries + k * kTileRows), gap = entry.template above<kBits>();
    unit = gap.zero_selects(smaller(unit * times, most), one);
    column = column + gap;
    sum = fma(entry.template below<kBits>().floats() * unit, column.gather(x), sum);
  }
  sum.store(y);
}

void reorder(const float* x, const uint16_t* order, const uint8_t* index, const float* table, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const F16 v = I16::u16(order + i).gather(x);
    (index ? v * I16::u8(index + i).gather(table) : v).store(out + i);
  }
  for (; i < n; ++i) out[i] = index ? x[order[i]] * table[index[i]] : x[order[i]];
}

void dot_f16(const float* x, const uint16_t* panel, int64_t k, float* y) {
  F16 s[4] = {F16::splat(0), F16::splat(0), F16::splat(0), F16::splat(0)};
  int64_t j = 0;
  for (; j + 4 <= k; j += 4) {
    for (int i = 0; i < 4; ++i) s[i] = fma(F16::half(panel + (j + i) * kTileRows), F16::splat(x[j + i]), s[i]);
  }
  for (; j < k; ++j) s[0] = fma(F16::half(panel + j * kTileRows), F16::splat(x[j]), s[0]);
  ((s[0] + s[1]) + (s[2] + s[3])).store(y);
}

void dot_bf16(const float* x, const uint16_t* panel, int64_t k, float* y) {
  F16 s[4] = {F16::splat(0), F16::splat(0), F16::splat(0), F16::splat(0)};
  int64_t j = 0;
  for (; j + 4 <= k; j += 4) {
    for (int i = 0; i < 4; ++i) s[i] = fma(F16::bf16(panel + (j + i) * kTileRows), F16::splat(x[j + i]), s[i]);
  }
  for (; j < k; ++j) s[0] = fma(F16::bf16(panel + j * kTileRows), F16::splat(x[j]), s[0]);
  ((s[0] + s[1]) + (s[2] + s[3])).store(y);
}
