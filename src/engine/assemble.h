// From fitted nodes to a model that can be written: codes entropy-coded with tables shared by the whole model, and the
// small vectors in the fewest bytes that keep them.
#pragma once

#include <map>
#include <string>

#include "base/threads.h"
#include "represent/model.h"

namespace pith {

/// `source` with the nodes in `fitted` in place of its own. Row-and-column grids (ec) get entropy-coded codes and
/// steps; other trees stay as they are. Vectors that `fitted` does not name are stored as bf16 or fp16 when that keeps
/// them exactly or within 2^-11, else as they were.
Model assemble(const Model& source, const std::map<std::string, NodePtr, std::less<>>& fitted, ThreadPool& pool);

/// A vector or matrix as the smallest of bf16, fp16, fp32 that holds every value within a relative error of 2^-11.
NodePtr compact_dense(const Node& node);

}  // namespace pith
