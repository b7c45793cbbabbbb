// Commands: one file each, listed by the program that has them. Shared by pith and pith-engine.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cli/terminal.h"
#include "runtime/method.h"

namespace pith {

/// Arguments after the command's own name.
using Arguments = std::vector<std::string>;

struct Command {
  std::string_view name;     ///< "inspect"
  std::string_view group;    ///< heading in `pith --help`
  std::string_view summary;  ///< one line
  /// Returns the exit code. Empty for commands of the other program.
  int (*run)(const Arguments& arguments) = nullptr;
};

/// The program's main: finds the command, suggests near ones, prints help, turns exceptions into messages and exit
/// codes. `missing` runs a command that has no function here (pith: exec pith-engine).
int run_program(int argc, char** argv, std::span<const Command> commands,
                const std::function<int(const Command&, int argc, char** argv)>& missing);

/// An app with our help layout: description, then an example.
std::unique_ptr<CLI::App> new_app(std::string name, std::string description, std::string example);

/// Parses; returns an exit code when the command is over (help shown: 0, wrong options: 2 with the nearest option
/// named).
std::optional<int> parse_arguments(CLI::App& app, const Arguments& arguments);

/// Adds one option for each row of a method's parameter table; what the user gives lands in `given` (which must outlive
/// the app).
void add_method_options(CLI::App& app, const Method& method, std::map<std::string, std::string>& given);
/// Checked options of `method` from what was given on the command line.
Result<Options> method_options(const Method& method, const std::map<std::string, std::string>& given);

/// The text of `pith methods NAME`: title, paper, parameter table, example.
std::string method_help(const Method& method);

/// `--progress auto|json|none` and `--threads N`, which all long commands have.
struct CommonOptions {
  std::string progress = "auto";
  unsigned threads = 0;
  ProgressStyle style() const;
};
void add_common_options(CLI::App& app, CommonOptions& options);

/// Version of Pith, "0.1.0".
std::string_view pith_version();

}  // namespace pith
