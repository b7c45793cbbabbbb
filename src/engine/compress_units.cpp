// Units of the main job: which matrices there are to fit, the ways through the model, and what is in the work folder.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "base/hash.h"
#include "engine/compressor.h"
#include "tensor/parallel.h"

namespace pith {

std::vector<size_t> Compressor::all_targets() const {
  std::vector<size_t> which;
  for (size_t i = 0; i < targets_.size(); ++i)
    if (request_.embeddings || !request_.ends.method.empty() || targets_[i].layer >= 0) which.push_back(i);
  return which;
}

/// About six blocks spread over the depth stand for all.
std::vector<size_t> Compressor::sample_targets() const {
  std::vector<size_t> sample;
  const int64_t stride = std::max<int64_t>(1, model_.config.layers / 6);
  for (size_t i = 0; i < targets_.size(); ++i)
    if (targets_[i].layer >= 0 && targets_[i].layer % stride == stride / 2) sample.push_back(i);
  return sample;
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

// ---- one unit
// --------------------------------------------------------------------------------------------------------------

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

// ---- the ways through the model
// --------------------------------------------------------------------------------------------------------------

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
        job.device = device_;
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
  options.device = device_;
  if (request_.memory > 0) options.memory = request_.memory;
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
          job.device = device_;
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

}  // namespace pith
