// Low-rank parts of a compressed model as a LoRA adapter, for fine-tuning with PEFT.
#pragma once

#include <pith/result.h>

#include <string>

#include "represent/model.h"

namespace pith {

/// Writes a Hugging Face folder in which each Sum(base…, LowRank) is only its base, decoded to `dtype` (f16, bf16 or
/// f32), and PATH/adapter in PEFT's layout with the factors: lora_B = U, lora_A = V, alpha = r, so that base and
/// adapter together are the model. An error when no matrix has a low-rank part.
Status write_peft(const Model& model, const std::string& path, DType dtype, bool overwrite);

}  // namespace pith
