#include "runtime/evaluate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace pith {
namespace {

// Mean and standard error of a stream of numbers (Welford).
struct Mean {
  int64_t n = 0;
  double mean = 0, squares = 0;
  void add(double v) {
    ++n;
    const double d = v - mean;
    mean += d / static_cast<double>(n);
    squares += d * (v - mean);
  }
  double error() const { return n > 1 ? std::sqrt(squares / static_cast<double>(n - 1) / static_cast<double>(n)) : 0; }
};

PerplexityResult result_of(const Mean& nll, int64_t chunks) {
  PerplexityResult r;
  r.nll = nll.mean;
  r.ppl = std::exp(nll.mean);
  r.ppl_error = nll.error() * r.ppl;
  r.tokens = nll.n;
  r.chunks = chunks;
  return r;
}

struct Plan {
  int64_t chunks = 0, first = 0;  ///< first: the first position whose prediction counts
};

Result<Plan> plan_chunks(const Lm& model, std::span<const int32_t> tokens, const EvalOptions& o) {
  if (o.context < 2) return user_error(fmt::format("context of {} tokens: at least 2 are needed", o.context));
  if (o.max_chunks < 0) return user_error(fmt::format("{} chunks", o.max_chunks));
  const LmConfig& c = model.config();
  if (c.context > 0 && o.context > c.context) {
    return user_error(fmt::format("context of {} tokens: the model was made for at most {}", o.context, c.context));
  }
  Plan p;
  p.chunks = static_cast<int64_t>(tokens.size()) / o.context;
  if (p.chunks == 0) {
    return user_error(
        fmt::format("the text has {} tokens, less than one chunk of {}: give more text or a smaller "
                    "context",
                    tokens.size(), o.context));
  }
  if (o.max_chunks > 0) p.chunks = std::min(p.chunks, o.max_chunks);
  p.first = o.full_window ? 0 : o.context / 2;
  return p;
}

std::vector<int32_t> chunk_of(std::span<const int32_t> tokens, int64_t chunk, const EvalOptions& o) {
  const auto from = tokens.begin() + chunk * o.context;
  std::vector<int32_t> out(from, from + o.context);
  if (o.bos >= 0) out[0] = o.bos;
  return out;
}

// log(sum(exp(x))) in double, and the index of the largest (the first one of equals).
struct Row {
  double log_sum = 0;
  int64_t top = 0;
};
Row row_of(const float* x, int64_t n) {
  Row r;
  r.top = std::max_element(x, x + n) - x;
  const float most = x[r.top];
  // Eight sums in fp32 of at most a few thousand terms each, joined in double.
  double sum = 0;
  for (int64_t i = 0; i < n; i += 4096) {
    float part[8] = {};
    const int64_t end = std::min(n, i + 4096);
    for (int64_t j = i; j < end; ++j) part[j % 8] += std::exp(x[j] - most);
    for (float p : part) sum += static_cast<double>(p);
  }
  r.log_sum = static_cast<double>(most) + std::log(sum);
  return r;
}

// Positions whose logits are in memory at a time.
constexpr int64_t kPositions = 128;

// Runs one chunk; what comes out of the final norm for its positions from `first` on.
Status run_chunk(const Lm& model, const std::vector<int32_t>& chunk, int64_t first, KvStore& kv,
                 std::vector<float>& states, ThreadPool& pool) {
  kv.clear();
  return model.states(chunk, kv, chunk.size() - static_cast<size_t>(first), states, pool);
}

// Rows [i, i + count) of states.
std::span<const float> rows_of(const std::vector<float>& states, int64_t i, int64_t count, const Lm& model) {
  const auto width = static_cast<size_t>(model.config().hidden);
  return std::span(states).subspan(static_cast<size_t>(i) * width, static_cast<size_t>(count) * width);
}

}  // namespace

Result<PerplexityResult> perplexity(const Lm& model, std::span<const int32_t> tokens, const EvalOptions& options,
                                    ThreadPool& pool, Progress& progress) {
  PITH_ASSIGN(const Plan plan, plan_chunks(model, tokens, options));
  const int64_t vocab = model.config().vocab;
  KvStore kv = model.new_kv();
  Mean nll;
  std::vector<double> loss(static_cast<size_t>(options.context));
  std::vector<float> states, logits;
  for (int64_t k = 0; k < plan.chunks; ++k) {
    const std::vector<int32_t> chunk = chunk_of(tokens, k, options);
    PITH_TRY(run_chunk(model, chunk, plan.first, kv, states, pool));
    for (int64_t from = plan.first; from + 1 < options.context; from += kPositions) {
      const int64_t count = std::min(kPositions, options.context - 1 - from);
      model.logits(rows_of(states, from - plan.first, count, model), logits, pool);
      pool.parallel_for(count, [&](int64_t i) {
        const float* x = logits.data() + i * vocab;
        loss[static_cast<size_t>(from + i)] =
            row_of(x, vocab).log_sum - static_cast<double>(x[chunk[static_cast<size_t>(from + i + 1)]]);
      });
    }
    for (int64_t i = plan.first; i + 1 < options.context; ++i) nll.add(loss[static_cast<size_t>(i)]);
    if (!std::isfinite(nll.mean)) return data_error(fmt::format("the loss of chunk {} is not finite", k));
    if (!progress.step({"evaluate", fmt::format("ppl {:.4f}", std::exp(nll.mean)), static_cast<uint64_t>(k + 1),
                        static_cast<uint64_t>(plan.chunks)})) {
      return user_error("stopped while evaluating");
    }
  }
  return result_of(nll, plan.chunks);
}

Result<ComparisonResult> compare(const Lm& model, const Lm& reference, std::span<const int32_t> tokens,
                                 const EvalOptions& options, ThreadPool& pool, Progress& progress) {
  PITH_ASSIGN(const Plan plan, plan_chunks(model, tokens, options));
  const int64_t vocab = model.config().vocab;
  if (vocab != reference.config().vocab) {
    return user_error(fmt::format("the model has {} tokens, the reference {}: they cannot be compared", vocab,
                                  reference.config().vocab));
  }
  KvStore kv = model.new_kv(), kv_reference = reference.new_kv();
  Mean nll, nll_reference, kl, same;
  double max_kl = 0;
  struct Token {
    double nll, nll_reference, kl;
    bool same;
  };
  std::vector<Token> found(static_cast<size_t>(options.context));
  std::vector<float> states, states_reference, a, b;
  for (int64_t k = 0; k < plan.chunks; ++k) {
    const std::vector<int32_t> chunk = chunk_of(tokens, k, options);
    PITH_TRY(run_chunk(model, chunk, plan.first, kv, states, pool));
    PITH_TRY(run_chunk(reference, chunk, plan.first, kv_reference, states_reference, pool));
    for (int64_t from = plan.first; from + 1 < options.context; from += kPositions) {
      const int64_t count = std::min(kPositions, options.context - 1 - from);
      model.logits(rows_of(states, from - plan.first, count, model), a, pool);
      reference.logits(rows_of(states_reference, from - plan.first, count, reference), b, pool);
      pool.parallel_for(count, [&](int64_t i) {
        const float *x = a.data() + i * vocab, *y = b.data() + i * vocab;
        const Row rx = row_of(x, vocab), ry = row_of(y, vocab);
        const auto target = static_cast<size_t>(chunk[static_cast<size_t>(from + i + 1)]);
        double sum = 0;
        for (int64_t v = 0; v < vocab; ++v) {
          const double log_p = static_cast<double>(y[v]) - ry.log_sum;
          if (log_p < -30) continue;  // e^-30 times any difference is below the rounding of the sum
          sum += std::exp(log_p) * (log_p - (static_cast<double>(x[v]) - rx.log_sum));
        }
        found[static_cast<size_t>(from + i)] = {rx.log_sum - static_cast<double>(x[target]),
                                                ry.log_sum - static_cast<double>(y[target]), std::max(sum, 0.0),
                                                rx.top == ry.top};
      });
    }
    for (int64_t i = plan.first; i + 1 < options.context; ++i) {
      const Token& t = found[static_cast<size_t>(i)];
      nll.add(t.nll);
      nll_reference.add(t.nll_reference);
      kl.add(t.kl);
      same.add(t.same ? 1 : 0);
      max_kl = std::max(max_kl, t.kl);
    }
    if (!std::isfinite(nll.mean) || !std::isfinite(kl.mean)) {
      return data_error(fmt::format("the loss of chunk {} is not finite", k));
    }
    if (!progress.step({"compare", fmt::format("KL {:.5f}", kl.mean), static_cast<uint64_t>(k + 1),
                        static_cast<uint64_t>(plan.chunks)})) {
      return user_error("stopped while comparing");
    }
  }
  ComparisonResult r;
  r.model = result_of(nll, plan.chunks);
  r.reference = result_of(nll_reference, plan.chunks);
  r.ratio = r.model.ppl / r.reference.ppl;
  r.mean_kl = kl.mean;
  r.mean_kl_error = kl.error();
  r.max_kl = max_kl;
  r.same_top = same.mean;
  r.same_top_error = same.error();
  return r;
}

}  // namespace pith
