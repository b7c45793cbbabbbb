// What a block type of llama.cpp would cost a matrix, before any walk: for the choice of types.
#pragma once

#include <vector>

#include "engine/fit.h"
#include "formats/ggml_blocks.h"

namespace pith {

/// What an error of one column costs the walk: 1 / U_jj^2, [in] (engine-wide damping 0.01); 1 where nothing is known.
std::vector<float> walk_importance(const FitJob& job);

/// Predicted loss in nats a token of plain rounding to `type`, errors weighted with G_r and `importance`: what the
/// walk's errors cost (it spreads them so that they do not add up). Large matrices are judged on a sample of their
/// rows. The rows must fit the type.
double gguf_rounding_loss(const FitJob& job, const std::vector<float>& importance, GgmlType type);

}  // namespace pith
