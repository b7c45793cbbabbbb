// pith-engine: the commands that need tensors. `pith` replaces itself by this program for them.
#include <cstdio>
#include <cstdlib>

#include "cli/engine/commands.h"

namespace {

constexpr std::string_view kMake = "Make smaller";
constexpr std::string_view kLook = "Look, check, compare";

int quantize(const pith::Arguments& a) { return pith::method_command("quantize", a); }
int factorize(const pith::Arguments& a) { return pith::method_command("factorize", a); }
int prune(const pith::Arguments& a) { return pith::method_command("prune", a); }

const pith::Command kCommands[] = {
    {"compress", kMake, "Cut a language model to a size, memory, bit or loss budget", pith::compress_command},
    {"quantize", kMake, "Run one quantization method on purpose", quantize},
    {"factorize", kMake, "Run one low-rank method on purpose", factorize},
    {"prune", kMake, "Run one pruning method on purpose", prune},
    {"tune", kMake, "Tune a compressed model towards its original: less loss in the same bytes", pith::tune_command},
    {"claim", kLook, "Rerun a paper's central claim, seeded, and compare with the ledger", pith::claim_command},
};

}  // namespace

int main(int argc, char** argv) {
  const int code = pith::run_program(argc, argv, kCommands, [](const pith::Command& command, int, char**) {
    return pith::fail(pith::bug_error("pith-engine has no command '" + std::string(command.name) + "'"));
  });
  // Everything is written and closed. The destructors of a CUDA build of libtorch 2.11 would end in free(): invalid
  // pointer, even when CUDA was never used.
  std::fflush(nullptr);
  std::_Exit(code);
}
