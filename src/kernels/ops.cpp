#include "kernels/ops.h"

namespace pith {

const Ops& ops(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::amx:
      return ops_amx();
    case Isa::avx512:
      return ops_avx512();
    case Isa::avx2:
      return ops_avx2();
    default:
      break;
  }
#endif
  (void)isa;
  return ops_scalar();
}

}  // namespace pith
