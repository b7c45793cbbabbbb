// The walk of `gguf`; see gguf.cpp for the formulas.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <vector>

#include "engine/fit.h"
#include "formats/ggml_blocks.h"
#include "maths/gptq_walk.h"
#include "maths/linalg.h"
#include "represent/blocks.h"
#include "tensor/parallel.h"
#include "tensor/tensor.h"

namespace pith {
namespace {

constexpr int kLongestSub = 32, kLongestBlock = 256;

/// Nearest code for x = (w + shift) / scale on a type's levels.
int nearest_code(const BlockShape& shape, float x) {
  if (!shape.table)
    return static_cast<int>(
        std::clamp(std::nearbyint(x), static_cast<float>(shape.code_low), static_cast<float>(shape.code_high)));
  const int8_t* const above = std::lower_bound(std::begin(iq4_levels), std::end(iq4_levels), x,
                                               [](int8_t level, float v) { return static_cast<float>(level) < v; });
  if (above == std::begin(iq4_levels)) return 0;
  if (above == std::end(iq4_levels)) return 15;
  const int i = static_cast<int>(above - std::begin(iq4_levels));
  return x - static_cast<float>(iq4_levels[i - 1]) <= static_cast<float>(iq4_levels[i]) - x ? i - 1 : i;
}

float level_of(const BlockShape& shape, int code) { return static_cast<float>(shape.table ? iq4_levels[code] : code); }

/// Rounds along the walk with block scales chosen on the way. Fields of the block a row is in are kept by row.
struct BlockWalk {
  GgmlType type;
  const BlockShape& shape;
  const int64_t* order;     // column that is walked j-th, [cols]; whole blocks, and whole sub-blocks in them
  const float* u;           // [cols, cols] in the order of the walk
  const float* importance;  // 1 / U_jj^2, [cols] in the order of the walk
  int64_t cols;
  std::byte* out;
  uint64_t row_bytes, block_bytes;
  std::vector<BlockFields> fields;  // by row

  void begin_group(int64_t row0, int64_t rows, int64_t col0, int64_t group, const float* w, int64_t ld) {
    for (int64_t r = 0; r < rows; ++r) {
      BlockFields& f = fields[static_cast<size_t>(row0 + r)];
      if (col0 % shape.elements == 0) {
        // The whole block as compensated so far; plain rounding with its scale search gives d and dmin.
        std::byte packed[512];
        float values[kLongestBlock], weights[kLongestBlock];
        for (int i = 0; i < shape.elements; ++i) {
          const int at = place(col0 + i);
          values[at] = w[r * ld + i], weights[at] = importance[col0 + i];
        }
        quantize_row(type, values, shape.elements, weights, packed);
        unpack_block(type, packed, f);
      }
      if (shape.scale_low != shape.scale_high || shape.min_high > 1)
        choose_sub_scale(f, place(col0) / shape.sub, col0, group, w + r * ld);
    }
  }

  float quantize(int64_t row, int64_t col, float w) {
    BlockFields& f = fields[static_cast<size_t>(row)];
    const int i = place(col), s = i / shape.sub;
    const float scale = f.d * static_cast<float>(f.scales[s]), shift = f.dmin * static_cast<float>(f.mins[s]);
    const int code = scale == 0 ? nearest_code(shape, 0) : nearest_code(shape, (w + shift) / scale);
    f.codes[i] = static_cast<int16_t>(code);
    if (col % shape.elements == shape.elements - 1)
      pack_block(type, f,
                 out + static_cast<uint64_t>(row) * row_bytes +
                     static_cast<uint64_t>(order[col] / shape.elements) * block_bytes);
    return scale * level_of(shape, code) - shift;
  }

 private:
  /// Where in its block the column walked j-th lies.
  int place(int64_t j) const { return static_cast<int>(order[j] % shape.elements); }

  /// sum (e / U_jj)^2 of the inner walk over one sub-block, ended early once it exceeds `limit`.
  double simulated(const float* w, int64_t col0, int64_t n, float scale, float shift, double limit) const {
    float rest[kLongestSub];
    std::copy_n(w, n, rest);
    double loss = 0;
    for (int64_t j = 0; j < n && loss < limit; ++j) {
      const float* row = u + (col0 + j) * cols + col0;
      const int code = scale == 0 ? nearest_code(shape, 0) : nearest_code(shape, (rest[j] + shift) / scale);
      const float e = (rest[j] - (scale * level_of(shape, code) - shift)) / row[j];
      loss += static_cast<double>(e) * e;
      for (int64_t k = j + 1; k < n; ++k) rest[k] -= e * row[k];
    }
    return loss;
  }

  void choose_sub_scale(BlockFields& f, int s, int64_t col0, int64_t n, const float* w) const {
    if (f.d == 0 && f.dmin == 0) return;
    int scale = f.scales[s], minimum = f.mins[s];
    // Weighted least squares of scale and minimum for the codes that the present ones give.
    const float a = f.d * static_cast<float>(scale), b = f.dmin * static_cast<float>(minimum);
    if (a != 0 && shape.scale_low != shape.scale_high) {
      double sv = 0, sl = 0, sll = 0, sw = 0, slw = 0;
      for (int64_t j = 0; j < n; ++j) {
        const double v = importance[col0 + j], l = level_of(shape, nearest_code(shape, (w[j] + b) / a));
        sv += v, sl += v * l, sll += v * l * l, sw += v * w[j], slw += v * l * w[j];
      }
      if (shape.min_high > 0) {
        const double det = sll * sv - sl * sl;
        if (det > 1e-12 * sll * sv) {
          const double slope = (slw * sv - sl * sw) / det, shift = (sl * slw - sll * sw) / det;
          if (f.d != 0) scale = static_cast<int>(std::lround(slope / f.d));
          if (f.dmin != 0) minimum = static_cast<int>(std::lround(shift / f.dmin));
        }
      } else if (sll > 0) {
        scale = static_cast<int>(std::lround(slw / sll / f.d));
      }
    }
    double best = std::numeric_limits<double>::infinity();
    int best_scale = f.scales[s], best_min = f.mins[s];
    const auto attempt = [&](int sc, int mn) {
      if (sc < shape.scale_low || sc > shape.scale_high || mn < shape.min_low || mn > shape.min_high) return;
      const double loss = simulated(w, col0, n, f.d * static_cast<float>(sc), f.dmin * static_cast<float>(mn), best);
      if (loss < best) best = loss, best_scale = sc, best_min = mn;
    };
    attempt(f.scales[s], f.mins[s]);
    for (int ds = -1; ds <= 1; ++ds)
      for (int dm = -1; dm <= 1; ++dm)
        if (dm == 0 || shape.min_high > 1) attempt(scale + ds, minimum + dm);
    f.scales[s] = static_cast<int16_t>(best_scale);
    f.mins[s] = static_cast<int16_t>(best_min);
  }
};

/// Blocks by falling mean of H_jj, inside them sub-blocks, inside those columns: what weighs most is rounded first,
/// while there are columns left that can make up for it.
Tensor walk_order(const Tensor& diagonal, const BlockShape& shape) {
  const int64_t cols = diagonal.size(0);
  const Tensor h = diagonal.to(at::kDouble).contiguous();
  const auto mean = [&](int64_t n) { return h.view({-1, n}).mean(1).repeat_interleave(n); };
  const Tensor block = mean(shape.elements), sub = mean(shape.sub);
  std::vector<int64_t> order(static_cast<size_t>(cols));
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](int64_t j) {
    return std::make_tuple(-block.data_ptr<double>()[j], j / shape.elements, -sub.data_ptr<double>()[j], j / shape.sub,
                           -h.data_ptr<double>()[j], j);
  };
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return key(a) < key(b); });
  return at::tensor(order, at::kLong);
}

NodePtr run(const FitJob& job, const Options& options) {
  Tensor weight = usable_weight(job);
  const int64_t rows = weight.size(0), cols = weight.size(1);
  GgmlType type = *ggml_type_from_name(options.text("type"));
  if (!ggml_row_bytes(type, cols)) type = *ggml_type_from_name(options.text("fallback"));
  const auto row_bytes = ggml_row_bytes(type, cols);
  if (!row_bytes)
    throw Failure(user_error(job.name + ": rows of " + std::to_string(cols) + " fit no block type of llama.cpp"));
  const BlockShape& shape = *block_shape(type);
  Tensor upper = at::eye(cols, at::kDouble), order = at::arange(cols);
  const bool compensate = options.flag("compensate");
  if (knows_inputs(job)) {
    const OneThread one;
    if (compensate && options.flag("sort")) order = walk_order(job.inputs->diagonal(), shape);
    const auto sorted = [&](const Tensor& m) { return m.index_select(0, order).index_select(1, order); };
    const Tensor h = sorted(job.inputs->second());
    upper = upper_inverse_factor(h, options.real("damp"), job.name).upper;
    weight = weight.index_select(1, order);
    if (options.flag("correct") && job.cross.defined()) {
      const Tensor inverse = at::mm(upper.t(), upper);  // (Hq + damping)^-1
      weight = weight + at::mm(weight.to(at::kDouble), at::mm(sorted(job.cross) - h, inverse)).to(at::kFloat);
    }
  }
  const Tensor u = upper.to(at::kFloat).contiguous();
  const std::vector<float> importance = inverse_squared_diagonal(upper);
  std::vector<std::byte> out(*row_bytes * static_cast<size_t>(rows));
  const uint64_t block_bytes = ggml_traits(type).bytes;
  BlockWalk walk{type,
                 shape,
                 order.data_ptr<int64_t>(),
                 u.data_ptr<float>(),
                 importance.data(),
                 cols,
                 out.data(),
                 *row_bytes,
                 block_bytes,
                 std::vector<BlockFields>(static_cast<size_t>(rows))};
  if (compensate) {
    gptq_walk(weight, upper, shape.sub, walk);
  } else {
    const float* w = weight.data_ptr<float>();
    for (int64_t r = 0; r < rows; ++r)
      quantize_row(type, w + r * cols, cols, importance.data(), out.data() + static_cast<uint64_t>(r) * *row_bytes);
  }
  return must(Blocks::make(type, rows, cols, Bytes::own(std::move(out))));
}

}  // namespace

const Fit& gguf_fit() {
  static const Fit fit{"gguf", &run};
  return fit;
}

}  // namespace pith
