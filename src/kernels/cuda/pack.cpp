#include "kernels/cuda/pack.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/half.h"
#include "kernels/cuda/layout.h"
#include "represent/codebook.h"
#include "represent/combine.h"
#include "represent/grid.h"
#include "represent/sparse.h"

namespace pith::cuda {

namespace {

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
size_t at(int64_t i) { return static_cast<size_t>(i); }

Error refused(std::string_view what) { return user_error(fmt::format("CUDA kernels: {}", what)); }

Status half_of(float v, std::string_view what, uint16_t& out) {
  out = float_to_half(v);
  if (half_to_float(out) == v) return {};
  return refused(fmt::format("{} {} is not an fp16 number", what, v));
}

// Columns of one slot for groups of `group`, or 0.
int slot_of(int64_t group, bool two_level) {
  if (two_level) return group == 16 ? 16 : 0;
  if (group == 32 || group == 64) return static_cast<int>(group);
  return group % 128 == 0 ? 128 : 0;
}

void put(std::byte* span, int word, uint32_t bits) {
  uint32_t v;
  std::memcpy(&v, span + word * 4, 4);
  v |= bits;
  std::memcpy(span + word * 4, &v, 4);
}

// The codes of one part of a span; code(row, col) gives them, zero beyond the matrix.
template <int kBits, class Code>
void pack_codes(const SpanShape& shape, int part, std::byte* codes, Code code) {
  using U = Unit<kBits>;
  for (int op = 0; op < shape.ops(); ++op) {
    const int slot = op / shape.steps(), step = op % shape.steps();
    const int unit = op / U::kOps, first_word = unit * U::kWords;
    for (int lane = 0; lane < 32; ++lane) {
      const int col = slot * shape.slot() + part * shape.part + step_column(shape.steps(), step, lane % 4);
      for (int e = 0; e < 4; ++e) {
        const int row = lane / 4 + 8 * (e & 1), c = col + 2 * (e >> 1);
        const uint32_t pair = code(row, c) | code(row, c + 1) << 16;
        const Place place = U::place(op % U::kOps, e);
        if (place.word >= 0) {
          put(codes, shape.word_at(first_word + place.word, lane), pair << (place.shift + place.pos));
          continue;
        }
        for (int bit = 0; bit < 3; ++bit)
          put(codes, shape.word_at(first_word + bit, lane), (pair >> bit & 0x00010001u) << 15);
      }
    }
  }
}

// Statistics of all rows as fp16 bits.
class PlainStats {
 public:
  static Result<PlainStats> make(const Grid& grid) {
    PlainStats s;
    s.group_ = grid.scale()->group();
    s.groups_ = grid.scale()->groups();
    std::vector<float> row(at(s.groups_));
    for (int i = 0; i < 2; ++i) {
      const FieldPtr& field = i == 0 ? grid.scale() : grid.zero();
      std::vector<uint16_t>& to = i == 0 ? s.scale_ : s.zero_;
      to.assign(at(grid.rows() * s.groups_), 0);
      if (field == nullptr) continue;
      if (field->group() != s.group_) return refused("scales and zeros have groups of different sizes");
      for (int64_t r = 0; r < grid.rows(); ++r) {
        field->row(r, row.data());
        for (int64_t g = 0; g < s.groups_; ++g)
          PITH_TRY(half_of(row[at(g)], "a scale or zero", to[at(r * s.groups_ + g)]));
      }
    }
    return s;
  }
  // Lane l holds, as (scale, zero), rows l/4 and l/4 + 8 by slots 2 (l%4) and 2 (l%4) + 1.
  void write(const SpanShape& shape, std::byte* to, int64_t rows, int64_t row0, int64_t col0) const {
    for (int lane = 0; lane < 32; ++lane)
      for (int v = 0; v < 4; ++v) {
        const int64_t row = row0 + lane / 4 + 8 * (v / 2), col = col0 + (2 * (lane % 4) + v % 2) * shape.slot();
        uint16_t pair[2] = {0, 0};
        if (row < rows && col / group_ < groups_) {
          pair[0] = scale_[at(row * groups_ + col / group_)];
          pair[1] = zero_[at(row * groups_ + col / group_)];
        }
        std::memcpy(to + (lane * 4 + v) * 4, pair, 4);
      }
  }

 private:
  int64_t group_ = 0, groups_ = 0;
  std::vector<uint16_t> scale_, zero_;
};

class TwoLevelStats {
 public:
  static Result<TwoLevelStats> make(const Grid& grid) {
    TwoLevelStats s;
    s.groups_ = grid.scale()->groups();
    for (int i = 0; i < 2; ++i) {
      const auto* field = dynamic_cast<const TwoLevelField*>((i == 0 ? grid.scale() : grid.zero()).get());
      if (field == nullptr || field->group() != grid.scale()->group() || field->stat_group() != kStripRows)
        return refused("two-level statistics are multiplied when scales and zeros both have them, over 16 rows");
      const auto [low, high] = field->codes()->range();
      if (low < 0 || high > 15)
        return refused(fmt::format("codes of statistics lie in {} to {}, expected 0 to 15", low, high));
      s.codes_[i].resize(at(grid.rows() * s.groups_));
      field->codes()->read_rows(0, grid.rows(), s.codes_[i].data());
      s.stats_[i].resize(at(field->stats().size()));
      std::memcpy(s.stats_[i].data(), field->stats().bytes().data(), s.stats_[i].size() * 2);
    }
    return s;
  }
  void write(const SpanShape& shape, std::byte* to, int64_t rows, int64_t row0, int64_t col0) const {
    const int64_t first = col0 / shape.slot(), tile = row0 / kStripRows,
                  tiles = round_up(rows, kStripRows) / kStripRows;
    for (int lane = 0; lane < 32; ++lane) {
      uint32_t word = 0;
      for (int v = 0; v < 4; ++v) {
        const int64_t row = row0 + lane / 4 + 8 * (v / 2), g = first + 2 * (lane % 4) + v % 2;
        if (row >= rows || g >= groups_) continue;
        for (int i = 0; i < 2; ++i) word |= static_cast<uint32_t>(codes_[i][at(row * groups_ + g)]) << (8 * v + 4 * i);
      }
      std::memcpy(to + lane * 4, &word, 4);
    }
    for (int64_t g = first; g < first + kSlots && g < groups_; ++g)
      for (int i = 0; i < 2; ++i)
        for (int k = 0; k < 2; ++k)
          std::memcpy(to + 128 + (g - first) * 8 + i * 4 + k * 2, &stats_[i][at((k * tiles + tile) * groups_ + g)], 2);
  }

 private:
  int64_t groups_ = 0;
  std::vector<int16_t> codes_[2];
  std::vector<uint16_t> stats_[2];
};

template <class Stats>
void pack_strips(const std::vector<int16_t>& codes, const Stats& stats, int low, PackedGrid& out) {
  const SpanShape shape = span_shape(out.bits, out.slot, out.two_level);
  const int64_t strips = round_up(out.rows, kStripRows) / kStripRows, spans = out.spans();
  out.strips.resize(at(strips * spans * shape.bytes()));
  for (int64_t strip = 0; strip < strips; ++strip) {
    const int64_t row0 = strip * kStripRows, rows = std::min<int64_t>(kStripRows, out.rows - row0);
    for (int64_t s = 0; s < spans; ++s) {
      std::byte* span = out.strips.data() + (strip * spans + s) * shape.bytes();
      const int64_t col0 = s * shape.cols();
      const auto code = [&](int row, int col) -> uint32_t {
        if (row >= rows || col0 + col >= out.cols) return 0;
        return static_cast<uint32_t>(codes[at((row0 + row) * out.cols + col0 + col)] - low);
      };
      for (int part = 0; part < shape.parts; ++part) {
        std::byte* to = span + shape.part_at(part) + shape.codes_at(part);
        if (out.bits == 3) pack_codes<3>(shape, part, to, code);
        if (out.bits == 4) pack_codes<4>(shape, part, to, code);
      }
      stats.write(shape, span + shape.stats_at(0), out.rows, row0, col0);
    }
  }
}

// Single weights become differences to what the grid says there. The grid's code is free at such a place: the one is
// chosen whose difference fp16 holds best. Puts it into `codes`.
Status pack_corrections(const Grid& grid, const Csr& csr, int low, int high, std::vector<int16_t>& codes,
                        PackedGrid& out) {
  out.row_start.assign(csr.row_start().begin(), csr.row_start().end());
  std::vector<float> scale(at(grid.scale()->groups())), zero(scale.size(), 0.0f);
  for (int64_t r = 0; r < out.rows; ++r) {
    const uint32_t first = out.row_start[at(r)], last = out.row_start[at(r) + 1];
    if (first == last) continue;
    grid.scale()->row(r, scale.data());
    if (grid.zero() != nullptr) grid.zero()->row(r, zero.data());
    for (uint32_t i = first; i < last; ++i) {
      const uint32_t col = csr.columns()[i];
      const size_t group = at(col / grid.scale()->group());
      const float v = csr.values().at(i);
      float least = std::numeric_limits<float>::infinity();
      uint16_t half = 0;
      for (int code = low; code <= high; ++code) {
        const float base = scale[group] * (static_cast<float>(code) - zero[group]);
        const uint16_t difference = float_to_half(v - base);
        const float error = std::abs(base + half_to_float(difference) - v);
        if (!(error < least)) continue;
        least = error, half = difference;
        codes[at(r * out.cols + col)] = static_cast<int16_t>(code);
      }
      if (!std::isfinite(least))
        return refused(fmt::format("the single weight ({}, {}) = {} is too far from the grid", r, col, v));
      out.corrections.push_back(col | static_cast<uint32_t>(half) << 16);
    }
  }
  return {};
}

Result<Packed> pack_grid(const Grid& grid, const Csr* csr, const Permuted* permuted) {
  PackedGrid out;
  out.rows = grid.rows(), out.cols = grid.cols();
  if (!grid.uniform()) return refused("the grid has a table of levels; only uniform grids are multiplied");
  if (out.cols > 65536) return refused(fmt::format("{} columns, at most 65536 are multiplied", out.cols));
  const auto [low, high] = grid.codes()->range();
  out.bits = std::max(3, static_cast<int>(std::bit_width(static_cast<unsigned>(high - low))));
  if (out.bits > 4) return refused(fmt::format("codes lie in {} to {}; 3 and 4 bits are multiplied", low, high));
  out.two_level = dynamic_cast<const TwoLevelField*>(grid.scale().get()) != nullptr;
  const int64_t group = grid.scale()->groups() == 1 ? round_up(out.cols, 128) : grid.scale()->group();
  out.slot = slot_of(group, out.two_level);
  if (out.slot == 0)
    return refused(fmt::format("groups of {} columns; {} are multiplied", group,
                               out.two_level ? "two-level groups of 16" : "32, 64 and multiples of 128"));
  out.offset = static_cast<float>(low);
  std::vector<int16_t> codes = all_codes(*grid.codes());
  if (csr != nullptr) PITH_TRY(pack_corrections(grid, *csr, low, high, codes, out));
  if (out.two_level) {
    PITH_ASSIGN(const TwoLevelStats stats, TwoLevelStats::make(grid));
    pack_strips(codes, stats, low, out);
  } else {
    PITH_ASSIGN(const PlainStats stats, PlainStats::make(grid));
    pack_strips(codes, stats, low, out);
  }
  if (permuted != nullptr)
    for (int64_t j = 0; j < out.cols; ++j) out.order.push_back(static_cast<uint16_t>(permuted->order()[j]));
  return Packed(std::move(out));
}

// [tile of 32 rows][tile of 32 groups][16 bytes][lane = group], the bytes of a group row by row.
void pack_table_codes(const std::vector<int16_t>& codes, PackedCodebook& out) {
  const int64_t row_tiles = round_up(out.rows, kLutRows) / kLutRows;
  const int64_t group_tiles = round_up(out.groups(), kLutGroups) / kLutGroups, width = out.groups() * out.books;
  const int words = kLutRows * out.books / 4;
  out.codes.resize(at(row_tiles * group_tiles * words * 4 * kLutGroups));
  std::byte* to = out.codes.data();
  for (int64_t rt = 0; rt < row_tiles; ++rt)
    for (int64_t gt = 0; gt < group_tiles; ++gt)
      for (int v = 0; v < words / 4; ++v)
        for (int lane = 0; lane < kLutGroups; ++lane)
          for (int w = 0; w < 4; ++w, to += 4) {
            uint32_t word = 0;
            for (int b = 0; b < 4; ++b) {
              const int i = (v * 4 + w) * 4 + b;  // byte of this lane
              const int64_t row = rt * kLutRows + i / out.books, group = gt * kLutGroups + lane;
              if (row < out.rows && group < out.groups())
                word |= static_cast<uint32_t>(codes[at(row * width + group * out.books + i % out.books)]) << (8 * b);
            }
            std::memcpy(to, &word, 4);
          }
}

// [strip][book][16 groups][lane][4 words]: word u holds group 4u + lane % 4 of rows lane / 4 and lane / 4 + 8.
void pack_gather_codes(const std::vector<int16_t>& codes, PackedCodebook& out) {
  const int64_t strips = round_up(out.rows, kStripRows) / kStripRows;
  const int64_t chunks = round_up(out.groups(), kGatherGroups) / kGatherGroups, width = out.groups() * out.books;
  out.codes.resize(at(strips * out.books * chunks * 512));
  std::byte* to = out.codes.data();
  for (int64_t strip = 0; strip < strips; ++strip)
    for (int m = 0; m < out.books; ++m)
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        for (int lane = 0; lane < 32; ++lane)
          for (int u = 0; u < 4; ++u, to += 4) {
            const int64_t group = chunk * kGatherGroups + 4 * u + lane % 4;
            uint32_t word = 0;
            for (int half = 0; half < 2; ++half) {
              const int64_t row = strip * kStripRows + lane / 4 + 8 * half;
              if (row < out.rows && group < out.groups())
                word |= static_cast<uint32_t>(static_cast<uint16_t>(codes[at(row * width + group * out.books + m)]))
                        << (16 * half);
            }
            std::memcpy(to, &word, 4);
          }
}

Result<Packed> pack_codebook(const Codebook& book, const Scaled* scaled) {
  PackedCodebook out;
  out.rows = book.rows(), out.cols = book.cols();
  out.books = static_cast<int>(book.books_count()), out.entries = static_cast<int>(book.entries());
  if (book.length() != 8) return refused(fmt::format("codebook vectors of {}; 8 are multiplied", book.length()));
  if (out.books > 2) return refused(fmt::format("{} codebooks; 1 or 2 are multiplied", out.books));
  if (out.cols > 65536) return refused(fmt::format("{} columns, at most 65536 are multiplied", out.cols));
  out.table = out.entries <= 256;
  // The table kernel always looks through 256 entries.
  const int entries = out.table ? 256 : out.entries;
  out.entry.assign(at(int64_t{out.books} * entries * 8), 0);
  for (int m = 0; m < out.books; ++m)
    for (int64_t i = 0; i < int64_t{out.entries} * 8; ++i)
      PITH_TRY(
          half_of(book.table()[at(m * out.entries * 8 + i)], "a codebook's value", out.entry[at(m * entries * 8 + i)]));
  out.entries = entries;
  std::vector<int16_t> codes = all_codes(*book.codes());
  for (int16_t& code : codes) code = static_cast<int16_t>(code - book.first_code());  // now the entry, modulo 2^16
  if (out.table)
    pack_table_codes(codes, out);
  else
    pack_gather_codes(codes, out);
  out.scale.assign(at(out.rows), 1.0f);
  if (scaled != nullptr) scaled->scales().read(0, out.rows, out.scale.data());
  return Packed(std::move(out));
}

}  // namespace

int64_t PackedGrid::spans() const { return round_up(cols, span_shape(bits, slot, two_level).cols()) / (kSlots * slot); }

Result<Packed> pack(const Node& node) {
  const Node* inner = &node;
  const auto* permuted = dynamic_cast<const Permuted*>(inner);
  if (permuted != nullptr) {
    if (permuted->axis() != Axis::cols) return refused("rows in another order are not multiplied");
    inner = permuted->child().get();
  }
  const auto* over = dynamic_cast<const Override*>(inner);
  if (over != nullptr) inner = over->base().get();
  if (const auto* grid = dynamic_cast<const Grid*>(inner))
    return pack_grid(*grid, over != nullptr ? &over->sparse() : nullptr, permuted);
  const auto* scaled = dynamic_cast<const Scaled*>(&node);
  if (scaled != nullptr && scaled->axis() == Axis::rows) inner = scaled->child().get();
  if (const auto* book = dynamic_cast<const Codebook*>(inner);
      book != nullptr && over == nullptr && permuted == nullptr)
    return pack_codebook(*book, scaled);
  return refused(fmt::format("no kernel multiplies {}", node.describe()));
}

}  // namespace pith::cuda
