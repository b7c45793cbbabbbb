// What a compressed model lost, measured with the torch-free runtime that its users run.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/progress.h"
#include "base/threads.h"
#include "measure/report.h"
#include "represent/model.h"

namespace pith {

/// Held-out texts by path; `paths` empty takes the built-in ones (runtime/builtin_text.h), named by their domain.
struct HeldOut {
  std::string name, text;
};
std::vector<HeldOut> held_out_texts(const std::vector<std::string>& paths);

/// Bytes of memory that the weights take when the model is loaded, without loading it.
uint64_t loaded_bytes(const Model& model);

/// Fills texts, speeds and sample answers of `report`. `chunks` of 512 tokens of each text are read.
void measure_model(const Model& before, const Model& after, const std::vector<std::string>& paths, int64_t chunks,
                   ThreadPool& pool, Progress& progress, Report& report);

/// Perplexity ratio - 1 over a few chunks of all texts together: the loss that `--max-loss` bounds.
double measured_loss(const Model& before, const Model& after, const std::vector<std::string>& paths, ThreadPool& pool,
                     Progress& progress);

/// One compressed matrix to be judged in an otherwise unchanged model.
struct Alone {
  std::string name;
  int64_t layer = -1;  ///< -1: embedding or head
  std::function<NodePtr()> node;
};
/// Mean KL (nats a token) that each of them alone, in place of the model's own tensor of that name, costs on `tokens`
/// [sequences][length]. `found(i, kl)` hears of each, in order, and may say false to stop.
void measure_alone(const Model& model, const std::vector<Alone>& matrices, std::span<const int32_t> tokens,
                   int64_t length, ThreadPool& pool, const std::function<bool(size_t i, double kl)>& found);

/// The part of a report that a model file carries (sizes and measured losses), as compact JSON.
std::string short_report(const Report& report);

}  // namespace pith
