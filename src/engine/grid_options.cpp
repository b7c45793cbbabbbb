#include "engine/grid_options.h"

#include <cstdlib>

namespace pith {

GridSpec grid_spec(const Options& options) {
  GridSpec spec;
  const std::string& grid = options.text("grid");
  spec.shape = grid == "sym" ? GridShape::sym : grid == "nf" ? GridShape::nf : GridShape::asym;
  spec.bits = static_cast<unsigned>(options.integer("bits"));
  spec.group = options.integer("group");
  spec.search = options.text("clip") != "none";
  spec.stat_bits = static_cast<unsigned>(options.integer("stat-bits"));
  spec.stat_group = std::atoi(options.text("stat-group").c_str());
  return spec;
}

float largest_size(const Tensor& weight) { return weight.abs().max().item<float>(); }

}  // namespace pith
