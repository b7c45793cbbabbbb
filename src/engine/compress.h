// The main job: a language model cut to a budget. Opens, calibrates, plans, fits unit by unit into OUT.work/, writes,
// measures. The command line's `compress`, `quantize`, `factorize` and `prune`, and Python, are thin covers of it.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/progress.h"
#include "measure/report.h"
#include "plan/plan_file.h"

namespace pith {

struct CompressRequest {
  std::string input, output;  ///< output by its ending: .gguf, else .pith
  Budget budget;
  /// Empty: the output format's own default, `ec` or `gguf`. One entry without a budget: exactly that for every matrix
  /// of the blocks. Several, or one with a budget: what the solver may choose from.
  std::vector<MethodSpec> allow;
  /// With several options to choose from: scale each matrix's predicted losses by what one of its options really costs,
  /// measured on calibration text, one matrix at a time.
  bool measured_sensitivity = false;
  std::string plan;  ///< path of a plan to follow instead of solving one
  std::string base;  ///< for methods that mend an already compressed model: that model (input is the original)
  /// Steps of tuning by distillation (train/distill.h) after compressing; 0: none. With `base` and no method, that is
  /// all that is done: the compressed model is tuned towards the input.
  int64_t tune_steps = 0;
  int64_t tune_batch = 16;     ///< sequences of the calibration text a step
  bool tune_codes = true;      ///< false: only continuous numbers move (scales, codebooks, low-rank parts, norms)
  std::string device = "cpu";  ///< where calibration, factors and tuning run (tensor/device.h)
  bool embeddings = true;      ///< embedding and head are compressed too (with one given method: only if asked)
  MethodSpec ends;             ///< with one given method: what embedding and head get instead; empty method: the same
  std::string calibration;     ///< engine/calibration_text.h
  int64_t calibration_sequences = 96, fisher_sequences = 32, sequence_length = 512;
  uint64_t seed = 0;
  unsigned threads = 0;
  uint64_t memory = 0;                  ///< that activations of the calibration may take; 0: activation_memory()
  std::string work_folder;              ///< empty: OUTPUT + ".work"
  int64_t share = 1, shares = 1;        ///< of the units; share 1 decides and writes, the others only fit for it
  std::string cache_folder;             ///< statistics by content hash; empty: ~/.cache/pith
  std::vector<std::string> eval_texts;  ///< held-out texts for the report; empty: the built-in ones
  int64_t eval_chunks = 12;             ///< chunks of 512 tokens a text; 0: do not measure
  std::string report;                   ///< HTML file for the report, and JSON beside it; empty: none
  bool force = false, restart = false, keep_work = false;
  std::string command, version, date, machine;  ///< for the report
};

/// What is known before the work begins.
struct Preflight {
  uint64_t weights = 0, input_bytes = 0, target_bytes = 0, smallest_bytes = 0;
  uint64_t peak_memory = 0;              ///< estimate
  uint64_t expected_bytes = 0;           ///< of the file, where no budget says
  double seconds = 0;                    ///< estimate, measured on a sample of the layers
  std::optional<double> predicted_loss;  ///< nats a token; empty where statistics that tell it are not needed
  std::string method;                    ///< "ec:step=…" or "plan of 3 matrices"
};

/// Both throw Failure. `preflight` leaves nothing behind; statistics of its few sequences are in the cache folder
/// while it runs. `compress` runs it too when somebody wants to hear of it.
Preflight preflight(const CompressRequest& request, Progress& progress = quiet_progress());
Report compress(const CompressRequest& request, Progress& progress = quiet_progress(),
                const std::function<void(const Preflight&)>& before = {});

/// Fits units for the run of share 1, in its work folder, until that run ends; waits for it to begin. Needs the same
/// request (but for `share`) and the same cache folder. Returns how many units it fitted. The result of share 1 has
/// the same bytes with any number of helpers, also when some of them die. Throws Failure.
int64_t help_compress(const CompressRequest& request, Progress& progress = quiet_progress());

}  // namespace pith
