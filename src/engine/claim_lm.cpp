#include "engine/claim_lm.h"

#include <cstdlib>

#include "base/file.h"
#include "engine/assemble.h"
#include "engine/jobs.h"
#include "engine/model_fit.h"
#include "runtime/builtin_text.h"
#include "runtime/evaluate.h"
#include "runtime/lm.h"
#include "runtime/method.h"
#include "runtime/model_file.h"
#include "runtime/tokenizer.h"
#include "tensor/parallel.h"

namespace pith {
namespace {

std::string model_folder(const ClaimRun& run) {
  if (!run.model_folder.empty()) return run.model_folder;
  const char* home = std::getenv("PITH_HOME");
  for (const std::string& root : {std::string(home != nullptr ? home : "."), std::string(".")})
    if (is_directory(root + "/testdata/lm-s")) return root + "/testdata/lm-s";
  throw Failure(user_error(
      "there is no testdata/lm-s here; run from Pith's source folder, set PITH_HOME to it, or name a model folder"));
}

std::string text_of(const std::string& folder, const char* name, bool calibration) {
  const std::string path = folder + "/" + name;
  if (file_exists(path)) return must(read_text(path, 1ull << 30));
  if (calibration) return must(builtin_calibration_text());
  std::string text;
  for (const HeldoutText& t : builtin_heldout_texts()) text += std::string(t.text) + "\n\n";
  return text;
}

}  // namespace

ClaimLm::ClaimLm(const ClaimRun& run, int64_t length, int64_t test_sequences)
    : length_(length), progress_(run.progress != nullptr ? *run.progress : quiet_progress()) {
  const std::string folder = model_folder(run);
  model_ = must(open_model(folder));
  weights_ = weights_of(model_);
  length_ = std::min(length_, model_.config.context);
  const Tokenizer tokenizer = must(Tokenizer::create(model_.tokenizer));
  const auto tokens = [&](const char* name, bool calibration) {
    return must(tokenizer.encode(text_of(folder, name, calibration), {.add_special = false}));
  };
  calibration_ = tokens("calib.txt", true);
  test_ = tokens("test.txt", false);
  const int64_t sequences = std::min<int64_t>(test_sequences, static_cast<int64_t>(test_.size()) / length_);
  if (sequences == 0 || static_cast<int64_t>(calibration_.size()) < 2 * length_)
    throw Failure(
        user_error(folder + ": calib.txt and test.txt must hold more than " + std::to_string(length_) + " tokens"));
  // Sequences spread over the whole text, so that a short measurement still sees all of it.
  std::vector<int32_t> spread;
  const int64_t stride = (static_cast<int64_t>(test_.size()) - length_) / sequences;
  for (int64_t s = 0; s < sequences; ++s)
    spread.insert(spread.end(), test_.begin() + s * stride, test_.begin() + s * stride + length_);
  test_ = std::move(spread);
}

Tensor ClaimLm::calibration(uint64_t seed, int64_t sequences) const {
  at::Generator g = at::detail::createCPUGenerator(seed);
  const int64_t last = static_cast<int64_t>(calibration_.size()) - length_;
  const Tensor starts = at::randint(0, last, {sequences}, g, at::kLong);
  Tensor out = at::empty({sequences, length_}, at::kLong);
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t start = starts.const_data_ptr<int64_t>()[s];
    std::copy(calibration_.begin() + start, calibration_.begin() + start + length_,
              out.data_ptr<int64_t>() + s * length_);
  }
  return out;
}

std::unique_ptr<Statistics> ClaimLm::statistics(const Tensor& text, int64_t fisher_sequences, uint64_t seed) const {
  CalibrationOptions options;
  options.fisher_sequences = fisher_sequences;
  options.seed = seed;
  options.compute = Compute::fp32;
  return calibrate(weights(), text, options);
}

static std::unique_ptr<Lm> exact(const Model& model, ThreadPool& pool) {
  return must(Lm::load(model, {.precision = Precision::exact, .kv = KvType::f32}, pool, quiet_progress()));
}

double ClaimLm::perplexity(const NodeMap& replaced) const { return perplexity_of(with_nodes(model_, replaced)); }

double ClaimLm::perplexity_of(const Model& model) const {
  const auto lm = exact(model, pool_);
  return must(pith::perplexity(*lm, test_, {.context = length_, .full_window = true}, pool_, quiet_progress())).ppl;
}

ClaimLm::Loss ClaimLm::loss(const NodeMap& replaced) const {
  const auto lm = exact(with_nodes(model_, replaced), pool_), reference = exact(model_, pool_);
  const ComparisonResult found =
      must(compare(*lm, *reference, test_, {.context = length_, .full_window = true}, pool_, quiet_progress()));
  return {found.model.ppl, found.mean_kl};
}

void ClaimLm::replace(const TensorMap& tensors) {
  for (ModelTensor& tensor : model_.tensors) {
    const auto at = tensors.find(tensor.name);
    if (at == tensors.end()) continue;
    tensor.node = exact_node(at->second.reshape({tensor.node->rows(), tensor.node->cols()}));
  }
  weights_ = weights_of(model_);
}

NodeMap fit_blocks(const ClaimLm& lm, const Tensor& calibration, const FitRule& rule, const FitBlocksOptions& options) {
  NodeMap out;
  BlockSession session(lm.weights(), calibration, {});
  int64_t done = 0;
  while (session.next()) {
    std::vector<std::vector<LmLinear>> groups;  // what is fitted with the same statistics
    for (const LmLinear& linear : session.block().linears()) {
      if (linear.router) continue;
      if (groups.empty() || (options.cross && groups.back().front().input != linear.input)) groups.emplace_back();
      groups.back().push_back(linear);
    }
    for (const std::vector<LmLinear>& group : groups) {
      std::vector<std::string> inputs;
      if (options.cross) inputs.push_back(group.front().input);
      const auto statistics = session.collect(inputs, {.fp = false, .prefix = true, .cross = options.cross});
      std::vector<NodePtr> nodes(group.size());
      parallel_tasks(static_cast<int64_t>(group.size()), [&](int64_t k) {
        const LmLinear& linear = group[static_cast<size_t>(k)];
        const auto& input = statistics.at(linear.input);
        FitJob job;
        job.name = linear.name;
        job.weight = session.block().weight(linear.name);
        job.inputs = &input.prefix;
        job.cross = input.cross;
        if (const auto at = options.base.find(linear.name); at != options.base.end()) job.base = at->second;
        nodes[static_cast<size_t>(k)] = rule(job);
      });
      for (size_t k = 0; k < group.size(); ++k) {
        const NodePtr& node = nodes[k];
        session.replace(group[k].name, decoded(*node));
        out[group[k].name] = node;
      }
    }
    if (!lm.progress().step({"fit", "block", static_cast<uint64_t>(++done), static_cast<uint64_t>(lm.config().layers)}))
      throw Failure(user_error("stopped"));
  }
  return out;
}

NodeMap fit_alone(const ClaimLm& lm, const Statistics* statistics, const FitRule& rule) {
  const std::vector<Target> targets = block_targets(lm.config());
  std::vector<JobSet> layers;
  for (int64_t layer = 0; layer < lm.config().layers; ++layer) layers.emplace_back(lm.weights(), statistics, layer);
  std::vector<NodePtr> nodes(targets.size());
  parallel_tasks(static_cast<int64_t>(targets.size()), [&](int64_t k) {
    const Target& target = targets[static_cast<size_t>(k)];
    nodes[static_cast<size_t>(k)] = rule(layers[static_cast<size_t>(target.layer)].make(target));
  });
  NodeMap out;
  for (size_t k = 0; k < targets.size(); ++k) out[targets[k].name] = nodes[k];
  return out;
}

uint64_t file_bytes(const ClaimLm& lm, const NodeMap& nodes) {
  return must(pith_model_bytes(assemble(lm.model(), source_of(nodes))));
}

TunedBlocks tune_blocks(const ClaimLm& lm, const NodeMap& nodes, const Tensor& text, int64_t judges,
                        DistillOptions options) {
  const auto all = [&](const NodeMap& tuned) {
    NodeMap both = nodes;
    for (const auto& [name, node] : tuned) both[name] = node;
    return both;
  };
  options.size = [&](const NodeMap& tuned) { return file_bytes(lm, all(tuned)); };
  options.budget = file_bytes(lm, nodes);
  const int64_t taught = text.size(0) - judges;
  const Distilled found =
      distill(lm.weights(), assemble(lm.model(), source_of(nodes)), text.narrow(0, 0, taught).contiguous(),
              text.narrow(0, taught, judges).contiguous(), options, lm.progress());
  return {all(found.nodes), found.after};
}

NodePtr fit_spec(const std::string& spec, const FitJob& job) {
  const MethodSpec parts = split_spec(spec);
  const Method* method = find_method(parts.method);
  const Fit* fit = find_fit(parts.method);
  if (method == nullptr || fit == nullptr) throw Failure(bug_error("claim: there is no fit '" + parts.method + "'"));
  return fit->run(job, must(Options::parse(parts.options, method->params)));
}

Model make_model(const ClaimLm& lm, const std::string& spec, const Tensor& calibration, uint64_t seed,
                 const Model* from) {
  const MethodSpec parts = split_spec(spec);
  const Method* method = find_method(parts.method);
  const Fit* fit = find_fit(parts.method);
  if (method == nullptr || fit == nullptr || fit->whole == nullptr)
    throw Failure(bug_error("claim: there is no method '" + parts.method + "' for whole models"));
  const Model& model = from != nullptr ? *from : lm.model();
  const auto weights = weights_of(model);
  const ModelJob job{.model = model,
                     .weights = *weights,
                     .tokens = calibration,
                     .fisher_sequences = calibration.size(0),
                     .seed = seed,
                     .cache_folder = {},
                     .progress = lm.progress(),
                     .target = 0,
                     .bytes = {},
                     .finished = {},
                     .keep = {}};
  return fit->whole->run(job, must(Options::parse(parts.options, method->params))).model;
}

double block_bits(const ClaimLm& lm, const Model& model) {
  double bits = 0, weights = 0;
  for (int64_t layer = 0; layer < lm.config().layers; ++layer)
    for (const LmLinear& linear : block_linears(lm.config(), layer)) {
      weights += static_cast<double>(linear.out * linear.in);
      bits += static_cast<double>(model.find(linear.name)->node->bits().total());
    }
  return bits / weights;
}

double mean_bits(const NodeMap& nodes) {
  double bits = 0, weights = 0;
  for (const auto& [name, node] : nodes) {
    bits += static_cast<double>(node->bits().total());
    weights += static_cast<double>(node->rows() * node->cols());
  }
  return bits / weights;
}

}  // namespace pith
