// pith quantize|factorize|prune METHOD MODEL …: one method on purpose, its options from its parameter table.
#include <CLI/CLI.hpp>

#include "cli/engine/commands.h"
#include "engine/fit.h"

namespace pith {

int method_command(std::string_view family, const Arguments& arguments) {
  std::vector<std::string> known;
  for (const Fit* fit : all_fits())
    if (find_method(fit->name)->family == family) known.emplace_back(fit->name);
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "-h") {
    std::vector<std::vector<std::string>> rows;
    for (const std::string& name : known) rows.push_back({"  " + name, std::string(find_method(name)->title)});
    must(print_out("pith " + std::string(family) + " METHOD MODEL [options] -o OUTPUT\n\nMethods:\n" +
                   format_table(rows, {}) + "\n'pith " + std::string(family) +
                   " METHOD --help' shows one with its options.\n"));
    return arguments.empty() ? 2 : 0;
  }
  const std::string& name = arguments[0];
  const Method* method = find_method(name);
  if (method == nullptr || method->family != family)
    throw Failure(user_error("'" + name + "' is no " + std::string(family) + " method" + did_you_mean(name, known)));

  CompressOptions options;
  std::map<std::string, std::string> given;
  std::string tensors = name == "ec" || name == "gguf" ? "all" : "blocks";
  std::string ends;
  const auto app =
      new_app(std::string(family) + " " + name, std::string(method->title) + ".", std::string(method->example));
  options.add_to(*app, method);
  add_method_options(*app, *method, given);
  const Fit* fit = find_fit(name);
  if (fit == nullptr || fit->whole == nullptr) {
    app->add_option("--tensors", tensors, "What is compressed: 'blocks', or 'all' with embedding and head")
        ->check(CLI::IsMember({"blocks", "all"}))
        ->capture_default_str()
        ->type_name("WHICH");
    app->add_option("--ends", ends, "Another method for embedding and head: 'gguf:type=Q6_K'")->type_name("METHOD");
  }
  if (method->needs.base)
    app->add_option("--compressed", options.request.base,
                    "The compressed model that is to be mended; MODEL is the original")
        ->required()
        ->type_name("FILE");
  if (const auto code = parse_arguments(*app, Arguments(arguments.begin() + 1, arguments.end()))) return *code;
  options.finish(std::string(family), arguments);
  options.request.embeddings = tensors == "all";
  options.request.allow = {{name, must(method_options(*method, given)).print()}};
  if (!ends.empty()) options.request.ends = split_spec(ends);
  return run_compression(options);
}

}  // namespace pith
