#include "kernels/int_tiles.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/half.h"
#include "represent/field.h"

namespace pith {

uint64_t IntLayout::side_bytes() const {
  const auto t = static_cast<uint64_t>(tiles()) * kTileRows, g = static_cast<uint64_t>(groups);
  const uint64_t twice = min == MinKind::none ? 1 : 2;
  uint64_t n = column_factors ? static_cast<uint64_t>(cols) * 4 : 0;
  switch (scale) {
    case ScaleKind::row:
      return n + t * 4;
    case ScaleKind::f32:
      return n + t * g * 4 * twice;
    case ScaleKind::f16:
      return n + t * g * 2 * twice;
    case ScaleKind::block:
      return n + (t * g + t * static_cast<uint64_t>(supers()) * 2) * twice;
    case ScaleKind::two_level:
      return n + (t * g + t / kTileRows * g * 4) * twice;
  }
  return n;
}

static unsigned bits_for(int levels) {
  return std::max(1u, static_cast<unsigned>(std::bit_width(unsigned(levels - 1))));
}

// Columns of a group as halves of a chunk; 0 when the kernels cannot take such groups.
static int64_t group_halves_of(int64_t group, int64_t groups, int64_t chunks) {
  if (groups == 1) return 2 * chunks;
  if (group == 16 || (group > 0 && group % 32 == 0)) return group / 16;
  return 0;
}

static std::optional<IntLayout> block_layout(const Blocks& node) {
  const BlockShape* shape = block_shape(node.type());
  if (shape == nullptr || (shape->sub != 16 && shape->sub % 32 != 0)) return std::nullopt;
  IntLayout l;
  l.rows = node.rows(), l.cols = node.cols();
  l.table = shape->table;
  l.zero = shape->table ? 128 : -shape->code_low;
  l.bits = shape->table ? 4 : bits_for(shape->code_high - shape->code_low + 1);
  if (l.bits > 8) return std::nullopt;
  l.group_halves = shape->sub / 16;
  l.groups = node.cols() / shape->sub;
  const bool has_min = shape->min_high > 0;
  if (shape->scale_low == shape->scale_high) {
    l.scale = ScaleKind::f16;
    l.min = has_min ? MinKind::add : MinKind::none;
  } else {
    if (shape->scale_low < -128 || shape->scale_high > 127 || shape->min_high > 255) return std::nullopt;
    l.scale = ScaleKind::block;
    l.min = has_min ? MinKind::add : MinKind::none;
    l.groups_per_super = shape->elements / shape->sub;
  }
  return l;
}

// Two-level statistics whose groups of rows are whole tiles, with codes of a byte.
static const TwoLevelField* tile_field(const Field* field) {
  const auto* two = dynamic_cast<const TwoLevelField*>(field);
  if (two == nullptr || two->stat_group() % kTileRows != 0 || two->stats().type() != DType::f16) return nullptr;
  const auto [low, high] = two->codes()->range();
  return low >= 0 && high <= 255 ? two : nullptr;
}

static std::optional<IntLayout> grid_layout(const Grid& node) {
  if (!node.uniform()) return std::nullopt;
  IntLayout l;
  l.rows = node.rows(), l.cols = node.cols();
  const Field& scale = *node.scale();
  const Field* zero = node.zero().get();
  if (dynamic_cast<const RowColField*>(&scale) != nullptr) {
    if (zero != nullptr || l.cols > TileLinear::kMaxSparseCols) return std::nullopt;
    l.column_factors = true;
    l.groups = 1;
    l.group_halves = 2 * l.chunks();
    return l;
  }
  const auto [low, high] = node.codes()->range();
  if (high - low > 255) return std::nullopt;
  l.bits = bits_for(high - low + 1);
  l.zero = -low;
  l.group_halves = group_halves_of(scale.group(), scale.groups(), l.chunks());
  if (l.group_halves == 0) return std::nullopt;
  l.groups = (2 * l.chunks() + l.group_halves - 1) / l.group_halves;  // those of the last chunk's padding as well
  if (zero != nullptr && (zero->group() != scale.group() || zero->groups() != scale.groups())) return std::nullopt;
  l.min = zero == nullptr ? MinKind::none : MinKind::zero;
  const auto half = [](const Field* f) {
    const auto* affine = dynamic_cast<const AffineField*>(f);
    return affine != nullptr && affine->values().type() == DType::f16;
  };
  if (l.groups == 1 && zero == nullptr) {
    l.scale = ScaleKind::row;
  } else if (tile_field(&scale) != nullptr && (zero == nullptr || tile_field(zero) != nullptr)) {
    l.scale = ScaleKind::two_level;
  } else {
    l.scale = half(&scale) && (zero == nullptr || half(zero)) ? ScaleKind::f16 : ScaleKind::f32;
  }
  return l;
}

std::optional<IntLayout> int_layout(const Node& node, bool keep_rows) {
  if (const auto* blocks = dynamic_cast<const Blocks*>(&node)) return block_layout(*blocks);
  if (const auto* grid = dynamic_cast<const Grid*>(&node)) {
    auto layout = grid_layout(*grid);
    if (layout && layout->bits == 0) layout->sort_rows = !keep_rows;
    return layout;
  }
  return std::nullopt;
}

IntTiles::IntTiles(const IntLayout& layout, const KernelOptions& options)
    : TileLinear(layout.rows, layout.cols, options), layout_(layout) {}

std::unique_ptr<IntTiles> IntTiles::make(const Node& node, const IntLayout& layout, std::span<const uint32_t> row_map,
                                         const KernelOptions& options) {
  std::unique_ptr<IntTiles> tiles(new IntTiles(layout, options));
  if (const auto* blocks = dynamic_cast<const Blocks*>(&node)) {
    tiles->fill_blocks(*blocks, row_map);
  } else {
    tiles->fill_grid(static_cast<const Grid&>(node));
  }
  return tiles;
}

uint64_t IntTiles::ram_bytes() const {
  return codes_.bytes() + tile_offset_.size() * 8 + tile_bits_.size() + row_scale_.bytes() + d32_.bytes() +
         m32_.bytes() + d_.bytes() + m_.bytes() + d_code_.bytes() + m_code_.bytes() + factors_.size() * 4 +
         order_.size() * 4 + sparse_.bytes();
}

std::string IntTiles::describe() const {
  std::string width = layout_.bits != 0 ? fmt::format("{} bit", layout_.bits) : "";
  if (layout_.bits == 0) {
    double sum = 0;
    for (uint8_t b : tile_bits_) sum += b;
    width = fmt::format("{:.2f} bit on average, {:.3f} % corrections", sum / static_cast<double>(tile_bits_.size()),
                        100.0 * static_cast<double>(sparse_.col.size()) / static_cast<double>(rows_ * cols_));
  }
  return fmt::format("int tiles {} g{}", width, layout_.groups == 1 ? cols_ : layout_.group_halves * 16);
}

IntTile IntTiles::tile(int64_t t) const {
  static const struct Iq4 {
    uint8_t levels[16];
    Iq4() {
      for (int i = 0; i < 16; ++i) levels[i] = static_cast<uint8_t>(iq4_levels[i] + 128);
    }
  } iq4;
  IntTile out;
  out.chunks = layout_.chunks();
  out.bits = layout_.bits;
  out.zero = layout_.zero;
  if (layout_.bits != 0) {
    out.codes = codes_.get() + t * out.chunks * layout_.bits * 64;
  } else {
    out.bits = tile_bits_[static_cast<size_t>(t)];
    out.zero = 1 << (out.bits - 1);
    out.codes = codes_.get() + tile_offset_[static_cast<size_t>(t)];
  }
  out.table = layout_.table ? iq4.levels : nullptr;
  out.scale = layout_.scale;
  out.min = layout_.min;
  out.group_halves = layout_.group_halves;
  out.groups_per_super = layout_.groups_per_super;
  const int64_t at = t * layout_.groups * kTileRows, super = t * layout_.supers() * kTileRows;
  switch (layout_.scale) {
    case ScaleKind::row:
      out.row_scale = row_scale_.get() + t * kTileRows;
      break;
    case ScaleKind::f32:
      out.d32 = d32_.get() + at, out.m32 = m32_.get() + at;
      break;
    case ScaleKind::f16:
      out.d = d_.get() + at, out.m = m_.get() + at;
      break;
    case ScaleKind::block:
      out.d = d_.get() + super, out.m = m_.get() + super;
      out.d_code = d_code_.get() + at, out.m_code = m_code_.get() + at;
      break;
    case ScaleKind::two_level:
      out.d_stats = d_.get() + 2 * t * layout_.groups, out.m_stats = m_.get() + 2 * t * layout_.groups;
      out.d_code = d_code_.get() + at, out.m_code = m_code_.get() + at;
      break;
  }
  return out;
}

// `levels` is [16][chunks * 32] unsigned codes; see IntTile for where they go.
void IntTiles::pack_tile(unsigned bits, const uint8_t* levels, uint8_t* out) const {
  const int64_t chunks = layout_.chunks(), stride = chunks * kChunk;
  std::memset(out, 0, static_cast<size_t>(chunks * bits * 64));
  for (int64_t c = 0; c < chunks; ++c, out += bits * 64) {
    for (int r = 0; r < kTileRows; ++r) {
      const uint8_t* row = levels + r * stride + c * kChunk;
      uint8_t* plane = out;
      unsigned shift = 0;
      for (unsigned p : {8u, 4u, 2u, 1u}) {
        if (!(bits & p)) continue;
        for (unsigned i = 0; i < kChunk; ++i) {
          const unsigned q = i / 4, part = p == 8 ? row[i] : (row[i] >> shift) & ((1u << p) - 1);
          plane[(q % p) * 64 + static_cast<unsigned>(r) * 4 + i % 4] |= static_cast<uint8_t>(part << (p * (q / p) % 8));
        }
        shift += p;
        plane += 64 * p;
      }
    }
  }
}

template <class T>
static void reserve(Aligned<T>& array, int64_t count) {
  array = Aligned<T>(static_cast<size_t>(count));
  std::memset(array.get(), 0, array.bytes());
}

void IntTiles::fill_blocks(const Blocks& blocks, std::span<const uint32_t> row_map) {
  const BlockShape& shape = *block_shape(blocks.type());
  const IntLayout& l = layout_;
  const int64_t tiles = l.tiles(), stride = l.chunks() * kChunk, padded = tiles * kTileRows;
  const int64_t per_block = shape.elements / shape.sub, block_bytes = ggml_traits(blocks.type()).bytes;
  const bool super = l.scale == ScaleKind::block, has_min = l.min != MinKind::none;
  codes_ = Aligned<uint8_t>(static_cast<size_t>(tiles * l.chunks() * l.bits * 64));
  reserve(d_, padded * (super ? l.supers() : l.groups));
  if (has_min) reserve(m_, padded * (super ? l.supers() : l.groups));
  if (super) reserve(d_code_, padded * l.groups);
  if (super && has_min) reserve(m_code_, padded * l.groups);
  std::vector<uint8_t> levels(static_cast<size_t>(kTileRows * stride));
  BlockFields f;
  for (int64_t t = 0; t < tiles; ++t) {
    std::fill(levels.begin(), levels.end(), static_cast<uint8_t>(0));
    for (int64_t r = t * kTileRows; r < std::min(l.rows, (t + 1) * kTileRows); ++r) {
      const int64_t lane = r % kTileRows;
      const std::byte* data = blocks.row_data(row_map.empty() ? r : row_map[static_cast<size_t>(r)]);
      uint8_t* out = levels.data() + lane * stride;
      for (int64_t b = 0; b < l.cols / shape.elements; ++b, data += block_bytes) {
        unpack_block(blocks.type(), data, f);
        for (int i = 0; i < shape.elements; ++i) *out++ = static_cast<uint8_t>(f.codes[i] - shape.code_low);
        if (super) {
          const int64_t at = (t * l.supers() + b) * kTileRows + lane;
          d_.get()[at] = float_to_half(f.d);
          if (has_min) m_.get()[at] = float_to_half(f.dmin);
          for (int64_t s = 0; s < per_block; ++s) {
            const int64_t group = (t * l.groups + b * per_block + s) * kTileRows + lane;
            d_code_.get()[group] = static_cast<int8_t>(f.scales[s]);
            if (has_min) m_code_.get()[group] = static_cast<uint8_t>(f.mins[s]);
          }
        } else {
          const int64_t at = (t * l.groups + b) * kTileRows + lane;
          d_.get()[at] = float_to_half(f.d * static_cast<float>(f.scales[0]));
          if (has_min) m_.get()[at] = float_to_half(-f.dmin * static_cast<float>(f.mins[0]));
        }
      }
    }
    pack_tile(l.bits, levels.data(), codes_.get() + t * l.chunks() * l.bits * 64);
  }
}

void IntTiles::fill_scales(const Grid& grid) {
  const IntLayout& l = layout_;
  const int64_t padded = l.tiles() * kTileRows;
  if (const auto* rc = dynamic_cast<const RowColField*>(grid.scale().get())) {
    reserve(row_scale_, padded);
    for (int64_t p = 0; p < l.rows; ++p) {
      const size_t r = order_.empty() ? static_cast<size_t>(p) : order_[static_cast<size_t>(p)];
      row_scale_.get()[p] = rc->steps()[rc->row_log()[r]];
    }
    factors_.resize(static_cast<size_t>(l.cols));
    for (size_t c = 0; c < factors_.size(); ++c) {
      factors_[c] = static_cast<float>(std::exp2(rc->col_log()[c] / 16.0));
    }
    return;
  }
  const Field* fields[2] = {grid.scale().get(), grid.zero().get()};
  if (l.scale == ScaleKind::two_level) {
    Aligned<uint16_t>* stats[2] = {&d_, &m_};
    const int64_t stored = fields[0]->groups();
    std::vector<int16_t> codes(static_cast<size_t>(stored));
    for (int k = 0; k < 2 && fields[k] != nullptr; ++k) {
      const auto& field = static_cast<const TwoLevelField&>(*fields[k]);
      reserve(*stats[k], l.tiles() * l.groups * 2);
      if (k == 0) reserve(d_code_, padded * l.groups);
      if (k == 1) reserve(m_code_, padded * l.groups);
      uint8_t* out = k == 0 ? reinterpret_cast<uint8_t*>(d_code_.get()) : m_code_.get();
      const auto values = field.stats().bytes().as<uint16_t>();
      const int64_t stat_rows = (l.rows + field.stat_group() - 1) / field.stat_group();
      for (int64_t t = 0; t < l.tiles(); ++t) {
        const int64_t s = t * kTileRows / field.stat_group();
        for (int64_t g = 0; g < stored; ++g) {
          uint16_t* pair = stats[k]->get() + 2 * (t * l.groups + g);
          pair[0] = values[static_cast<size_t>(s * stored + g)];
          pair[1] = values[static_cast<size_t>((stat_rows + s) * stored + g)];
        }
        for (int64_t r = t * kTileRows; r < std::min(l.rows, (t + 1) * kTileRows); ++r) {
          field.codes()->read_rows(r, r + 1, codes.data());
          for (int64_t g = 0; g < stored; ++g) {
            out[(t * l.groups + g) * kTileRows + r % kTileRows] = static_cast<uint8_t>(codes[static_cast<size_t>(g)]);
          }
        }
      }
    }
    return;
  }
  const int64_t stored = fields[0]->groups();
  std::vector<float> row(static_cast<size_t>(stored));
  if (l.scale == ScaleKind::row) reserve(row_scale_, padded);
  Aligned<float>* wide[2] = {&d32_, &m32_};
  Aligned<uint16_t>* narrow[2] = {&d_, &m_};
  for (int k = 0; k < 2 && fields[k] != nullptr; ++k) {
    if (l.scale == ScaleKind::f32) reserve(*wide[k], padded * l.groups);
    if (l.scale == ScaleKind::f16) reserve(*narrow[k], padded * l.groups);
    for (int64_t r = 0; r < l.rows; ++r) {
      fields[k]->row(r, row.data());
      const int64_t t = r / kTileRows;
      for (int64_t g = 0; g < stored; ++g) {
        const int64_t at = (t * l.groups + g) * kTileRows + r % kTileRows;
        const float v = row[static_cast<size_t>(g)];
        if (l.scale == ScaleKind::row) row_scale_.get()[r] = v;
        if (l.scale == ScaleKind::f32) wide[k]->get()[at] = v;
        if (l.scale == ScaleKind::f16) narrow[k]->get()[at] = float_to_half(v);
      }
    }
  }
}

TileWidth choose_tile_width(std::span<const int16_t> codes, int64_t chunks) {
  // need[b]: codes that fit b bits (signed) and no fewer; index 9: more than 8.
  int64_t need[10] = {};
  for (int16_t c : codes) {
    const int magnitude = c < 0 ? -1 - c : c;
    ++need[std::min(9, static_cast<int>(std::bit_width(static_cast<unsigned>(magnitude))) + 1)];
  }
  TileWidth best;
  int64_t best_bytes = INT64_MAX, outside = 0;
  for (int b = 8; b >= 1; --b) {
    outside += need[b + 1];
    const int64_t bytes = chunks * b * 64 + outside * 4;
    if (bytes <= best_bytes) best_bytes = bytes, best = {static_cast<unsigned>(b), outside};
  }
  return best;
}

// Reads codes in pieces that suit entropy-coded rows: use(first row, codes of the rows of the piece).
template <class F>
static void each_piece(const Codes& codes, F use) {
  const int64_t rows = codes.rows(), cols = codes.cols();
  constexpr int64_t kPiece = 16 * kTileRows;
  std::vector<int16_t> buffer(static_cast<size_t>(std::min(rows, kPiece) * cols));
  for (int64_t r0 = 0; r0 < rows; r0 += kPiece) {
    const int64_t r1 = std::min(rows, r0 + kPiece);
    codes.read_rows(r0, r1, buffer.data());
    use(r0, std::span<const int16_t>(buffer.data(), static_cast<size_t>((r1 - r0) * cols)));
  }
}

// use(tile, codes of its rows). With `order`, place i of the tiles is row order[i]; then the whole matrix is held as
// 16-bit codes for the time of the call.
template <class F>
static void each_tile(const Codes& codes, bool sort, std::vector<uint32_t>& order, F use) {
  const int64_t rows = codes.rows(), cols = codes.cols();
  if (!sort) {
    each_piece(codes, [&](int64_t r0, std::span<const int16_t> piece) {
      const auto tile = static_cast<size_t>(kTileRows * cols);
      for (size_t at = 0; at < piece.size(); at += tile) {
        use(r0 / kTileRows + static_cast<int64_t>(at / tile), piece.subspan(at, std::min(tile, piece.size() - at)));
      }
    });
    return;
  }
  std::vector<int16_t> all(static_cast<size_t>(rows * cols));
  std::vector<int64_t> size(static_cast<size_t>(rows));
  each_piece(codes, [&](int64_t r0, std::span<const int16_t> piece) {
    std::copy(piece.begin(), piece.end(), all.begin() + r0 * cols);
    for (size_t i = 0; i < piece.size(); ++i) {
      const int64_t c = piece[i];
      // Squares up to a bound: a row is as wide as most of its codes, not as its largest one.
      size[static_cast<size_t>(r0) + i / static_cast<size_t>(cols)] += std::min<int64_t>(c * c, 4096);
    }
  });
  order.resize(static_cast<size_t>(rows));
  for (size_t r = 0; r < order.size(); ++r) order[r] = static_cast<uint32_t>(r);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return size[a] < size[b]; });
  std::vector<int16_t> tile(static_cast<size_t>(kTileRows * cols));
  for (int64_t p = 0; p < rows; p += kTileRows) {
    const int64_t count = std::min(rows, p + kTileRows) - p;
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(all.begin() + order[static_cast<size_t>(p + i)] * cols, cols, tile.begin() + i * cols);
    }
    use(p / kTileRows, std::span<const int16_t>(tile.data(), static_cast<size_t>(count * cols)));
  }
}

uint64_t variable_width_bytes(const Grid& grid, const IntLayout& layout) {
  uint64_t bytes = layout.side_bytes() + static_cast<uint64_t>(layout.tiles()) * 9 + 8;
  if (layout.sort_rows) bytes += static_cast<uint64_t>(layout.rows) * 4;
  int64_t corrections = 0;
  std::vector<uint32_t> order;
  each_tile(*grid.codes(), layout.sort_rows, order, [&](int64_t, std::span<const int16_t> codes) {
    const TileWidth w = choose_tile_width(codes, layout.chunks());
    bytes += static_cast<uint64_t>(layout.chunks()) * w.bits * 64;
    corrections += w.corrections;
  });
  if (corrections > 0) bytes += static_cast<uint64_t>(corrections) * 4 + static_cast<uint64_t>(layout.rows + 1) * 4;
  return bytes;
}

void IntTiles::fill_grid(const Grid& grid) {
  const IntLayout& l = layout_;
  const int64_t chunks = l.chunks(), stride = chunks * kChunk;
  const bool variable = l.bits == 0;
  std::vector<uint8_t> levels(static_cast<size_t>(kTileRows * stride)), packed;
  if (variable) {
    tile_offset_.push_back(0);
    sparse_.row_start.push_back(0);
  } else {
    codes_ = Aligned<uint8_t>(static_cast<size_t>(l.tiles() * chunks * l.bits * 64));
  }
  each_tile(*grid.codes(), l.sort_rows, order_, [&](int64_t t, std::span<const int16_t> codes) {
    const unsigned bits = variable ? choose_tile_width(codes, chunks).bits : l.bits;
    const int low = variable ? -(1 << (bits - 1)) : -l.zero, high = low + (1 << bits) - 1;
    std::fill(levels.begin(), levels.end(), static_cast<uint8_t>(0));
    for (size_t i = 0; i < codes.size(); ++i) {
      const size_t r = i / static_cast<size_t>(l.cols), c = i % static_cast<size_t>(l.cols);
      const int code = codes[i], kept = std::clamp(code, low, high);
      levels[r * static_cast<size_t>(stride) + c] = static_cast<uint8_t>(kept - low);
      if (kept != code) {
        sparse_.col.push_back(static_cast<uint16_t>(c));
        sparse_.code.push_back(static_cast<int16_t>(std::clamp(code - kept, -32768, 32767)));
      }
      if (variable && c + 1 == static_cast<size_t>(l.cols)) {
        sparse_.row_start.push_back(static_cast<uint32_t>(sparse_.col.size()));
      }
    }
    uint8_t* out = nullptr;
    if (variable) {
      tile_bits_.push_back(static_cast<uint8_t>(bits));
      const size_t at = packed.size();
      packed.resize(at + static_cast<size_t>(chunks * bits * 64));
      tile_offset_.push_back(packed.size());
      out = packed.data() + at;
    } else {
      out = codes_.get() + t * chunks * l.bits * 64;
    }
    pack_tile(bits, levels.data(), out);
  });
  fill_scales(grid);
  if (variable) {
    codes_ = Aligned<uint8_t>(packed.size());
    std::copy(packed.begin(), packed.end(), codes_.get());
    sparse_.row_scale = row_scale_.get();
    if (sparse_.col.empty()) sparse_.row_start.clear();
    sparse_.col.shrink_to_fit();
    sparse_.code.shrink_to_fit();
    sparse_.row_start.shrink_to_fit();
  }
}

void IntTiles::run_tiles(int64_t t0, int64_t t1, const Input& input, int64_t n, float* y, int64_t ldy) const {
  if (order_.empty()) {
    TileLinear::run_tiles(t0, t1, input, n, y, ldy);
    return;
  }
  const int64_t p0 = t0 * kTileRows, width = std::min(rows_, t1 * kTileRows) - p0;
  float* part = thread_scratch(4, static_cast<size_t>(n * width));
  TileLinear::run_tiles(t0, t1, input, n, part - p0, width);
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t i = 0; i < width; ++i) y[k * ldy + order_[static_cast<size_t>(p0 + i)]] = part[k * width + i];
  }
}

void IntTiles::decode_row(int64_t r, float* out) const {
  if (!order_.empty()) r = std::find(order_.begin(), order_.end(), static_cast<uint32_t>(r)) - order_.begin();
  TileLinear::decode_row(r, out);
}

void IntTiles::decode_panel(int64_t t, float* panel) const { ops_.decode_int(tile(t), panel); }

void IntTiles::decode_panel_bf16(int64_t t, uint16_t* panel) const {
  if (sparse_.row_start.empty()) {
    ops_.decode_int_bf16(tile(t), panel);
  } else {
    TileLinear::decode_panel_bf16(t, panel);
  }
}

void IntTiles::int_product(int64_t t, const TileInput& x, int64_t n, float* y) const {
  dot(t, x, n, y, kTileRows);
  add_sparse(t, x, n, y, kTileRows);
}

void IntTiles::dot(int64_t t, const TileInput& x, int64_t n, float* y, int64_t ldy) const {
  ops_.dot_int(tile(t), x.ints, n, y, ldy);
}

}  // namespace pith
