// From finished units to the model that is written, tuned before that if asked, its plan and its report.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "base/file.h"
#include "engine/assemble.h"
#include "engine/compressor.h"
#include "engine/measure_model.h"
#include "engine/model_fit.h"
#include "runtime/model_file.h"
#include "train/distill.h"

namespace pith {

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

Model Compressor::remade(Report& report) {
  const Recipe r = recipe(request_.allow.front());
  const auto name = [](const std::string& part) { return "part|" + part; };
  const ModelJob job{
      .model = model_,
      .weights = *weights_,
      .tokens = calibration_.tokens,
      .fisher_sequences = std::min<int64_t>(request_.fisher_sequences, calibration_.tokens.size(0)),
      .seed = request_.seed,
      .cache_folder = cache_folder(request_),
      .progress = progress_,
      .target = target_bytes(),
      .bytes = [&](const Model& model) { return measure_bytes(model); },
      .finished =
          [&](const std::string& part) {
            const std::optional<Unit> unit = finished_unit(name(part));
            return unit ? unit->node : nullptr;
          },
      .keep =
          [&](const std::string& part, const NodePtr& node) {
            must(work_->commit(name(part), pack_unit({node, 0})));
            return finished_unit(name(part))->node;
          },
  };
  ModelResult result = r.fit->whole->run(job, r.options);
  report.predicted_loss = result.predicted_loss;
  for (std::string& note : result.notes) {
    progress_.note(note);
    report.notes.push_back(std::move(note));
  }
  Plan plan = make_plan(Done(targets_.size()));
  plan.settings["method"] = r.print();
  result.model.plan_json = print_plan(plan);
  result.model.report_json.clear();
  return std::move(result.model);
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
  if (!request_.tune_codes) options.rate = 0;
  options.seed = request_.seed;
  options.device = device_;
  options.size = [&](const NodeMap& nodes) { return measure_bytes(with(nodes)); };
  options.budget = target_bytes() > 0 ? target_bytes() : measure_bytes(with({}));
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
  if (whole() == nullptr) report.predicted_loss = done.total_loss();
  report.lower_bound = lower_bound_;
  for (const CurvePoint& p : curve_) report.curve.push_back({p.bytes, p.loss});
  for (const ModelTensor& t : model.tensors) {
    ReportTensor row;
    row.name = t.name;
    row.tree = t.node->describe();
    row.weights = static_cast<uint64_t>(t.node->rows()) * static_cast<uint64_t>(t.node->cols());
    row.bytes = t.node->bits().total() / 8;
    if (const ModelTensor* before = model_.find(t.name)) row.bytes_before = before->node->bits().total() / 8;
    for (size_t i = 0; i < targets_.size(); ++i)
      if (targets_[i].name == t.name && choice_[i].method != nullptr && !done.unit[i].empty()) {
        row.method = choice_[i].print();
        row.predicted_loss = done.loss[i];
      }
    report.tensors.push_back(std::move(row));
  }
}

}  // namespace pith
