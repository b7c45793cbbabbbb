// Representation trees into the layout of the CUDA kernels (layout.h), on the host.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <variant>
#include <vector>

#include "represent/node.h"

namespace pith::cuda {

/// A grid of 3 or 4 bits, with single weights corrected and columns in another order where the tree says so.
struct PackedGrid {
  int64_t rows = 0, cols = 0;
  int bits = 0, slot = 0;
  bool two_level = false;
  float offset = 0;                   ///< level = stored code + offset
  std::vector<std::byte> strips;      ///< strips, each its spans one after another
  std::vector<uint16_t> order;        ///< x of stored column j is x[order[j]]; empty: as they are
  std::vector<uint32_t> row_start;    ///< rows + 1 places in `corrections`; empty: none
  std::vector<uint32_t> corrections;  ///< stored column, then an fp16 number in the upper half, to add to the grid's

  int64_t spans() const;
};

/// Sums of entries of codebooks of vectors of 8, times a scale for each row.
struct PackedCodebook {
  int64_t rows = 0, cols = 0;
  int books = 0, entries = 0;
  bool table = false;  ///< at most 256 entries: products of x with all entries are looked up
  std::vector<std::byte> codes;
  std::vector<uint16_t> entry;  ///< fp16 [books, entries, 8]
  std::vector<float> scale;     ///< one a row

  int64_t groups() const { return (cols + 7) / 8; }
};

using Packed = std::variant<PackedGrid, PackedCodebook>;

/// Takes what the kernels multiply: Grid of 3 or 4 bits with scales (and zeros) that fp16 holds, in groups of 32, 64 or
/// a multiple of 128 columns, or two-level statistics in groups of 16 columns and 16 rows (SpQR), either with an
/// Override, either Permuted by columns; Codebook of vectors of 8 with 1 or 2 books, with or without a scale a row.
/// Refuses anything else, saying what stands in the way.
Result<Packed> pack(const Node& node);

}  // namespace pith::cuda
