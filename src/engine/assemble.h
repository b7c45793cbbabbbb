// From fitted nodes to a model that can be written: codes entropy-coded with tables shared by the whole model, and the
// small vectors in the fewest bytes that keep them.
#pragma once

#include <functional>
#include <string>

#include "entropy/codes.h"
#include "represent/model.h"

namespace pith {

/// The fitted node of a tensor, or null when it keeps its own. Asked several times, by several threads.
using NodeSource = std::function<NodePtr(const std::string& name)>;
/// Those of a map, which must live as long.
NodeSource source_of(const NodeMap& nodes);
/// Takes a finished node out of memory, into a file for instance; returns the one to hold instead. Several threads.
using NodeKeeper = std::function<NodePtr(const std::string& name, NodePtr node)>;

/// `source` with the nodes of `fitted` in place of its own. Row-and-column grids (ec) get entropy-coded codes and
/// steps; other trees stay as they are. Vectors that are not fitted are stored as bf16 or fp16 when that keeps them
/// exactly or within 2^-11, else as they were. Two passes, counting and coding, hold one matrix a thread each; what is
/// coded is given to `keep` (empty: stays in memory).
Model assemble(const Model& source, const NodeSource& fitted, const NodeKeeper& keep = {});

/// Counts what assemble would entropy-code in this tree, for the builder's estimate; false when that is nothing.
bool count_codes(const Node& node, CodeModelBuilder& builder);

/// A vector or matrix as the smallest of bf16, fp16, fp32 that holds every value within a relative error of 2^-11.
NodePtr compact_dense(const Node& node);

}  // namespace pith
