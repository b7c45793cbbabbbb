#include "engine/compress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "base/file.h"
#include "base/hash.h"
#include "engine/assemble.h"
#include "engine/calibration_text.h"
#include "engine/gguf_types.h"
#include "engine/jobs.h"
#include "engine/measure_model.h"
#include "engine/unit.h"
#include "kernels/linear.h"
#include "measure/memory.h"
#include "plan/knapsack.h"
#include "plan/size.h"
#include "plan/work_folder.h"
#include "represent/blocks.h"
#include "runtime/method.h"
#include "runtime/model_file.h"
#include "tensor/device.h"
#include "tensor/parallel.h"
#include "train/distill.h"

namespace pith {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// Where statistics are kept between runs.
std::string cache_folder(const CompressRequest& request) {
  if (!request.cache_folder.empty()) return request.cache_folder;
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache != '\0')
    return std::string(cache) + "/pith";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0')
    return std::string(home) + "/.cache/pith";
  return "/tmp/pith-cache";
}

/// Bytes of the model's weights as they come in: a folder's safetensors count, not its notes.
uint64_t input_size(const Model& model, const std::string& path) {
  return is_directory(path) ? model.bits().total() / 8 : file_bytes(path);
}

/// A method with checked options, ready to run.
struct Recipe {
  const Method* method = nullptr;
  const Fit* fit = nullptr;
  Options options;
  std::string print() const {
    const std::string text = options.print();
    return text.empty() ? std::string(method->name) : fmt::format("{}:{}", method->name, text);
  }
};

Recipe recipe(const MethodSpec& spec) {
  const Method* method = must(require_method(spec.method));
  const Fit* fit = find_fit(spec.method);
  if (fit == nullptr) throw Failure(user_error(fmt::format("method '{}' does not compress weights", spec.method)));
  return {method, fit, must(Options::parse(spec.options, method->params).context(spec.method))};
}

/// `ec` with this step and the other options of `like` (an ec spec, or null).
Recipe ec_recipe(double step, const MethodSpec* like) {
  Recipe r = recipe({"ec", like != nullptr ? like->options : ""});
  must(r.options.set("step", fmt::format("{:.6g}", step)));
  return r;
}

/// The first `ec` among what is allowed; null when there is none.
const MethodSpec* ec_spec(const std::vector<MethodSpec>& allow) {
  for (const MethodSpec& spec : allow)
    if (spec.method == "ec") return &spec;
  return nullptr;
}

/// Leaves one row in so many.
void thin_rows(FitJob& job, int64_t every) {
  if (every == 1) return;
  const auto thin = [&](const Tensor& rows) { return rows.slice(0, 0, rows.size(0), every).contiguous(); };
  job.weight = thin(job.weight);
  if (job.row_fisher.defined()) job.row_fisher = thin(job.row_fisher);
}

class Compressor {
 public:
  Compressor(const CompressRequest& request, Progress& progress)
      : request_(request),
        progress_(progress),
        pool_(request.threads),
        gguf_(request.output.ends_with(".gguf")),
        started_(now()) {
    // Whatever is wrong with the question fails here, before hours of work.
    if (request.threads > 0) at::set_num_threads(static_cast<int>(request.threads));
    for (const MethodSpec& spec : request.allow)
      if (recipe(spec).method->needs.base && request.base.empty())
        throw Failure(
            user_error(fmt::format("method '{}' mends a compressed model; run it as 'pith {} {} MODEL "
                                   "--compressed FILE'",
                                   spec.method, recipe(spec).method->family, spec.method)));
    if (!request.ends.method.empty()) recipe(request.ends);
    if (request.tune_steps == 0 && request.device != "cpu")
      throw Failure(user_error("a device is for tuning; give --tune STEPS with --device " + request.device));
    device_ = open_device(request.device);
    if (only_tunes() && request.shares > 1)
      throw Failure(user_error("tuning is one piece of work and cannot be shared; leave --units out"));
    if (!request.plan.empty()) plan_ = must(read_plan(request.plan, Limits{}, check_spec));
    model_ = must(open_model(request.input));
    targets_ = compressible(model_.config);
    if (request_.measured_sensitivity && (request_.allow.empty() || request_.budget.kind == Budget::Kind::none))
      throw Failure(
          user_error("--sensitivity measured judges options against each other: it needs --allow and a budget"));
    input_bytes_ = input_size(model_, request.input);
    check_budget();
    if (plan_) check_plan();
    if (!request.base.empty()) open_base();
    if (model_.tokenizer.kind != TokenizerSpec::Kind::none)
      tokenizer_ = must(Tokenizer::create(model_.tokenizer).context(request.input));
    must(check_finite(model_).context(request.input));
    weights_ = weights_of(model_);
    stage("open");
  }

  Preflight preflight();
  Report run(const std::function<void(const Preflight&)>& before);
  int64_t help();

 private:
  // ---- what the budget means
  // ------------------------------------------------------------------------------------------
  uint64_t weights_count() const { return model_.parameters(); }
  /// The asked bytes (of the file, or in memory), 0 when the budget is not in bytes.
  uint64_t target_bytes() const {
    switch (request_.budget.kind) {
      case Budget::Kind::size:
      case Budget::Kind::ram:
        return static_cast<uint64_t>(request_.budget.value);
      case Budget::Kind::bits:
        return static_cast<uint64_t>(request_.budget.value * static_cast<double>(weights_count()) / 8);
      default:
        return 0;
    }
  }
  bool by_ram() const { return request_.budget.kind == Budget::Kind::ram; }
  void check_budget();
  void check_plan();
  void open_base();

  // ---- calibration
  // ------------------------------------------------------------------------------------------------------
  Needs needs() const;
  void calibrate_model(int64_t sequences, int64_t fisher_sequences);

  // ---- units
  // ------------------------------------------------------------------------------------------------------------
  using Choice = std::vector<Recipe>;  // one a target
  /// Runs the fit and predicts its loss.
  Unit fit_unit(FitJob job, const Recipe& recipe) const;
  /// A unit of the work folder; its arrays are mapped.
  std::optional<Unit> finished_unit(const std::string& name) const;
  /// Weights of these targets together.
  double weights_of_targets(const std::vector<size_t>& which) const;
  /// What became of each target: the unit in the work folder that holds its node (empty: not fitted) and its loss.
  /// Nodes stay on disk, so that one matrix a thread is in memory, however large the model.
  struct Done {
    explicit Done(size_t targets) : unit(targets), loss(targets, 0) {}
    std::vector<std::string> unit;
    std::vector<double> loss;
    double total_loss() const {
      double sum = 0;
      for (const double l : loss) sum += l;
      return sum;
    }
  };
  NodePtr node_of(const Done& done, size_t target) const;
  /// Sees each fitted unit once, in no particular order, from several threads.
  using See = std::function<void(size_t target, const Node& node)>;
  /// Fits what is not in the work folder yet, layer by layer, and leaves the units in the folder. Tells helpers.
  Done run_units(const Choice& choice, const std::vector<size_t>& which, const char* stage_name, const See& see = {});
  std::string unit_name(const Choice& choice, size_t target) const {
    return targets_[target].name + "|" + choice[target].print();
  }
  /// Units that run_units is about to fit, as a unit for the helpers, and back.
  void publish(const Choice& choice, const std::vector<size_t>& which);
  std::vector<size_t> published(const std::string& task, Choice& choice) const;
  /// The same for every so many rows, of which only the losses are kept.
  Done try_units(const Choice& choice, const std::vector<size_t>& which, int64_t every, const See& see);
  /// Layer after layer, the targets of one by several threads, except those that are `finished` (empty: none is).
  using FitOne = std::function<void(size_t target, FitJob job)>;
  void each_layer(const std::vector<size_t>& which, const char* stage_name, const FitOne& fit,
                  const std::function<bool(size_t target)>& finished = {});
  Done run_sequential(const Choice& choice, const std::vector<size_t>& which);
  /// The way that suits the methods chosen: block after block where one needs the compressed prefix.
  Done run_chosen(const std::vector<size_t>& which);
  std::vector<size_t> all_targets() const;
  std::vector<size_t> sample_targets() const;

  // ---- planning
  // ---------------------------------------------------------------------------------------------------------
  bool continuous() const;
  [[noreturn]] void out_of_reach(double smallest);
  double pilot_step(double bits_per_weight, double* loss, double* seconds);
  Done solve_step();
  uint64_t unit_bytes(const Node& node) const;
  std::vector<Recipe> allowed_options();
  std::vector<Done> measure_options(const std::vector<Recipe>& options, const std::vector<size_t>& which, bool commit,
                                    std::vector<KnapsackUnit>& units);
  void scale_by_measured(const std::vector<size_t>& which, std::vector<Done>& results,
                         std::vector<KnapsackUnit>& units);
  uint64_t overhead(const std::vector<size_t>& which) const;
  Done solve_knapsack();
  /// Block types a target may get (nullopt: stays as it is), with their costs; of embedding and head the loss is that
  /// of every so many rows.
  struct TypeOptions {
    std::vector<KnapsackUnit> costs;
    std::vector<std::vector<std::optional<GgmlType>>> types;
  };
  TypeOptions measure_types(const std::vector<size_t>& which, int64_t every);
  Done solve_gguf_types();
  Done fixed_choice();

  // ---- output
  // -------------------------------------------------------------------------------------------------------------
  /// The model with these units in place, its arrays in the work folder. The last one is kept: what was sized is also
  /// what is measured and written.
  const Model& finished(const Done& done);
  /// Exact size of the file that write() would make.
  uint64_t written_bytes(const Model& model) const;
  uint64_t measure_bytes(const Done& done);
  uint64_t measure_bytes(const Model& model);
  bool only_tunes() const { return !request_.base.empty() && request_.allow.empty() && !plan_; }
  Tensor tuning_text();
  Model tuned(const Model& model, const Tensor& tokens, Report& report);
  void write(const Model& model, const std::string& path, bool overwrite);
  void check_written(const Model& model);
  std::optional<Report> finished_before();
  std::string plan_hash();
  Plan make_plan(const Done& done) const;
  void fill_report(Report& report, const Done& done, const Model& model);
  uint64_t expected_memory() const;
  uint64_t tuning_memory(size_t threads) const;
  void try_methods(Preflight& out);
  void try_types(Preflight& out);

  void stage(const std::string& name) {
    const double t = now();
    stages_.push_back({name, t - stage_start_});
    stage_start_ = t;
  }

  const CompressRequest& request_;
  Progress& progress_;
  ThreadPool pool_;
  bool gguf_;
  at::Device device_ = at::kCPU;
  double started_;
  double stage_start_ = now();
  std::vector<ReportStage> stages_;
  Model model_;
  std::optional<Model> base_;
  std::optional<Tokenizer> tokenizer_;
  std::optional<Plan> plan_;
  std::unique_ptr<LmWeights> weights_;
  std::vector<Target> targets_;
  uint64_t input_bytes_ = 0;
  std::string input_hash_;
  std::vector<size_t> planned_;  // targets that the plan names
  CalibrationText calibration_;
  std::unique_ptr<Statistics> statistics_;
  std::unique_ptr<WorkFolder> work_;
  Choice choice_;
  Model finished_;
  std::vector<std::string> finished_units_;  ///< of which finished_ was made
  std::optional<double> lower_bound_;
  std::vector<CurvePoint> curve_;
};

// ---- budget
// --------------------------------------------------------------------------------------------------------------

/// The smallest file that still makes sense: one bit a weight beside what is not compressed.
static constexpr double kFewestBits = 1.0;

void Compressor::check_budget() {
  const uint64_t target = target_bytes();
  if (target == 0) return;
  const auto smallest = static_cast<uint64_t>(static_cast<double>(weights_count()) * kFewestBits / 8);
  if (target < smallest || target > std::max(input_bytes_, weights_count() * 2))
    throw Failure(user_error(fmt::format(
        "a budget of {} is out of range for this model: it has {} weights, takes {} now, and can be asked for {} to {}",
        print_size(target), print_count(weights_count()), print_size(input_bytes_), print_size(smallest),
        print_size(std::max(input_bytes_, weights_count() * 2)))));
}

/// A plan may name any matrix of this model, and only of this one.
void Compressor::check_plan() {
  input_hash_ = model_.content_hash();
  if (!plan_->input_hash.empty() && plan_->input_hash != input_hash_)
    throw Failure(
        user_error(fmt::format("{}: was made for another model (content {}, this one is {}); remove "
                               "\"input_hash\" from it to use it all the same",
                               request_.plan, plan_->input_hash, input_hash_)));
  choice_.assign(targets_.size(), Recipe{});
  for (const PlanTensor& t : plan_->tensors) {
    const auto it = std::find_if(targets_.begin(), targets_.end(), [&](const Target& x) { return x.name == t.name; });
    if (it == targets_.end()) {
      std::vector<std::string> names;
      for (const Target& x : targets_) names.push_back(x.name);
      throw Failure(user_error(fmt::format("{}: there is no matrix '{}' in this model{}", request_.plan, t.name,
                                           did_you_mean(t.name, names))));
    }
    const auto i = static_cast<size_t>(it - targets_.begin());
    choice_[i] = recipe(split_spec(t.method));
    planned_.push_back(i);
  }
}

void Compressor::open_base() {
  base_ = must(open_model(request_.base));
  for (const Target& t : targets_) {
    const ModelTensor* tensor = base_->find(t.name);
    if (tensor == nullptr || tensor->node->rows() != t.rows || tensor->node->cols() != t.cols)
      throw Failure(user_error(fmt::format(
          "{}: has {} where {} has {} x {} for {}; are these files of one model?", request_.base,
          tensor == nullptr ? "nothing" : fmt::format("{} x {}", tensor->node->rows(), tensor->node->cols()),
          request_.input, t.rows, t.cols, t.name)));
  }
}

bool Compressor::continuous() const {
  return !gguf_ && (request_.allow.empty() || (request_.allow.size() == 1 && request_.allow[0].method == "ec" &&
                                               request_.budget.kind != Budget::Kind::none));
}

// ---- calibration
// -----------------------------------------------------------------------------------------------------------

Needs Compressor::needs() const {
  Needs n;
  if (only_tunes()) return n;
  if (request_.allow.empty()) return {.moments = true, .cross = gguf_, .row_fisher = true};
  std::vector<MethodSpec> specs = request_.allow;
  if (!request_.ends.method.empty()) specs.push_back(request_.ends);
  for (const MethodSpec& spec : specs) {
    const Recipe r = recipe(spec);
    const Needs m = needs_of(*r.method, r.options);
    n.moments |= m.moments, n.cross |= m.cross, n.row_fisher |= m.row_fisher, n.base |= m.base;
  }
  // Choosing among methods compares their losses, and a loss means something only in units of the text's loss.
  if (request_.budget.kind != Budget::Kind::none) n.moments = n.row_fisher = true;
  return n;
}

void Compressor::calibrate_model(int64_t sequences, int64_t fisher_sequences) {
  const Needs n = needs();
  if (!n.moments && !n.row_fisher) return;
  if (!tokenizer_)
    throw Failure(data_error(request_.input + ": has no tokenizer, so it cannot read a calibration text"));
  // What the model writes itself takes long: it is kept as a unit.
  const bool keep = request_.calibration == "self" && work_;
  const std::string unit = fmt::format("{} sequences of its own text", sequences);
  if (keep && work_->has(unit)) {
    const Bytes bytes = must(work_->read(unit));
    const Tensor all = at::empty({static_cast<int64_t>(bytes.size() / sizeof(int64_t))}, at::kLong);
    std::memcpy(all.data_ptr(), bytes.data(), bytes.size());
    calibration_ = {request_.calibration, all.slice(0, 1).reshape({all[0].item<int64_t>(), -1}).contiguous()};
  } else {
    calibration_ = calibration_text(model_, *tokenizer_, request_.calibration, sequences, request_.sequence_length,
                                    request_.seed, request_.threads, progress_);
    if (keep) {
      const Tensor all =
          at::cat({at::full({1}, calibration_.tokens.size(0), at::kLong), calibration_.tokens.flatten()});
      must(work_->commit(unit, {static_cast<const std::byte*>(all.const_data_ptr()),
                                static_cast<size_t>(all.numel()) * sizeof(int64_t)}));
    }
  }
  CalibrationOptions options;
  options.moments = n.moments;
  options.fisher_sequences = n.row_fisher ? std::min<int64_t>(fisher_sequences, calibration_.tokens.size(0)) : 0;
  options.seed = request_.seed;
  options.cache_folder = cache_folder(request_);
  statistics_ = calibrate(*weights_, calibration_.tokens, options, progress_);
}

// ---- units
// -----------------------------------------------------------------------------------------------------------------

std::vector<size_t> Compressor::all_targets() const {
  std::vector<size_t> which;
  for (size_t i = 0; i < targets_.size(); ++i)
    if (request_.embeddings || !request_.ends.method.empty() || targets_[i].layer >= 0) which.push_back(i);
  return which;
}

double Compressor::weights_of_targets(const std::vector<size_t>& which) const {
  double weights = 0;
  for (const size_t i : which) weights += static_cast<double>(targets_[i].rows * targets_[i].cols);
  return weights;
}

std::optional<Unit> Compressor::finished_unit(const std::string& name) const {
  if (!work_->has(name)) return std::nullopt;
  return must(unpack_unit(must(work_->read(name)), Limits{}));
}

Unit Compressor::fit_unit(FitJob job, const Recipe& recipe) const {
  job.seed = hash64(job.name, request_.seed);
  Unit unit;
  unit.node = recipe.fit->run(job, recipe.options);
  unit.loss = predicted_loss(job, *unit.node);
  return unit;
}

NodePtr Compressor::node_of(const Done& done, size_t target) const {
  const std::string& name = done.unit[target];
  if (name.empty()) return nullptr;
  std::optional<Unit> unit = finished_unit(name);
  if (!unit) throw Failure(bug_error("unit '" + name + "' is not in the work folder"));
  return unit->node;
}

void Compressor::each_layer(const std::vector<size_t>& which, const char* stage_name, const FitOne& fit,
                            const std::function<bool(size_t)>& finished) {
  std::map<int64_t, std::vector<size_t>> by_layer;
  for (const size_t i : which) by_layer[targets_[i].layer].push_back(i);
  // Several processes begin at different layers and go around, so they meet only where little is left.
  std::vector<int64_t> layers;
  for (const auto& [layer, members] : by_layer) layers.push_back(layer);
  const auto count = static_cast<int64_t>(layers.size());
  std::rotate(layers.begin(), layers.begin() + count * (request_.share - 1) / request_.shares, layers.end());
  uint64_t done = 0;
  for (const int64_t layer : layers) {
    const std::vector<size_t>& members = by_layer[layer];
    std::vector<size_t> unfitted;
    for (const size_t i : members)
      if (!finished || !finished(i)) unfitted.push_back(i);
    if (!unfitted.empty()) {
      const JobSet jobs(*weights_, statistics_.get(), layer);
      const auto work = [&](size_t i) {
        FitJob job = jobs.make(targets_[i]);
        if (const ModelTensor* base = base_ ? base_->find(targets_[i].name) : nullptr) job.base = base->node;
        fit(i, std::move(job));
      };
      // The most work first, or the last matrix of a layer keeps one thread busy and the others waiting.
      const auto work_of = [&](size_t i) {
        return targets_[i].cols * targets_[i].cols * (targets_[i].rows + targets_[i].cols);
      };
      std::stable_sort(unfitted.begin(), unfitted.end(), [&](size_t a, size_t b) { return work_of(a) > work_of(b); });
      // A layer's matrices are independent; embedding and head are large and use the threads inside.
      if (layer < 0)
        for (const size_t i : unfitted) work(i);
      else
        parallel_tasks(static_cast<int64_t>(unfitted.size()),
                       [&](int64_t k) { work(unfitted[static_cast<size_t>(k)]); });
    }
    done += members.size();
    const std::string unit = layer < 0 ? "embedding" : fmt::format("block {}", layer);
    if (!progress_.step({stage_name, unit, done, which.size()}))
      throw Failure(user_error("stopped; the same command continues from here"));
  }
}

Compressor::Done Compressor::run_units(const Choice& choice, const std::vector<size_t>& which, const char* stage_name,
                                       const See& see) {
  Done done(targets_.size());
  for (const size_t i : which) done.unit[i] = unit_name(choice, i);
  if (request_.shares > 1) publish(choice, which);
  const auto take = [&](size_t i, const Unit& unit) {
    done.loss[i] = unit.loss;
    if (see) see(i, *unit.node);
  };
  const auto fit = [&](size_t i, FitJob job) {
    const Unit unit = fit_unit(std::move(job), choice[i]);
    must(work_->commit(done.unit[i], pack_unit(unit)));
    take(i, unit);
  };
  each_layer(which, stage_name, fit, [&](size_t i) {
    const std::optional<Unit> unit = finished_unit(done.unit[i]);
    if (unit) take(i, *unit);
    return unit.has_value();
  });
  return done;
}

/// Unit that says what helpers may fit, one line a matrix: "target spec".
static constexpr const char* kTask = "task";

void Compressor::publish(const Choice& choice, const std::vector<size_t>& which) {
  std::string text;
  for (const size_t i : which) text += fmt::format("{} {}\n", i, choice[i].print());
  must(work_->commit(kTask, std::as_bytes(std::span(text))));
}

std::vector<size_t> Compressor::published(const std::string& task, Choice& choice) const {
  std::vector<size_t> which;
  choice.assign(targets_.size(), Recipe{});
  for (size_t at = 0; at < task.size();) {
    const size_t end = std::min(task.find('\n', at), task.size()), space = task.find(' ', at);
    const size_t i = std::stoul(task.substr(at, space - at));
    if (i >= targets_.size()) throw Failure(bug_error("a task names a matrix that this model does not have"));
    choice[i] = recipe(split_spec(task.substr(space + 1, end - space - 1)));
    which.push_back(i);
    at = end + 1;
  }
  return which;
}

Compressor::Done Compressor::try_units(const Choice& choice, const std::vector<size_t>& which, int64_t every,
                                       const See& see) {
  Done done(targets_.size());
  each_layer(which, "pilot", [&](size_t i, FitJob job) {
    thin_rows(job, every);
    const Unit unit = fit_unit(std::move(job), choice[i]);
    done.loss[i] = unit.loss;
    see(i, *unit.node);
  });
  return done;
}

// Block after block and input after input, with what the compressed part of the model before it really delivers, and
// the cross moments that the target correction needs. A resumed run reads finished units and only moves the activations
// along.
Compressor::Done Compressor::run_sequential(const Choice& choice, const std::vector<size_t>& which) {
  Done done(targets_.size());
  std::vector<size_t> ends;
  using Group = std::pair<std::string, std::vector<size_t>>;  // matrices that wait for the same part of the block
  std::map<int64_t, std::vector<Group>> by_layer;
  for (const size_t i : which) {
    const Target& t = targets_[i];
    if (t.layer < 0) {
      ends.push_back(i);
      continue;
    }
    // Experts go together: the first matrices of all, then the second ones.
    const std::string key = t.input.starts_with("expert.") ? t.input.substr(t.input.rfind('.')) : t.input;
    auto& groups = by_layer[t.layer];
    auto group = std::find_if(groups.begin(), groups.end(), [&](const Group& g) { return g.first == key; });
    if (group == groups.end()) group = groups.insert(group, {key, {}});
    group->second.push_back(i);
  }
  uint64_t finished = 0;
  // Embedding and head are fitted on the float model's statistics: the lookup comes before every block.
  NodeMap lookup;
  if (!ends.empty()) {
    done = run_units(choice, ends, "quantize");
    finished += ends.size();
    for (const size_t i : ends) lookup[targets_[i].name] = node_of(done, i);
  }
  const Model start = with_nodes(model_, lookup);
  const std::unique_ptr<LmWeights> prefix = weights_of(start);
  const bool cross = needs().cross;
  BlockSession::Options options;
  options.compute = Compute::automatic;
  options.prefix_embedding = prefix.get();
  BlockSession session(*weights_, calibration_.tokens, options);
  const auto name_of = [&](size_t i) { return "seq|" + targets_[i].name + "|" + choice[i].print(); };
  for (int64_t layer = 0; session.next(); ++layer) {
    std::optional<JobSet> jobs;
    for (const auto& [key, group] : by_layer[layer]) {
      std::vector<Unit> units(group.size());
      if (std::all_of(group.begin(), group.end(), [&](size_t i) { return work_->has(name_of(i)); })) {
        for (size_t k = 0; k < group.size(); ++k) units[k] = *finished_unit(name_of(group[k]));
      } else {
        if (!jobs) jobs.emplace(*weights_, statistics_.get(), layer);
        std::vector<std::string> names;
        for (const size_t i : group)
          if (names.empty() || names.back() != targets_[i].input) names.push_back(targets_[i].input);
        const auto inputs = session.collect(names, {.fp = false, .prefix = true, .cross = cross});
        parallel_tasks(static_cast<int64_t>(group.size()), [&](int64_t k) {
          const size_t i = group[static_cast<size_t>(k)];
          FitJob job = jobs->make(targets_[i]);
          const auto& s = inputs.at(targets_[i].input);
          job.inputs = &s.prefix;
          job.factor = {};  // that of the float model's inputs
          job.cross = s.cross;
          Unit& unit = units[static_cast<size_t>(k)] = fit_unit(std::move(job), choice[i]);
          must(work_->commit(name_of(i), pack_unit(unit)));
        });
      }
      for (size_t k = 0; k < group.size(); ++k) {
        const Target& t = targets_[group[k]];
        done.unit[group[k]] = name_of(group[k]);
        done.loss[group[k]] = units[k].loss;
        session.replace(t.name, decoded(*units[k].node));
      }
      finished += group.size();
      if (!progress_.step({"quantize", fmt::format("block {}", layer), finished, which.size()}))
        throw Failure(user_error("stopped; the same command continues from here"));
    }
  }
  return done;
}

Compressor::Done Compressor::run_chosen(const std::vector<size_t>& which) {
  const bool sequential =
      gguf_ && std::any_of(which.begin(), which.end(), [&](size_t i) { return choice_[i].method->needs.cross; });
  return sequential ? run_sequential(choice_, which) : run_units(choice_, which, "quantize");
}

// ---- planning
// --------------------------------------------------------------------------------------------------------------

/// Of the rows of embedding and head, the pilot looks at one in so many.
static constexpr int64_t kPilotRows = 8;

/// About six blocks spread over the depth stand for all.
std::vector<size_t> Compressor::sample_targets() const {
  std::vector<size_t> sample;
  const int64_t stride = std::max<int64_t>(1, model_.config.layers / 6);
  for (size_t i = 0; i < targets_.size(); ++i)
    if (targets_[i].layer >= 0 && targets_[i].layer % stride == stride / 2) sample.push_back(i);
  return sample;
}

/// The step at which a sample of the layers takes `bits_per_weight`, and what that costs.
double Compressor::pilot_step(double bits_per_weight, double* loss, double* seconds) {
  // Some blocks stand for all, some rows of embedding and head for these.
  const std::vector<size_t> sample = sample_targets();
  std::vector<size_t> blocks, ends;
  for (const size_t i : all_targets()) (targets_[i].layer < 0 ? ends : blocks).push_back(i);
  const double block_share = weights_of_targets(blocks) / weights_of_targets(sample);
  const double weights = weights_of_targets(blocks) + weights_of_targets(ends);
  const MethodSpec* like = ec_spec(request_.allow);
  double log_step = -12;  // 2^-12: about 4 bits for the models tried
  const double begin = now();
  int rounds = 0;
  for (double error = 1; rounds < 8 && std::fabs(error) >= 0.03; ++rounds) {
    const Choice choice(targets_.size(), ec_recipe(std::exp2(log_step), like));
    CodeModelBuilder in_blocks, in_ends;
    const double block_loss =
        try_units(choice, sample, 1, [&](size_t, const Node& node) { count_codes(node, in_blocks); }).total_loss();
    const double end_loss =
        try_units(choice, ends, kPilotRows, [&](size_t, const Node& node) { count_codes(node, in_ends); }).total_loss();
    const double bits = (in_blocks.estimated_bits() * block_share + in_ends.estimated_bits() * kPilotRows) / weights;
    if (loss != nullptr) *loss = block_loss * block_share + end_loss * kPilotRows;
    // One octave of step is one bit while codes are large, less when most of them are 0: a step that is far too fine is
    // left in one jump, one that is too coarse carefully.
    error = bits - bits_per_weight;
    log_step += std::clamp(error / std::clamp(bits / 3, 0.3, 1.0), -2.5, 12.0);
  }
  const double tried = weights_of_targets(sample) + weights_of_targets(ends) / kPilotRows;
  if (seconds != nullptr) *seconds = (now() - begin) / rounds * weights / tried;
  return std::exp2(log_step);
}

/// Room for the measured report that the file gets at the end.
static constexpr uint64_t kReportRoom = 2048;

/// The end of a run that nothing can bring under its budget; its units are of no use to another one.
void Compressor::out_of_reach(double smallest) {
  must(work_->remove());
  throw Failure(user_error(fmt::format("a budget of {} is out of reach for this model: the smallest found is {}{}",
                                       print_size(target_bytes()), print_size(static_cast<uint64_t>(smallest)),
                                       by_ram() ? " in memory; --size budgets may go lower" : "")));
}

Compressor::Done Compressor::solve_step() {
  const MethodSpec* like = ec_spec(request_.allow);
  const bool by_loss = request_.budget.kind == Budget::Kind::loss;
  const std::vector<size_t> which = all_targets();
  const auto target = static_cast<double>(target_bytes());
  const double weights = weights_of_targets(which);

  double step = 0;
  if (by_loss) {
    // Mean KL is close to the logarithm of the perplexity ratio; the loss grows with the square of the step.
    double loss = 0;
    step = pilot_step(3.5, &loss, nullptr);
    step *= std::sqrt(std::log1p(request_.budget.value) / std::max(loss, 1e-12));
  } else {
    const double share = by_ram() ? 0.8 : 1.0;
    // What is not compressed: header, tokenizer, norms.
    Model rest = model_;
    std::erase_if(rest.tensors, [&](const ModelTensor& t) {
      return std::any_of(which.begin(), which.end(), [&](size_t i) { return targets_[i].name == t.name; });
    });
    const double others = by_ram() ? 0 : static_cast<double>(written_bytes(rest) + kReportRoom);
    step = pilot_step(std::max(0.3, (share * target * 0.998 - others) * 8 / weights), nullptr, nullptr);
  }
  stage("plan");
  // Full passes until the file fits: log size is close to linear in log step, so a secant gets there in two or three.
  double log_step = std::log2(step), last_log = 0, last_size = 0, best_log = 0;
  bool have_last = false, have_best = false;
  double low = -60, high = 60;  // bracket of the answer in log step
  Done best(targets_.size());
  double smallest = 1e300;
  for (int round = 0; round < 8; ++round) {
    choice_.assign(targets_.size(), ec_recipe(std::exp2(log_step), like));
    Done done = run_units(choice_, which, "quantize");
    if (by_loss) {
      const double ratio = measured_loss(model_, finished(done), request_.eval_texts, pool_, progress_);
      const double asked = request_.budget.value;
      progress_.note(fmt::format("step {:.4g}: perplexity ratio - 1 is {:.4f}, asked for at most {:.4f}",
                                 std::exp2(log_step), ratio, asked));
      if (ratio <= asked && ratio >= 0.9 * asked) return done;
      if (ratio <= asked) {
        best = std::move(done), best_log = log_step, have_best = true;
        low = std::max(low, log_step);
      } else {
        high = std::min(high, log_step);
      }
      double next = log_step + 0.5 * std::log2(0.95 * std::log1p(asked) / std::max(std::log1p(ratio), 1e-9));
      if (next <= low || next >= high) next = (low + high) / 2;
      log_step = next;
      continue;
    }
    const auto size = static_cast<double>(measure_bytes(done));
    const bool stuck = size > 0.999 * smallest && log_step > last_log;  // coarser steps do not make it smaller any more
    smallest = std::min(smallest, size);
    if (size <= target) {
      high = std::min(high, log_step);
      best = std::move(done), best_log = log_step, have_best = true;
      if (size >= target * 0.996) break;
    } else if (stuck) {
      break;
    } else {
      low = std::max(low, log_step);
    }
    const double slope =
        have_last && std::fabs(log_step - last_log) > 1e-9
            ? std::clamp((size - last_size) / (log_step - last_log), -weights / 8 * 1.2, -weights / 8 * 0.2)
            : -weights / 8 * 0.9;
    last_log = log_step, last_size = size, have_last = true;
    // Memory moves in jumps (whole bits of a tile), so a secant may point far away: small steps then.
    double next = log_step + std::clamp((target * 0.998 - size) / slope, -1.0, 1.0);
    if (next <= low || next >= high) next = low > -60 && high < 60 ? (low + high) / 2 : next;
    log_step = next;
  }
  if (!have_best && by_loss)
    throw Failure(user_error(fmt::format("a {} was not reached; ask for more", request_.budget.describe())));
  if (!have_best) out_of_reach(smallest);
  choice_.assign(targets_.size(), ec_recipe(std::exp2(best_log), like));
  return best;
}

/// What a matrix takes: in memory or in the file, whichever the budget is about.
uint64_t Compressor::unit_bytes(const Node& node) const {
  CodeModelBuilder builder;
  return by_ram()                     ? planned_ram_bytes(node)
         : count_codes(node, builder) ? static_cast<uint64_t>(std::ceil(builder.estimated_bits() / 8))
                                      : (node.bits().total() + 7) / 8;
}

std::vector<Recipe> Compressor::allowed_options() {
  std::vector<Recipe> options;
  for (const MethodSpec& spec : request_.allow) {
    Recipe r = recipe(spec);
    if (spec.method == "ec" && r.options.print().find("step=") == std::string::npos) {
      // ec has a continuous size: offer a ladder of steps around the one that meets the budget alone.
      const double bits = request_.budget.kind == Budget::Kind::loss
                              ? 3.5
                              : static_cast<double>(target_bytes()) * 8 / weights_of_targets(all_targets());
      const double middle = pilot_step(bits, nullptr, nullptr);
      for (int k = -4; k <= 4; ++k) options.push_back(ec_recipe(middle * std::exp2(k * 0.5), &spec));
    } else {
      options.push_back(std::move(r));
    }
  }
  return options;
}

/// Fits every option of these targets and adds what it costs: its bytes exactly, its loss to second order.
std::vector<Compressor::Done> Compressor::measure_options(const std::vector<Recipe>& options,
                                                          const std::vector<size_t>& which, bool commit,
                                                          std::vector<KnapsackUnit>& units) {
  std::vector<Done> results;
  units.resize(which.size());
  for (const Recipe& option : options) {
    const Choice choice(targets_.size(), option);
    std::vector<uint64_t> bytes(targets_.size());
    const auto see = [&](size_t i, const Node& node) { bytes[i] = unit_bytes(node); };
    results.push_back(commit ? run_units(choice, which, "measure options", see) : try_units(choice, which, 1, see));
    for (size_t k = 0; k < which.size(); ++k) units[k].push_back({bytes[which[k]], results.back().loss[which[k]]});
  }
  return results;
}

/// Sequences of calibration text on which a single matrix is judged.
static constexpr int64_t kSensitivitySequences = 2;

/// Scales predicted losses, matrix by matrix, so that the one of its middle option is what that option costs alone.
void Compressor::scale_by_measured(const std::vector<size_t>& which, std::vector<Done>& results,
                                   std::vector<KnapsackUnit>& units) {
  const Tensor text = calibration_.tokens.slice(0, 0, kSensitivitySequences).to(at::kInt).contiguous();
  const std::span<const int32_t> tokens(text.const_data_ptr<int32_t>(), static_cast<size_t>(text.numel()));
  std::vector<std::string> names;  // of the units that keep what was found
  std::vector<size_t> middle, missing;
  std::vector<std::pair<std::string, std::function<NodePtr()>>> nodes;
  for (size_t k = 0; k < which.size(); ++k) {
    std::vector<size_t> order(units[k].size());
    for (size_t o = 0; o < order.size(); ++o) order[o] = o;
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return units[k][a].bytes < units[k][b].bytes; });
    middle.push_back(order[order.size() / 2]);
    const Done& result = results[middle[k]];
    names.push_back("alone|" + result.unit[which[k]]);
    if (work_->has(names[k])) continue;
    missing.push_back(k);
    nodes.emplace_back(targets_[which[k]].name, [this, &result, i = which[k]] { return node_of(result, i); });
  }
  uint64_t done = which.size() - missing.size();
  measure_alone(model_, nodes, tokens, text.size(1), pool_, [&](size_t m, double kl) {
    must(work_->commit(names[missing[m]], std::as_bytes(std::span(&kl, 1))));
    return progress_.step({"sensitivity", nodes[m].first, ++done, which.size()});
  });
  if (done < which.size()) throw Failure(user_error("stopped; the same command continues from here"));
  for (size_t k = 0; k < which.size(); ++k) {
    double kl = 0;
    std::memcpy(&kl, must(work_->read(names[k])).data(), sizeof kl);
    const double predicted = units[k][middle[k]].loss;
    if (!(predicted > 0) || !(kl > 0)) continue;
    for (size_t o = 0; o < units[k].size(); ++o) {
      units[k][o].loss *= kl / predicted;
      results[o].loss[which[k]] = units[k][o].loss;
    }
  }
  stage("sensitivity");
}

/// About what a file takes beside these targets.
uint64_t Compressor::overhead(const std::vector<size_t>& which) const {
  uint64_t rest = 4096 + 256 * model_.tensors.size();
  for (const ModelTensor& t : model_.tensors)
    if (std::none_of(which.begin(), which.end(), [&](size_t i) { return targets_[i].name == t.name; }))
      rest += t.node->bits().total() / 8;
  return rest;
}

Compressor::Done Compressor::solve_knapsack() {
  const std::vector<Recipe> options = allowed_options();
  const std::vector<size_t> which = all_targets();
  std::vector<KnapsackUnit> units;
  std::vector<Done> results = measure_options(options, which, true, units);
  stage("measure options");
  if (request_.measured_sensitivity) scale_by_measured(which, results, units);
  const uint64_t overhead = this->overhead(which);
  curve_ = must(budget_curve(units, 40));
  for (CurvePoint& p : curve_) p.bytes += overhead;
  const uint64_t target = target_bytes();
  const uint64_t smallest = must(knapsack_range(units)).smallest_bytes;
  if (target > 0 && target < overhead + smallest) out_of_reach(static_cast<double>(overhead + smallest));
  uint64_t allowance = target - std::min(overhead, target);
  Done done(targets_.size());
  choice_.assign(targets_.size(), options.front());
  for (int round = 0;; ++round) {
    const KnapsackAnswer answer = request_.budget.kind == Budget::Kind::loss
                                      ? must(best_for_loss(units, std::log1p(request_.budget.value)))
                                      : must(best_for_bytes(units, allowance));
    lower_bound_ = answer.lower_bound;
    for (size_t k = 0; k < which.size(); ++k) {
      const auto option = static_cast<size_t>(answer.choice[k]);
      choice_[which[k]] = options[option];
      done.unit[which[k]] = results[option].unit[which[k]];
      done.loss[which[k]] = results[option].loss[which[k]];
    }
    if (target == 0) break;
    const uint64_t size = measure_bytes(done);
    if (size <= target && static_cast<double>(size) >= static_cast<double>(target) * 0.997) break;
    if (size <= target && round > 0) break;
    if (round == 8 || (size > target && answer.bytes == smallest)) out_of_reach(static_cast<double>(size));
    // What tables and headers really take differs from the allowance for them: solve again with the difference.
    allowance = static_cast<uint64_t>(std::max<int64_t>(
        static_cast<int64_t>(smallest),
        static_cast<int64_t>(allowance) + static_cast<int64_t>(target) - static_cast<int64_t>(size) - 512));
  }
  return done;
}

/// Types that llama.cpp runs fast and that Pith writes, by rising size.
static constexpr GgmlType kGgufTypes[] = {GgmlType::q2_k, GgmlType::q3_k, GgmlType::iq4_nl, GgmlType::q4_0,
                                          GgmlType::q4_k, GgmlType::q4_1, GgmlType::q5_0,   GgmlType::q5_k,
                                          GgmlType::q5_1, GgmlType::q6_k, GgmlType::q8_0};

// Loss of a type on a tensor: plain rounding, its errors weighted with 1 / U_jj^2 as the walk will feel them (the
// walk's own loss is a fixed share of that, the same for all types).
Compressor::TypeOptions Compressor::measure_types(const std::vector<size_t>& which, int64_t every) {
  TypeOptions options{std::vector<KnapsackUnit>(targets_.size()),
                      std::vector<std::vector<std::optional<GgmlType>>>(targets_.size())};
  each_layer(which, "measure types", [&](size_t i, FitJob job) {
    const int64_t step = targets_[i].layer < 0 ? every : 1;
    thin_rows(job, step);
    const std::vector<float> importance = walk_importance(job);
    if (const NodePtr& now = model_.find(job.name)->node; now->kind() == "blocks") {
      options.types[i].push_back(std::nullopt);
      options.costs[i].push_back({now->bits().total() / 8, 0});
    }
    for (const GgmlType type : kGgufTypes) {
      const auto row = ggml_row_bytes(type, targets_[i].cols);
      if (!row) continue;
      options.types[i].push_back(type);
      options.costs[i].push_back({*row * static_cast<uint64_t>(targets_[i].rows),
                                  gguf_rounding_loss(job, importance, type) * static_cast<double>(step)});
    }
  });
  return options;
}

Compressor::Done Compressor::solve_gguf_types() {
  const std::vector<size_t> which = all_targets();
  const TypeOptions measured = measure_types(which, 1);
  const auto& costs = measured.costs;
  const auto& types = measured.types;
  std::vector<KnapsackUnit> units;
  for (const size_t i : which) units.push_back(costs[i]);
  curve_ = must(budget_curve(units, 40));
  const uint64_t target = target_bytes();
  choice_.assign(targets_.size(), recipe({"gguf", ""}));
  std::vector<size_t> changed;
  const auto take = [&](const KnapsackAnswer& answer) {
    changed.clear();
    for (size_t k = 0; k < which.size(); ++k) {
      const std::optional<GgmlType> type = types[which[k]][static_cast<size_t>(answer.choice[k])];
      if (!type) continue;
      must(choice_[which[k]].options.set("type", ggml_traits(*type).name));
      changed.push_back(which[k]);
    }
  };
  if (request_.budget.kind == Budget::Kind::loss) {
    take(must(best_for_loss(units, std::log1p(request_.budget.value) * 2)));
  } else {
    // The size of a GGUF depends on the types alone: size a file of zeros, then solve for the real allowance.
    const KnapsackRange range = must(knapsack_range(units));
    const KnapsackAnswer trial = must(best_for_bytes(units, std::max(target, range.smallest_bytes)));
    NodeMap sized;
    Bytes zeros;  // enough for the largest matrix
    for (size_t k = 0; k < which.size(); ++k) {
      const std::optional<GgmlType> type = types[which[k]][static_cast<size_t>(trial.choice[k])];
      if (!type) continue;
      const Target& t = targets_[which[k]];
      const size_t bytes = *ggml_row_bytes(*type, t.cols) * static_cast<size_t>(t.rows);
      if (zeros.size() < bytes) zeros = Bytes::own(std::vector<std::byte>(bytes));
      sized[t.name] = must(Blocks::make(*type, t.rows, t.cols, zeros.slice(0, bytes)));
    }
    const uint64_t overhead = written_bytes(with_nodes(model_, sized)) - trial.bytes;
    if (target < range.smallest_bytes + overhead)
      throw Failure(user_error(
          fmt::format("a GGUF of this model cannot be smaller than {} (its rows of {} fit only some block types); "
                      "a .pith file can: give -o NAME.pith",
                      print_size(range.smallest_bytes + overhead), model_.config.hidden)));
    const KnapsackAnswer answer = must(best_for_bytes(units, target - overhead));
    lower_bound_ = answer.lower_bound;
    take(answer);
    for (CurvePoint& p : curve_) p.bytes += overhead;
  }
  stage("plan");
  return run_sequential(choice_, changed);
}

Compressor::Done Compressor::fixed_choice() {
  choice_.assign(targets_.size(), recipe(request_.allow.front()));
  if (!request_.ends.method.empty())
    for (size_t i = 0; i < targets_.size(); ++i)
      if (targets_[i].layer < 0) choice_[i] = recipe(request_.ends);
  return run_chosen(all_targets());
}

// ---- output
// ----------------------------------------------------------------------------------------------------------------

const Model& Compressor::finished(const Done& done) {
  if (!finished_.tensors.empty() && finished_units_ == done.unit) return finished_;
  const Model& rest = base_ ? *base_ : model_;  // what no fit has made anew
  std::map<std::string, size_t, std::less<>> fitted;
  for (size_t i = 0; i < targets_.size(); ++i)
    if (!done.unit[i].empty()) fitted[targets_[i].name] = i;
  if (gguf_) {
    NodeMap nodes;
    for (const auto& [name, i] : fitted) nodes[name] = node_of(done, i);
    finished_ = with_nodes(rest, nodes);
  } else {
    const auto node = [&](const std::string& name) {
      const auto it = fitted.find(name);
      return it == fitted.end() ? nullptr : node_of(done, it->second);
    };
    finished_ = assemble(rest, node, [&](const std::string& name, NodePtr coded) {
      const std::string unit = "coded|" + name;
      must(work_->commit(unit, pack_unit({std::move(coded), 0})));
      return finished_unit(unit)->node;
    });
  }
  finished_units_ = done.unit;
  finished_.plan_json = print_plan(make_plan(done));
  finished_.report_json.clear();
  return finished_;
}

/// Sequences of the calibration text that judge a tuning instead of teaching it: one in sixteen, at most so many.
static constexpr int64_t kMostValidation = 64;

Tensor Compressor::tuning_text() {
  if (!tokenizer_)
    throw Failure(data_error(request_.input + ": has no tokenizer, so it cannot read a text to be tuned on"));
  // Text that the model writes itself is there already, and dear; of other text, all there is.
  const bool self = request_.calibration == "self" && calibration_.tokens.defined();
  const int64_t sequences = request_.calibration == "self" ? request_.calibration_sequences : 1 << 24;
  const Tensor tokens = self ? calibration_.tokens
                             : calibration_text(model_, *tokenizer_, request_.calibration, sequences,
                                                request_.sequence_length, request_.seed, request_.threads, progress_)
                                   .tokens;
  if (tokens.size(0) < 2)
    throw Failure(
        user_error("tuning needs a calibration text of at least two sequences; give a longer one or a shorter "
                   "--sequence-length"));
  return tokens;
}

Model Compressor::tuned(const Model& model, const Tensor& tokens, Report& report) {
  const int64_t judges = std::min(kMostValidation, std::max<int64_t>(1, tokens.size(0) / 16));
  const auto with = [&](const NodeMap& nodes) {
    if (gguf_) return with_nodes(model, nodes);
    Model out = assemble(model, source_of(nodes));
    out.plan_json = only_tunes() ? base_->plan_json : model.plan_json;
    return out;
  };
  DistillOptions options;
  options.steps = request_.tune_steps;
  options.batch = request_.tune_batch;
  options.seed = request_.seed;
  options.device = device_;
  options.size = [&](const NodeMap& nodes) { return measure_bytes(with(nodes)); };
  options.budget = target_bytes() > 0 ? target_bytes() : measure_bytes(model);
  const std::string unit = "tuning";
  options.save = [&](std::span<const std::byte> bytes) { must(work_->commit(unit, bytes)); };
  if (work_->has(unit)) options.saved = must(work_->read(unit));
  const Distilled result = distill(*weights_, model, tokens.narrow(0, judges, tokens.size(0) - judges).contiguous(),
                                   tokens.narrow(0, 0, judges).contiguous(), options, progress_);
  report.notes.push_back(
      fmt::format("tuned by distillation: KL on {} held-out calibration tokens {:.5f} before, {:.5f} after; best at "
                  "step {} of {}{}",
                  judges * tokens.size(1), result.before, result.after, result.best_step, result.steps,
                  result.diverged ? ", where it diverged" : ""));
  progress_.note(report.notes.back());
  return with(result.nodes);
}

void Compressor::write(const Model& model, const std::string& path, bool overwrite) {
  must(gguf_ ? write_gguf_model(model, path, overwrite) : write_pith(model, path, overwrite));
}

/// The result that an earlier run left is what this one would write.
void Compressor::check_written(const Model& model) {
  const std::string copy = work_->path() + "/result.tmp";  // an ending that the work folder clears away
  write(model, copy, true);
  const auto ours = must(MappedFile::open(copy)), theirs = must(MappedFile::open(request_.output));
  const bool same = std::ranges::equal(ours->bytes(), theirs->bytes());
  ::unlink(copy.c_str());
  if (!same)
    throw Failure(user_error(request_.output + ": exists already and is not the result of this command; choose "
                                               "another name or pass --force"));
}

uint64_t Compressor::written_bytes(const Model& model) const {
  return must(gguf_ ? gguf_model_bytes(model) : pith_model_bytes(model));
}

uint64_t Compressor::measure_bytes(const Done& done) { return measure_bytes(finished(done)); }

uint64_t Compressor::measure_bytes(const Model& model) {
  return by_ram() ? loaded_bytes(model) : written_bytes(model) + (gguf_ ? 0 : kReportRoom);
}

Plan Compressor::make_plan(const Done& done) const {
  Plan plan;
  plan.input = request_.input;
  plan.input_hash = input_hash_;
  plan.budget = request_.budget;
  plan.settings["calibration"] = calibration_.source.empty() ? "none" : calibration_.source;
  plan.settings["seed"] = std::to_string(request_.seed);
  plan.settings["format"] = gguf_ ? "gguf" : "pith";
  plan.lower_bound = lower_bound_;
  for (size_t i = 0; i < targets_.size(); ++i) {
    if (done.unit[i].empty() || choice_[i].method == nullptr) continue;
    PlanTensor t;
    t.name = targets_[i].name;
    t.method = choice_[i].print();
    plan.tensors.push_back(std::move(t));
  }
  return plan;
}

void Compressor::fill_report(Report& report, const Done& done, const Model& model) {
  report.budget = request_.budget.describe();
  report.command = request_.command;
  report.loss_unit = "nats a token";
  report.predicted_loss = done.total_loss();
  report.lower_bound = lower_bound_;
  for (const CurvePoint& p : curve_) report.curve.push_back({p.bytes, p.loss});
  for (const ModelTensor& t : model.tensors) {
    ReportTensor row;
    row.name = t.name;
    row.tree = t.node->describe();
    row.weights = static_cast<uint64_t>(t.node->rows()) * static_cast<uint64_t>(t.node->cols());
    row.bytes = t.node->bits().total() / 8;
    row.bytes_before = model_.find(t.name)->node->bits().total() / 8;
    for (size_t i = 0; i < targets_.size(); ++i)
      if (targets_[i].name == t.name && choice_[i].method != nullptr && !done.unit[i].empty()) {
        row.method = choice_[i].print();
        row.predicted_loss = done.loss[i];
      }
    report.tensors.push_back(std::move(row));
  }
}

// Original, student, codes with steps, buffer, two moments and the best so far; gradients of each thread; activations
// of a sequence a thread. (On a GPU most of it is there.)
uint64_t Compressor::tuning_memory(size_t threads) const {
  if (request_.tune_steps == 0) return 0;
  const LmConfig& c = model_.config;
  const auto each_token = static_cast<uint64_t>(6 * c.vocab + c.layers * (16 * c.hidden + 6 * c.intermediate));
  return 4 *
         (weights_count() * (9 + 2 * threads) + threads * static_cast<uint64_t>(request_.sequence_length) * each_token);
}

// The largest of four stages: activations of the calibration; the matrices of a block that are fitted at a time, with
// the statistics of the block; the embedding, which is fitted alone; and the tuning.
uint64_t Compressor::expected_memory() const {
  const auto threads = static_cast<size_t>(at::get_num_threads());
  // Either the factor is made (fp64, then fp32), or the walk has factor, weight twice, codes and packed codes.
  const auto fit = [](const Target& t) {
    const auto k = static_cast<uint64_t>(t.cols), n = static_cast<uint64_t>(t.rows) * k;
    return std::max(12 * k * k + 4 * n, 4 * k * k + 11 * n);
  };
  uint64_t ends = 0, block = 0;
  std::vector<uint64_t> fits;
  for (const Target& t : targets_) {
    if (t.layer < 0) ends = std::max(ends, fit(t));
    if (t.layer == 0) fits.push_back(fit(t));
  }
  std::sort(fits.rbegin(), fits.rend());
  for (size_t i = 0; i < std::min(threads, fits.size()); ++i) block += fits[i];
  for (const auto& [input, width] : block_inputs(model_.config)) block += static_cast<uint64_t>(2 * width * width);
  const uint64_t allowance = activation_memory();
  const auto tokens =
      static_cast<uint64_t>(request_.sequence_length * (request_.calibration_sequences + request_.fisher_sequences));
  const uint64_t activations = std::min(allowance / 2, 4 * tokens * static_cast<uint64_t>(model_.config.hidden)) +
                               std::min<uint64_t>(allowance / 2, threads << 28);
  return current_anonymous_memory() + (200ull << 20) + std::max({ends, block, activations, tuning_memory(threads)});
}

Preflight Compressor::preflight() {
  Preflight out;
  out.weights = weights_count();
  out.input_bytes = input_bytes_;
  out.target_bytes = target_bytes();
  out.smallest_bytes = static_cast<uint64_t>(static_cast<double>(out.weights) * kFewestBits / 8);
  out.peak_memory = expected_memory();
  if (only_tunes()) {
    out.method = fmt::format("{} steps of tuning", request_.tune_steps);
    return out;
  }
  const double begin = now();
  calibrate_model(4, 4);
  if (statistics_)
    out.seconds =
        (now() - begin) * static_cast<double>(request_.calibration_sequences + 3 * request_.fisher_sequences) / 16;
  if (continuous() && !plan_) {
    const double weights = weights_of_targets(all_targets());
    const double bits = out.target_bytes > 0 ? static_cast<double>(out.target_bytes) * 8 / weights : 3.5;
    double pass_seconds = 0, loss = 0;
    const double step = pilot_step(bits - 0.05, &loss, &pass_seconds);
    out.method = fmt::format("ec:step={:.3g}", step);
    out.predicted_loss = loss;
    out.seconds += 3 * pass_seconds;
  } else if (gguf_ && request_.allow.empty() && !plan_) {
    try_types(out);
  } else {
    try_methods(out);
  }
  if (!statistics_) return out;
  // Statistics of so few sequences serve nobody later.
  const std::string folder = cache_folder(request_) + "/stats-" + statistics_->key();
  statistics_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  return out;
}

/// Pre-flight of block types chosen for a budget: the choice for a sample of the blocks and of the rows of embedding
/// and head, and the walk on these blocks.
void Compressor::try_types(Preflight& out) {
  std::vector<size_t> sample = sample_targets(), blocks;
  for (const size_t i : all_targets()) (targets_[i].layer < 0 ? sample : blocks).push_back(i);
  const double scale = weights_of_targets(blocks) / std::max(1.0, weights_of_targets(sample_targets()));
  const TypeOptions measured = measure_types(sample, kPilotRows);
  // A sampled block stands for several: its costs count as often.
  std::vector<KnapsackUnit> units;
  for (const size_t i : sample) {
    units.push_back(measured.costs[i]);
    if (targets_[i].layer < 0) continue;
    for (KnapsackItem& option : units.back()) {
      option.bytes = static_cast<uint64_t>(static_cast<double>(option.bytes) * scale);
      option.loss *= scale;
    }
  }
  const uint64_t rest = overhead(all_targets());
  const KnapsackRange range = must(knapsack_range(units));
  const KnapsackAnswer answer =
      out.target_bytes > 0 ? must(best_for_bytes(units, std::max(range.smallest_bytes,
                                                                 out.target_bytes - std::min(rest, out.target_bytes))))
                           : must(best_for_loss(units, std::log1p(request_.budget.value) * 2));
  Choice choice(targets_.size(), recipe({"gguf", ""}));
  std::vector<size_t> walked;
  double end_loss = 0;
  for (size_t k = 0; k < sample.size(); ++k) {
    const size_t i = sample[k];
    const auto option = static_cast<size_t>(answer.choice[k]);
    if (targets_[i].layer < 0) end_loss += measured.costs[i][option].loss;
    if (targets_[i].layer < 0 || !measured.types[i][option]) continue;
    must(choice[i].options.set("type", ggml_traits(*measured.types[i][option]).name));
    walked.push_back(i);
  }
  out.method = "gguf";
  out.expected_bytes = rest + answer.bytes;
  const double begin = now();
  const Done done = try_units(choice, walked, 1, [](size_t, const Node&) {});
  out.seconds += (now() - begin) * scale;
  out.predicted_loss = done.total_loss() * scale + end_loss;
}

/// Pre-flight of methods with fixed options: each on a sample of the blocks.
void Compressor::try_methods(Preflight& out) {
  const std::vector<size_t> all = plan_ ? planned_ : all_targets();
  std::vector<size_t> sample;
  for (const size_t i : sample_targets())
    if (std::find(all.begin(), all.end(), i) != all.end()) sample.push_back(i);
  if (sample.empty()) sample = all;
  const double scale = weights_of_targets(all) / std::max(1.0, weights_of_targets(sample));
  const double begin = now();
  if (plan_ || request_.budget.kind == Budget::Kind::none) {
    const Choice choice = plan_ ? choice_ : Choice(targets_.size(), recipe(request_.allow.front()));
    std::vector<uint64_t> bytes(targets_.size());
    const Done done = try_units(choice, sample, 1, [&](size_t i, const Node& node) { bytes[i] = unit_bytes(node); });
    double sum = 0;
    for (const uint64_t b : bytes) sum += static_cast<double>(b);
    out.method = plan_ ? fmt::format("plan of {} matrices", planned_.size()) : request_.allow.front().print();
    out.expected_bytes = overhead(all) + static_cast<uint64_t>(sum * scale);
    if (statistics_ && needs().row_fisher) out.predicted_loss = done.total_loss() * scale;
  } else {
    const std::vector<Recipe> options = allowed_options();
    std::vector<KnapsackUnit> units;
    measure_options(options, sample, false, units);
    const uint64_t rest = std::min(overhead(all), out.target_bytes);
    const auto share = static_cast<uint64_t>(static_cast<double>(out.target_bytes - rest) / scale);
    const KnapsackAnswer answer =
        out.target_bytes > 0 ? must(best_for_bytes(units, std::max(must(knapsack_range(units)).smallest_bytes, share)))
                             : must(best_for_loss(units, std::log1p(request_.budget.value) / scale));
    out.method = fmt::format("the best of {} options", options.size());
    out.predicted_loss = answer.loss * scale;
  }
  out.seconds += (now() - begin) * scale;
}

/// Unit that is committed twice: empty before the result gets its name, and with the result's hash and the report when
/// all is done. A kill after the result is in place is seen by it.
static constexpr const char* kResult = "result";

static std::string work_folder(const CompressRequest& request) {
  return request.work_folder.empty() ? request.output + ".work" : request.work_folder;
}

static std::string json_beside(const std::string& html) {
  return (html.ends_with(".html") ? html.substr(0, html.size() - 5) : html) + ".json";
}

/// A run that was killed in its last moments has left its result and its work folder.
static bool may_be_done(const CompressRequest& request) {
  return !request.force && !request.restart && file_exists(request.output) && is_directory(work_folder(request));
}

/// What would spoil everything at the end is found at the beginning. Leaves no trace.
static void check_places(const CompressRequest& request) {
  const bool overwrite = request.force || may_be_done(request);
  (void)must(AtomicFile::create(request.output, overwrite));
  if (!request.report.empty()) {
    (void)must(AtomicFile::create(request.report, overwrite));
    (void)must(AtomicFile::create(json_beside(request.report), overwrite));
  }
  if (request.eval_chunks > 0) (void)held_out_texts(request.eval_texts);
}

static void write_report(const CompressRequest& request, const Report& report, bool overwrite) {
  must(write_file(request.report, report_to_html(report), overwrite));
  must(write_file(json_beside(request.report), report_to_json(report), overwrite));
}

static std::string file_hash(const std::string& path) { return hash_hex(must(MappedFile::open(path))->bytes()); }

/// The report of an earlier run that did everything but remove its work folder.
std::optional<Report> Compressor::finished_before() {
  const Bytes note = must(work_->read(kResult));
  const std::string_view text(reinterpret_cast<const char*>(note.data()), note.size());
  const std::string hash = text.empty() ? "" : file_hash(request_.output);
  if (hash.empty() || !text.starts_with(hash)) return std::nullopt;
  Report report = must(report_from_json(text.substr(hash.size()), Limits{}));
  if (!request_.report.empty() && !file_exists(request_.report)) write_report(request_, report, true);
  if (!request_.keep_work) must(work_->remove(kResult));
  return report;
}

/// What makes units of two runs interchangeable. Sets input_hash_ as well.
std::string Compressor::plan_hash() {
  if (input_hash_.empty()) input_hash_ = model_.content_hash();
  std::string settings;
  for (const MethodSpec& spec : request_.allow) settings += spec.print() + ";";
  return Hasher()
      .add(request_.budget.describe())
      .add(settings)
      .add(request_.ends.print())
      .add(plan_ ? plan_->hash() : "")
      .add(base_ ? base_->content_hash() : "")
      .add(calibration_source(request_.calibration))
      .add(fmt::format("{} {} {} {} {} {} {} {} {} {}", request_.calibration_sequences, request_.fisher_sequences,
                       request_.sequence_length, request_.seed, request_.embeddings, gguf_,
                       request_.measured_sensitivity, request_.tune_steps, request_.tune_batch, request_.device))
      .hex();
}

Report Compressor::run(const std::function<void(const Preflight&)>& before) {
  const std::string plan_hash = this->plan_hash();
  const bool again = may_be_done(request_);
  work_ = std::make_unique<WorkFolder>(
      must(WorkFolder::open(work_folder(request_), plan_hash, input_hash_, request_.restart)));
  if (again) {
    if (!work_->has(kResult))
      throw Failure(user_error(request_.output + ": exists already; choose another name or pass --force"));
    if (auto report = finished_before()) return *report;
  }
  if (const size_t units = work_->done().size(); units > 0) {
    progress_.note(fmt::format("goes on with {} finished units in {}", units, work_->path()));
  } else if (before) {
    before(preflight());
    stage("pre-flight");
  }
  calibrate_model(request_.calibration_sequences, request_.fisher_sequences);
  stage("calibrate");

  const Tensor text = request_.tune_steps > 0 ? tuning_text() : Tensor();
  const Done nothing(targets_.size());
  if (only_tunes()) choice_.assign(targets_.size(), Recipe{});
  const bool fixed = request_.allow.size() == 1 && request_.budget.kind == Budget::Kind::none;
  Done done = plan_                             ? run_chosen(planned_)
              : only_tunes()                    ? nothing
              : fixed                           ? fixed_choice()
              : continuous()                    ? solve_step()
              : gguf_ && request_.allow.empty() ? solve_gguf_types()
                                                : solve_knapsack();
  stage("quantize");
  Model result = finished(done);
  Report out;
  if (request_.tune_steps > 0) {
    result = tuned(result, text, out);
    stage("tune");
  }
  fill_report(out, done, result);
  out.before.loaded_bytes = loaded_bytes(model_);
  out.after.loaded_bytes = loaded_bytes(result);
  statistics_.reset();
  if (request_.eval_chunks > 0) {
    measure_model(model_, result, request_.eval_texts, request_.eval_chunks, pool_, progress_, out);
    stage("measure");
  }
  result.report_json = short_report(out);
  if (!gguf_ && !by_ram() && target_bytes() > 0 && written_bytes(result) > target_bytes()) result.report_json.clear();
  must(work_->commit(kResult, {}));
  if (again)
    check_written(result);
  else
    write(result, request_.output, request_.force);
  stage("write");
  out.before.name = request_.input;
  out.before.file_bytes = input_bytes_;
  out.after.name = request_.output;
  out.after.file_bytes = file_bytes(request_.output);
  const auto weights = static_cast<double>(weights_count());
  out.before.bits_per_weight = static_cast<double>(out.before.file_bytes) * 8 / weights;
  out.after.bits_per_weight = static_cast<double>(out.after.file_bytes) * 8 / weights;
  out.title = fmt::format("{} in {}", last_part(request_.input), print_size(out.after.file_bytes));
  out.version = request_.version, out.date = request_.date, out.machine = request_.machine;
  out.stages = stages_;
  out.seconds = now() - started_;
  out.peak_memory = peak_memory();
  if (!request_.report.empty()) write_report(request_, out, request_.force || again);
  const std::string note = file_hash(request_.output) + report_to_json(out);
  must(work_->commit(kResult, std::as_bytes(std::span(note))));
  if (!request_.keep_work) must(work_->remove(kResult));
  return out;
}

int64_t Compressor::help() {
  const std::string folder = work_folder(request_), plan = plan_hash();
  const auto wait = [&](const std::string& why, const std::function<bool()>& ready) {
    if (!wait_until(progress_, why, ready)) throw Failure(user_error("stopped"));
  };
  wait("waits for the run of share 1 to begin in " + folder, [&] {
    if (auto joined = must(WorkFolder::join(folder, plan, input_hash_)))
      work_ = std::make_unique<WorkFolder>(std::move(*joined));
    return work_ != nullptr;
  });
  int64_t fitted = 0;
  for (std::string task, last;; last = task) {
    wait("", [&] {
      if (!work_->owner_at_work()) return true;
      // The owner may replace or remove it at any time.
      const auto bytes = work_->read(kTask);
      if (bytes.ok()) task.assign(reinterpret_cast<const char*>(bytes->data()), bytes->size());
      return task != last;
    });
    if (!work_->owner_at_work()) return fitted;
    if (!statistics_) calibrate_model(request_.calibration_sequences, request_.fisher_sequences);
    Choice choice;
    const std::vector<size_t> which = published(task, choice);
    std::mutex mutex;
    const auto fit = [&](size_t i, FitJob job) {
      const Unit unit = fit_unit(std::move(job), choice[i]);
      const Status status = work_->commit(unit_name(choice, i), pack_unit(unit));
      if (!status.ok() && work_->owner_at_work()) must(status);  // else the owner is through and has tidied up
      const std::lock_guard lock(mutex);
      ++fitted;
    };
    each_layer(which, "help", fit,
               [&](size_t i) { return !work_->owner_at_work() || work_->has(unit_name(choice, i)); });
  }
}

}  // namespace

Preflight preflight(const CompressRequest& request, Progress& progress) {
  return Compressor(request, progress).preflight();
}

Report compress(const CompressRequest& request, Progress& progress,
                const std::function<void(const Preflight&)>& before) {
  check_places(request);
  return Compressor(request, progress).run(before);
}

int64_t help_compress(const CompressRequest& request, Progress& progress) {
  return Compressor(request, progress).help();
}

}  // namespace pith
