// Statistics on disk: safetensors files with a checksum and the key of what they belong to, written atomically.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "maths/moments.h"
#include "nets/lm.h"
#include "tensor/tensor.h"

namespace pith {

/// Tensors (fp32, fp64, int64) by name, with the key and the XXH3 of all data in the file's metadata.
void save_tensors(const std::string& path, const std::string& key, const TensorMap& tensors);
/// Nothing when the file is missing, damaged, or of another key: then it has to be made again.
std::optional<TensorMap> load_tensors(const std::string& path, const std::string& key);

/// A Moments as tensors "<name>/count", "<name>/sum", … and back.
void put_moments(TensorMap& tensors, const std::string& name, const Moments& moments);
Moments get_moments(const TensorMap& tensors, const std::string& name);

}  // namespace pith
