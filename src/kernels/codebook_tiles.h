// Codebook codes in tiles of 16 rows. Few tokens: the products of x's groups with all entries are made once, and a row
// is a sum of places in that table. Many tokens: a tile is decoded for a matrix kernel, as everywhere.
#pragma once

#include <vector>

#include "kernels/tile_linear.h"
#include "represent/codebook.h"

namespace pith {

class CodebookTiles final : public TileLinear {
 public:
  static uint64_t planned_bytes(const Codebook& node);
  CodebookTiles(const Codebook& node, const KernelOptions& options);

  void prepare(const float* x, int64_t n, ThreadPool& pool, std::unique_ptr<Input>& slot) const override;
  int input_key(int64_t n) const override { return looks_up(n) ? 0 : TileLinear::input_key(n); }
  void run_tiles(int64_t t0, int64_t t1, const Input& input, int64_t n, float* y, int64_t ldy) const override;
  uint64_t ram_bytes() const override { return codes_.bytes() + table_.size() * sizeof(float); }
  std::string describe() const override;

 private:
  void decode_panel(int64_t t, float* panel) const override;
  /// A table costs as much as books * entries rows, for each token; decoding a tile serves all tokens.
  bool looks_up(int64_t n) const { return n <= 4 && books_ * entries_ <= 2 * rows_; }
  template <class Code>
  void add_places(int64_t t, const float* table, float* y) const;
  template <class Code>
  void decode_tile(int64_t t, float* panel) const;

  int64_t books_, entries_, length_, groups_;
  bool narrow_;               ///< codes of a byte, else of two
  Aligned<uint8_t> codes_;    ///< [tile][group][book][16]
  std::vector<float> table_;  ///< entries turned: [book][length][entry]
};

}  // namespace pith
