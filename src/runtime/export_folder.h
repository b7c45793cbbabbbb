// What the exports to Hugging Face folders share.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "formats/safetensors.h"
#include "represent/json_read.h"
#include "represent/node.h"

namespace pith {

/// "model.layers.0.self_attn.q_proj" of its weight's name.
inline std::string module_of(const std::string& name) {
  return name.substr(0, name.size() - std::string_view(".weight").size());
}

/// Writes all rows of a node as `dtype`, some at a time.
inline Status write_decoded(const Node& node, DType dtype, SafetensorsWriter& writer) {
  const int64_t rows = node.rows(), cols = node.cols(), step = rows_at_once(cols);
  std::vector<float> values(static_cast<size_t>(std::min(step, rows) * cols));
  std::vector<std::byte> bytes;
  for (int64_t r = 0; r < rows; r += step) {
    const int64_t end = std::min(r + step, rows), n = (end - r) * cols;
    node.decode_rows(r, end, values.data());
    bytes.resize(static_cast<size_t>(n) * dtype_size(dtype));
    from_float(dtype, values.data(), n, bytes.data());
    PITH_TRY(writer.write(bytes));
  }
  return {};
}

}  // namespace pith
