// Random instances of every node kind, each with its values worked out by plain loops that share no code with the
// nodes. A kind that is added to parse_node gets a maker in kSamples, and all suites test it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <span>
#include <string_view>
#include <vector>

#include "base/half.h"
#include "represent/blocks.h"
#include "represent/codebook.h"
#include "represent/combine.h"
#include "represent/dense.h"
#include "represent/grid.h"
#include "represent/low_rank.h"
#include "represent/memory_sections.h"
#include "represent/sparse.h"

namespace pith::test {

/// A node and what it must decode to; `exact` when no rounding order is left open.
struct Sample {
  NodePtr node;
  std::vector<double> reference;
  bool exact = true;
};

/// A node of one kind with the asked shape; node == nullptr when the kind cannot have that shape.
/// `depth` is how many further levels of children a combinator may use.
struct SampleMaker {
  std::string_view kind;
  Sample (*make)(Random& random, int64_t rows, int64_t cols, int depth);
};
std::span<const SampleMaker> sample_makers();

/// Any kind that fits.
Sample any_sample(Random& random, int64_t rows, int64_t cols, int depth);

}  // namespace pith::test
