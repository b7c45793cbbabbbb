// The torch-free commands, and what several of them share.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "cli/command.h"
#include "represent/model.h"

namespace pith {

int cache_command(const Arguments& arguments);
int eval_command(const Arguments& arguments);
int export_command(const Arguments& arguments);
int generate_command(const Arguments& arguments);
int inspect_command(const Arguments& arguments);
int methods_command(const Arguments& arguments);
int verify_command(const Arguments& arguments);

/// Prints a result to stdout; the exit code.
int print_result(std::string_view text);

/// Bytes of a model on disk: the file, or all files of a Hugging Face folder's weights.
uint64_t model_file_bytes(const std::string& path);

/// A number of tokens: "4096", or "8k" for 8 x 1024.
Result<int64_t> parse_tokens(std::string_view text);

/// "57.3 MB" and the share of a whole, for tables.
std::string print_percent(double part, double whole);

}  // namespace pith
