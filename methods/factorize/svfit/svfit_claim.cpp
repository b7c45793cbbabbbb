// The claim of SVFit on a language model and a domain that it has not seen: singular values of queries and values alone
// adapt it about as well as LoRA with twenty times the numbers. Two texts of the held-out set (in other languages, and
// program code), cut into parts to learn from, to choose by, and to measure on; learning rates of each method chosen on
// the second part, one for all seeds.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>

#include "base/hash.h"
#include "engine/claim_lm.h"
#include "runtime/builtin_text.h"
#include "runtime/tokenizer.h"
#include "train/adapter.h"

namespace pith {
namespace {

constexpr std::string_view kStatement =
    "adapted to a new domain, mean over seeds of both texts: ppl(svfit on q and v) <= 1.01 ppl(LoRA of rank 8 there, "
    "20 "
    "times the numbers), < ppl(LoRA with as many numbers), and the text's ppl falls";

struct Text {
  std::string name;
  Tensor train, choose, test;  // [n, length]
};

Text text_of(const ClaimLm& lm, const std::string& domain, int64_t length) {
  const Tokenizer tokenizer = must(Tokenizer::create(lm.model().tokenizer));
  std::string text;
  for (const HeldoutText& t : builtin_heldout_texts())
    if (t.domain == domain) text = t.text;
  if (text.empty()) throw Failure(bug_error("claim: there is no held-out text '" + domain + "'"));
  const std::vector<int32_t> ids = must(tokenizer.encode(text, {.add_special = false}));
  std::vector<int64_t> wide(ids.begin(), ids.end());
  const int64_t n = std::ssize(wide) / length;
  const Tensor all = at::tensor(wide, at::kLong).narrow(0, 0, n * length).view({n, length});
  const int64_t choose = n / 10, test = n / 4;  // one behind the other: neighbours of a passage stay together
  return {domain, all.narrow(0, 0, n - choose - test).contiguous(),
          all.narrow(0, n - choose - test, choose).contiguous(), all.narrow(0, n - test, test).contiguous()};
}

// A way to adapt: numbers, and how weights follow from them.
struct Way {
  std::string name;
  std::vector<double> rates;
  std::function<Adapter(uint64_t seed)> make;
};

std::vector<std::string> queries_and_values(int64_t layers) {
  std::vector<std::string> names;
  for (int64_t layer = 0; layer < layers; ++layer)
    for (const char* part : {"q", "v"})
      names.push_back(fmt::format("model.layers.{}.self_attn.{}_proj.weight", layer, part));
  return names;
}

// W + U diag(p unit) V^T along given directions.
Adapter along(const ClaimLm& lm, bool singular, double share, bool top, uint64_t seed) {
  struct Part {
    Tensor w, u, v;
  };
  auto parts = std::make_shared<std::map<std::string, Part>>();
  Adapter adapter;
  for (const std::string& name : queries_and_values(lm.config().layers)) {
    const Tensor w = lm.weights().tensor(name);
    auto [u, s, vt] = at::linalg_svd(w.to(at::kDouble), false);
    Tensor v = vt.t();
    const int64_t most = s.size(0), r = std::max<int64_t>(1, static_cast<int64_t>(share * static_cast<double>(most)));
    const double unit = s.mean().item<double>();
    if (!singular) {
      at::Generator g = at::detail::createCPUGenerator(hash64(name, seed));
      u = std::get<0>(at::linalg_qr(at::randn({w.size(0), most}, g, at::kDouble)));
      v = std::get<0>(at::linalg_qr(at::randn({w.size(1), most}, g, at::kDouble)));
    }
    const int64_t first = top ? 0 : most - r;
    (*parts)[name] = {w, (u.narrow(1, first, r) * unit).to(at::kFloat), v.narrow(1, first, r).to(at::kFloat)};
    adapter.parameters[name] = at::zeros({r}, at::kFloat);
  }
  adapter.weights = [parts](const TensorMap& p, int64_t) {
    TensorMap out;
    for (const auto& [name, part] : *parts) out[name] = part.w + at::mm(part.u * p.at(name), part.v.t());
    return out;
  };
  return adapter;
}

// W + B A, A random and B zero at the beginning; on the first `layers` blocks.
Adapter lora(const ClaimLm& lm, int64_t rank, int64_t layers, uint64_t seed) {
  Adapter adapter;
  auto weights = std::make_shared<TensorMap>();
  for (const std::string& name : queries_and_values(layers)) {
    const Tensor w = (*weights)[name] = lm.weights().tensor(name);
    at::Generator g = at::detail::createCPUGenerator(hash64(name, seed));
    adapter.parameters[name + ".a"] =
        at::randn({rank, w.size(1)}, g, at::kFloat) / std::sqrt(static_cast<double>(w.size(1)));
    adapter.parameters[name + ".b"] = at::zeros({w.size(0), rank}, at::kFloat);
  }
  adapter.weights = [weights](const TensorMap& p, int64_t) {
    TensorMap out;
    for (const auto& [name, w] : *weights) out[name] = w + at::mm(p.at(name + ".b"), p.at(name + ".a"));
    return out;
  };
  return adapter;
}

int64_t numbers_of(const Adapter& adapter) {
  int64_t n = 0;
  for (const auto& [name, t] : adapter.parameters) n += t.numel();
  return n;
}

ClaimResult run(const ClaimRun& request) {
  const int seeds = request.quick ? 1 : 3;
  const int64_t length = 128;
  const ClaimLm lm(request, 128, 8);
  ClaimResult result;
  const std::vector<Way> ways{
      {"svfit", {0.02, 0.05, 0.15}, [&](uint64_t seed) { return along(lm, true, 1, true, seed); }},
      {"LoRA rank 8", {1e-3, 4e-3, 1.5e-2}, [&](uint64_t seed) { return lora(lm, 8, lm.config().layers, seed); }},
      {"LoRA with as many numbers", {4e-3, 1.5e-2, 6e-2}, [&](uint64_t seed) { return lora(lm, 1, 2, seed); }},
      {"svfit, first eighth", {0.05, 0.15, 0.5}, [&](uint64_t seed) { return along(lm, true, 0.125, true, seed); }},
      {"ablation: last eighth", {0.05, 0.15, 0.5}, [&](uint64_t seed) { return along(lm, true, 0.125, false, seed); }},
      {"ablation: random directions",
       {0.02, 0.05, 0.15},
       [&](uint64_t seed) { return along(lm, false, 1, true, seed); }},
  };
  std::vector<std::string> domains{"languages", "code"};
  if (request.quick) domains.resize(1);
  for (const std::string& domain : domains) {
    const Text text = text_of(lm, domain, length);
    const auto perplexity = [&](const TensorMap& changed) {
      TensorMap tensors;
      for (const TensorSpec& spec : expected_tensors(lm.config()))
        tensors[spec.name] = changed.contains(spec.name) ? changed.at(spec.name) : lm.weights().tensor(spec.name);
      const Tensor test = request.quick ? text.test.narrow(0, 0, 8) : text.test;
      return std::exp(lm_nll(*weights_of(lm.config(), std::move(tensors)), test).mean().item<double>());
    };
    result.rows.push_back({"not adapted, " + domain, "ppl", 0, perplexity({})});
    for (const Way& way : ways) {
      if (request.quick && way.name.starts_with("ablation")) continue;
      double rate = way.rates[1];
      double best = 1e30;
      for (int seed = 1; seed <= seeds; ++seed) {
        const Adapter adapter = way.make(static_cast<uint64_t>(seed));
        const auto train = [&](double at_rate) {
          AdapterOptions options;
          options.steps = request.quick ? 4 : 150, options.batch = request.quick ? 2 : 8, options.rate = at_rate;
          options.seed = static_cast<uint64_t>(seed);
          const Tensor choose = request.quick ? text.choose.narrow(0, 0, 4) : text.choose;
          return train_adapter(lm.weights(), adapter, text.train, choose, options);
        };
        AdapterTrained found;
        if (seed == 1 && !request.quick) {
          for (const double r : way.rates) {
            AdapterTrained tried = train(r);
            if (tried.after < best) best = tried.after, rate = r, found = std::move(tried);
          }
        } else {
          found = train(rate);
        }
        const at::NoGradGuard no_grad;
        const double ppl = perplexity(adapter.weights(found.parameters, -1));
        const std::string arm = way.name + ", " + domain;
        if (seed == 1) {
          result.rows.push_back({arm, "numbers", 1, static_cast<double>(numbers_of(adapter))});
          result.rows.push_back({arm, "rate", 1, rate});
        }
        result.rows.push_back({arm, "ppl", static_cast<uint64_t>(seed), ppl});
        lm.progress().note(fmt::format("seed {}: {}: ppl {:.4f} (rate {})", seed, arm, ppl, rate));
      }
    }
  }
  const auto mean = [&](const std::string& arm, const std::string& domain) {
    return claim_mean(result.rows, arm + ", " + domain, "ppl");
  };
  result.statement = kStatement;
  result.holds = true;
  for (const std::string& domain : domains) {
    const double svfit = mean("svfit", domain);
    result.holds = result.holds && svfit <= 1.01 * mean("LoRA rank 8", domain) &&
                   svfit < mean("LoRA with as many numbers", domain) && svfit < mean("not adapted", domain);
    result.found += fmt::format("{}{}: from {:.3f}, svfit {:.3f}, LoRA rank 8 {:.3f}, LoRA with as many numbers {:.3f}",
                                result.found.empty() ? "" : "; ", domain, mean("not adapted", domain), svfit,
                                mean("LoRA rank 8", domain), mean("LoRA with as many numbers", domain));
    if (!request.quick)
      result.found += fmt::format(", first eighth {:.3f}, last eighth {:.3f}, random directions {:.3f}",
                                  mean("svfit, first eighth", domain), mean("ablation: last eighth", domain),
                                  mean("ablation: random directions", domain));
  }
  return result;
}

}  // namespace

const Claim& svfit_claim() {
  static const Claim claim{"svfit", kStatement, run};
  return claim;
}

}  // namespace pith
