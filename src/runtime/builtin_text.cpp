#include "runtime/builtin_text.h"

#include <fmt/format.h>

#include <cstddef>
#include <vector>

#include "base/file.h"
#include "base/zstd.h"
#include "plan/options.h"

// The files become part of the program by the assembler's .incbin: no generated source, no search at run time.
// CMake makes this file depend on them. (In a function no compiler would place it; at file scope both GCC and clang
// do.)
#define PITH_EMBED(symbol, file)                                                       \
  asm(".section .rodata\n"                                                             \
      ".global pith_" #symbol "_begin\n.global pith_" #symbol                          \
      "_end\n"                                                                         \
      "pith_" #symbol "_begin:\n.incbin \"" PITH_DATA_DIR "/" file "\"\npith_" #symbol \
      "_end:\n.byte 0\n"                                                               \
      ".previous\n");                                                                  \
  extern "C" const char pith_##symbol##_begin[];                                       \
  extern "C" const char pith_##symbol##_end[];

PITH_EMBED(calibration, "calibration/calibration.txt.zst")
PITH_EMBED(code, "heldout/code.txt")
PITH_EMBED(documentation, "heldout/documentation.txt")
PITH_EMBED(encyclopedia, "heldout/encyclopedia.txt")
PITH_EMBED(languages, "heldout/languages.txt")
PITH_EMBED(prose, "heldout/prose.txt")

namespace pith {
namespace {

std::string_view between(const char* begin, const char* end) { return {begin, static_cast<size_t>(end - begin)}; }

}  // namespace

Result<std::string> builtin_calibration_text() {
  const std::string_view packed = between(pith_calibration_begin, pith_calibration_end);
  return zstd_decompress(std::as_bytes(std::span(packed)), 64u << 20).context("the built-in calibration text");
}

std::span<const HeldoutText> builtin_heldout_texts() {
  static const HeldoutText texts[] = {
      {"code", between(pith_code_begin, pith_code_end)},
      {"documentation", between(pith_documentation_begin, pith_documentation_end)},
      {"encyclopedia", between(pith_encyclopedia_begin, pith_encyclopedia_end)},
      {"languages", between(pith_languages_begin, pith_languages_end)},
      {"prose", between(pith_prose_begin, pith_prose_end)},
  };
  return texts;
}

Result<std::string> read_named_text(std::string_view path_or_builtin, uint64_t max_bytes) {
  constexpr std::string_view prefix = "builtin:";
  if (!path_or_builtin.starts_with(prefix)) return read_text(std::string(path_or_builtin), max_bytes);
  const std::string_view name = path_or_builtin.substr(prefix.size());
  if (name == "calibration") return builtin_calibration_text();
  std::vector<std::string> known{"calibration"};
  for (const HeldoutText& held : builtin_heldout_texts()) {
    if (held.domain == name) return std::string(held.text);
    known.emplace_back(held.domain);
  }
  return user_error(fmt::format("there is no built-in text '{}'{}", name, did_you_mean(name, known)));
}

}  // namespace pith
