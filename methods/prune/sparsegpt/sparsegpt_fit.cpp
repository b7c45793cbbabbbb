#include <optional>

#include "base/half.h"
#include "engine/grid_options.h"
#include "engine/prune_options.h"
#include "maths/columns.h"
#include "maths/gptq_walk.h"
#include "maths/linalg.h"
#include "tensor/parallel.h"

namespace pith {
namespace {

constexpr int64_t kBlock = 128;  // columns among which an unstructured mask is chosen

// Chosen block by block among the tile's rows.
struct Unstructured {
  int64_t cols;
  double sparsity;
  const std::vector<float>& importance;
  std::vector<uint8_t>& mask;
  bool halves;

  void begin_group(int64_t row0, int64_t rows, int64_t col0, int64_t n, const float* w, int64_t ld) {
    float scores[kWalkRows * kBlock];
    uint8_t keep[kWalkRows * kBlock];
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < n; ++c)
        scores[r * n + c] = w[r * ld + c] * w[r * ld + c] * importance[static_cast<size_t>(col0 + c)];
    keep_largest(scores, rows * n, kept_count(rows * n, sparsity), keep);
    for (int64_t r = 0; r < rows; ++r)
      std::copy(keep + r * n, keep + (r + 1) * n, &mask[static_cast<size_t>((row0 + r) * cols + col0)]);
  }
  float quantize(int64_t row, int64_t col, float w) const {
    if (!mask[static_cast<size_t>(row * cols + col)]) return 0;
    return halves ? half_to_float(float_to_half(w)) : w;
  }
};

// n of m, chosen when the walk reaches the m columns; what stays goes to a grid over kept weights when there is one.
struct Patterned {
  int64_t cols;
  SparsityPattern pattern;
  const std::vector<float>& importance;
  std::vector<uint8_t>& mask;
  bool halves;
  const float* live;  // the matrix that is being walked
  std::optional<GridBuilder>& grid;

  void choose(const float* w, int64_t col, uint8_t* keep) const {
    float scores[16];
    for (int k = 0; k < pattern.m; ++k) scores[k] = w[k] * w[k] * importance[static_cast<size_t>(col + k)];
    keep_largest(scores, pattern.m, pattern.n, keep);
  }
  // The grid's group covers n / m of the walked columns; its range is fitted to what would stay as of now.
  void begin_group(int64_t row0, int64_t rows, int64_t col0, int64_t n, const float* w, int64_t ld) {
    if (!grid) return;
    const int64_t kept = n / pattern.m * pattern.n, first = col0 / pattern.m * pattern.n;
    std::vector<float> values(static_cast<size_t>(rows * kept));
    uint8_t keep[16];
    for (int64_t r = 0; r < rows; ++r) {
      float* to = values.data() + r * kept;
      for (int64_t c = 0; c < n; c += pattern.m) {
        choose(w + r * ld + c, col0 + c, keep);
        for (int k = 0; k < pattern.m; ++k)
          if (keep[k]) *to++ = w[r * ld + c + k];
      }
    }
    grid->begin_group(row0, rows, first, kept, values.data(), kept);
  }
  float quantize(int64_t row, int64_t col, float w) {
    const int64_t within = col % pattern.m, start = col - within;
    uint8_t* keep = &mask[static_cast<size_t>(row * cols + start)];
    if (within == 0) choose(live + row * cols + start, start, keep);
    if (!keep[within]) return 0;
    if (!grid) return halves ? half_to_float(float_to_half(w)) : w;
    int64_t place = start / pattern.m * pattern.n;
    for (int64_t k = 0; k < within; ++k) place += keep[k];
    return grid->quantize(row, place, w);
  }
};

NodePtr run(const FitJob& job, const Options& options) {
  Tensor weight = usable_weight(job);
  const SparsityPattern pattern = usable_pattern(job, options);
  const int64_t bits = options.integer("bits"), rows = weight.size(0), cols = weight.size(1);
  if (bits == 1) throw Failure(user_error("option 'bits': expected 0 or 2..8, found 1"));
  if (bits > 0 && pattern.n == 0)
    throw Failure(
        user_error("option 'bits' needs a pattern such as 2:4; prune first and quantize the result otherwise"));
  const float largest = largest_size(weight);
  const bool halves = value_type(largest) == DType::f16;
  const InverseFactor factor = [&] {
    const OneThread one;
    return upper_inverse_factor(input_moments(job), options.real("damp"), job.name);
  }();
  clear_columns(weight, factor.dead);
  const std::vector<float> importance = column_importance(factor.upper);
  std::vector<uint8_t> mask(static_cast<size_t>(rows * cols), 0);

  if (pattern.n == 0) {
    Unstructured policy{cols, options.real("sparsity"), importance, mask, halves};
    gptq_walk(weight, factor.upper, kBlock, policy);
    return masked_node(weight, mask, pattern);
  }
  std::optional<GridBuilder> grid;
  int64_t group = pattern.m;
  if (bits > 0) {
    const int64_t kept = cols / pattern.m * pattern.n;
    // Whole patterns a group: a group of the grid never ends inside one.
    int64_t span = options.integer("group") <= 0 ? kept : std::min(options.integer("group"), kept);
    span = (span + pattern.n - 1) / pattern.n * pattern.n;
    grid.emplace(rows, kept, GridSpec{GridShape::asym, static_cast<unsigned>(bits), span, true, 0, 16}, largest);
    group = span / pattern.n * pattern.m;
  }
  Patterned policy{cols, pattern, importance, mask, halves, weight.const_data_ptr<float>(), grid};
  // Blocks of whole patterns, so that the m columns are up to date when their mask is chosen.
  gptq_walk(weight, factor.upper, group, policy, 32 / pattern.m * pattern.m);
  if (!grid) return masked_node(weight, mask, pattern);
  return pattern_node(rows, cols, mask, pattern, grid->build());
}

}  // namespace

const Fit& sparsegpt_fit() {
  static const Fit fit{"sparsegpt", run};
  return fit;
}

}  // namespace pith
