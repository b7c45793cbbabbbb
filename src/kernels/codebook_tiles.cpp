#include "kernels/codebook_tiles.h"

#include <fmt/format.h>

#include <algorithm>

namespace pith {

namespace {

struct TableInput final : Linear::Input {
  Aligned<float> table;  ///< [token][group][book][entry]
};

}  // namespace

uint64_t CodebookTiles::planned_bytes(const Codebook& node) {
  const auto tiles = static_cast<uint64_t>((node.rows() + kTileRows - 1) / kTileRows);
  const auto codes = tiles * static_cast<uint64_t>(node.groups() * node.books_count() * kTileRows);
  return codes * (node.entries() <= 256 ? 1 : 2) + node.table().size() * sizeof(float);
}

CodebookTiles::CodebookTiles(const Codebook& node, const KernelOptions& options)
    : TileLinear(node.rows(), node.cols(), options),
      books_(node.books_count()),
      entries_(node.entries()),
      length_(node.length()),
      groups_(node.groups()),
      narrow_(node.entries() <= 256),
      codes_(static_cast<size_t>(tiles() * groups_ * books_ * kTileRows * (narrow_ ? 1 : 2))),
      table_(node.table().size()) {
  for (int64_t m = 0; m < books_; ++m)
    for (int64_t e = 0; e < entries_; ++e)
      for (int64_t j = 0; j < length_; ++j)
        table_[static_cast<size_t>((m * length_ + j) * entries_ + e)] =
            node.table()[static_cast<size_t>((m * entries_ + e) * length_ + j)];
  const int64_t places = groups_ * books_;
  std::vector<int16_t> row(static_cast<size_t>(places));
  std::fill_n(codes_.get(), codes_.size(), uint8_t{0});
  for (int64_t r = 0; r < rows_; ++r) {
    node.codes()->read_rows(r, r + 1, row.data());
    for (int64_t i = 0; i < places; ++i) {
      const int64_t to = (r / kTileRows * places + i) * kTileRows + r % kTileRows;
      const auto code = static_cast<uint16_t>(row[static_cast<size_t>(i)] - node.first_code());
      if (narrow_)
        codes_.get()[to] = static_cast<uint8_t>(code);
      else
        reinterpret_cast<uint16_t*>(codes_.get())[to] = code;
    }
  }
}

void CodebookTiles::prepare(const float* x, int64_t n, ThreadPool& pool, std::unique_ptr<Input>& slot) const {
  if (!looks_up(n)) return TileLinear::prepare(x, n, pool, slot);
  auto* in = dynamic_cast<TableInput*>(slot.get());
  if (in == nullptr) {
    slot = std::make_unique<TableInput>();
    in = static_cast<TableInput*>(slot.get());
  }
  const int64_t lines = groups_ * books_;
  float* table = in->table.ensure(static_cast<size_t>(n * lines * entries_));
  constexpr int64_t kAtOnce = 16;  // lines of a piece of work
  pool.parallel_for((n * lines + kAtOnce - 1) / kAtOnce, [&](int64_t piece) {
    for (int64_t i = piece * kAtOnce; i < std::min(n * lines, (piece + 1) * kAtOnce); ++i) {
      const int64_t group = i % lines / books_, book = i % books_;
      const float* from = x + i / lines * cols_ + group * length_;
      float* to = table + i * entries_;
      std::fill_n(to, entries_, 0.0f);
      for (int64_t j = 0; j < std::min(length_, cols_ - group * length_); ++j) {
        const float* values = table_.data() + (book * length_ + j) * entries_;
        const float factor = from[j];
        for (int64_t e = 0; e < entries_; ++e) to[e] += factor * values[e];
      }
    }
  });
}

template <class Code>
void CodebookTiles::add_places(int64_t t, const float* table, float* y) const {
  const auto* codes = reinterpret_cast<const Code*>(codes_.get()) + t * groups_ * books_ * kTileRows;
  float sum[kTileRows] = {};
  for (int64_t i = 0; i < groups_ * books_; ++i, codes += kTileRows, table += entries_)
    for (int64_t r = 0; r < kTileRows; ++r) sum[r] += table[codes[r]];
  std::copy_n(sum, std::min(kTileRows, rows_ - t * kTileRows), y);
}

void CodebookTiles::run_tiles(int64_t t0, int64_t t1, const Input& input, int64_t n, float* y, int64_t ldy) const {
  if (!looks_up(n)) return TileLinear::run_tiles(t0, t1, input, n, y, ldy);
  const float* table = static_cast<const TableInput&>(input).table.get();
  for (int64_t t = t0; t < t1; ++t)
    for (int64_t k = 0; k < n; ++k) {
      const float* mine = table + k * groups_ * books_ * entries_;
      float* to = y + k * ldy + t * kTileRows;
      if (narrow_)
        add_places<uint8_t>(t, mine, to);
      else
        add_places<uint16_t>(t, mine, to);
    }
}

template <class Code>
void CodebookTiles::decode_tile(int64_t t, float* panel) const {
  const auto* codes = reinterpret_cast<const Code*>(codes_.get()) + t * groups_ * books_ * kTileRows;
  std::fill_n(panel, padded_cols() * kTileRows, 0.0f);
  for (int64_t group = 0; group < groups_; ++group)
    for (int64_t book = 0; book < books_; ++book, codes += kTileRows)
      for (int64_t j = 0; j < std::min(length_, cols_ - group * length_); ++j) {
        const float* values = table_.data() + (book * length_ + j) * entries_;
        float* to = panel + (group * length_ + j) * kTileRows;
        for (int64_t r = 0; r < kTileRows; ++r) to[r] += values[codes[r]];
      }
}

void CodebookTiles::decode_panel(int64_t t, float* panel) const {
  if (narrow_)
    decode_tile<uint8_t>(t, panel);
  else
    decode_tile<uint16_t>(t, panel);
}

std::string CodebookTiles::describe() const {
  return fmt::format("codebook tiles, {} of {} entries, g{}", books_, entries_, length_);
}

}  // namespace pith
