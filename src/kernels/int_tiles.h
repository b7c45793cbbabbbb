// Integer codes with scales in groups of columns: the layout of GGUF blocks and of grids with affine or two-level
// fields.
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
  unsigned bits = 0;
  int zero = 0;
  bool table = false;
  ScaleKind scale = ScaleKind::row;
  MinKind min = MinKind::none;
  int64_t group_halves = 0, groups = 0, groups_per_super = 1;

  int64_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  int64_t chunks() const { return (cols + kChunk - 1) / kChunk; }
  int64_t supers() const { return (groups + groups_per_super - 1) / groups_per_super; }
  /// Bytes of scales and all else but codes.
  uint64_t side_bytes() const;
};

/// nullopt when this node does not fit the layout.
std::optional<IntLayout> int_layout(const Node& node);

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
  void decode_panel(int64_t t, float* panel) const override;
  void decode_panel_bf16(int64_t t, uint16_t* panel) const override;
  bool has_dot() const override { return true; }
  bool dot_needs_ints() const override { return true; }
  void dot(int64_t t, const TileInput& x, int64_t n, float* y, int64_t ldy) const override;

  void fill_blocks(const Blocks& blocks, std::span<const uint32_t> row_map);
  void fill_grid(const Grid& grid);
  void fill_scales(const Grid& grid);
  /// `levels` is [16][chunks * 32] unsigned codes.
  void pack_tile(int64_t t, const uint8_t* levels);

  IntLayout layout_;
  Aligned<uint8_t> codes_;
  Aligned<float> row_scale_, d32_, m32_;
  Aligned<uint16_t> d_, m_;
  Aligned<int8_t> d_code_;
  Aligned<uint8_t> m_code_;
};

/// Codes of 16 rows of 32 columns each, `stride` apart, as the bit planes of a chunk (see IntTile).
void pack_chunk(unsigned bits, const uint8_t* levels, int64_t stride, uint8_t* out);

}  // namespace pith
