#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/file.h"
#include "base/hash.h"
#include "engine/fit.h"
#include "engine/jobs.h"
#include "engine/model_fit.h"
#include "formats/safetensors.h"
#include "represent/dense.h"
#include "tensor/parallel.h"

namespace pith {
namespace {

// A matrix with the directions along which it moves.
struct Directions {
  std::string name;
  Tensor w;     // [out, in] fp32
  Tensor u, v;  // [out, r], [in, r] fp32
  Tensor s;     // [r] fp32: what W has along them
};

std::vector<std::string> target_names(const LmConfig& config, const std::string& which) {
  std::vector<std::string> names;
  for (const Target& t : block_targets(config)) {
    const size_t at = t.name.find("self_attn.");
    const bool named = at != std::string::npos && which.find(t.name[at + 10]) != std::string::npos;
    if (which == "all" || named) names.push_back(t.name);
  }
  return names;
}

Tensor random_orthogonal(int64_t rows, int64_t columns, uint64_t seed) {
  at::Generator g = at::detail::createCPUGenerator(seed);
  return std::get<0>(at::linalg_qr(at::randn({rows, columns}, g, at::kDouble)));
}

Directions directions(const std::string& name, const Tensor& w, const Options& o, uint64_t seed) {
  const OneThread one;
  const at::NoGradGuard no_grad;
  const int64_t most = std::min(w.size(0), w.size(1)), asked = o.integer("rank");
  if (asked > most)
    throw Failure(
        user_error(fmt::format("{}: rank {} is above {}, all that a matrix of {} x {} has; give option rank "
                               "at most that, or rank=0",
                               name, asked, most, w.size(0), w.size(1))));
  if (!at::isfinite(w.sum()).item<bool>()) throw Failure(data_error(name + ": holds NaN or infinity"));
  auto [u, s, vt] = at::linalg_svd(w.to(at::kDouble), /*full_matrices=*/false);
  int64_t r = asked;
  if (asked == 0) {
    const Tensor share = s.square().cumsum(0) / s.square().sum().clamp_min(1e-300);
    r = std::min(most, share.lt(o.real("energy") - 1e-12).sum().item<int64_t>() + 1);
  }
  Tensor v = vt.t();
  if (o.text("basis") == "random") {
    u = random_orthogonal(w.size(0), most, hash64(name, seed));
    v = random_orthogonal(w.size(1), most, hash64(name, seed + 1));
    s = (at::mm(u.t(), w.to(at::kDouble)) * v.t()).sum(1);
  }
  Tensor kept = at::arange(r, at::kLong);
  if (o.text("which") == "bottom") kept = kept + (most - r);
  if (o.text("which") == "random") {
    at::Generator g = at::detail::createCPUGenerator(hash64(name, seed + 2));
    kept = std::get<0>(at::randperm(most, g).narrow(0, 0, r).sort());
  }
  const auto take = [&](const Tensor& x) { return x.index_select(x.dim() - 1, kept).to(at::kFloat).contiguous(); };
  return {name, w, take(u), take(v), take(s)};
}

Tensor moved(const Directions& d, const Tensor& by) { return d.w + at::mm(d.u * by, d.v.t()); }

// ---- the delta's file

constexpr const char* kFormat = "pith delta: svfit 1";

void write_delta(const std::string& path, const std::string& base, const std::vector<Directions>& all,
                 const TensorMap& sigma) {
  std::vector<SafetensorsDecl> decls;
  for (const Directions& d : all)
    for (const char* what : {".singular", ".sigma"}) decls.push_back({d.name + what, DType::f32, {d.s.size(0)}});
  SafetensorsWriter writer =
      must(SafetensorsWriter::create(path, decls, {{"format", kFormat}, {"base", base}}, /*overwrite=*/true));
  for (const Directions& d : all)
    for (const Tensor& t : {d.s, sigma.at(d.name)}) {
      const Tensor flat = t.detach().to(at::kFloat).contiguous();
      must(writer.write(std::as_bytes(std::span(flat.const_data_ptr<float>(), static_cast<size_t>(flat.numel())))));
    }
  must(writer.finish());
}

// The matrices that a delta changes, moved. `hash` is that of the model it is applied to.
std::vector<Directions> read_delta(const std::string& path, const ModelJob& job, TensorMap& sigma,
                                   std::vector<std::string>& notes) {
  const SafetensorsFile file = must(SafetensorsFile::open(path, Limits{}));
  const auto note = [&](const char* key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? std::string() : found->second;
  };
  if (note("format") != kFormat)
    throw Failure(data_error(path + ": is no delta of svfit (its metadata has no \"format\": \"" + kFormat + "\")"));
  const bool same_file = note("base") == job.model.content_hash();
  std::vector<Directions> all;
  double worst = 0;
  for (const SafetensorsEntry& entry : file.entries()) {
    if (!entry.name.ends_with(".sigma")) continue;
    const std::string name = entry.name.substr(0, entry.name.size() - 6);
    const SafetensorsEntry* before = file.find(name + ".singular");
    const ModelTensor* tensor = job.model.find(name);
    if (tensor == nullptr || tensor->shape.size() != 2 || before == nullptr || entry.type != DType::f32 ||
        before->type != DType::f32 || entry.shape.size() != 1 || before->shape != entry.shape ||
        entry.shape[0] > std::min(tensor->shape[0], tensor->shape[1]))
      throw Failure(user_error(path + ": '" + name + "' does not fit this model; the delta belongs to another one"));
    const auto read = [&](const SafetensorsEntry& e) {
      Tensor t = at::empty(e.shape, at::kFloat);
      const Bytes data = file.data(e);
      std::memcpy(t.data_ptr<float>(), data.data(), data.size());
      return t;
    };
    Options top = Options::defaults(find_method("svfit")->params);
    must(top.set("rank", std::to_string(entry.shape[0])));
    Directions d = directions(name, job.weights.tensor(name), top, 0);
    const Tensor s = read(*before);
    sigma[name] = read(entry);
    if (!at::isfinite(sigma[name].sum()).item<bool>())
      throw Failure(data_error(path + ": '" + entry.name + "' holds NaN or infinity"));
    worst = std::max(worst, ((s - d.s).abs().max() / s.abs().max().clamp_min(1e-30)).item<double>());
    all.push_back(std::move(d));
  }
  if (all.empty()) throw Failure(data_error(path + ": changes no matrix"));
  const double allowed = same_file ? 1e-4 : 1e-2;
  if (worst > allowed)
    throw Failure(user_error(fmt::format(
        "{}: was trained on another model: singular values differ by up to {:.2g} of the largest; give the original",
        path, worst)));
  if (!same_file)
    notes.push_back(
        fmt::format("{}: made for another file of this model; singular values differ by up to {:.1e}", path, worst));
  return all;
}

// ---- the run

ModelResult run(const ModelJob& job, const Options& o) {
  ModelResult out{job.model, {}, std::nullopt};
  std::vector<Directions> all;
  TensorMap sigma;
  const std::string delta = o.text("delta"), from = o.text("from");
  if (!from.empty()) {
    all = read_delta(from, job, sigma, out.notes);
  } else {
    const std::vector<std::string> names = target_names(job.model.config, o.text("targets"));
    const bool goes_on = job.finished && job.finished("training") != nullptr;  // it may have been written just before
    if (!delta.empty() && file_exists(delta) && !goes_on)
      throw Failure(user_error(delta + ": exists already; choose another name for the delta"));
    if (!delta.empty() && (o.text("which") != "top" || o.text("basis") != "singular"))
      throw Failure(user_error("a delta holds the first singular values: leave options which and basis as they are"));
    all.resize(names.size());
    parallel_tasks(static_cast<int64_t>(names.size()), [&](int64_t i) {
      const auto k = static_cast<size_t>(i);
      all[k] = directions(names[k], job.weights.tensor(names[k]), o, job.seed);
    });
    // What is trained is (sigma - s) / mean s, so that one rate suits matrices of any size.
    Adapter adapter;
    std::map<std::string, double, std::less<>> unit;
    int64_t numbers = 0, possible = 0;
    for (const Directions& d : all) {
      adapter.parameters[d.name] = at::zeros_like(d.s);
      unit[d.name] = std::max(1e-12, d.s.abs().mean().item<double>());
      numbers += d.s.numel(), possible += std::min(d.w.size(0), d.w.size(1));
    }
    adapter.weights = [&](const TensorMap& p, int64_t) {
      TensorMap w;
      for (const Directions& d : all) w[d.name] = moved(d, p.at(d.name) * unit.at(d.name));
      return w;
    };
    AdapterOptions train;
    train.steps = o.integer("steps"), train.batch = o.integer("batch"), train.rate = o.real("rate");
    const AdapterTrained found = train_on_text(job, adapter, train, 8, out.notes);
    for (const Directions& d : all) sigma[d.name] = d.s + found.parameters.at(d.name) * unit.at(d.name);
    out.notes.push_back(fmt::format("{} of {} singular values were trained", numbers, possible));
    if (!delta.empty()) write_delta(delta, job.model.content_hash(), all, sigma);
  }
  NodeMap nodes;
  const OneThread one;
  for (const Directions& d : all)
    if (!at::equal(sigma.at(d.name), d.s)) nodes[d.name] = dense_node(moved(d, sigma.at(d.name) - d.s));
  out.model = with_nodes(std::move(out.model), nodes);
  return out;
}

// A step goes forward and back over a batch, three passes' worth; sixteen steps of eight are one calibration text.
double passes(const Options& o) {
  return o.text("from").empty() ? 3.0 * static_cast<double>(o.integer("steps") * o.integer("batch")) / 128 : 0;
}

constexpr ModelFit kWhole{run, passes};

}  // namespace

const Fit& svfit_fit() {
  static const Fit fit{"svfit", nullptr, &kWhole};
  return fit;
}

}  // namespace pith
