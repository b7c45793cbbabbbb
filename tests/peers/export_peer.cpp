// Makes a folder in compressed-tensors layout, and the same weights decoded, for compressed_tensors_peers_test.py.
// usage: export_peer SCHEME QUANTIZED_FOLDER DECODED_FOLDER
// SCHEME: comma-separated words out of 4 8 (bits), gN (group; else one scale a row), sym, zero (integer zeros), int8
// (dynamic int8 activations), tied (embeddings); '+' between two schemes alternates them over the matrices.
#include <cmath>
#include <cstdio>
#include <sstream>

#include "formats/lm_config.h"
#include "represent/combine.h"
#include "represent/dense.h"
#include "represent/grid.h"
#include "runtime/export_compressed_tensors.h"
#include "runtime/model_file.h"

namespace pith {
namespace {

struct Scheme {
  unsigned bits = 4;
  int64_t group = 0;
  bool symmetric = true, int8 = false;
};

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, at);) parts.push_back(part);
  return parts;
}

Scheme scheme_of(const std::string& text) {
  Scheme s;
  for (const std::string& word : split(text, ',')) {
    if (word == "8") s.bits = 8;
    if (word[0] == 'g') s.group = std::stoll(word.substr(1));
    if (word == "zero") s.symmetric = false;
    if (word == "int8") s.int8 = true;
  }
  return s;
}

uint64_t state = 1;
float real() {  // in [-1, 1)
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f;
}

// Rounds to nearest on a min-max grid.
Result<NodePtr> quantize(const std::vector<float>& w, int64_t rows, int64_t cols, const Scheme& s) {
  const int64_t group = s.group == 0 ? cols : s.group, groups = cols / group;
  const int top = (1 << s.bits) - 1, half = (top + 1) / 2;
  std::vector<int16_t> codes(w.size());
  std::vector<float> scales, zeros;
  for (int64_t g = 0; g < rows * groups; ++g) {
    const float* v = w.data() + g * group;
    float low = 0, high = 0;
    for (int64_t i = 0; i < group; ++i) low = std::min(low, v[i]), high = std::max(high, v[i]);
    const float scale =
        s.symmetric ? std::max(-low, high) / static_cast<float>(half - 1) : (high - low) / static_cast<float>(top);
    const float zero = s.symmetric ? 0.0f : std::round(-low / scale);
    for (int64_t i = 0; i < group; ++i) {
      const float code = std::round(v[i] / scale) + zero;
      codes[static_cast<size_t>(g * group + i)] =
          static_cast<int16_t>(std::min(std::max(code, s.symmetric ? -static_cast<float>(half) : 0.0f),
                                        static_cast<float>(s.symmetric ? half - 1 : top)));
    }
    scales.push_back(scale);
    zeros.push_back(zero);
  }
  PITH_ASSIGN(auto packed, PackedCodes::pack(rows, cols, s.bits, s.symmetric ? -half : 0, codes));
  PITH_ASSIGN(auto scale, AffineField::from(rows, cols, group, DType::f16, scales));
  FieldPtr zero;
  if (!s.symmetric) {
    PITH_ASSIGN(zero, AffineField::from(rows, cols, group, DType::f16, zeros));
  }
  PITH_ASSIGN(auto grid, Grid::make(packed, {}, scale, zero));
  return s.int8 ? DynamicInt8::make(grid, 0) : Result<NodePtr>(grid);
}

Status run(const std::string& schemes, const std::string& quantized, const std::string& decoded) {
  Model model;
  LmConfig& c = model.config;
  c.hidden = 64;
  c.layers = 2;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 16;
  c.intermediate = 96;
  c.vocab = 120;
  c.context = 128;
  c.tied_embeddings = schemes.find("tied") != std::string::npos;
  size_t matrix = 0;
  const auto choices = split(schemes, '+');
  for (const TensorSpec& spec : expected_tensors(c)) {
    PITH_ASSIGN(const MatrixShape shape, matrix_shape(spec.shape));
    std::vector<float> w(static_cast<size_t>(shape.rows * shape.cols));
    for (float& v : w) v = spec.shape.size() == 1 ? 1 + real() / 4 : real() / 8;
    NodePtr node;
    if (spec.name.find("_proj") != std::string::npos) {
      PITH_ASSIGN(node, quantize(w, shape.rows, shape.cols, scheme_of(choices[matrix++ % choices.size()])));
    } else {
      PITH_ASSIGN(node, Dense::from(DType::f16, shape.rows, shape.cols, w));
    }
    model.tensors.push_back({spec.name, spec.shape, node});
  }
  PITH_TRY(write_compressed_tensors(model, quantized, DType::f16, true));
  return write_hf_folder(model, decoded, DType::f32, true);
}

}  // namespace
}  // namespace pith

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const auto status = pith::run(argv[1], argv[2], argv[3]);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.error().message.c_str());
  return status.ok() ? 0 : 1;
}
