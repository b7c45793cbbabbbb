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
  switch (scale) {
    case ScaleKind::row:
      return t * 4;
    case ScaleKind::f32:
      return t * g * 4 * twice;
    case ScaleKind::f16:
      return t * g * 2 * twice;
    case ScaleKind::block:
      return (t * g + t * static_cast<uint64_t>(supers()) * 2) * twice;
    case ScaleKind::two_level:
      return (t * g + t / kTileRows * g * 4) * twice;
  }
  return 0;
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

std::optional<IntLayout> int_layout(const Node& node) {
  if (const auto* blocks = dynamic_cast<const Blocks*>(&node)) return block_layout(*blocks);
  if (const auto* grid = dynamic_cast<const Grid*>(&node)) return grid_layout(*grid);
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
  return codes_.bytes() + row_scale_.bytes() + d32_.bytes() + m32_.bytes() + d_.bytes() + m_.bytes() + d_code_.bytes() +
         m_code_.bytes() + sparse_.bytes();
}

std::string IntTiles::describe() const {
  return fmt::format("int tiles {} bit g{}", layout_.bits, layout_.groups == 1 ? cols_ : layout_.group_halves * 16);
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
  out.codes = codes_.get() + t * out.chunks * layout_.bits * 64;
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

void pack_chunk(unsigned bits, const uint8_t* levels, int64_t stride, uint8_t* out) {
  std::memset(out, 0, bits * 64);
  for (int r = 0; r < kTileRows; ++r) {
    const uint8_t* row = levels + r * stride;
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

void IntTiles::pack_tile(int64_t t, const uint8_t* levels) {
  const int64_t chunks = layout_.chunks();
  const unsigned bits = layout_.bits;
  for (int64_t c = 0; c < chunks; ++c) {
    pack_chunk(bits, levels + c * kChunk, chunks * kChunk, codes_.get() + (t * chunks + c) * bits * 64);
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
    pack_tile(t, levels.data());
  }
}

void IntTiles::fill_scales(const Grid& grid) {
  const IntLayout& l = layout_;
  const int64_t padded = l.tiles() * kTileRows;
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

void IntTiles::fill_grid(const Grid& grid) {
  const IntLayout& l = layout_;
  const int64_t stride = l.chunks() * kChunk;
  codes_ = Aligned<uint8_t>(static_cast<size_t>(l.tiles() * l.chunks() * l.bits * 64));
  std::vector<uint8_t> levels(static_cast<size_t>(kTileRows * stride));
  std::vector<int16_t> codes(static_cast<size_t>(kTileRows * l.cols));
  for (int64_t t = 0; t < l.tiles(); ++t) {
    const int64_t r0 = t * kTileRows, r1 = std::min(l.rows, r0 + kTileRows);
    grid.codes()->read_rows(r0, r1, codes.data());
    std::fill(levels.begin(), levels.end(), static_cast<uint8_t>(0));
    for (int64_t r = 0; r < r1 - r0; ++r) {
      for (int64_t c = 0; c < l.cols; ++c) {
        levels[static_cast<size_t>(r * stride + c)] =
            static_cast<uint8_t>(codes[static_cast<size_t>(r * l.cols + c)] + l.zero);
      }
    }
    pack_tile(t, levels.data());
  }
  fill_scales(grid);
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
