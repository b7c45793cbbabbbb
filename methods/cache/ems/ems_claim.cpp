// The claim of EMS at a size that fits here: SmolLM2, prompts of real text, caches of a few dozen tokens a head; loss
// of the next tokens and answers to a question that the prompt ends with. Every cache has the same window, so the same
// queries choose; the ablations take away one part of the idea each.
#include <fmt/format.h>

#include <cmath>
#include <cstdlib>

#include "base/file.h"
#include "engine/claim.h"
#include "measure/statistics.h"
#include "runtime/builtin_text.h"
#include "runtime/cache_eval.h"
#include "runtime/model_file.h"
#include "runtime/tokenizer.h"
#include "tensor/tensor.h"

namespace pith {
namespace {

constexpr std::string_view kStatement =
    "loss of the next tokens, mean over all budgets and texts: ems < h2o - 0.02 and ems < snapkv - 0.01 nats; passkey "
    "at "
    "4 % of the prompt: answers right(ems) >= answers right(snapkv) and >= answers right(h2o) + 10 points";

ClaimResult run(const ClaimRun& request) {
  const int seeds = request.quick ? 1 : 3;
  const char* home = std::getenv("PITH_HOME");
  std::string path = request.model_folder;
  for (const std::string& root : {std::string(home != nullptr ? home : "."), std::string(".")})
    if (path.empty() && is_directory(root + "/testdata/lm-s")) path = root + "/testdata/lm-s";
  if (path.empty()) throw Failure(user_error("there is no testdata/lm-s here; name a model with --model"));
  Progress& progress = request.progress != nullptr ? *request.progress : quiet_progress();
  ThreadPool pool;
  const Model model = must(open_model(path));
  const Tokenizer tokenizer = must(Tokenizer::create(model.tokenizer));
  LmOptions options;
  options.precision = Precision::fast;
  const auto lm = must(Lm::load(model, options, pool, progress));
  std::vector<std::vector<int32_t>> documents;
  for (const char* text : {"builtin:encyclopedia", "builtin:prose", "builtin:documentation"})
    documents.push_back(must(tokenizer.encode(must(read_named_text(text)), {false, false})));

  const int64_t room = model.config.context - 160;
  CacheEvalOptions ask;
  ask.decode_tokens = 0;
  struct Kind {
    std::string name, options;
  };
  const std::vector<Kind> kinds{{"ems", "ems:window=16,budget="},
                                {"h2o", "h2o:budget="},
                                {"snapkv", "snapkv:window=16,budget="},
                                {"snapkv without smoothing", "snapkv:window=16,kernel=1,budget="},
                                {"sinks", "sinks:budget="}};
  const std::vector<Kind> ablations{{"global score only", "ems:window=16,score=global,budget="},
                                    {"local score only", "ems:window=16,score=local,budget="},
                                    {"evict only", "ems:window=16,tau=1,budget="},
                                    {"merge only", "ems:window=16,tau=-1,gamma=1000000,epsilon=0,budget="},
                                    {"all heads keep the same", "ems:window=16,shared,budget="},
                                    {"keys compared without RoPE", "ems:window=16,sim=pre,budget="},
                                    {"attention of merged tokens lost", "ems:window=16,mass=false,budget="},
                                    {"scores smoothed over 7 neighbours", "ems:window=16,kernel=7,budget="}};
  const std::vector<std::string> budgets =
      request.quick ? std::vector<std::string>{"64"} : std::vector<std::string>{"32", "64"};
  const std::string middle = "64";
  const auto at = [](const std::string& name, const std::string& budget) {
    return name + ", " + budget + " tokens a head";
  };
  // A short prompt has to leave room for the window.
  const std::string part = request.quick ? "10%" : "4%", share = ", " + part + " of the prompt";

  ClaimResult result;
  struct Measured {
    std::string arm, cache;
  };
  const auto measure = [&](int seed, const std::vector<Measured>& arms, const std::string& full, bool loss) {
    ask.seed = static_cast<uint64_t>(seed);
    ask.caches.clear();
    for (const Measured& m : arms) ask.caches.push_back(m.cache);
    const auto scores = must(evaluate_caches(*lm, tokenizer, documents, ask, pool, progress));
    for (size_t i = 0; i < scores.size(); ++i) {
      const std::string& arm = i == 0 ? full : arms[i - 1].arm;
      const auto note = [&](const char* metric, double value) {
        result.rows.push_back({arm, metric, static_cast<uint64_t>(seed), value});
      };
      note(loss ? "nll" : "passkey", loss ? scores[i].nll : scores[i].accuracy);
      if (loss) note("kl", scores[i].kl);
      note("bytes", scores[i].bytes);
      progress.note(fmt::format("seed {}: {}: {:.4f}", seed, arm, loss ? scores[i].nll : scores[i].accuracy));
    }
  };
  for (int seed = 1; seed <= seeds; ++seed) {
    ask.tasks = {"ppl"};
    ask.lengths = {std::min<int64_t>(request.quick ? 256 : 1024, room)};
    ask.items = request.quick ? 2 : 4;
    ask.continuation = request.quick ? 32 : 96;
    std::vector<Measured> arms;
    for (const std::string& budget : budgets)
      for (const Kind& kind : kinds) arms.push_back({at(kind.name, budget), kind.options + budget});
    for (const Kind& kind : ablations) arms.push_back({at("ablation: " + kind.name, middle), kind.options + middle});
    measure(seed, arms, "full", true);
    ask.tasks = {"passkey"};
    ask.lengths = {std::min<int64_t>(request.quick ? 450 : 768, room)};
    ask.items = request.quick ? 2 : 6;
    arms.clear();
    for (const Kind& kind : kinds) arms.push_back({kind.name + share, kind.options + part});
    measure(seed, arms, "full" + share, false);
  }
  const auto nll = [&](const std::string& arm) { return claim_mean(result.rows, arm, "nll"); };
  const auto loss = [&](const std::string& name) {
    double sum = 0;
    for (const std::string& budget : budgets) sum += nll(at(name, budget)) / static_cast<double>(budgets.size());
    return sum;
  };
  const auto right = [&](const std::string& name) { return claim_mean(result.rows, name + share, "passkey"); };
  const double ems = loss("ems");
  result.statement = kStatement;
  const double snapkv = std::min(loss("snapkv"), loss("snapkv without smoothing"));
  const double snapkv_right = std::max(right("snapkv"), right("snapkv without smoothing"));
  result.holds = ems < loss("h2o") - 0.02 && ems < snapkv - 0.01 && right("ems") >= snapkv_right &&
                 right("ems") >= right("h2o") + 0.1 - 1e-9;
  result.found = fmt::format(
      "loss {:.4f} against {:.4f} of h2o, {:.4f} of snapkv ({:.4f} without smoothing), {:.4f} of sinks and {:.4f} "
      "dense; passkey {:.0f} % against "
      "{:.0f} % of h2o, {:.0f} % of snapkv ({:.0f} % without smoothing), {:.0f} % of sinks and {:.0f} % dense; with {} "
      "tokens {:.4f}",
      ems, loss("h2o"), loss("snapkv"), loss("snapkv without smoothing"), loss("sinks"), nll("full"),
      100 * right("ems"), 100 * right("h2o"), 100 * right("snapkv"), 100 * right("snapkv without smoothing"),
      100 * right("sinks"), 100 * right("full"), middle, nll(at("ems", middle)));
  for (const Kind& kind : ablations) {
    const double by = nll(at("ablation: " + kind.name, middle)) - nll(at("ems", middle));
    result.found += fmt::format("; {}: {:+.4f} ({})", kind.name, by,
                                by >= 0.005   ? "worse"
                                : by > -0.005 ? "the same"
                                              : "better");
  }
  return result;
}

}  // namespace

const Claim& ems_claim() {
  static const Claim claim{"ems", kStatement, run};
  return claim;
}

}  // namespace pith
