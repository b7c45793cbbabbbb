// AVX-512 with VNNI.
#include <immintrin.h>

// GCC 12 takes the undefined operands inside its own intrinsics for ours.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#include "kernels/ops.h"

namespace pith {
namespace {

#define PITH_LANES 16
#include "kernels/vector_ops.h"  // NOLINT(bugprone-suspicious-include)
// clang-format off
#include "kernels/avx512_int.h"  // NOLINT(bugprone-suspicious-include)
#include "kernels/int_ops.h"     // NOLINT(bugprone-suspicious-include)
// clang-format on

}  // namespace

const Ops& ops_avx512() {
  static const Ops table = {.gemm_f32 = gemm_f32,
                            .dot_f16 = dot_f16,
                            .dot_bf16 = dot_bf16,
                            .transpose16 = transpose16,
                            .half_to_f32 = half_to_f32,
                            .f32_to_half = f32_to_half,
                            .quantize = quantize,
                            .dot_int = dot_int,
                            .decode_int = decode_int,
                            .rms_norm = rms_norm,
                            .add = add,
                            .silu_mul = silu_mul,
                            .gelu_mul = gelu_mul,
                            .softcap = softcap,
                            .rope = rope,
                            .exp_sum = exp_sum,
                            .max = max,
                            .scale = scale,
                            .dot = dot,
                            .axpy = axpy,
                            .decode_int_bf16 = nullptr,
                            .pack_bf16 = nullptr,
                            .pack_rows_bf16 = nullptr,
                            .f32_to_bf16 = nullptr,
                            .gemm_bf16 = nullptr};
  return table;
}

}  // namespace pith
