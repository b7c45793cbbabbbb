// The report of a compression: one struct, written as JSON and as one HTML file that works offline. What was not
// measured stays empty and is left out, never shown as zero.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/limits.h"

namespace pith {

/// One model, before or after.
struct ReportModel {
  std::string name;                         ///< "SmolLM2-135M-Instruct.Q4_1.gguf"
  uint64_t file_bytes = 0;                  ///< size on disk
  std::optional<uint64_t> loaded_bytes;     ///< memory of the weights when loaded for running
  std::optional<double> bits_per_weight;    ///< file_bytes * 8 / weights
  std::optional<double> tokens_per_second;  ///< decoding, one sequence
};

/// One held-out text; no token of it was used for calibration.
struct ReportText {
  std::string name;     ///< "wikitext-2 test"
  uint64_t tokens = 0;  ///< tokens predicted
  std::optional<double> perplexity_before, perplexity_after;
  std::optional<double> kl, kl_error;  ///< mean KL(original || compressed) in nats, its standard error
  std::optional<double> top1;          ///< share of tokens on which both models prefer the same next token
};

/// One tensor of the plan.
struct ReportTensor {
  std::string name;      ///< canonical name
  std::string method;    ///< "ec:step=0.02"
  std::string tree;      ///< Node::describe()
  uint64_t weights = 0;  ///< elements
  uint64_t bytes_before = 0, bytes = 0;
  std::optional<double> predicted_loss, measured_loss;
};

struct ReportPoint {
  uint64_t bytes = 0;
  double loss = 0;
};

struct ReportSample {
  std::string prompt, before, after;
};

struct ReportStage {
  std::string name;  ///< "calibrate"
  double seconds = 0;
};

struct Report {
  std::string title;    ///< "SmolLM2-135M-Instruct in 60 MB"
  std::string budget;   ///< Budget::describe()
  std::string command;  ///< the command line
  std::string version;  ///< of Pith
  std::string date;     ///< given by the caller, so that tests are reproducible; may be empty
  std::string machine;  ///< "2 cores, AVX-512"
  ReportModel before, after;
  std::vector<ReportText> texts;
  std::vector<ReportTensor> tensors;
  std::vector<ReportStage> stages;  ///< where the time went
  std::optional<double> seconds;    ///< whole run
  std::optional<uint64_t> peak_memory;
  std::optional<double> predicted_loss, measured_loss, lower_bound;  ///< of the whole model, same unit as the curve
  std::string loss_unit;                                             ///< "nats a token", "perplexity ratio - 1"
  std::vector<ReportPoint> curve;                                    ///< size against predicted loss
  std::vector<ReportSample> samples;
  std::vector<std::string> notes;  ///< warnings and facts a reader should know
};

/// What a tensor does, from its canonical name: "embedding", "attention q", "mlp down", "norm", "head", "other", …
std::string tensor_kind(std::string_view name);
/// The block it belongs to, -1 when none.
int tensor_layer(std::string_view name);

/// The whole report as JSON (deterministic), and back.
std::string report_to_json(const Report& report);
Result<Report> report_from_json(std::string_view text, const Limits& limits);

/// One self-contained HTML page: tables that read without scripts, charts where scripts run, light and dark.
std::string report_to_html(const Report& report);

}  // namespace pith
