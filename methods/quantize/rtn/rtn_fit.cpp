#include "engine/fit.h"
#include "engine/grid_options.h"

namespace pith {
namespace {

NodePtr run(const FitJob& job, const Options& options) {
  const Tensor weight = usable_weight(job);
  std::vector<float> importance;
  if (options.text("clip") == "act") {
    const Tensor squares = input_squares(job).to(at::kFloat).contiguous();
    importance.assign(squares.const_data_ptr<float>(), squares.const_data_ptr<float>() + squares.numel());
  }
  GridBuilder grid(weight.size(0), weight.size(1), grid_spec(options), largest_size(weight), std::move(importance));
  grid.round_all(weight.const_data_ptr<float>());
  return grid.build();
}

}  // namespace

const Fit& rtn_fit() {
  static const Fit fit{"rtn", run};
  return fit;
}

}  // namespace pith
