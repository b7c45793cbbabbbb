// The torch-free commands.
#pragma once

#include "cli/command.h"

namespace pith {

int methods_command(const Arguments& arguments);

}  // namespace pith
