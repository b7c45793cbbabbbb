// The commands that need tensors.
#pragma once

#include "cli/command.h"
#include "cli/terminal.h"
#include "engine/compress.h"

namespace pith {

int compress_command(const Arguments& arguments);
/// `pith tune MODEL --compressed FILE …`.
int tune_command(const Arguments& arguments);
/// `pith <family> <method> MODEL …`.
int method_command(std::string_view family, const Arguments& arguments);
int claim_command(const Arguments& arguments);

/// Options that compress and the single methods share, and how they end up in a request.
struct CompressOptions {
  CompressRequest request;
  std::string size, ram, bits, max_loss, memory, eval, units;
  bool dry_run = false, json = false;
  CommonOptions common;

  /// With a method: a budget option whose name is one of its parameters (--bits) means the parameter.
  void add_to(CLI::App& app, const Method* method = nullptr);
  /// Budget and texts from what was given; throws Failure on more than one budget.
  void finish(const std::string& command, const Arguments& arguments);
};

/// Pre-flight, run, table, report: what follows the parsing. Returns the exit code.
int run_compression(CompressOptions& options);

}  // namespace pith
