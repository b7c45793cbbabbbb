// One run of the main job. compress.h is its face; the class below is only for the files that define its parts:
//   compress.cpp            the command: checks, calibration, the course of a run and of its helpers
//   compress_preflight.cpp  what is foretold before the work
//   compress_plan.cpp       budget -> a method with options for each matrix (pilot, step, knapsack, block types)
//   compress_units.cpp      fits matrices, layer by layer, into the work folder
//   compress_output.cpp     finished units (or a whole model) -> model, tuning, file, plan and report
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/threads.h"
#include "engine/calibration_text.h"
#include "engine/compress.h"
#include "engine/jobs.h"
#include "engine/recipe.h"
#include "engine/unit.h"
#include "formats/ggml_blocks.h"
#include "plan/knapsack.h"
#include "plan/work_folder.h"
#include "tensor/device.h"

namespace pith {

/// Where statistics are kept between runs.
std::string cache_folder(const CompressRequest& request);

class Compressor {
 public:
  /// Whatever is wrong with the question fails here, before hours of work. Throws Failure, as all of this.
  Compressor(const CompressRequest& request, Progress& progress);

  Preflight preflight();
  Report run(const std::function<void(const Preflight&)>& before);
  int64_t help();

 private:
  using Choice = std::vector<Recipe>;  // one a target
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

  // ---- the request (compress.cpp)
  uint64_t weights_count() const { return model_.parameters(); }
  /// The asked bytes (of the file, or in memory), 0 when the budget is not in bytes.
  uint64_t target_bytes() const;
  bool by_ram() const { return request_.budget.kind == Budget::Kind::ram; }
  /// The method that makes the whole model at once; null when matrices are fitted one by one.
  const ModelFit* whole() const;
  bool only_tunes() const { return !request_.base.empty() && request_.allow.empty() && !plan_; }
  void check_budget();
  void check_plan();
  void open_base();
  Needs needs() const;
  void calibrate_model(int64_t sequences, int64_t fisher_sequences);
  std::string plan_hash();
  std::optional<Report> finished_before();
  static double now();  ///< seconds of a steady clock
  /// Notes how long the part of the run took that ends here.
  void stage(const std::string& name);

  // ---- pre-flight
  uint64_t expected_memory() const;
  uint64_t tuning_memory(size_t threads) const;
  void try_methods(Preflight& out);
  void try_types(Preflight& out);

  // ---- planning
  bool continuous() const;
  [[noreturn]] void out_of_reach(double smallest);
  double pilot_step(double bits_per_weight, double* loss, double* seconds);
  Done solve_step();
  bool mended(Done& done, double size, double log_step, const MethodSpec* like);
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
  /// Writes the types of an answer for `which` into `choice`; returns the targets that get one.
  std::vector<size_t> take_types(const TypeOptions& options, const std::vector<size_t>& which,
                                 const KnapsackAnswer& answer, Choice& choice) const;
  Done solve_gguf_types();
  Done fixed_choice();

  // ---- units
  std::vector<size_t> all_targets() const;
  std::vector<size_t> sample_targets() const;
  /// Weights of these targets together.
  double weights_of_targets(const std::vector<size_t>& which) const;
  /// Runs the fit and predicts its loss.
  Unit fit_unit(FitJob job, const Recipe& recipe) const;
  /// A unit of the work folder; its arrays are mapped.
  std::optional<Unit> finished_unit(const std::string& name) const;
  NodePtr node_of(const Done& done, size_t target) const;
  std::string unit_name(const Choice& choice, size_t target) const {
    return targets_[target].name + "|" + choice[target].print();
  }
  /// Layer after layer, the targets of one by several threads, except those that are `finished` (empty: none is).
  using FitOne = std::function<void(size_t target, FitJob job)>;
  void each_layer(const std::vector<size_t>& which, const char* stage_name, const FitOne& fit,
                  const std::function<bool(size_t target)>& finished = {});
  /// Sees each fitted unit once, in no particular order, from several threads.
  using See = std::function<void(size_t target, const Node& node)>;
  /// Fits what is not in the work folder yet, layer by layer, and leaves the units in the folder. Tells helpers.
  Done run_units(const Choice& choice, const std::vector<size_t>& which, const char* stage_name, const See& see = {});
  /// The same for every so many rows, of which only the losses are kept.
  Done try_units(const Choice& choice, const std::vector<size_t>& which, int64_t every, const See& see);
  Done run_sequential(const Choice& choice, const std::vector<size_t>& which);
  /// The way that suits the methods chosen: block after block where one needs the compressed prefix.
  Done run_chosen(const std::vector<size_t>& which);
  /// Units that run_units is about to fit, as a unit for the helpers, and back.
  void publish(const Choice& choice, const std::vector<size_t>& which);
  std::vector<size_t> published(const std::string& task, Choice& choice) const;

  // ---- output
  /// The model with these units in place, its arrays in the work folder. The last one is kept: what was sized is also
  /// what is measured and written.
  const Model& finished(const Done& done);
  /// Exact size of the file that write() would make.
  uint64_t written_bytes(const Model& model) const;
  uint64_t measure_bytes(const Done& done);
  uint64_t measure_bytes(const Model& model);
  /// What a method for whole models makes, with its notes in the report.
  Model remade(Report& report);
  Tensor tuning_text();
  Model tuned(const Model& model, const Tensor& tokens, Report& report);
  void write(const Model& model, const std::string& path, bool overwrite);
  void check_written(const Model& model);
  Plan make_plan(const Done& done) const;
  void fill_report(Report& report, const Done& done, const Model& model);

  /// Unit that says what helpers may fit, one line a matrix: "target spec".
  static constexpr const char* kTask = "task";
  /// Of the rows of embedding and head, the pilot looks at one in so many.
  static constexpr int64_t kPilotRows = 8;
  /// The smallest file that still makes sense: one bit a weight beside what is not compressed.
  static constexpr double kFewestBits = 1.0;
  /// Room for the measured report that the file gets at the end.
  static constexpr uint64_t kReportRoom = 2048;

  const CompressRequest& request_;
  Progress& progress_;
  ThreadPool pool_;
  bool gguf_;
  at::Device device_ = at::kCPU;
  double started_, stage_start_;
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

}  // namespace pith
