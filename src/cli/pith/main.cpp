// pith: the torch-free program. Commands that need tensors replace this process by pith-engine, as git does.
#include <fmt/format.h>
#include <limits.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/file.h"
#include "cli/pith/commands.h"

namespace {

constexpr std::string_view kMake = "Make smaller";
constexpr std::string_view kUse = "Use";
constexpr std::string_view kLook = "Look, check, compare";

const pith::Command kCommands[] = {
    {"compress", kMake, "Cut a language model to a size, memory, bit or loss budget", nullptr},
    {"quantize", kMake, "Run one quantization method on purpose", nullptr},
    {"factorize", kMake, "Run one low-rank method on purpose", nullptr},
    {"prune", kMake, "Run one pruning method on purpose", nullptr},
    {"tune", kMake, "Tune a compressed model towards its original: less loss in the same bytes", nullptr},
    {"generate", kUse, "Write an answer to a prompt", pith::generate_command},
    {"cache", kUse, "Measure smaller KV caches: answers, loss and speed against bytes", pith::cache_command},
    {"export", kUse, "Write a model for other programs (GGUF, Hugging Face)", pith::export_command},
    {"inspect", kLook, "Show what a model file holds, tensor by tensor", pith::inspect_command},
    {"verify", kLook, "Check a model file: checksums and all invariants", pith::verify_command},
    {"eval", kLook, "Measure perplexity, or the distance to another model", pith::eval_command},
    {"methods", kLook, "List methods, or show one with its options", pith::methods_command},
    {"claim", kLook, "Rerun a paper's central claim, seeded, and compare with the ledger", nullptr},
};

/// pith-engine beside this program, or where PITH_ENGINE says.
std::string engine_path() {
  if (const char* given = std::getenv("PITH_ENGINE"); given != nullptr && *given != '\0') return given;
  char self[PATH_MAX];
  const ssize_t n = ::readlink("/proc/self/exe", self, sizeof self);
  if (n <= 0 || n == sizeof self) return "pith-engine";
  const std::string path(self, static_cast<size_t>(n));
  return path.substr(0, path.rfind('/') + 1) + "pith-engine";
}

int exec_engine(const pith::Command& command, int, char** argv) {
  const std::string path = engine_path();
  ::execv(path.c_str(), argv);
  return pith::fail(pith::user_error(
      fmt::format("'pith {}' needs the tensor engine, but {}: {}. Build it ('make build'; the runtime-only preset has "
                  "none) or set PITH_ENGINE to its path",
                  command.name, path, std::strerror(errno))));
}

}  // namespace

int main(int argc, char** argv) { return pith::run_program(argc, argv, kCommands, exec_engine); }
