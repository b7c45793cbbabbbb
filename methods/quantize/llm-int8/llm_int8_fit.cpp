#include <cmath>

#include "engine/fit.h"
#include "maths/grid_fit.h"
#include "maths/sparse_fit.h"
#include "represent/combine.h"
#include "represent/field.h"
#include "represent/grid.h"
#include "represent/sparse.h"

namespace pith {
namespace {

NodePtr run(const FitJob& job, const Options& options) {
  const Tensor weight = usable_weight(job);
  const int64_t rows = weight.size(0), cols = weight.size(1);
  const float* w = weight.const_data_ptr<float>();
  const float threshold = static_cast<float>(options.real("threshold"));

  std::vector<int16_t> codes(static_cast<size_t>(rows * cols));
  std::vector<float> scales(static_cast<size_t>(rows));
  for (int64_t r = 0; r < rows; ++r) {
    float top = 0;
    for (int64_t c = 0; c < cols; ++c) top = std::max(top, std::fabs(w[r * cols + c]));
    const float scale = top > 0 ? top / 127.0f : 1 / 127.0f;
    scales[static_cast<size_t>(r)] = scale;
    for (int64_t c = 0; c < cols; ++c) {
      const float x = scale > 0 ? w[r * cols + c] / scale : 0;  // top / 127 may underflow
      codes[static_cast<size_t>(r * cols + c)] = static_cast<int16_t>(round_even(std::clamp(x, -127.0f, 127.0f)));
    }
  }
  NodePtr node = must(Grid::make(must(PackedCodes::pack(rows, cols, 8, -128, codes)), {},
                                 must(AffineField::from(rows, cols, cols, DType::f32, scales))));

  if (options.text("outlier-weights") == "fp16" && threshold > 0) {
    input_squares(job);  // refuses missing statistics, naming the tensor
    const Tensor largest = job.inputs->max_abs().contiguous();
    std::vector<uint32_t> outliers;
    for (int64_t c = 0; c < cols; ++c)
      if (largest.const_data_ptr<float>()[c] >= threshold) outliers.push_back(static_cast<uint32_t>(c));
    if (!outliers.empty()) {
      std::vector<uint32_t> starts{0}, columns;
      std::vector<float> values;
      for (int64_t r = 0; r < rows; ++r) {
        for (const uint32_t c : outliers) columns.push_back(c), values.push_back(w[r * cols + c]);
        starts.push_back(static_cast<uint32_t>(columns.size()));
      }
      const DType type = weight.abs().max().item<float>() <= 65504.0f ? DType::f16 : DType::f32;
      node = must(Override::make(node, must(Csr::from(rows, cols, starts, columns, values, type))));
    }
  }
  return must(DynamicInt8::make(node, threshold));
}

}  // namespace

const Fit& llm_int8_fit() {
  static const Fit fit{"llm-int8", run};
  return fit;
}

}  // namespace pith
