// The main job from its checks to its end, and the part of its helpers.
#include "engine/compress.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "base/file.h"
#include "base/hash.h"
#include "engine/compressor.h"
#include "engine/measure_model.h"
#include "measure/memory.h"
#include "plan/size.h"
#include "runtime/model_file.h"

namespace pith {

double Compressor::now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Compressor::stage(const std::string& name) {
  const double t = now();
  stages_.push_back({name, t - stage_start_});
  stage_start_ = t;
}

// ---- the request
// --------------------------------------------------------------------------------------------------------------

std::string cache_folder(const CompressRequest& request) {
  if (!request.cache_folder.empty()) return request.cache_folder;
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache != '\0')
    return std::string(cache) + "/pith";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0')
    return std::string(home) + "/.cache/pith";
  return "/tmp/pith-cache";
}

/// Bytes of the model's weights as they come in: a folder's safetensors count, not its notes.
static uint64_t input_size(const Model& model, const std::string& path) {
  return is_directory(path) ? model.bits().total() / 8 : file_bytes(path);
}

/// A method for whole models has shapes of its own: nothing can be mixed into it, tuned behind it or shared out.
static void check_methods(const CompressRequest& request) {
  std::vector<MethodSpec> specs = request.allow;
  if (!request.ends.method.empty()) specs.push_back(request.ends);
  for (const MethodSpec& spec : specs) {
    if (recipe(spec).fit->whole == nullptr) continue;
    const std::string what = "method '" + spec.method + "' makes a whole model at once";
    if (specs.size() > 1 || !request.plan.empty())
      throw Failure(user_error(what + ": run it alone, and compress what comes out with the others"));
    if (request.tune_steps > 0 || request.shares > 1)
      throw Failure(user_error(what + ", so --tune and --units are not for it"));
    if (request.device != "cpu") throw Failure(user_error(what + ", and on the CPU: leave --device out"));
    if (request.budget.kind == Budget::Kind::loss)
      throw Failure(user_error(what + " and takes --size, --ram or --bits as its budget, not --max-loss"));
  }
}

Compressor::Compressor(const CompressRequest& request, Progress& progress)
    : request_(request),
      progress_(progress),
      pool_(request.threads),
      gguf_(request.output.ends_with(".gguf")),
      started_(now()),
      stage_start_(started_) {
  if (request.threads > 0) at::set_num_threads(static_cast<int>(request.threads));
  check_methods(request);
  for (const MethodSpec& spec : request.allow)
    if (recipe(spec).method->needs.base && request.base.empty())
      throw Failure(
          user_error(fmt::format("method '{}' mends a compressed model; run it as 'pith {} {} MODEL "
                                 "--compressed FILE'",
                                 spec.method, recipe(spec).method->family, spec.method)));
  if (!request.ends.method.empty()) recipe(request.ends);
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

const ModelFit* Compressor::whole() const {
  return request_.allow.size() == 1 ? recipe(request_.allow.front()).fit->whole : nullptr;
}

uint64_t Compressor::target_bytes() const {
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
    if (choice_[i].fit->run == nullptr)
      throw Failure(user_error(fmt::format("{}: '{}' is for whole models, not for the matrix '{}'", request_.plan,
                                           choice_[i].method->name, t.name)));
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

// ---- calibration
// --------------------------------------------------------------------------------------------------------------

Needs Compressor::needs() const {
  Needs n;
  if (only_tunes() || whole() != nullptr) return n;
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
  if (!n.moments && !n.row_fisher && whole() == nullptr) return;
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
  if (whole() != nullptr) return;  // it asks for what it wants to know
  CalibrationOptions options;
  options.moments = n.moments;
  options.fisher_sequences = n.row_fisher ? std::min<int64_t>(fisher_sequences, calibration_.tokens.size(0)) : 0;
  options.seed = request_.seed;
  options.device = device_;
  if (request_.memory > 0) options.memory = request_.memory;
  options.cache_folder = cache_folder(request_);
  statistics_ = calibrate(*weights_, calibration_.tokens, options, progress_);
}

// ---- the run
// --------------------------------------------------------------------------------------------------------------

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
      .add(fmt::format("{} {} {} {} {} {} {} {} {} {} {}", request_.calibration_sequences, request_.fisher_sequences,
                       request_.sequence_length, request_.seed, request_.embeddings, gguf_,
                       request_.measured_sensitivity, request_.tune_steps, request_.tune_batch, request_.tune_codes,
                       request_.device))
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
  if (only_tunes() || whole() != nullptr) choice_.assign(targets_.size(), Recipe{});
  const bool fixed = request_.allow.size() == 1 && request_.budget.kind == Budget::Kind::none;
  Report out;
  Model result;
  if (whole() != nullptr) result = remade(out);
  Done done = plan_                             ? run_chosen(planned_)
              : only_tunes() || whole()         ? nothing
              : fixed                           ? fixed_choice()
              : continuous()                    ? solve_step()
              : gguf_ && request_.allow.empty() ? solve_gguf_types()
                                                : solve_knapsack();
  stage("quantize");
  if (whole() == nullptr) result = finished(done);
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
