// Quantized matrices as a Hugging Face folder in the compressed-tensors layout, which transformers and vLLM load.
#pragma once

#include <pith/result.h>

#include <string>

#include "represent/model.h"

namespace pith {

/// Writes config.json with a quantization_config, model.safetensors and the tokenizer. Matrices of linear layers that
/// are uniform Grids of 4 or 8 bits with an AffineField for each row, or each group of columns that divides the row,
/// keep their codes ("pack-quantized"; "int-quantized" with dynamic int8 activations for DynamicInt8 without a
/// threshold); Dense and Blocks tensors, and the embedding, are decoded to `dtype` (f16 or bf16). Any other tree is an
/// error that names the tensor and what does not fit.
Status write_compressed_tensors(const Model& model, const std::string& path, DType dtype, bool overwrite);

}  // namespace pith
