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

#include "kernels/common_ops.h"  // NOLINT(bugprone-suspicious-include)

}  // namespace

const Ops& ops_avx512() {
  static const Ops table = common_ops();
  return table;
}

}  // namespace pith
