// Integer codes with scales in groups of columns: the layout of GGUF blocks, of grids with affine or two-level fields,
// and of entropy-coded grids once they are loaded.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "kernels/tile_linear.h"
#include "represent/blocks.h"
#include "represent/grid.h"

namespace pith {

/// How a node would lie in memory.
struct IntLayout {
  int64_t rows = 0, cols = 0;
  unsigned bits = 0;  ///< of every tile; 0: chosen tile by tile (codes with a few large values)
  int zero = 0;
  bool table = false;
  ScaleKind scale = ScaleKind::row;
  MinKind min = MinKind::none;
  int64_t group_halves = 0, groups = 0, groups_per_super = 1;
  bool column_factors = false;
  bool sort_rows = false;  ///< tiles hold rows of similar width, so outputs are scattered

  int64_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  int64_t chunks() const { return (cols + kChunk - 1) / kChunk; }
  int64_t supers() const { return (groups + groups_per_super - 1) / groups_per_super; }
  /// Bytes of scales and all else but codes and corrections.
  uint64_t side_bytes() const;
};

/// nullopt when this node does not fit the layout. `keep_rows`: the caller needs rows in their order.
std::optional<IntLayout> int_layout(const Node& node, bool keep_rows = false);

class IntTiles final : public TileLinear {
 public:
  /// `node` is a Blocks or Grid for which int_layout gave `layout`. Row r of the matrix is row row_map[r] of the node,
  /// or row r when the map is empty (only Blocks may have one).
  static std::unique_ptr<IntTiles> make(const Node& node, const IntLayout& layout, std::span<const uint32_t> row_map,
                                        const KernelOptions& options);

  uint64_t ram_bytes() const override;
  std::string describe() const override;

  const IntLayout& layout() const { return layout_; }
  IntTile tile(int64_t t) const;
  /// y[n][16] of tile t from integer activations, with corrections; and the tile's weights [cols up to 32s][16].
  void int_product(int64_t t, const TileInput& x, int64_t n, float* y) const;
  void weights(int64_t t, float* panel) const { whole_panel(t, panel); }

 private:
  IntTiles(const IntLayout& layout, const KernelOptions& options);
  void run_tiles(int64_t t0, int64_t t1, const Input& input, int64_t n, float* y, int64_t ldy) const override;
  void decode_row(int64_t r, float* out) const override;
  void decode_panel(int64_t t, float* panel) const override;
  void decode_panel_bf16(int64_t t, uint16_t* panel) const override;
  bool has_dot() const override { return true; }
  bool dot_needs_ints() const override { return true; }
  void dot(int64_t t, const TileInput& x, int64_t n, float* y, int64_t ldy) const override;
  const float* column_factors() const override { return factors_.empty() ? nullptr : factors_.data(); }

  void fill_blocks(const Blocks& blocks, std::span<const uint32_t> row_map);
  void fill_grid(const Grid& grid);
  void fill_scales(const Grid& grid);
  void pack_tile(unsigned bits, const uint8_t* levels, uint8_t* out) const;

  IntLayout layout_;
  Aligned<uint8_t> codes_;
  std::vector<uint64_t> tile_offset_;  ///< only when tiles differ in width
  std::vector<uint8_t> tile_bits_;
  std::vector<uint32_t> order_;  ///< row of each place, when rows are sorted; everything else counts places
  Aligned<float> row_scale_, d32_, m32_;
  Aligned<uint16_t> d_, m_;
  Aligned<int8_t> d_code_;
  Aligned<uint8_t> m_code_;
  std::vector<float> factors_;
};

/// Width of the codes of one tile that takes the fewest bytes: codes outside [-2^(bits-1), 2^(bits-1)) become
/// corrections of 4 bytes. `count[v]` says how many codes have magnitude class v (see int_tiles.cpp).
struct TileWidth {
  unsigned bits = 8;
  int64_t corrections = 0;
};
TileWidth choose_tile_width(std::span<const int16_t> codes, int64_t chunks);

/// Bytes of memory of an entropy-coded grid, reading all its codes.
uint64_t variable_width_bytes(const Grid& grid, const IntLayout& layout);

}  // namespace pith
