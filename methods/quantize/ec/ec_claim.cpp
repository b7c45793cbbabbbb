// The claim of entropy-coded, error-compensated grids: at equal bytes of the whole .pith file (embedding and norms as
// they are in every arm), mean KL to the float model is at most 0.5 of GPTQ's on its best grid and 0.6 of SpQR's. At
// two sizes: what the baselines take with 3-bit and with 2-bit codes. The baselines see the inputs that the compressed
// blocks before them deliver; ec, as in `pith compress`, sees the float model's.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/assemble.h"
#include "engine/claim_lm.h"
#include "represent/codes.h"
#include "represent/grid.h"
#include "runtime/model_file.h"

namespace pith {
namespace {

constexpr std::string_view kStatement =
    "at equal bytes of the file, for 3-bit and 2-bit codes of the baselines, mean over seeds: KL(ec) <= 0.5 KL(gptq, "
    "the best of its grids) and KL(ec) <= 0.6 KL(spqr)";

// Bits a weight that the baselines get beside their codes: SpQR's outliers and statistics, GPTQ's scales.
constexpr double kBeside = 0.9;

uint64_t coded_bytes(const ClaimLm& lm, const NodeMap& nodes) {
  return must(pith_model_bytes(assemble(lm.model(), source_of(nodes))));
}

uint64_t plain_bytes(const ClaimLm& lm, const NodeMap& nodes) {
  return must(pith_model_bytes(with_nodes(lm.model(), nodes)));
}

/// The largest file of `fit(log2 of the step)` that takes at most `bytes`, within 0.3 % or after ten tries.
struct Fitted {
  NodeMap nodes;
  double log_step = 0;
};
template <class Fit, class Size>
Fitted at_bytes(uint64_t bytes, double guess, const Fit& fit, const Size& size) {
  Fitted best;
  uint64_t best_size = 0;
  double low = -40, high = 0, log_step = guess;  // a file at `low` is too large, one at `high` fits
  for (int round = 0; round < 10; ++round) {
    NodeMap nodes = fit(log_step);
    const uint64_t found = size(nodes);
    double weights = 0;
    for (const auto& [name, node] : nodes) weights += static_cast<double>(node->rows() * node->cols());
    (found > bytes ? low : high) = log_step;
    if (found <= bytes && found > best_size) best_size = found, best = {std::move(nodes), log_step};
    if (found <= bytes && static_cast<double>(found) >= 0.997 * static_cast<double>(bytes)) break;
    // A weight loses about 0.9 bit with each octave of the step.
    const double target = 0.999 * static_cast<double>(bytes);
    const double next = log_step + (static_cast<double>(found) - target) * 8 / (0.9 * weights);
    log_step = next > low && next < high ? next : (low + high) / 2;
  }
  if (best_size == 0) throw Failure(bug_error("claim ec: no step brought the file under the budget"));
  return best;
}

/// Order-0 entropy of a grid's codes, bits a weight.
double entropy(const Node& node) {
  const std::vector<int16_t> codes = all_codes(*static_cast<const Grid&>(node).codes());
  std::map<int16_t, double> counts;
  for (const int16_t code : codes) ++counts[code];
  double bits = 0;
  for (const auto& [code, n] : counts) bits += n * std::log2(static_cast<double>(codes.size()) / n);
  return bits / static_cast<double>(codes.size());
}

ClaimResult run(const ClaimRun& request) {
  const int seeds = request.quick ? 1 : 3;
  const ClaimLm lm(request, request.quick ? 128 : 512, request.quick ? 16 : 48);
  const int64_t sequences = request.quick ? 16 : 32;
  std::vector<int> widths{3, 2};
  if (request.quick) widths.pop_back();
  ClaimResult result;
  result.rows.push_back({"float", "ppl", 0, lm.perplexity({})});

  for (uint64_t seed = 1; seed <= static_cast<uint64_t>(seeds); ++seed) {
    const Tensor text = lm.calibration(seed, sequences);
    const auto statistics = lm.statistics(text, sequences, seed);
    for (const int width : widths) {
      const auto measure = [&](const std::string& arm, const NodeMap& nodes, uint64_t bytes) {
        const std::string name = fmt::format("{}, {}-bit size", arm, width);
        const ClaimLm::Loss loss = lm.loss(nodes);
        result.rows.push_back({name, "file bytes", seed, static_cast<double>(bytes)});
        result.rows.push_back({name, "kl", seed, loss.kl});
        result.rows.push_back({name, "ppl", seed, loss.ppl});
        lm.progress().note(fmt::format("seed {}: {}: {} bytes, KL {:.5f}", seed, name, bytes, loss.kl));
      };
      // Nobody gets more bytes than ec's smallest rival.
      uint64_t budget = UINT64_MAX;
      const auto baseline = [&](const std::string& arm, const std::string& spec) {
        const NodeMap nodes = fit_blocks(lm, text, [&](const FitJob& job) { return fit_spec(spec, job); });
        const uint64_t bytes = plain_bytes(lm, nodes);
        budget = std::min(budget, bytes);
        measure(arm, nodes, bytes);
      };
      const auto group = [](double numbers) { return static_cast<int64_t>(std::floor(numbers / kBeside)); };
      baseline("gptq asym", fmt::format("gptq:bits={},group={}", width, group(32)));
      baseline("gptq sym", fmt::format("gptq:bits={},grid=sym,group={}", width, group(16)));
      if (!request.quick)
        baseline("gptq asym, order act", fmt::format("gptq:bits={},order=act,group={}", width, group(32)));
      baseline("spqr", fmt::format("spqr:bits={},target-bits={}", width, width + kBeside + 0.02));

      const auto with = [&](const std::string& options) {
        return [&, options](double log_step) {
          const std::string spec = fmt::format("ec:step={:.6g}{}", std::exp2(log_step), options);
          return fit_alone(lm, statistics.get(), [&](const FitJob& job) { return fit_spec(spec, job); });
        };
      };
      const auto coded = [&](const NodeMap& nodes) { return coded_bytes(lm, nodes); };
      const auto plain = [&](const NodeMap& nodes) { return plain_bytes(lm, nodes); };
      const Fitted ec = at_bytes(budget, -12, with(""), coded);
      measure("ec", ec.nodes, coded(ec.nodes));
      if (request.quick) continue;
      const Fitted alone = at_bytes(budget, ec.log_step, with(",compensate=false"), coded);
      measure("ablation: no compensation", alone.nodes, coded(alone.nodes));
      // The same steps, but every code of a matrix takes the bits of its largest.
      const Fitted fixed = at_bytes(budget, ec.log_step + 2, with(""), plain);
      measure("ablation: fixed-rate codes", fixed.nodes, plain(fixed.nodes));
      const Fitted blind = at_bytes(budget, ec.log_step, with(",fisher=false"), coded);
      measure("ablation: no G", blind.nodes, coded(blind.nodes));
      // Equal bits a matrix: shifts of the steps that bring all entropies to their mean, found in two rounds.
      std::map<std::string, double, std::less<>> shift;
      const auto shifted = [&](double log_step) {
        return fit_alone(lm, statistics.get(), [&](const FitJob& job) {
          const double own = log_step + (shift.empty() ? 0 : shift.at(job.name));
          return fit_spec(fmt::format("ec:fisher=false,step={:.6g}", std::exp2(own)), job);
        });
      };
      for (int round = 0; round < 2; ++round) {
        const NodeMap nodes = shifted(blind.log_step);
        std::map<std::string, double, std::less<>> found;
        double mean = 0;
        for (const auto& [name, node] : nodes)
          mean += (found[name] = entropy(*node)) / static_cast<double>(nodes.size());
        for (const auto& [name, bits] : found) shift[name] += bits - mean;
      }
      const Fitted equal = at_bytes(budget, blind.log_step, shifted, coded);
      measure("ablation: equal bits a matrix", equal.nodes, coded(equal.nodes));
    }
  }

  result.statement = kStatement;
  result.holds = true;
  for (const int width : widths) {
    const auto kl = [&](const std::string& arm) {
      return claim_mean(result.rows, fmt::format("{}, {}-bit size", arm, width), "kl");
    };
    // The best of GPTQ's grids, by its mean over the seeds.
    double gptq = std::min(kl("gptq asym"), kl("gptq sym"));
    if (!request.quick) gptq = std::min(gptq, kl("gptq asym, order act"));
    const double ec = kl("ec"), spqr = kl("spqr");
    result.holds = result.holds && ec <= 0.5 * gptq && ec <= 0.6 * spqr;
    result.found += fmt::format("{}{}-bit size: KL {:.5f}, {:.2f}x of gptq ({:.5f}), {:.2f}x of spqr ({:.5f})",
                                result.found.empty() ? "" : "; ", width, ec, ec / gptq, gptq, ec / spqr, spqr);
    if (request.quick) continue;
    for (const char* arm : {"no compensation", "fixed-rate codes", "no G", "equal bits a matrix"})
      result.found += fmt::format(", {} {:.2f}x", arm, kl(fmt::format("ablation: {}", arm)) / ec);
  }
  return result;
}

}  // namespace

const Claim& ec_claim() {
  static const Claim claim{"ec", kStatement, run};
  return claim;
}

}  // namespace pith
