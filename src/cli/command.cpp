#include "cli/command.h"

#include <fmt/format.h>
#include <pith/failure.h>

#include <algorithm>
#include <exception>
#include <new>

namespace pith {

namespace {

std::string program_help(std::span<const Command> commands) {
  std::string out =
      "pith makes models smaller, to a budget that you name, and measures the loss.\n\n"
      "Usage: pith COMMAND [ARGUMENTS]     pith COMMAND --help     pith --version\n";
  size_t width = 0;
  for (const Command& c : commands) width = std::max(width, c.name.size());
  std::string_view group;
  for (const Command& c : commands) {
    if (c.group != group) out += fmt::format("\n{}\n", group = c.group);
    out += fmt::format("  {:<{}}  {}\n", c.name, width, c.summary);
  }
  return out +
         "\nExample: pith compress model.gguf --size 60MB -o small.pith\n"
         "Exit codes: 0 done, 2 wrong use, 3 broken or unsupported file, 70 a bug in Pith, 130 stopped by Ctrl-C.\n";
}

/// "… did you mean 'x'? Try 'pith --help'." / "…; try 'pith --help'."
Error with_hint(std::string message, const std::string& hint) {
  const bool question = !message.empty() && message.back() == '?';
  return user_error(std::move(message) + (question ? " Try '" : "; try '") + hint + "'");
}

int print_or_fail(std::string_view text) {
  const Status status = print_out(text);
  return status.ok() ? 0 : fail(status.error());
}

}  // namespace

int run_program(int argc, char** argv, std::span<const Command> commands,
                const std::function<int(const Command&, int, char**)>& missing) {
  const std::string word = argc > 1 ? argv[1] : "";
  if (word.empty()) {
    std::fputs(program_help(commands).c_str(), stderr);
    return static_cast<int>(ErrorKind::user);
  }
  if (word == "--help" || word == "-h" || (word == "help" && argc == 2)) return print_or_fail(program_help(commands));
  if (word == "--version") return print_or_fail(fmt::format("pith {}\n", pith_version()));
  // "pith help inspect" is "pith inspect --help".
  const bool help = word == "help";
  const std::string name = help ? argv[2] : word;
  const auto command = std::find_if(commands.begin(), commands.end(), [&](const Command& c) { return c.name == name; });
  if (command == commands.end()) {
    std::vector<std::string> known;
    for (const Command& c : commands) known.emplace_back(c.name);
    return fail(with_hint("'" + name + "' is no command of pith" + did_you_mean(name, known), "pith --help"));
  }
  try {
    if (command->run == nullptr) return missing(*command, argc, argv);
    Arguments arguments(argv + (help ? 3 : 2), argv + argc);
    if (help) arguments.assign(1, "--help");
    return command->run(arguments);
  } catch (const Failure& failure) {
    return fail(failure.error());
  } catch (const std::bad_alloc&) {
    return fail(user_error(name + ": out of memory; close other programs or use a machine with more memory"));
  } catch (const std::exception& e) {
    return fail(bug_error(name + ": " + e.what()));
  }
}

namespace {

/// Options as a person reads them: "--seed N   Seed of everything random [0]"; limits are told by the error message.
class Layout : public CLI::Formatter {
  std::string make_option_name(const CLI::Option* option, bool positional) const override {
    const std::string name = CLI::Formatter::make_option_name(option, positional);
    return name.substr(0, name.find('{'));  // not the value that a flag stands for
  }
  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_type_size() == 0 || option->get_positional()) return "";
    const std::string type = option->get_type_name();
    return " " + type.substr(0, type.find(':'));
  }
  std::string make_option_desc(const CLI::Option* option) const override {
    const std::string value = option->get_default_str();
    return option->get_description() + (value.empty() ? "" : " [" + value + "]") +
           (option->get_required() && !option->get_positional() ? " (required)" : "");
  }
};

}  // namespace

std::unique_ptr<CLI::App> new_app(std::string name, std::string description, std::string example) {
  auto app = std::make_unique<CLI::App>(std::move(description), "pith " + std::move(name));
  app->allow_extras(true);  // parse_arguments refuses them, with the nearest name
  app->set_help_flag("-h,--help", "Show this help");
  if (!example.empty()) app->footer("\nExample:\n  " + std::move(example));
  app->formatter(std::make_shared<Layout>());
  app->get_formatter()->column_width(34);
  return app;
}

std::optional<int> parse_arguments(CLI::App& app, const Arguments& arguments) {
  const std::string name = app.get_name();
  try {
    Arguments reversed(arguments.rbegin(), arguments.rend());  // CLI11 takes them from the back
    app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    return print_or_fail(app.help());
  } catch (const CLI::ParseError& e) {
    // A missing input is often the result of a misspelt option: that one is the better message.
    if (app.remaining().empty()) return fail(with_hint(name + ": " + e.what(), name + " --help"));
  }
  for (const std::string& extra : app.remaining()) {
    if (extra.size() < 2 || extra[0] != '-')
      return fail(with_hint(name + ": '" + extra + "' is one argument too many", name + " --help"));
    std::vector<std::string> known;
    for (const CLI::Option* option : app.get_options())
      for (const std::string& n : option->get_lnames()) known.push_back("--" + n);
    return fail(
        with_hint(name + ": option '" + extra + "' is unknown" + did_you_mean(extra.substr(0, extra.find('=')), known),
                  name + " --help"));
  }
  return std::nullopt;
}

void add_method_options(CLI::App& app, const Method& method, std::map<std::string, std::string>& given) {
  const std::string group = "Options of " + std::string(method.name);
  for (const Param& p : method.params) {
    const std::string name(p.name);
    const auto keep = [&given, name](const std::string& value) { given[name] = value; };
    const std::string help = fmt::format("{} [{}]", p.help, p.fallback.empty() ? "empty" : p.fallback);
    if (p.type == ParamType::boolean)
      app.add_flag_function(
             "--" + name + "{true}", [&given, name](int64_t n) { given[name] = n > 0 ? "true" : "false"; }, help)
          ->group(group);
    else
      app.add_option_function<std::string>("--" + name, keep, help)->group(group)->type_name(describe_values(p));
  }
}

Result<Options> method_options(const Method& method, const std::map<std::string, std::string>& given) {
  Options options = Options::defaults(method.params);
  for (const auto& [name, value] : given) PITH_TRY(options.set(name, value).context(std::string(method.name)));
  return options;
}

std::string method_help(const Method& method) {
  std::string out =
      fmt::format("{} ({}{})\n{}\n", method.name, method.family, method.baseline ? ", baseline" : "", method.title);
  if (!method.paper.empty()) out += fmt::format("Paper: {}\n", method.paper);
  if (!method.params.empty()) {
    std::vector<std::vector<std::string>> rows = {{"  option", "values", "default", "meaning"}};
    for (const Param& p : method.params)
      rows.push_back({"  --" + std::string(p.name), describe_values(p),
                      p.fallback.empty() ? "-" : std::string(p.fallback), std::string(p.help)});
    out += "\n" + format_table(rows, {});
  }
  if (!method.budget_options.empty())
    out += fmt::format("\n'pith compress' tries by itself: {}:{}\n", method.name, method.budget_options);
  if (!method.example.empty()) out += fmt::format("\nExample:\n  {}\n", method.example);
  return out;
}

ProgressStyle CommonOptions::style() const {
  const auto parsed = parse_progress_style(progress);
  return parsed.ok() ? *parsed : ProgressStyle::automatic;
}

void add_common_options(CLI::App& app, CommonOptions& options) {
  app.add_option("--progress", options.progress, "How progress is shown on stderr: auto, json, none [auto]")
      ->check(CLI::IsMember({"auto", "json", "none"}))
      ->type_name("STYLE");
  app.add_option("--threads", options.threads, "Threads; the result does not depend on it [all cores]")
      ->check(CLI::Range(0u, 1024u))
      ->type_name("N");
}

std::string_view pith_version() { return PITH_VERSION; }

}  // namespace pith
