// The floating-point loops, written once with compiler vectors of PITH_LANES floats. Each ops_<isa>.cpp includes this
// file inside a namespace of its own with its own flags, so nothing here is shared between instruction sets: no
// function of the standard library that a linker might merge, only arithmetic.
//
// Before inclusion: PITH_LANES (4, 8, 16).

typedef float VecF __attribute__((vector_size(PITH_LANES * 4)));
typedef float VecFU __attribute__((vector_size(PITH_LANES * 4), aligned(4), may_alias));
typedef int32_t VecI __attribute__((vector_size(PITH_LANES * 4)));
constexpr int64_t kLanes = PITH_LANES;
constexpr int kParts = 16 / PITH_LANES;  // registers of one panel row

inline VecF load(const float* p) { return *reinterpret_cast<const VecFU*>(p); }
inline void store(float* p, VecF v) { *reinterpret_cast<VecFU*>(p) = v; }
// f - 0 is f for every f; 0 + f is not for -0, and would cost an addition.
inline VecF splat(float f) { return f - VecF{}; }

inline float sum_lanes(VecF v) {
  float s = 0;
  for (int i = 0; i < kLanes; ++i) s += v[i];
  return s;
}
inline VecF vmax(VecF a, VecF b) { return a > b ? a : b; }
inline VecF vmin(VecF a, VecF b) { return a < b ? a : b; }

// exp by 2^n * polynomial on [-ln2/2, ln2/2]; relative error below 2e-7. Arguments are cut at +-87.
inline VecF vexp(VecF x) {
  x = vmin(vmax(x, splat(-87.0f)), splat(87.0f));
  const VecF magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const VecF shifted = x * splat(1.44269504088896341f) + magic;
  const VecF n = shifted - magic;
  VecF r = x - n * splat(0.693359375f);
  r = r - n * splat(-2.12194440e-4f);
  VecF p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * r * r + r + splat(1.0f);
  const VecI e = (__builtin_convertvector(n, VecI) + 127) << 23;
  return p * (VecF)e;
}

inline VecF vtanh(VecF x) { return splat(1.0f) - splat(2.0f) / (splat(1.0f) + vexp(x + x)); }

/// Applies `f` to whole registers and, through a padded copy, to the rest.
template <class F>
inline void each(float* x, int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, f(load(x + i)));
  if (i < n) {
    VecF v{};
    for (int64_t j = i; j < n; ++j) v[j - i] = x[j];
    v = f(v);
    for (int64_t j = i; j < n; ++j) x[j] = v[j - i];
  }
}
template <class F>
inline void each2(float* x, const float* y, int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, f(load(x + i), load(y + i)));
  if (i < n) {
    VecF v{}, w{};
    for (int64_t j = i; j < n; ++j) v[j - i] = x[j], w[j - i] = y[j];
    v = f(v, w);
    for (int64_t j = i; j < n; ++j) x[j] = v[j - i];
  }
}

// M rows of `a` against one panel: M * kParts accumulators.
template <int M>
inline void gemm_block(const float* a, int64_t lda, const float* panel, int64_t stride, int64_t k, float* c,
                       int64_t ldc, bool add) {
  VecF acc[M][kParts] = {};
  for (int64_t j = 0; j < k; ++j) {
    VecF w[kParts];
    for (int p = 0; p < kParts; ++p) w[p] = load(panel + j * stride + p * kLanes);
    for (int i = 0; i < M; ++i) {
      const VecF x = splat(a[i * lda + j]);
      for (int p = 0; p < kParts; ++p) acc[i][p] += x * w[p];
    }
  }
  for (int i = 0; i < M; ++i) {
    for (int p = 0; p < kParts; ++p) {
      float* out = c + i * ldc + p * kLanes;
      store(out, add ? load(out) + acc[i][p] : acc[i][p]);
    }
  }
}

constexpr int kGemmRows = PITH_LANES == 16 ? 12 : PITH_LANES == 8 ? 6 : 3;

void gemm_f32(const float* a, int64_t lda, int64_t m, const float* panel, int64_t stride, int64_t k, float* c,
              int64_t ldc, bool add) {
  int64_t i = 0;
  for (; i + kGemmRows <= m; i += kGemmRows) {
    gemm_block<kGemmRows>(a + i * lda, lda, panel, stride, k, c + i * ldc, ldc, add);
  }
  if (kGemmRows > 4) {
    for (; i + 4 <= m; i += 4) gemm_block<4>(a + i * lda, lda, panel, stride, k, c + i * ldc, ldc, add);
  }
  for (; i < m; ++i) gemm_block<1>(a + i * lda, lda, panel, stride, k, c + i * ldc, ldc, add);
}

void transpose16(const float* in, int64_t stride, int64_t rows, int64_t cols, float* panel) {
  if (rows == 16) {
    for (int64_t j = 0; j < cols; ++j) {
      for (int64_t r = 0; r < 16; ++r) panel[j * 16 + r] = in[r * stride + j];
    }
    return;
  }
  for (int64_t j = 0; j < cols; ++j) {
    for (int64_t r = 0; r < 16; ++r) panel[j * 16 + r] = r < rows ? in[r * stride + j] : 0.0f;
  }
}

float dot(const float* a, const float* b, int64_t n) {
  VecF s0{}, s1{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    s0 += load(a + i) * load(b + i);
    s1 += load(a + i + kLanes) * load(b + i + kLanes);
  }
  for (; i + kLanes <= n; i += kLanes) s0 += load(a + i) * load(b + i);
  float s = sum_lanes(s0 + s1);
  for (; i < n; ++i) s += a[i] * b[i];
  return s;
}

void axpy(float a, const float* x, int64_t n, float* y) {
  each2(y, x, n, [=](VecF u, VecF v) { return u + splat(a) * v; });
}
void add(const float* x, int64_t n, float* y) {
  each2(y, x, n, [](VecF u, VecF v) { return u + v; });
}
void scale(float* x, int64_t n, float by) {
  each(x, n, [=](VecF v) { return v * splat(by); });
}

void rms_norm(const float* x, const float* gain, int64_t n, float eps, float* out) {
  const float r = 1.0f / __builtin_sqrtf(dot(x, x, n) / static_cast<float>(n) + eps);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(x + i) * splat(r) * load(gain + i));
  for (; i < n; ++i) out[i] = x[i] * r * gain[i];
}

void silu_mul(float* gate, const float* up, int64_t n) {
  each2(gate, up, n, [](VecF g, VecF u) { return g / (splat(1.0f) + vexp(-g)) * u; });
}

void gelu_mul(float* gate, const float* up, int64_t n) {
  each2(gate, up, n, [](VecF g, VecF u) {
    const VecF t = vtanh(splat(0.79788456080286536f) * (g + splat(0.044715f) * g * g * g));
    return splat(0.5f) * g * (splat(1.0f) + t) * u;
  });
}

void softcap(float* x, int64_t n, float cap) {
  const float inverse = 1.0f / cap;
  each(x, n, [=](VecF v) { return splat(cap) * vtanh(v * splat(inverse)); });
}

void rope(float* x, const float* cosines, const float* sines, int64_t half) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const VecF a = load(x + i), b = load(x + half + i), c = load(cosines + i), s = load(sines + i);
    store(x + i, a * c - b * s);
    store(x + half + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cosines[i] - b * sines[i];
    x[half + i] = b * cosines[i] + a * sines[i];
  }
}

float max(const float* x, int64_t n) {
  float best = x[0];
  int64_t i = 0;
  if (n >= kLanes) {
    VecF m = load(x);
    for (i = kLanes; i + kLanes <= n; i += kLanes) m = vmax(m, load(x + i));
    for (int j = 0; j < kLanes; ++j) best = m[j] > best ? m[j] : best;
  }
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

float exp_sum(float* x, int64_t n, float top) {
  VecF sum{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const VecF e = vexp(load(x + i) - splat(top));
    store(x + i, e);
    sum += e;
  }
  float s = sum_lanes(sum);
  if (i < n) {
    VecF v{};
    for (int64_t j = i; j < n; ++j) v[j - i] = x[j] - top;
    v = vexp(v);
    for (int64_t j = i; j < n; ++j) s += x[j] = v[j - i];
  }
  return s;
}
