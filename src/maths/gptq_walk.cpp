#include "maths/gptq_walk.h"

#include <cstring>

namespace pith {
namespace {

// Vector types of the compiler; on a narrower machine it splits them. No fused multiply-add anywhere (the build says
// -ffp-contract=off), so the three variants below give the same bits.
using V4 = float __attribute__((vector_size(16)));
using V8 = float __attribute__((vector_size(32)));
using V16 = float __attribute__((vector_size(64)));

// kRows x (kVectors * lanes) elements stay in registers over the whole depth.
template <class V, int kRows, int kVectors>
[[gnu::always_inline]] inline void panel(float* w, int64_t ldw, const float* e, int64_t lde, const float* u,
                                         int64_t ldu, int64_t depth) {
  constexpr int64_t kLanes = sizeof(V) / sizeof(float);
  V sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) std::memcpy(&sum[r][v], w + r * ldw + v * kLanes, sizeof(V));
  for (int64_t k = 0; k < depth; ++k) {
    V row[kVectors];
    for (int v = 0; v < kVectors; ++v) std::memcpy(&row[v], u + k * ldu + v * kLanes, sizeof(V));
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) sum[r][v] -= e[r * lde + k] * row[v];
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) std::memcpy(w + r * ldw + v * kLanes, &sum[r][v], sizeof(V));
}

template <class V>
[[gnu::always_inline]] inline void product(float* w, int64_t ldw, const float* e, int64_t lde, const float* u,
                                           int64_t ldu, int64_t rows, int64_t depth, int64_t cols) {
  constexpr int64_t kLanes = sizeof(V) / sizeof(float);
  int64_t c = 0;
  for (; c + 2 * kLanes <= cols; c += 2 * kLanes) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) panel<V, 4, 2>(w + r * ldw + c, ldw, e + r * lde, lde, u + c, ldu, depth);
    for (; r < rows; ++r) panel<V, 1, 2>(w + r * ldw + c, ldw, e + r * lde, lde, u + c, ldu, depth);
  }
  for (; c + 4 <= cols; c += 4)
    for (int64_t r = 0; r < rows; ++r) panel<V4, 1, 1>(w + r * ldw + c, ldw, e + r * lde, lde, u + c, ldu, depth);
  for (; c < cols; ++c)
    for (int64_t r = 0; r < rows; ++r) {
      float sum = w[r * ldw + c];
      for (int64_t k = 0; k < depth; ++k) sum -= e[r * lde + k] * u[k * ldu + c];
      w[r * ldw + c] = sum;
    }
}

using Product = void (*)(float*, int64_t, const float*, int64_t, const float*, int64_t, int64_t, int64_t, int64_t);

void product_plain(float* w, int64_t ldw, const float* e, int64_t lde, const float* u, int64_t ldu, int64_t rows,
                   int64_t depth, int64_t cols) {
  product<V4>(w, ldw, e, lde, u, ldu, rows, depth, cols);
}

#if defined(__x86_64__)
[[gnu::target("avx2")]] void product_avx2(float* w, int64_t ldw, const float* e, int64_t lde, const float* u,
                                          int64_t ldu, int64_t rows, int64_t depth, int64_t cols) {
  product<V8>(w, ldw, e, lde, u, ldu, rows, depth, cols);
}

[[gnu::target("avx512f")]] void product_avx512(float* w, int64_t ldw, const float* e, int64_t lde, const float* u,
                                               int64_t ldu, int64_t rows, int64_t depth, int64_t cols) {
  product<V16>(w, ldw, e, lde, u, ldu, rows, depth, cols);
}
#endif

Product choose() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return product_avx512;
  if (__builtin_cpu_supports("avx2")) return product_avx2;
#endif
  return product_plain;
}

}  // namespace

void subtract_product(float* w, int64_t ldw, const float* e, int64_t lde, const float* u, int64_t ldu, int64_t rows,
                      int64_t depth, int64_t cols) {
  static const Product chosen = choose();
  if (rows > 0 && depth > 0 && cols > 0) chosen(w, ldw, e, lde, u, ldu, rows, depth, cols);
}

}  // namespace pith
