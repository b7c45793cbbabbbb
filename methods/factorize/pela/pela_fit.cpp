#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/hash.h"
#include "engine/fit.h"
#include "engine/jobs.h"
#include "engine/model_fit.h"
#include "maths/wsvd.h"
#include "represent/dense.h"
#include "represent/low_rank.h"
#include "tensor/parallel.h"

namespace pith {
namespace {

struct Matrix {
  std::string name;
  int64_t out = 0, in = 0, rank = 0;
};

// The matrices of the blocks that become two, with their ranks. At compression 1 none does.
std::vector<Matrix> matrices(const LmConfig& config, double compression) {
  std::vector<Matrix> list;
  if (compression <= 1) return list;
  for (const Target& t : block_targets(config)) {
    const double weights = static_cast<double>(t.rows) * static_cast<double>(t.cols);
    const auto rank = static_cast<int64_t>(weights / (compression * static_cast<double>(t.rows + t.cols)));
    if (rank == 0 || rank * (t.rows + t.cols) >= t.rows * t.cols) continue;
    list.push_back({t.name, t.rows, t.cols, rank});
  }
  return list;
}

NodePtr product(const Tensor& a, const Tensor& b) { return must(LowRank::make(dense_node(a), dense_node(b))); }

// The compression at which the result takes at most job.target bytes, for which zeros of the right shapes are sized.
double compression_for(const ModelJob& job) {
  const auto bytes = [&](double compression) {
    NodeMap nodes;
    for (const Matrix& m : matrices(job.model.config, compression))
      nodes[m.name] = product(at::zeros({m.out, m.rank}, at::kFloat), at::zeros({m.rank, m.in}, at::kFloat));
    return job.bytes(with_nodes(job.model, nodes));
  };
  double low = 1, high = 64;
  if (bytes(high) > job.target)
    throw Failure(user_error(
        fmt::format("pela: even at compression 64 the model takes {} bytes; give a larger budget", bytes(high))));
  for (int i = 0; i < 24; ++i) {
    const double middle = std::sqrt(low * high);
    (bytes(middle) > job.target ? low : high) = middle;
  }
  return high;
}

ModelResult run(const ModelJob& job, const Options& o) {
  ModelResult out{job.model, {}, std::nullopt};
  const double compression = job.target > 0 ? compression_for(job) : o.real("compression");
  const std::vector<Matrix> list = matrices(job.model.config, compression);
  if (list.empty()) {
    out.notes.push_back(fmt::format("compression {:.4g}: no matrix becomes smaller as a product", compression));
    return out;
  }
  std::vector<Tensor> original(list.size());
  std::vector<LowRankFit> start(list.size());
  parallel_tasks(std::ssize(list), [&](int64_t i) {
    const auto k = static_cast<size_t>(i);
    const Matrix& m = list[k];
    original[k] = job.weights.tensor(m.name);
    if (o.text("init") == "svd") {
      start[k] = wsvd(original[k], {}, {}, m.rank, m.name);
      return;
    }
    // Entries of the product as large as those of W.
    at::Generator g = at::detail::createCPUGenerator(hash64(m.name, job.seed));
    const double size = original[k].square().mean().sqrt().item<double>();
    const double each = std::sqrt(size / std::sqrt(static_cast<double>(m.rank)));
    start[k].a = at::randn({m.out, m.rank}, g, at::kDouble) * each;
    start[k].b = at::randn({m.rank, m.in}, g, at::kDouble) * each;
  });
  Adapter adapter;
  for (size_t k = 0; k < list.size(); ++k) {
    adapter.parameters[list[k].name + ".a"] = start[k].a.to(at::kFloat).contiguous();
    adapter.parameters[list[k].name + ".b"] = start[k].b.to(at::kFloat).contiguous();
  }
  TensorMap best = adapter.parameters;
  if (const int64_t steps = o.integer("steps"); steps > 0) {
    const auto weight = [](const TensorMap& p, const Matrix& m) {
      return at::mm(p.at(m.name + ".a"), p.at(m.name + ".b"));
    };
    adapter.weights = [&](const TensorMap& p, int64_t) {
      TensorMap w;
      for (const Matrix& m : list) w[m.name] = weight(p, m);
      return w;
    };
    const double gamma = o.real("gamma"), eps = o.real("eps");
    const bool hinge = o.text("wp") == "hinge";
    if (gamma > 0)
      adapter.penalty = [&](const TensorMap& p) {
        Tensor sum = at::zeros({}, at::kFloat);
        for (size_t k = 0; k < list.size(); ++k) {
          const Tensor beyond = (weight(p, list[k]) - original[k]).abs().max() - eps;
          sum = sum + (hinge ? beyond.clamp_min(0) : beyond).square();
        }
        return sum * (gamma / static_cast<double>(list.size()));
      };
    AdapterOptions train;
    train.steps = steps, train.batch = o.integer("batch"), train.rate = o.real("rate");
    train.features = o.real("alpha"), train.decay = 0.02;
    best = train_on_text(job, adapter, train, 16, out.notes).parameters;
  }
  NodeMap nodes;
  for (const Matrix& m : list) nodes[m.name] = product(best.at(m.name + ".a"), best.at(m.name + ".b"));
  out.model = with_nodes(std::move(out.model), nodes);
  return out;
}

// A step goes forward and back over a batch, and forward beside it in the original: four passes' worth.
double passes(const Options& o) { return 1 + 4.0 * static_cast<double>(o.integer("steps") * o.integer("batch")) / 128; }

constexpr ModelFit kWhole{run, passes};

}  // namespace

const Fit& pela_fit() {
  static const Fit fit{"pela", nullptr, &kWhole};
  return fit;
}

}  // namespace pith
