// Which instruction sets this CPU has. Everything in src/kernels exists as a scalar reference and in faster versions;
// the fastest one is chosen at run time, and a test or a user can ask for a slower one.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace pith {

/// Ascending: each one includes those before it.
enum class Isa : uint8_t {
  scalar,
  avx2,    ///< AVX2, FMA, F16C
  avx512,  ///< AVX-512 F/BW/VL/DQ, VNNI, VBMI
  amx,     ///< avx512 and AMX tiles with int8 and bf16
};

std::string_view isa_name(Isa isa);
std::optional<Isa> isa_from_name(std::string_view name);

/// What this CPU and this operating system can run, in ascending order; begins with scalar.
const std::vector<Isa>& available_isas();

/// The fastest available one, or what the environment variable PITH_ISA asks for when that is available.
Isa default_isa();

}  // namespace pith
