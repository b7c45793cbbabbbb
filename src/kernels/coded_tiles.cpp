#include "kernels/coded_tiles.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <numeric>
#include <span>

#include "kernels/int_tiles.h"
#include "represent/field.h"

namespace pith {

// Rows are sorted in sections of this many, so that 16 bits name them.
static constexpr int64_t kSection = 65536;
static constexpr int kMaxWidth = 8;

// 2^(k / 16).
static const std::array<float, 256>& sixteenths() {
  static const auto table = [] {
    std::array<float, 256> t{};
    for (size_t k = 0; k < t.size(); ++k) t[k] = static_cast<float>(std::exp2(static_cast<double>(k) / 16));
    return t;
  }();
  return table;
}

bool CodedTiles::takes(const Node& node) { return node.cols() <= kMaxSparseCols && row_col_grid(node) != nullptr; }

// The least code of `width` bits; the largest is -1 - low, without any bits 0 like the least.
static int low_of(unsigned width) { return width == 0 ? 0 : -(1 << (width - 1)); }

// The fewest bytes, where a run of chunks of another width than before counts a little: the kernel has to look up its
// loop. A correction counts more than its byte or two, because rows with fewer than others are filled up and because of
// the time it takes.
static void choose_widths(std::span<const int16_t> codes, std::span<uint8_t> widths) {
  constexpr int kRun = 32, kCorrection = 3, kStates = kMaxWidth + 1;
  const size_t chunks = widths.size(), stride = chunks * kChunk;
  std::vector<std::array<uint8_t, kStates>> before(chunks);  // the width of the chunk before on the best way here
  std::array<int, kStates> bytes{};
  for (size_t c = 0; c < chunks; ++c) {
    std::array<int, kStates + 1> need{};  // codes that fit b bits and no fewer; last: more than 8
    for (size_t r = 0; r < kTileRows; ++r) {
      for (const int16_t v : codes.subspan(r * stride + c * kChunk, kChunk)) {
        const int magnitude = v < 0 ? -1 - v : v;
        const int b = v == 0 ? 0 : static_cast<int>(std::bit_width(static_cast<unsigned>(magnitude))) + 1;
        ++need[static_cast<size_t>(std::min(b, kStates))];
      }
    }
    const auto best = static_cast<size_t>(std::min_element(bytes.begin(), bytes.end()) - bytes.begin());
    const int change = bytes[best] + kRun;
    int outside = 0;
    for (size_t b = kStates; b-- > 0;) {
      outside += need[b + 1];
      const bool stay = bytes[b] <= change;
      before[c][b] = static_cast<uint8_t>(stay ? b : best);
      bytes[b] = (stay ? bytes[b] : change) + 64 * static_cast<int>(b) + kCorrection * outside;
    }
  }
  auto b = static_cast<uint8_t>(std::min_element(bytes.begin(), bytes.end()) - bytes.begin());
  for (size_t c = chunks; c-- > 0;) {
    widths[c] = b;
    b = before[c][b];
  }
}

// A correction of one code as the entries of a CorrectionList.
static void add_correction(size_t gap, int by, std::vector<uint8_t>& entries) {
  constexpr int kValues = CorrectionList::kValues;
  const auto add = [&](size_t g, int digit) {
    entries.push_back(static_cast<uint8_t>(g * kValues + static_cast<size_t>(digit & (kValues - 1))));
  };
  for (; gap > CorrectionList::kMaxGap; gap -= CorrectionList::kMaxGap) add(CorrectionList::kMaxGap, 0);
  for (; by != 0; gap = 0) {
    const int digit = ((by + kValues / 2) & (kValues - 1)) - kValues / 2;
    add(gap, digit);
    by = (by - digit) / kValues;
  }
}

// Places in the order of `size`.
static std::vector<uint32_t> sorted_places(std::span<const int64_t> size) {
  std::vector<uint32_t> order(size.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return size[a] < size[b]; });
  return order;
}

CodedTiles::CodedTiles(const Grid& grid, const KernelOptions& options)
    : TileLinear(grid.rows(), grid.cols(), options), base_(row_col_steps(grid).base()) {}

std::unique_ptr<CodedTiles> CodedTiles::make(const Grid& grid, const KernelOptions& options) {
  std::unique_ptr<CodedTiles> tiles(new CodedTiles(grid, options));
  tiles->fill(grid, options.keep_rows, true);
  return tiles;
}

uint64_t CodedTiles::planned_bytes(const Grid& grid, bool keep_rows) {
  CodedTiles tiles(grid, {});
  tiles.fill(grid, keep_rows, false);
  return tiles.ram_bytes() + uint64_t{64} * tiles.code_start_.back();
}

void CodedTiles::fill(const Grid& grid, bool keep_rows, bool pack) {
  const size_t rows = static_cast<size_t>(rows_), cols = static_cast<size_t>(cols_);
  const size_t chunks = static_cast<size_t>(padded_cols() / kChunk), stride = chunks * kChunk;
  const std::vector<int16_t> all = all_codes(*grid.codes());

  // Squares up to a bound: a row is as wide as most of its codes, not as its largest one.
  std::vector<int64_t> row_size(rows), col_size(cols);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < cols; ++c) {
      const int64_t v = all[r * cols + c], square = std::min<int64_t>(v * v, 4096);
      row_size[r] += square;
      col_size[c] += square;
    }
  }
  std::vector<size_t> row_at(rows);  // the row of the matrix at each place
  std::iota(row_at.begin(), row_at.end(), size_t{0});
  if (!keep_rows) {
    place_.resize(rows);
    for (size_t first = 0; first < rows; first += kSection) {
      const size_t count = std::min<size_t>(kSection, rows - first);
      const std::vector<uint32_t> order = sorted_places(std::span(row_size).subspan(first, count));
      for (size_t p = 0; p < count; ++p) {
        row_at[first + p] = first + order[p];
        place_[first + order[p]] = static_cast<uint16_t>(p);
      }
    }
  }
  col_.reserve(cols), col_log_.reserve(cols);
  for (const uint32_t c : sorted_places(col_size)) col_.push_back(static_cast<uint16_t>(c));
  const RowColField& steps = row_col_steps(grid);
  row_log_.resize(static_cast<size_t>(tiles()) * kTileRows);
  for (size_t p = 0; p < rows; ++p) row_log_[p] = steps.row_log()[row_at[p]];
  for (size_t p = 0; p < cols; ++p) col_log_.push_back(steps.col_log()[col_[p]]);

  widths_.resize(static_cast<size_t>(tiles()) * chunks);
  std::vector<int16_t> codes(kTileRows * stride);
  std::vector<uint8_t> levels(codes.size()), packed;
  std::array<std::vector<uint8_t>, kTileRows> entries;  // corrections of each row
  code_start_.reserve(static_cast<size_t>(tiles()) + 1), correction_start_.reserve(static_cast<size_t>(tiles()) + 1);
  code_start_.push_back(0);
  correction_start_.push_back(0);
  for (size_t t = 0; t < static_cast<size_t>(tiles()); ++t) {
    std::fill(codes.begin(), codes.end(), int16_t{0});
    for (size_t p = t * kTileRows; p < std::min(rows, (t + 1) * kTileRows); ++p) {
      const int16_t* from = all.data() + row_at[p] * cols;
      int16_t* to = codes.data() + p % kTileRows * stride;
      for (size_t c = 0; c < cols; ++c) to[c] = from[col_[c]];
    }
    const std::span<uint8_t> widths = std::span(widths_).subspan(t * chunks, chunks);
    choose_widths(codes, widths);
    size_t steps = 0;
    for (size_t r = 0; r < kTileRows; ++r) {
      entries[r].clear();
      size_t last = 0;
      for (size_t c = 0; c < stride; ++c) {
        const int low = low_of(widths[c / kChunk]), high = -1 - low;
        const int code = codes[r * stride + c], kept = low == 0 ? 0 : std::clamp(code, low, high);
        levels[r * stride + c] = static_cast<uint8_t>(kept - low);
        if (kept == code) continue;
        add_correction(c - last, code - kept, entries[r]);
        last = c;
      }
      steps = std::max(steps, entries[r].size());
    }
    for (size_t k = 0; k < steps; ++k) {
      for (const auto& row : entries) corrections_.push_back(k < row.size() ? row[k] : uint8_t{0});
    }
    correction_start_.push_back(static_cast<uint32_t>(corrections_.size() / kTileRows));
    uint32_t pieces = 0;
    for (size_t c = 0; c < chunks; ++c) {
      pieces += widths[c];
      if (!pack) continue;
      packed.resize(packed.size() + widths[c] * 64u);
      pack_chunk(widths[c], levels.data() + c * kChunk, static_cast<int64_t>(stride),
                 packed.data() + packed.size() - widths[c] * 64u);
    }
    code_start_.push_back(code_start_.back() + pieces);
  }
  corrections_.shrink_to_fit();
  codes_ = Aligned<uint8_t>(packed.size());
  std::copy(packed.begin(), packed.end(), codes_.get());
}

CorrectionList CodedTiles::corrections(int64_t t) const {
  const uint32_t first = correction_start_[static_cast<size_t>(t)];
  return {corrections_.data() + int64_t{first} * kTileRows, correction_start_[static_cast<size_t>(t) + 1] - first};
}

int64_t CodedTiles::place_of(int64_t r) const {
  return place_.empty() ? r : r / kSection * kSection + place_[static_cast<size_t>(r)];
}

uint64_t CodedTiles::ram_bytes() const {
  return codes_.bytes() + row_log_.size() + col_log_.size() + (place_.size() + col_.size()) * 2 + widths_.size() +
         (code_start_.size() + correction_start_.size()) * 4 + corrections_.size();
}

std::string CodedTiles::describe() const {
  double width = 0;
  for (const uint8_t b : widths_) width += b;
  return fmt::format("coded tiles {:.2f} bit on average, {:.3f} % corrections",
                     width / static_cast<double>(widths_.size()),
                     100.0 * static_cast<double>(corrections_.size()) / static_cast<double>(rows_ * cols_));
}

IntTile CodedTiles::tile(int64_t t, float* row_scale) const {
  const auto& table = sixteenths();
  const uint8_t* log = row_log_.data() + t * kTileRows;
  for (int64_t r = 0; r < kTileRows; ++r) row_scale[r] = base_ * table[log[r]];
  IntTile out;
  out.chunks = padded_cols() / kChunk;
  out.codes = codes_.get() + uint64_t{64} * code_start_[static_cast<size_t>(t)];
  out.widths = widths_.data() + t * out.chunks;
  out.scale = ScaleKind::row;
  out.group_halves = 2 * out.chunks;
  out.row_scale = row_scale;
  return out;
}

void CodedTiles::dot(int64_t t, const TileInput& x, int64_t n, float* y, int64_t ldy) const {
  alignas(64) float scale[kTileRows], sum[kTileRows];
  const CorrectionList list = corrections(t);
  ops_.dot_int(tile(t, scale), x.ints, n, y, ldy);
  if (list.steps == 0) return;
  for (int64_t k = 0; k < n; ++k) {
    ops_.dot_corrections(list, x.x + k * x.x_stride, sum);
    for (int64_t r = 0; r < kTileRows; ++r) y[k * ldy + r] += scale[r] * sum[r];
  }
}

void CodedTiles::decode_panel(int64_t t, float* panel) const {
  alignas(64) float scale[kTileRows];
  ops_.decode_int(tile(t, scale), panel);
  each_correction(corrections(t),
                  [&](int64_t r, int64_t column, float by) { panel[column * kTileRows + r] += scale[r] * by; });
}

void CodedTiles::gather(const float* x, float* out) const {
  ops_.reorder(x, col_.data(), col_log_.data(), sixteenths().data(), cols_, out);
}

// Tiles of sorted rows would write all over y, and so would other threads, into the same cache lines.
void CodedTiles::run_tiles(int64_t t0, int64_t t1, const Input& input, int64_t n, float* y, int64_t ldy) const {
  if (place_.empty()) {
    TileLinear::run_tiles(t0, t1, input, n, y, ldy);
  } else {
    TileLinear::run_tiles(t0, t1, input, n, static_cast<const TileInput&>(input).sorted, rows_);
  }
}

void CodedTiles::finish(const Input& input, int64_t n, float* y, ThreadPool& pool) const {
  if (place_.empty()) return;
  constexpr int64_t kRows = 8192, kParts = kSection / kRows;
  const float* sorted = static_cast<const TileInput&>(input).sorted;
  const int64_t parts = (rows_ + kRows - 1) / kRows;
  const auto part = [&](int64_t i) {
    const int64_t token = i / parts * rows_, r = i % parts * kRows, section = i % parts / kParts * kSection;
    ops_.reorder(sorted + token + section, place_.data() + r, nullptr, nullptr, std::min(rows_ - r, kRows),
                 y + token + r);
  };
  if (n * rows_ < 2 * kRows) {
    for (int64_t i = 0; i < n * parts; ++i) part(i);
  } else {
    pool.parallel_for(n * parts, part);
  }
}

void CodedTiles::decode_row(int64_t r, float* out) const {
  const int64_t p = place_of(r);
  float* panel = thread_scratch(1, static_cast<size_t>(padded_cols() * kTileRows));
  decode_panel(p / kTileRows, panel);
  const auto& table = sixteenths();
  for (size_t c = 0; c < col_.size(); ++c) {
    out[col_[c]] = panel[static_cast<int64_t>(c) * kTileRows + p % kTileRows] * table[col_log_[c]];
  }
}

}  // namespace pith
