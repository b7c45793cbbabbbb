#include "engine/model_fit.h"

#include <fmt/format.h>

#include <utility>

#include "engine/fit.h"
#include "represent/dense.h"

namespace pith {

AdapterTrained train_on_text(const ModelJob& job, const Adapter& adapter, AdapterOptions options, int64_t one_in,
                             std::vector<std::string>& notes) {
  std::vector<int64_t> judging, learning;
  for (int64_t i = 0; i < job.tokens.size(0); ++i) (i % one_in == 0 ? judging : learning).push_back(i);
  if (learning.empty())
    throw Failure(
        user_error("training needs a text of at least two sequences, one to learn from and one to judge by; give a "
                   "longer one with --calib, or a shorter --sequence-length"));
  options.seed = job.seed;
  const std::string part = "training";
  if (const NodePtr saved = job.finished ? job.finished(part) : nullptr) options.saved = decoded(*saved).view({-1});
  if (job.keep) options.save = [&](const Tensor& state) { job.keep(part, exact_node(state)); };
  const auto some = [&](const std::vector<int64_t>& rows) {
    return job.tokens.index_select(0, at::tensor(rows, at::kLong));
  };
  AdapterTrained found = train_adapter(job.weights, adapter, some(learning), some(judging), options, job.progress);
  notes.push_back(fmt::format(
      "trained: loss on {} sequences that judged {:.4f} at the start, {:.4f} in the end; best at step {} of {}{}",
      judging.size(), found.before, found.after, found.best_step, found.steps,
      found.diverged ? ", where it diverged" : ""));
  return found;
}

Model sized_like(const Model& model, const LmConfig& config) {
  Model out = model;
  out.config = config;
  out.tensors.clear();
  Bytes zeros;  // enough for the largest matrix
  for (TensorSpec& spec : expected_tensors(config)) {
    const ModelTensor* old = model.find(spec.name);
    if (old != nullptr && old->shape == spec.shape) {
      out.tensors.push_back(*old);
      continue;
    }
    const MatrixShape shape = must(matrix_shape(spec.shape));
    const auto bytes = static_cast<uint64_t>(shape.rows * shape.cols) * 2;
    if (zeros.size() < bytes) zeros = Bytes::own(std::vector<std::byte>(bytes));
    NodePtr node = must(Dense::make(DType::f16, shape.rows, shape.cols, zeros.slice(0, bytes)));
    out.tensors.push_back({std::move(spec.name), std::move(spec.shape), std::move(node)});
  }
  return out;
}

}  // namespace pith
