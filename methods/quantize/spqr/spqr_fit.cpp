#include <cmath>
#include <limits>

#include "base/half.h"
#include "engine/fit.h"
#include "engine/grid_options.h"
#include "maths/columns.h"
#include "maths/gptq_walk.h"
#include "maths/leave_one_out.h"
#include "maths/linalg.h"
#include "maths/sparse_fit.h"
#include "represent/combine.h"
#include "represent/sparse.h"
#include "tensor/parallel.h"

namespace pith {
namespace {

struct SpqrWalk {
  GridBuilder& grid;
  const std::vector<float>& u;  // U_jj
  float threshold;              // infinity: no outliers
  bool test;
  bool by_magnitude;
  DType outlier_type;
  int64_t cols;
  std::vector<float>& outliers;  // [rows, cols]; NaN: none here

  void begin_group(int64_t row0, int64_t rows, int64_t col0, int64_t n, const float* w, int64_t ld) {
    GridParams found[kWalkRows];
    std::vector<uint8_t> likely(static_cast<size_t>(n), 0);
    std::vector<float> values(static_cast<size_t>(n)), scratch;
    for (int64_t r = 0; r < rows; ++r) {
      std::copy(w + r * ld, w + r * ld + n, values.begin());
      if (test && n > 1 && std::isfinite(threshold)) {
        if (by_magnitude)
          for (size_t j = 0; j < values.size(); ++j) likely[j] = values[j] * values[j] > threshold;
        else
          leave_one_out(values.data(), u.data() + col0, n, grid.largest_code(), threshold, likely.data(), scratch);
        double sum = 0;
        int64_t stay = 0;
        for (size_t j = 0; j < values.size(); ++j)
          if (!likely[j]) sum += values[j], ++stay;
        const float mean = stay > 0 ? static_cast<float>(sum / static_cast<double>(stay)) : 0.0f;
        for (size_t j = 0; j < values.size(); ++j)
          if (likely[j]) values[j] = mean;
      }
      found[r] = extremes_grid(values.data(), n, grid.largest_code());
    }
    grid.set_group(row0, rows, col0 / grid.group(), found);
  }

  float quantize(int64_t row, int64_t col, float w) {
    const float e = (w - grid.rounded(row, col, w)) / u[static_cast<size_t>(col)];
    if (!((by_magnitude ? w * w : e * e) > threshold)) return grid.quantize(row, col, w);
    grid.quantize(row, col, 0);
    const float kept = outlier_type == DType::f16 ? half_to_float(float_to_half(w)) : w;
    outliers[static_cast<size_t>(row * cols + col)] = kept;
    return kept;
  }
};

// What does not depend on tau.
struct Prepared {
  Tensor weight;  // columns in the order of the walk
  Tensor upper;
  std::vector<float> u;
  std::vector<uint32_t> order;  // empty: natural
  double spread = 0;            // mean_j(var_rows(W_j) / U_jj^2)
  double power = 0;             // mean of w^2
  float largest = 0;
};

Prepared prepare(const FitJob& job, const Options& options) {
  const OneThread one;
  Prepared p;
  p.weight = usable_weight(job);
  p.largest = largest_size(p.weight);
  Tensor moments = input_moments(job);
  if (options.text("order") == "act") {
    p.order = falling_order(moments.diagonal());
    const Tensor index = index_tensor(p.order);
    p.weight = p.weight.index_select(1, index);
    moments = moments.index_select(0, index).index_select(1, index);
  }
  const InverseFactor factor = upper_inverse_factor(moments, options.real("damp"), job.name);
  clear_columns(p.weight, factor.dead);
  p.upper = factor.upper.to(at::kFloat).contiguous();
  const Tensor diagonal = p.upper.diagonal().contiguous();
  p.u.assign(diagonal.const_data_ptr<float>(), diagonal.const_data_ptr<float>() + diagonal.numel());
  const Tensor w = p.weight.to(at::kDouble);
  // The variance of a single row is nothing; its size stands in.
  const Tensor centred = w.size(0) > 1 ? w - w.mean(0, true) : w;
  p.spread = ((centred * centred).mean(0) / diagonal.to(at::kDouble).pow(2)).mean().item<double>();
  p.power = (w * w).mean().item<double>();
  return p;
}

// tau: infinity = no outliers.
NodePtr fit_with(const Prepared& p, const Options& options, double tau) {
  Tensor weight = p.weight.clone();
  const int64_t rows = weight.size(0), cols = weight.size(1);
  GridSpec spec;
  spec.bits = static_cast<unsigned>(options.integer("bits"));
  spec.group = options.integer("group");
  spec.stat_bits = static_cast<unsigned>(options.integer("stat-bits"));
  spec.stat_group = std::stoi(options.text("stat-group"));
  GridBuilder grid(rows, cols, spec, p.largest);
  std::vector<float> outliers(static_cast<size_t>(rows * cols), std::numeric_limits<float>::quiet_NaN());
  const bool by_magnitude = options.text("outlier-choice") == "magnitude";
  const double threshold = std::isfinite(tau) ? tau * (by_magnitude ? p.power : p.spread) : tau;
  SpqrWalk policy{grid,
                  p.u,
                  static_cast<float>(threshold),
                  !options.flag("simplified-outliers"),
                  by_magnitude,
                  value_type(p.largest),
                  cols,
                  outliers};
  gptq_walk(weight, p.upper, grid.group(), policy);

  std::vector<uint32_t> starts{0}, columns;
  std::vector<float> values;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const float v = outliers[static_cast<size_t>(r * cols + c)];
      if (std::isnan(v)) continue;
      columns.push_back(static_cast<uint32_t>(c));
      values.push_back(v);
    }
    starts.push_back(static_cast<uint32_t>(columns.size()));
  }
  NodePtr node = grid.build();
  if (!columns.empty())
    node = must(Override::make(node, must(Csr::from(rows, cols, starts, columns, values, policy.outlier_type))));
  return p.order.empty() ? node : must(Permuted::from(node, Axis::cols, p.order));
}

NodePtr run(const FitJob& job, const Options& options) {
  const Prepared p = prepare(job, options);
  const double off = std::numeric_limits<double>::infinity();
  const double target = options.real("target-bits");
  if (target == 0) {
    const double tau = options.real("outlier-threshold");
    return fit_with(p, options, tau == 0 ? off : tau);
  }
  const double weights = static_cast<double>(p.weight.numel());
  const auto bits = [&](const NodePtr& node) { return static_cast<double>(node->bits().total()) / weights; };
  NodePtr best = fit_with(p, options, off);
  if (bits(best) > target)
    throw Failure(user_error(job.name + ": " + std::to_string(bits(best)) +
                             " bits a weight are the least that these options can do, target-bits is " +
                             std::to_string(target) + "; lower bits or stat-bits, or raise group"));
  // Fewer outliers with a higher tau; the lowest tau that fits wins. 12 halvings of 24 octaves: 0.4 % in tau.
  double low = -16, high = 8;
  for (int step = 0; step < 12; ++step) {
    const double middle = 0.5 * (low + high);
    const NodePtr node = fit_with(p, options, std::exp2(middle));
    if (bits(node) <= target) {
      high = middle;
      best = node;
    } else {
      low = middle;
    }
  }
  return best;
}

}  // namespace

const Fit& spqr_fit() {
  static const Fit fit{"spqr", run};
  return fit;
}

}  // namespace pith
