// Small models and the running of methods for whole models on them, for tests.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "engine/compress.h"
#include "engine/fit_samples.h"
#include "engine/model_fit.h"

namespace pith::test {

/// These tensors as fp32 nodes.
inline Model dense_model(const LmConfig& config, const TensorMap& tensors) {
  Model model;
  model.config = config;
  for (TensorSpec& spec : expected_tensors(config)) {
    const MatrixShape shape = must(matrix_shape(spec.shape));
    NodePtr node = exact_node(tensors.at(spec.name).reshape({shape.rows, shape.cols}));
    model.tensors.push_back({std::move(spec.name), std::move(spec.shape), std::move(node)});
  }
  return model;
}

/// What a method makes of a model: make_model("pela", "steps=0", model, tokens). Finished parts are kept in `kept`.
inline ModelResult make_model(const std::string& method, const std::string& options, const Model& model,
                              const Tensor& tokens, Progress& progress = quiet_progress(), NodeMap* kept = nullptr) {
  const auto weights = weights_of(model);
  ModelJob job{.model = model,
               .weights = *weights,
               .tokens = tokens,
               .fisher_sequences = tokens.size(0),
               .seed = 1,
               .cache_folder = {},
               .progress = progress,
               .target = 0,
               .bytes = {},
               .finished = {},
               .keep = {}};
  if (kept != nullptr) {
    job.finished = [kept](const std::string& part) { return kept->contains(part) ? kept->at(part) : nullptr; };
    job.keep = [kept](const std::string& part, const NodePtr& node) { return (*kept)[part] = node; };
  }
  return find_fit(method)->whole->run(job, options_of(*find_method(method), options));
}

/// A run of a method on testdata/lm-s with a little text, without measuring; `folder` holds what it writes.
inline CompressRequest lm_s_request(const std::filesystem::path& folder, const std::string& output,
                                    const std::string& method, const std::string& options) {
  CompressRequest r;
  r.input = std::string(PITH_SOURCE_DIR) + "/testdata/lm-s";
  r.output = (folder / output).string();
  r.calibration = r.input + "/calib.txt";
  r.calibration_sequences = 4, r.sequence_length = 64;
  r.cache_folder = (folder / "cache").string();
  r.eval_chunks = 0;
  r.allow = {{method, options}};
  return r;
}

/// The message of the Failure that `run` throws; "accepted" when it does not.
inline std::string refusal(const std::function<void()>& run) {
  try {
    run();
  } catch (const Failure& failure) {
    return failure.error().message;
  }
  return "accepted";
}

}  // namespace pith::test
