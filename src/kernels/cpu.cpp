#include "kernels/cpu.h"

#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pith {

static constexpr std::string_view kNames[] = {"scalar", "avx2", "avx512", "amx"};

std::string_view isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

std::optional<Isa> isa_from_name(std::string_view name) {
  for (int i = 0; i < 4; ++i) {
    if (kNames[i] == name) return static_cast<Isa>(i);
  }
  return std::nullopt;
}

#if defined(__x86_64__)

// AMX tiles need the kernel's permission for this process (8 KiB more state in each thread).
static bool allow_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

static std::vector<Isa> detect() {
  std::vector<Isa> found = {Isa::scalar};
  __builtin_cpu_init();
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return found;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (1u << 29)) == 0) return found;  // F16C
  found.push_back(Isa::avx2);
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512vbmi"))) {
    return found;
  }
  found.push_back(Isa::avx512);
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const bool tiles = (d >> 24 & 1) && (d >> 25 & 1) && (d >> 22 & 1);  // tile, int8, bf16
  unsigned a1 = 0, b1 = 0, c1 = 0, d1 = 0;
  const bool bf16 = __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) && (a1 >> 5 & 1);  // AVX512-BF16 for conversions
  if (tiles && bf16 && allow_tiles()) found.push_back(Isa::amx);
  return found;
}
#else
static std::vector<Isa> detect() { return {Isa::scalar}; }
#endif

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> isas = detect();
  return isas;
}

Isa default_isa() {
  static const Isa chosen = [] {
    const auto& all = available_isas();
    if (const char* wish = std::getenv("PITH_ISA")) {
      const auto isa = isa_from_name(wish);
      for (Isa have : all) {
        if (isa && have == *isa) return have;
      }
    }
    return all.back();
  }();
  return chosen;
}

}  // namespace pith
