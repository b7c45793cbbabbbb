// The claim of Maestro on a trained language model: after one training with random prefixes the products can be cut to
// any size without more of it, far better than the SVD of the original cut by the same rule. Products of all block
// matrices; 200 steps of 8 sequences of 256 tokens; the training's own choice of a best moment looks at half size.
#include <fmt/format.h>

#include "engine/claim_lm.h"

namespace pith {
namespace {

constexpr std::string_view kStatement =
    "one training, cut to two thirds, a half and a third of the blocks' weights without more of it: held-out "
    "ppl(maestro) "
    "at most 0.8 ppl(SVD cut by the same rule) at each size on every seed; and at a half no sampling of prefixes is "
    "worse "
    "in the mean";

ClaimResult run(const ClaimRun& request) {
  const int seeds = request.quick ? 1 : 3;
  const ClaimLm lm(request, request.quick ? 64 : 256, request.quick ? 8 : 96);
  ClaimResult result;
  result.rows.push_back({"float", "ppl", 0, lm.perplexity({})});
  const std::vector<double> sizes = request.quick ? std::vector<double>{2} : std::vector<double>{1.5, 2, 3};
  const auto name = [](const std::string& arm, double size) { return fmt::format("{}, 1/{}", arm, size); };
  const std::string training =
      request.quick ? "maestro:steps=4,batch=2" : "maestro:steps=200,batch=8,rate=0.001,compression=1.2,judge=2";
  int held = 0, cases = 0;
  for (int seed = 1; seed <= seeds; ++seed) {
    const Tensor text = lm.calibration(static_cast<uint64_t>(seed), request.quick ? 8 : 256);
    const auto cut = [&](const std::string& arm, const Model* from, double size) {
      const Model model = make_model(lm, fmt::format("maestro:steps=0,compression={}", size), text, 1, from);
      const double ppl = lm.perplexity_of(model);
      result.rows.push_back({name(arm, size), "ppl", static_cast<uint64_t>(seed), ppl});
      if (seed == 1) result.rows.push_back({name(arm, size), "bits", 1, block_bits(lm, model)});
      lm.progress().note(fmt::format("seed {}: {}: ppl {:.4f}", seed, name(arm, size), ppl));
      return ppl;
    };
    // The file keeps nearly all directions, to be cut; the training looks at what half of the weights give.
    const auto trained = [&](const std::string& options) {
      return make_model(lm, training + options, text, static_cast<uint64_t>(seed));
    };
    for (const double size : sizes)
      if (seed == 1) cut("SVD", nullptr, size);
    const std::vector<std::pair<std::string, std::string>> arms =
        request.quick ? std::vector<std::pair<std::string, std::string>>{{"maestro", ""}}
                      : std::vector<std::pair<std::string, std::string>>{
                            {"maestro", ""},
                            {"each product at its own prefix", ",sampler=independent"},
                            {"ablation: no sampling", ",sampler=none"},
                            {"ablation: plain lasso", ",lasso=plain"},
                            {"ablation: no lasso", ",lambda=0"}};
    for (const auto& [arm, options] : arms) {
      const Model ordered = trained(options);
      for (const double size : sizes) {
        if (arm != "maestro" && size != 2) continue;
        const double ppl = cut(arm, &ordered, size);
        if (arm != "maestro") continue;
        ++cases;
        held += ppl <= 0.8 * claim_value(result.rows, name("SVD", size), "ppl", 1);
      }
    }
  }
  const auto ppl = [&](const std::string& arm, double size) { return claim_mean(result.rows, name(arm, size), "ppl"); };
  result.statement = kStatement;
  result.holds = held == cases;
  result.found = fmt::format("{} of {} cases;", held, cases);
  for (const double size : sizes)
    result.found += fmt::format(" 1/{}: maestro {:.4f}, SVD {:.4f};", size, ppl("maestro", size), ppl("SVD", size));
  if (request.quick) return result;
  result.holds = result.holds && ppl("ablation: no sampling", 2) > ppl("maestro", 2);
  result.found += fmt::format(
      " at a half: no sampling {:.4f}, plain lasso {:.4f}, no lasso {:.4f}, each product at its own prefix {:.4f}",
      ppl("ablation: no sampling", 2), ppl("ablation: plain lasso", 2), ppl("ablation: no lasso", 2),
      ppl("each product at its own prefix", 2));
  return result;
}

}  // namespace

const Claim& maestro_claim() {
  static const Claim claim{"maestro", kStatement, run};
  return claim;
}

}  // namespace pith
