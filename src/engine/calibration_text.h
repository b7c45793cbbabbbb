// Text for calibration: the user's own, the built-in mixture, or text that the model writes itself.
#pragma once

#include <cstdint>
#include <string>

#include "base/progress.h"
#include "represent/model.h"
#include "runtime/tokenizer.h"
#include "tensor/tensor.h"

namespace pith {

struct CalibrationText {
  std::string source;  ///< "built-in", "self", or the path: for plans and reports
  Tensor tokens;       ///< [sequences, length] int64
};

/// What `spec` (see below) stands for: the text itself, or "self".
std::string calibration_source(const std::string& spec);

/// `spec`: empty = the built-in mixture (runtime/builtin_text.h); "self" = sampled from the model; else paths of text
/// files or folders of them, separated by commas. Sequences are spread evenly over the whole text, so that a short
/// calibration still sees all of it. Throws Failure when the text is empty or shorter than one sequence.
CalibrationText calibration_text(const Model& model, const Tokenizer& tokenizer, const std::string& spec,
                                 int64_t sequences, int64_t length, uint64_t seed, unsigned threads,
                                 Progress& progress);

}  // namespace pith
