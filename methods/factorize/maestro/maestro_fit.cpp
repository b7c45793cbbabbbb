#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/hash.h"
#include "engine/fit.h"
#include "engine/jobs.h"
#include "engine/model_fit.h"
#include "maths/ordered_rank.h"
#include "maths/wsvd.h"
#include "represent/dense.h"
#include "represent/low_rank.h"
#include "tensor/parallel.h"

namespace pith {
namespace {

/// Directions of less importance are gone.
constexpr double kGone = 1e-5;

struct Product {
  std::string name;
  Tensor a, b;  // [out, r], [r, in] fp32
  double weights() const { return static_cast<double>(a.size(0)) * static_cast<double>(b.size(1)); }
};

// Ordered products of all block matrices: those that the model has, else from the SVD.
std::vector<Product> products_of(const ModelJob& job) {
  const std::vector<Target> targets = block_targets(job.model.config);
  std::vector<Product> all(targets.size());
  parallel_tasks(std::ssize(targets), [&](int64_t i) {
    const std::string& name = targets[static_cast<size_t>(i)].name;
    Product& p = all[static_cast<size_t>(i)];
    p.name = name;
    const auto* there = dynamic_cast<const LowRank*>(job.model.find(name)->node.get());
    if (there != nullptr && there->mean() == nullptr) {
      p.a = decoded(*there->u()), p.b = decoded(*there->v());
      return;
    }
    const Tensor w = job.weights.tensor(name);
    const LowRankFit fit = wsvd(w, {}, {}, std::min(w.size(0), w.size(1)), name);
    p.a = fit.a.to(at::kFloat).contiguous(), p.b = fit.b.to(at::kFloat).contiguous();
  });
  return all;
}

std::vector<OrderedProduct> ordered(const std::vector<Product>& all, const TensorMap& p) {
  std::vector<OrderedProduct> out;
  for (const Product& x : all) out.emplace_back(p.at(x.name + ".a"), p.at(x.name + ".b"));
  return out;
}

// The model with these products cut to these ranks.
Model cut_model(const ModelJob& job, const std::vector<Product>& all, const TensorMap& p,
                const std::vector<int64_t>& ranks) {
  NodeMap nodes;
  for (size_t k = 0; k < all.size(); ++k) {
    const Tensor a = p.at(all[k].name + ".a").narrow(1, 0, ranks[k]),
                 b = p.at(all[k].name + ".b").narrow(0, 0, ranks[k]);
    nodes[all[k].name] = must(LowRank::make(dense_node(a), dense_node(b)));
  }
  return with_nodes(job.model, nodes);
}

// How many numbers the products may have so that the result takes at most job.target bytes.
double numbers_for(const ModelJob& job, const std::vector<Product>& all, const TensorMap& p, double weights) {
  const std::vector<OrderedProduct> order = ordered(all, p);
  const auto bytes = [&](double numbers) { return job.bytes(cut_model(job, all, p, nested_cut(order, numbers))); };
  double low = 0, high = weights;
  if (bytes(low) > job.target)
    throw Failure(
        user_error(fmt::format("maestro: even with one direction of each matrix the model takes {} bytes; give "
                               "a larger budget",
                               bytes(low))));
  for (int i = 0; i < 24; ++i) {
    const double middle = (low + high) / 2;
    (bytes(middle) > job.target ? high : low) = middle;
  }
  return low;
}

// What a step looks at: prefixes of some products.
std::vector<int64_t> sampled(const std::vector<OrderedProduct>& order, const std::string& sampler, uint64_t seed,
                             int64_t step) {
  std::vector<int64_t> ranks;
  for (const OrderedProduct& p : order) ranks.push_back(std::max<int64_t>(1, p.rank(kGone)));
  if (sampler == "none") return ranks;
  at::Generator g = at::detail::createCPUGenerator(hash64("prefix", seed * 1000003 + static_cast<uint64_t>(step)));
  const auto below = [&](int64_t n) { return at::randint(0, n, {1}, g, at::kLong).item<int64_t>(); };
  if (sampler == "independent") {
    for (int64_t& r : ranks) r = 1 + below(r);
    return ranks;
  }
  // All pairs of a product and a prefix of it are equally likely.
  int64_t all = 0;
  for (const int64_t r : ranks) all += r;
  int64_t pair = below(all);
  for (int64_t& r : ranks) {
    if (pair < r) {
      r = pair + 1;
      break;
    }
    pair -= r;
  }
  return ranks;
}

ModelResult run(const ModelJob& job, const Options& o) {
  ModelResult out{job.model, {}, std::nullopt};
  if (job.target == 0 && o.real("compression") <= 1) {
    out.notes.push_back("compression 1: nothing was changed");
    return out;
  }
  const std::vector<Product> all = products_of(job);
  Adapter adapter;
  double weights = 0;
  for (const Product& p : all) {
    adapter.parameters[p.name + ".a"] = p.a;
    adapter.parameters[p.name + ".b"] = p.b;
    weights += p.weights();
  }
  const double numbers =
      job.target > 0 ? numbers_for(job, all, adapter.parameters, weights) : weights / o.real("compression");
  TensorMap best = adapter.parameters;
  if (const int64_t steps = o.integer("steps"); steps > 0) {
    const double judged = o.real("judge") > 0 ? weights / o.real("judge") : numbers;
    adapter.weights = [&](const TensorMap& p, int64_t step) {
      const std::vector<int64_t> ranks =
          step < 0 ? nested_cut(ordered(all, p), judged) : sampled(ordered(all, p), o.text("sampler"), job.seed, step);
      TensorMap w;
      for (size_t k = 0; k < all.size(); ++k) {
        const std::string& name = all[k].name;
        w[name] = at::mm(p.at(name + ".a").narrow(1, 0, ranks[k]), p.at(name + ".b").narrow(0, 0, ranks[k]));
      }
      return w;
    };
    const double lambda = o.real("lambda");
    const bool plain = o.text("lasso") == "plain";
    if (lambda > 0)
      adapter.penalty = [&](const TensorMap& p) {
        Tensor sum = at::zeros({}, at::kFloat);
        for (const Product& x : all) {
          const Tensor &a = p.at(x.name + ".a"), &b = p.at(x.name + ".b");
          sum = sum + (plain ? (a.square().sum(0) + 1e-12).sqrt().sum() + (b.square().sum(1) + 1e-12).sqrt().sum()
                             : hierarchical_lasso(a, b));
        }
        return sum * lambda;
      };
    AdapterOptions train;
    train.steps = steps, train.batch = o.integer("batch"), train.rate = o.real("rate");
    best = train_on_text(job, adapter, train, 16, out.notes).parameters;
  }
  const std::vector<OrderedProduct> order = ordered(all, best);
  std::vector<int64_t> ranks = nested_cut(order, numbers);
  // Other ranks with as many numbers may take some bytes more.
  for (double fewer = numbers; job.target > 0 && job.bytes(cut_model(job, all, best, ranks)) > job.target;)
    ranks = nested_cut(order, fewer *= 0.999);
  out.model = cut_model(job, all, best, ranks);
  const auto [least, most] = std::minmax_element(ranks.begin(), ranks.end());
  const auto single = std::count(ranks.begin(), ranks.end(), int64_t{1});
  out.notes.push_back(fmt::format("ranks {} to {}", *least, *most));
  if (single > 0)
    out.notes.push_back(
        fmt::format("{} matrices have come down to a single direction; a larger size is better", single));
  return out;
}

double passes(const Options& o) { return 1 + 3.0 * static_cast<double>(o.integer("steps") * o.integer("batch")) / 128; }

constexpr ModelFit kWhole{run, passes};

}  // namespace

const Fit& maestro_fit() {
  static const Fit fit{"maestro", nullptr, &kWhole};
  return fit;
}

}  // namespace pith
