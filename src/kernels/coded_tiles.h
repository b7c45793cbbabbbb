// Grids with steps of rows and columns whose codes are entropy-coded in the file, once they are loaded: codes of a few
// bits, as many for each chunk of a tile as take the fewest bytes, and corrections for the few codes beyond them.
//
// Rows and columns are sorted by the spread of their codes, so that neighbours agree on a width. The columns' order
// costs nothing when a matrix is multiplied: the activations are copied anyway, to take the steps of the columns.
#pragma once

#include <vector>

#include "kernels/tile_linear.h"
#include "represent/grid.h"

namespace pith {

class CodedTiles final : public TileLinear {
 public:
  static bool takes(const Node& node);
  static std::unique_ptr<CodedTiles> make(const Grid& grid, const KernelOptions& options);
  /// What ram_bytes() of the result would be; reads all codes.
  static uint64_t planned_bytes(const Grid& grid, bool keep_rows);

  uint64_t ram_bytes() const override;
  std::string describe() const override;

 private:
  CodedTiles(const Grid& grid, const KernelOptions& options);
  void run_tiles(int64_t t0, int64_t t1, const Input& input, int64_t n, float* y, int64_t ldy) const override;
  void finish(const Input& input, int64_t n, float* y, ThreadPool& pool) const override;
  bool sorts_rows() const override { return !place_.empty(); }
  void decode_row(int64_t r, float* out) const override;
  void decode_panel(int64_t t, float* panel) const override;
  bool has_dot() const override { return true; }
  bool dot_needs_ints() const override { return true; }
  void dot(int64_t t, const TileInput& x, int64_t n, float* y, int64_t ldy) const override;
  bool gathers() const override { return true; }
  void gather(const float* x, float* out) const override;

  /// Sorts rows and columns, finds widths and corrections of all tiles, and packs the codes if asked to.
  void fill(const Grid& grid, bool keep_rows, bool pack);
  /// `row_scale` becomes the tile's 16 row steps.
  IntTile tile(int64_t t, float* row_scale) const;
  CorrectionList corrections(int64_t t) const;
  /// Where row r of the matrix is in the tiles.
  int64_t place_of(int64_t r) const;

  float base_;
  std::vector<uint8_t> row_log_, col_log_;  ///< of each place, in sixteenths of an octave
  std::vector<uint16_t> place_;             ///< of each row, in its section; empty: rows are where they were
  std::vector<uint16_t> col_;               ///< the matrix's column at each place
  Aligned<uint8_t> codes_;
  std::vector<uint8_t> widths_;                          ///< [tiles][chunks]
  std::vector<uint32_t> code_start_, correction_start_;  ///< of each tile and the end; codes in pieces of 64 bytes,
                                                         ///< corrections in steps
  std::vector<uint8_t> corrections_;                     ///< as in CorrectionList
};

}  // namespace pith
