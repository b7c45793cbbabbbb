// What a block type of llama.cpp would cost a matrix, before any walk: for the choice of types.
#pragma once

#include "engine/fit.h"
#include "formats/ggml_blocks.h"

namespace pith {

/// Predicted loss in nats a token of plain rounding to `type`, errors weighted with G_r / U_jj^2: what the walk's
/// errors cost (it spreads them so that they do not add up). Large matrices are judged on a sample of their rows.
/// The rows must fit the type.
double gguf_rounding_loss(const FitJob& job, GgmlType type);

}  // namespace pith
