// Texts that Pith carries with it, so that nothing has to be passed: the calibration mixture, and held-out texts of
// several domains to measure on. They are made by recipes/calibration-text; data/calibration/LICENCES.md names sources.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace pith {

/// The built-in calibration text, about 630 kB of UTF-8: encyclopedia, prose, dialogue, code, documentation, languages,
/// dealt out evenly, so any prefix has the same mixture. Passages are parted by a blank line.
Result<std::string> builtin_calibration_text();

/// A held-out text; no document of it is in the calibration text.
struct HeldoutText {
  std::string_view domain;  ///< "encyclopedia"
  std::string_view text;    ///< 60 to 90 kB of UTF-8
};

/// All held-out texts: code, documentation, encyclopedia, languages, prose.
std::span<const HeldoutText> builtin_heldout_texts();

/// Reads a text that a user names: "builtin:calibration", "builtin:prose", or else a file's path.
Result<std::string> read_named_text(std::string_view path_or_builtin, uint64_t max_bytes = uint64_t{1} << 30);

}  // namespace pith
