#include "engine/fit.h"
#include "engine/grid_options.h"
#include "maths/columns.h"
#include "maths/gptq_walk.h"
#include "maths/linalg.h"
#include "represent/combine.h"
#include "tensor/parallel.h"

namespace pith {
namespace {

// Grids fitted beforehand in the natural order of columns; the walk goes through them in another one.
struct StaticGroups {
  GridBuilder& grid;
  const std::vector<uint32_t>& order;
  void begin_group(int64_t, int64_t, int64_t, int64_t, const float*, int64_t) {}
  float quantize(int64_t row, int64_t col, float w) {
    return grid.quantize(row, static_cast<int64_t>(order[static_cast<size_t>(col)]), w);
  }
};

NodePtr run(const FitJob& job, const Options& options) {
  Tensor weight = usable_weight(job);
  Tensor moments = input_moments(job);
  const float largest = largest_size(weight);
  const int64_t rows = weight.size(0), cols = weight.size(1);
  const bool ordered = options.text("order") == "act", fixed = options.flag("static-groups");

  const std::vector<uint32_t> order = ordered ? falling_order(moments.diagonal()) : natural_order(cols);
  if (ordered) {
    const Tensor index = index_tensor(order);
    weight = weight.index_select(1, index);
    moments = moments.index_select(0, index).index_select(1, index);
  }
  const InverseFactor factor = [&] {
    const OneThread one;
    return upper_inverse_factor(moments, options.real("damp"), job.name);
  }();
  clear_columns(weight, factor.dead);

  std::vector<float> importance = column_importance(factor.upper);  // as walked
  if (fixed && ordered) {
    std::vector<float> natural(importance.size());
    for (size_t j = 0; j < order.size(); ++j) natural[order[j]] = importance[j];
    importance = std::move(natural);
  }
  GridBuilder grid(rows, cols, grid_spec(options), largest, std::move(importance));
  if (fixed) {
    const Tensor natural = ordered ? at::empty_like(weight).index_copy_(1, index_tensor(order), weight) : weight;
    grid.round_all(natural.const_data_ptr<float>());
    StaticGroups policy{grid, order};
    gptq_walk(weight, factor.upper, grid.group(), policy);
    return grid.build();
  }
  gptq_walk(weight, factor.upper, grid.group(), grid);
  return ordered ? must(Permuted::from(grid.build(), Axis::cols, order)) : grid.build();
}

}  // namespace

const Fit& gptq_fit() {
  static const Fit fit{"gptq", run};
  return fit;
}

}  // namespace pith
