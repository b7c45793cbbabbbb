// What every method promises, tested for every registered fit: exact bits, round trip, determinism, refusals. A new
// method is covered by registering.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/fit.h"
#include "engine/fit_samples.h"
#include "entropy/codes.h"
#include "represent/memory_sections.h"
#include "runtime/method.h"

namespace pith {
namespace {

using test::correlated;
using test::generator;
using test::MemorySections;
using test::weights_like;

Options parsed(const Method& method, const std::string& text) {
  Result<Options> options = Options::parse(text, method.params);
  if (!options.ok()) throw std::runtime_error(std::string(method.name) + ":" + text + ": " + options.error().message);
  return std::move(options).value();
}

// ---- tables
// ----------------------------------------------------------------------------------------------------------

TEST(AllMethods, TablesAreSound) {
  const std::set<std::string_view> families{"quantize", "prune",    "factorize", "shrink", "cache", "tokens", "image",
                                            "field",    "generate", "features",  "info",   "embed", "data"};
  for (const Method* method : all_methods()) {
    SCOPED_TRACE(method->name);
    EXPECT_TRUE(families.contains(method->family));
    EXPECT_FALSE(method->title.empty());
    const Status status = check_params(method->params);
    EXPECT_TRUE(status.ok()) << status.error().message;
    // A cache method runs inside other commands.
    const std::string call = method->family == "cache"
                                 ? "--cache " + std::string(method->name)
                                 : "pith " + std::string(method->family) + " " + std::string(method->name);
    EXPECT_NE(method->example.find(call), std::string::npos) << method->example;
    EXPECT_TRUE(method->example.starts_with("pith ")) << method->example;
    for (const Param& param : method->params) EXPECT_FALSE(param.help.empty()) << param.name;
    if (!method->budget_options.empty()) {
      const auto specs = parse_allow(std::string(method->name) + ":" + std::string(method->budget_options));
      ASSERT_TRUE(specs.ok()) << specs.error().message;
      for (const MethodSpec& spec : *specs)
        EXPECT_TRUE(Options::parse(spec.options, method->params).ok()) << spec.options;
    }
  }
}

TEST(AllMethods, EveryFitHasItsMethodUnderTheSameName) {
  for (const Fit* fit : all_fits()) EXPECT_NE(find_method(fit->name), nullptr) << fit->name;
}

// Those that fit one matrix at a time; methods for whole models are tested with models.
std::vector<const Fit*> matrix_fits() {
  std::vector<const Fit*> out;
  for (const Fit* fit : all_fits()) {
    EXPECT_NE(fit->run == nullptr, fit->whole == nullptr) << fit->name;
    if (fit->run != nullptr) out.push_back(fit);
  }
  return out;
}

// ---- options to try
// --------------------------------------------------------------------------------------------------

// The default, and each parameter alone at every choice or at both ends of its range, as long as that is small.
std::vector<std::string> option_strings(const Method& method) {
  std::vector<std::string> out{""};
  for (const Param& param : method.params) {
    const std::string name(param.name);
    if (param.type == ParamType::choice) {
      size_t begin = 0;
      const std::string choices(param.choices);
      while (begin <= choices.size()) {
        const size_t end = std::min(choices.find('|', begin), choices.size());
        out.push_back(name + "=" + choices.substr(begin, end - begin));
        begin = end + 1;
      }
    } else if (param.type == ParamType::boolean) {
      out.push_back(name + "=true");
      out.push_back(name + "=false");
    } else if (param.type == ParamType::integer || param.type == ParamType::real) {
      if (param.low == 0 && param.high == 0) continue;
      for (const double end : {param.low, param.high})
        if (std::fabs(end) <= 1e9) out.push_back(fmt::format("{}={}", name, end));
    }
  }
  // Combinations that meet in one place of a fit.
  const std::string_view n = method.name;
  if (n == "rtn" || n == "gptq")
    for (const char* more : {"bits=2,group=16,stat-bits=3", "bits=3,group=16,grid=sym,stat-bits=4,stat-group=8",
                             "bits=3,grid=nf,group=7", "bits=8,group=0,clip=none"})
      out.emplace_back(more);
  if (n == "gptq") out.insert(out.end(), {"order=act,group=16", "order=act,static-groups,group=16,grid=sym"});
  if (n == "spqr") out.insert(out.end(), {"target-bits=8", "bits=4,group=8,outlier-threshold=0.05,order=natural"});
  if (n == "eora") out.insert(out.end(), {"rank=3,factor-bits=4", "rank-budget=0.5,metric=act", "rank=2,metric=svd"});
  if (n == "sparsegpt")
    out.insert(out.end(),
               {"pattern=2\\:4", "pattern=1\\:3", "pattern=4\\:8,bits=3,group=8", "pattern=2\\:4,bits=2,group=0"});
  if (n == "wanda" || n == "magnitude") out.insert(out.end(), {"pattern=2\\:4", "pattern=3\\:7", "pattern=1\\:1"});
  return out;
}

TEST(AllMethods, OptionStringsHaveAnInverse) {
  for (const Method* method : all_methods())
    for (const std::string& text : option_strings(*method)) {
      const Options options = parsed(*method, text);
      const std::string printed = options.print();
      const Options again = parsed(*method, printed);
      EXPECT_EQ(again.print(), printed) << method->name << ":" << text;
      for (const Param& param : method->params)
        if (param.type == ParamType::choice || param.type == ParamType::text) {
          EXPECT_EQ(options.text(param.name), again.text(param.name)) << method->name << ":" << text;
        }
    }
}

// ---- matrices
// --------------------------------------------------------------------------------------------------------

struct Sample {
  std::string name;
  Tensor weight;
  Moments moments;
  Tensor cross, fisher;
};

Sample sample(std::string name, Tensor weight, uint64_t seed, int64_t dead = 0) {
  Sample s{std::move(name), weight, correlated(weight.size(1), seed, dead), {}, {}};
  s.cross = s.moments.second();
  at::Generator g = generator(seed + 1);
  s.fisher = at::exp(at::randn({weight.size(0)}, g, at::kDouble)) * 1e-4;
  return s;
}

std::vector<Sample> samples() {
  std::vector<Sample> out;
  out.push_back(sample("one", weights_like(1, 1, 1), 1));
  out.push_back(sample("row", weights_like(1, 40, 2), 2));
  out.push_back(sample("column", weights_like(33, 1, 3), 3));
  out.push_back(sample("odd", weights_like(37, 101, 4), 4));
  out.push_back(sample("block", weights_like(48, 256, 5), 5));
  out.push_back(sample("short last group", weights_like(20, 72, 6), 6));
  out.push_back(sample("dead inputs", weights_like(18, 64, 7), 7, 5));
  out.push_back(sample("tiny", weights_like(16, 64, 8, 1e-7), 8));
  out.push_back(sample("huge", weights_like(16, 64, 9, 3e6), 9));
  out.push_back(sample("zeros", at::zeros({17, 64}, at::kFloat), 10));
  out.push_back(
      sample("constant rows", (at::arange(16, at::kFloat) / 7.5 - 1).unsqueeze(1).expand({16, 64}).contiguous(), 11));
  return out;
}

FitJob job_of(const Sample& s, const Method& method, const Options& options) {
  FitJob job;
  job.name = "layers.0.mlp." + s.name;
  job.weight = s.weight;
  const Needs needs = needs_of(method, options);
  if (needs.moments) job.inputs = &s.moments;
  if (needs.cross) job.cross = s.cross;
  if (needs.row_fisher) job.row_fisher = s.fisher;
  if (needs.base) {
    FitJob base = job;
    const Method* rtn = find_method("rtn");
    job.base = find_fit("rtn")->run(base, parsed(*rtn, "bits=3,group=32"));
  }
  job.seed = 1;
  return job;
}

// The fit's tree, or nothing when the method refuses this shape or option as a user's mistake, saying where.
NodePtr fit_or_refusal(const Fit& fit, const FitJob& job, const Options& options) {
  try {
    return fit.run(job, options);
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.error().kind, ErrorKind::user) << failure.error().message;
    EXPECT_TRUE(failure.error().message.find(job.name) != std::string::npos ||
                failure.error().message.find("option") != std::string::npos)
        << failure.error().message;
    return nullptr;
  }
}

bool same_floats(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Stored {
  nlohmann::json tree;
  MemorySections sections;
};
std::unique_ptr<Stored> store(const Node& node) {
  auto stored = std::make_unique<Stored>();
  stored->tree = node.serialize("w", stored->sections);
  return stored;
}

TEST(AllMethods, RoundTripExactBitsAndTheSameBytesForAnyThreads) {
  const std::vector<Sample> all = samples();
  const int threads_before = at::get_num_threads();
  for (const Fit* fit : matrix_fits()) {
    const Method& method = *find_method(fit->name);
    int fitted = 0;
    for (const std::string& text : option_strings(method)) {
      const Options options = parsed(method, text);
      for (const Sample& s : all) {
        SCOPED_TRACE(std::string(method.name) + ":" + text + " on " + s.name);
        const FitJob job = job_of(s, method, options);
        at::set_num_threads(2);
        const NodePtr node = fit_or_refusal(*fit, job, options);
        if (node == nullptr) continue;
        ++fitted;
        ASSERT_EQ(node->rows(), s.weight.size(0));
        ASSERT_EQ(node->cols(), s.weight.size(1));
        const std::vector<float> values = decode_all(*node);
        for (const float v : values) ASSERT_TRUE(std::isfinite(v));
        EXPECT_TRUE(std::isfinite(predicted_loss(job, *node)));
        EXPECT_FALSE(node->describe().empty());

        const auto stored = store(*node);
        // Tables that a whole model shares are counted once by the model (Model::bits).
        EXPECT_EQ(node->bits().total(), stored->sections.own_bytes() * 8);

        const Limits limits;
        const ParseContext context{stored->sections, limits, entropy_codes_formats()};
        Result<NodePtr> back = parse_node(stored->tree, context);
        ASSERT_TRUE(back.ok()) << back.error().message;
        EXPECT_TRUE(same_floats(decode_all(**back), values));
        EXPECT_EQ((*back)->bits().total(), node->bits().total());
        EXPECT_EQ((*back)->describe(), node->describe());

        at::set_num_threads(1);
        const NodePtr single = fit->run(job, options);
        const auto stored_single = store(*single);
        EXPECT_EQ(stored->tree, stored_single->tree);
        EXPECT_TRUE(stored->sections == stored_single->sections) << "other bytes with one thread";
      }
    }
    EXPECT_GE(fitted, 2) << fit->name << " refuses nearly everything";
  }
  at::set_num_threads(threads_before);
}

TEST(AllMethods, RefuseWeightsThatAreNotFiniteNamingTheTensor) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    for (const Fit* fit : matrix_fits()) {
      const Method& method = *find_method(fit->name);
      Sample s = sample("broken", weights_like(32, 256, 4), 4);
      const Options options = Options::defaults(method.params);
      FitJob job = job_of(s, method, options);
      job.weight = s.weight.clone();
      job.weight[3][7] = bad;
      try {
        fit->run(job, options);
        ADD_FAILURE() << fit->name << " took a weight of " << bad;
      } catch (const Failure& failure) {
        EXPECT_EQ(failure.error().kind, ErrorKind::data) << fit->name;
        EXPECT_NE(failure.error().message.find(job.name), std::string::npos) << failure.error().message;
      }
    }
}

// A method that can do without falls back; one that cannot says which tensor lacks them.
TEST(AllMethods, MissingStatisticsAreRefusedOrDoneWithout) {
  for (const Fit* fit : matrix_fits()) {
    const Method& method = *find_method(fit->name);
    const Options options = Options::defaults(method.params);
    if (!needs_of(method, options).moments) continue;
    const Sample s = sample("unseen", weights_like(32, 256, 4), 4);
    FitJob job = job_of(s, method, options);
    const Moments none;
    for (const Moments* inputs : {static_cast<const Moments*>(nullptr), &none}) {
      job.inputs = inputs;
      try {
        EXPECT_EQ(fit->run(job, options)->rows(), 32);
      } catch (const Failure& failure) {
        EXPECT_NE(failure.error().message.find(job.name), std::string::npos) << failure.error().message;
      }
    }
  }
}

// ---- what calibrated methods promise against rounding to nearest
// ---------------------------------------------------------

double loss_of(const std::string& name, const std::string& text, const Sample& s) {
  const Method& method = *find_method(name);
  const Options options = parsed(method, text);
  FitJob job = job_of(s, method, options);
  const NodePtr node = find_fit(name)->run(job, options);
  job.inputs = &s.moments;
  job.row_fisher = Tensor();
  return predicted_loss(job, *node);
}

TEST(AllMethods, CompensationBeatsRoundingToNearestOnTheSameGrid) {
  for (uint64_t seed = 30; seed < 34; ++seed) {
    const Sample s = sample("block", weights_like(64, 192, seed), seed);
    for (const char* grid :
         {"bits=3,group=64", "bits=4,group=0,grid=sym", "bits=2,group=32", "bits=3,group=64,grid=nf"})
      EXPECT_LT(loss_of("gptq", grid, s), 0.9 * loss_of("rtn", grid, s)) << grid << " seed " << seed;
    EXPECT_LT(loss_of("gptq", "bits=3,group=64,order=act,static-groups", s),
              0.9 * loss_of("rtn", "bits=3,group=64", s));
    EXPECT_LT(loss_of("spqr", "bits=3", s), 0.9 * loss_of("rtn", "bits=3,group=16,clip=none", s));
    EXPECT_LT(loss_of("rtn", "bits=3,clip=act", s), loss_of("rtn", "bits=3,clip=none", s));
  }
}

TEST(AllMethods, PrunersThatKnowMoreLoseLess) {
  for (uint64_t seed = 40; seed < 44; ++seed) {
    const Sample s = sample("block", weights_like(64, 192, seed), seed);
    for (const char* what : {"sparsity=0.5", "pattern=2\\:4"}) {
      const double sparsegpt = loss_of("sparsegpt", what, s), wanda = loss_of("wanda", what, s),
                   magnitude = loss_of("magnitude", what, s);
      EXPECT_LT(sparsegpt, wanda) << what;
      EXPECT_LT(wanda, magnitude) << what;
    }
  }
}

}  // namespace
}  // namespace pith
