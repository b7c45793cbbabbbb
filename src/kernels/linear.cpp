#include "kernels/linear.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "kernels/codebook_tiles.h"
#include "kernels/coded_tiles.h"
#include "kernels/float_tiles.h"
#include "kernels/int_tiles.h"
#include "represent/combine.h"
#include "represent/low_rank.h"
#include "represent/sparse.h"

namespace pith {

void multiply_all(std::span<const Linear* const> matrices, const float* x, int64_t n, std::span<float* const> ys,
                  ThreadPool& pool) {
  // Pieces are a share of the work that is left, so that threads end together: of 2^17 products at most, of two tiles
  // at least (the matrix kernels take them in pairs).
  struct Piece {
    const Linear* matrix;
    const Linear::Input* input;
    float* y;
    int64_t t0, t1;
  };
  thread_local std::vector<std::unique_ptr<Linear::Input>> inputs;
  thread_local std::vector<Piece> pieces;
  if (inputs.size() < matrices.size()) inputs.resize(matrices.size());
  pieces.clear();
  const int64_t tokens = std::min<int64_t>(n, 64);
  int64_t left = 0;
  for (const Linear* m : matrices) left += m->tiles() * 16 * m->cols() * tokens;
  for (size_t i = 0; i < matrices.size(); ++i) {
    const Linear& m = *matrices[i];
    size_t input = i;
    const int key = m.input_key(n);
    for (size_t j = 0; j < i && key > 0; ++j) {
      if (matrices[j]->input_key(n) == key) {
        input = j;  // the first one of that key is the one that was prepared
        break;
      }
    }
    if (input == i) m.prepare(x, n, pool, inputs[i]);
    const int64_t work = 16 * m.cols() * tokens;
    for (int64_t t = 0, grain = 0; t < m.tiles(); t += grain) {
      const int64_t share = std::min<int64_t>(left / (3 * pool.size()), 1 << 17);
      grain = std::min(m.tiles() - t, std::max<int64_t>(2, share / std::max<int64_t>(work, 1) / 2 * 2));
      pieces.push_back({&m, inputs[input].get(), ys[i], t, t + grain});
      left -= grain * work;
    }
  }
  const auto run = [n, all = pieces.data()](size_t i) {
    const Piece& p = all[i];
    p.matrix->run_tiles(p.t0, p.t1, *p.input, n, p.y, p.matrix->rows());
  };
  if (pool.size() == 1) {
    for (size_t i = 0; i < pieces.size(); ++i) run(i);
  } else {
    std::atomic<size_t> next{0};
    pool.run([&run, &next, count = pieces.size()] {
      for (size_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) run(i);
    });
  }
  for (const Piece& p : pieces)
    if (p.t0 == 0) p.matrix->finish(*p.input, n, p.y, pool);
}

void Linear::multiply(const float* x, int64_t n, float* y, ThreadPool& pool) const {
  const Linear* self = this;
  multiply_all({&self, 1}, x, n, {&y, 1}, pool);
}

namespace {

/// sum_i factor_i * term_i.
class SumLinear final : public Linear {
 public:
  SumLinear(std::vector<LinearPtr> terms, std::vector<float> factors)
      : Linear(terms[0]->rows(), terms[0]->cols()), terms_(std::move(terms)), factors_(std::move(factors)) {}

  struct SumInput final : Input {
    std::vector<std::unique_ptr<Input>> parts;
  };
  void prepare(const float* x, int64_t n, ThreadPool& pool, std::unique_ptr<Input>& slot) const override {
    auto in = std::make_unique<SumInput>();
    in->parts.resize(terms_.size());
    for (size_t i = 0; i < terms_.size(); ++i) terms_[i]->prepare(x, n, pool, in->parts[i]);
    slot = std::move(in);
  }
  void run_tiles(int64_t t0, int64_t t1, const Input& input, int64_t n, float* y, int64_t ldy) const override {
    const auto& in = static_cast<const SumInput&>(input);
    const int64_t c0 = t0 * kTileRows, c1 = std::min(rows_, t1 * kTileRows);
    terms_[0]->run_tiles(t0, t1, *in.parts[0], n, y, ldy);
    // Other terms go to a buffer of these columns alone; run_tiles counts columns from 0, hence the shifted start.
    const int64_t width = c1 - c0;
    std::vector<float> part(static_cast<size_t>(n * width));
    for (size_t i = 1; i < terms_.size(); ++i) {
      terms_[i]->run_tiles(t0, t1, *in.parts[i], n, part.data() - c0, width);
      for (int64_t k = 0; k < n; ++k) {
        for (int64_t c = 0; c < width; ++c)
          y[k * ldy + c0 + c] += factors_[i] * part[static_cast<size_t>(k * width + c)];
      }
    }
  }
  void decode_row(int64_t r, float* out) const override {
    terms_[0]->decode_row(r, out);
    std::vector<float> part(static_cast<size_t>(cols_));
    for (size_t i = 1; i < terms_.size(); ++i) {
      terms_[i]->decode_row(r, part.data());
      for (int64_t c = 0; c < cols_; ++c) out[c] += factors_[i] * part[static_cast<size_t>(c)];
    }
  }
  uint64_t ram_bytes() const override {
    uint64_t n = 0;
    for (const auto& t : terms_) n += t->ram_bytes();
    return n;
  }
  std::string describe() const override {
    std::string s = "sum(";
    for (size_t i = 0; i < terms_.size(); ++i) s += (i != 0 ? ", " : "") + terms_[i]->describe();
    return s + ")";
  }

 private:
  std::vector<LinearPtr> terms_;
  std::vector<float> factors_;  ///< the first one is 1
};

/// U (V x).
class LowRankLinear final : public Linear {
 public:
  LowRankLinear(LinearPtr u, LinearPtr v, int64_t rank)
      : Linear(u->rows(), v->cols()), u_(std::move(u)), v_(std::move(v)), rank_(rank) {}

  struct LowRankInput final : Input {
    std::vector<float> middle;
    std::unique_ptr<Input> u;
  };
  void prepare(const float* x, int64_t n, ThreadPool& pool, std::unique_ptr<Input>& slot) const override {
    auto in = std::make_unique<LowRankInput>();
    const int64_t full = v_->rows();
    in->middle.resize(static_cast<size_t>(n * full));
    std::unique_ptr<Input> first;
    v_->prepare(x, n, pool, first);
    pool.parallel_for((v_->tiles() + 1) / 2, [&](int64_t i) {
      v_->run_tiles(2 * i, std::min(v_->tiles(), 2 * i + 2), *first, n, in->middle.data(), full);
    });
    for (int64_t k = 0; k < n; ++k) {
      std::fill_n(in->middle.data() + k * full + rank_, full - rank_, 0.0f);
    }
    u_->prepare(in->middle.data(), n, pool, in->u);
    slot = std::move(in);
  }
  void run_tiles(int64_t t0, int64_t t1, const Input& input, int64_t n, float* y, int64_t ldy) const override {
    u_->run_tiles(t0, t1, *static_cast<const LowRankInput&>(input).u, n, y, ldy);
  }
  void decode_row(int64_t r, float* out) const override {
    std::vector<float> u(static_cast<size_t>(u_->cols())), v(static_cast<size_t>(cols_));
    u_->decode_row(r, u.data());
    std::fill_n(out, cols_, 0.0f);
    for (int64_t k = 0; k < rank_; ++k) {
      v_->decode_row(k, v.data());
      for (int64_t c = 0; c < cols_; ++c) out[c] += u[static_cast<size_t>(k)] * v[static_cast<size_t>(c)];
    }
  }
  uint64_t ram_bytes() const override { return u_->ram_bytes() + v_->ram_bytes(); }
  std::string describe() const override {
    return fmt::format("low rank {} ({}, {})", rank_, u_->describe(), v_->describe());
  }

 private:
  LinearPtr u_, v_;
  int64_t rank_;
};

/// The columns of x reordered or scaled before the child sees them, the rows of y scaled afterwards.
class ColumnLinear final : public Linear {
 public:
  ColumnLinear(LinearPtr child, std::vector<uint32_t> order, std::vector<float> col_scale, std::vector<float> row_scale)
      : Linear(child->rows(), child->cols()),
        child_(std::move(child)),
        order_(std::move(order)),
        col_scale_(std::move(col_scale)),
        row_scale_(std::move(row_scale)) {}

  struct ColumnInput final : Input {
    std::vector<float> x;
    std::unique_ptr<Input> child;
  };
  void prepare(const float* x, int64_t n, ThreadPool& pool, std::unique_ptr<Input>& slot) const override {
    auto in = std::make_unique<ColumnInput>();
    if (order_.empty() && col_scale_.empty()) {
      child_->prepare(x, n, pool, in->child);
      slot = std::move(in);
      return;
    }
    in->x.resize(static_cast<size_t>(n * cols_));
    for (int64_t k = 0; k < n; ++k) {
      float* row = in->x.data() + k * cols_;
      const float* from = x + k * cols_;
      for (size_t j = 0; j < static_cast<size_t>(cols_); ++j) {
        row[j] = (order_.empty() ? from[j] : from[order_[j]]) * (col_scale_.empty() ? 1.0f : col_scale_[j]);
      }
    }
    child_->prepare(in->x.data(), n, pool, in->child);
    slot = std::move(in);
  }
  void run_tiles(int64_t t0, int64_t t1, const Input& input, int64_t n, float* y, int64_t ldy) const override {
    child_->run_tiles(t0, t1, *static_cast<const ColumnInput&>(input).child, n, y, ldy);
    if (row_scale_.empty()) return;
    const int64_t c1 = std::min(rows_, t1 * kTileRows);
    for (int64_t k = 0; k < n; ++k) {
      for (int64_t c = t0 * kTileRows; c < c1; ++c) y[k * ldy + c] *= row_scale_[static_cast<size_t>(c)];
    }
  }
  void decode_row(int64_t r, float* out) const override {
    std::vector<float> row(static_cast<size_t>(cols_));
    child_->decode_row(r, row.data());
    for (size_t j = 0; j < row.size(); ++j) {
      float w = row[j];
      if (!col_scale_.empty()) w *= col_scale_[j];
      if (!row_scale_.empty()) w *= row_scale_[static_cast<size_t>(r)];
      out[order_.empty() ? j : order_[j]] = w;
    }
  }
  uint64_t ram_bytes() const override {
    return child_->ram_bytes() + order_.size() * 4 + (col_scale_.size() + row_scale_.size()) * 4;
  }
  std::string describe() const override {
    return fmt::format("{}({})", order_.empty() ? "scaled" : "permuted", child_->describe());
  }

 private:
  LinearPtr child_;
  std::vector<uint32_t> order_;
  std::vector<float> col_scale_, row_scale_;
};

/// LLM.int8(): columns with an activation of at least `threshold` in any token of the batch stay in fp32; the others
/// are rounded to 8 bits with one scale a token and multiplied by the integer codes.
class DynamicInt8Linear final : public Linear {
 public:
  DynamicInt8Linear(std::unique_ptr<IntTiles> child, float threshold)
      : Linear(child->rows(), child->cols()), child_(std::move(child)), threshold_(threshold) {}

  struct Int8Input final : Input {
    TileInput tile;
    std::vector<int64_t> columns;  ///< outliers
    const float* x = nullptr;
  };

  void prepare(const float* x, int64_t n, ThreadPool&, std::unique_ptr<Input>& slot) const override {
    auto in = std::make_unique<Int8Input>();
    const int64_t chunks = (cols_ + kChunk - 1) / kChunk, padded = chunks * kChunk;
    in->x = x;
    std::vector<uint8_t> outlier(static_cast<size_t>(cols_));
    if (threshold_ > 0) {
      for (int64_t i = 0; i < n * cols_; ++i) {
        if (std::abs(x[i]) >= threshold_) outlier[static_cast<size_t>(i % cols_)] = 1;
      }
      for (int64_t j = 0; j < cols_; ++j) {
        if (outlier[static_cast<size_t>(j)] != 0) in->columns.push_back(j);
      }
    }
    TileInput& t = in->tile;
    t.owned = Aligned<float>(static_cast<size_t>(n * padded));  // what is left for corrections of single weights
    t.x = t.owned.get();
    t.x_stride = padded;
    t.q = Aligned<int8_t>(static_cast<size_t>(n * padded));
    t.d = Aligned<float>(static_cast<size_t>(n * chunks));
    t.s = Aligned<float>(static_cast<size_t>(n * chunks * 2));
    for (int64_t k = 0; k < n; ++k) {
      const float* row = x + k * cols_;
      float top = 0;
      for (int64_t j = 0; j < cols_; ++j) {
        const float a = std::abs(row[j]);
        if (threshold_ <= 0 || a < threshold_) top = std::max(top, a);
      }
      const float step = top > 0 ? top / 127.0f : 1.0f;
      int8_t* q = t.q.get() + k * padded;
      float* left = t.owned.get() + k * padded;
      for (int64_t j = 0; j < padded; ++j) {
        const bool in_integers = j < cols_ && outlier[static_cast<size_t>(j)] == 0;
        left[j] = in_integers ? row[j] : 0.0f;
        q[j] =
            in_integers ? static_cast<int8_t>(std::clamp(std::nearbyintf(row[j] / step), -127.0f, 127.0f)) : int8_t{0};
      }
      for (int64_t c = 0; c < chunks; ++c) {
        t.d.get()[k * chunks + c] = step;
        for (int half = 0; half < 2; ++half) {
          int sum = 0;
          for (int i = 0; i < 16; ++i) sum += q[c * kChunk + half * 16 + i];
          t.s.get()[(k * chunks + c) * 2 + half] = step * static_cast<float>(sum);
        }
      }
    }
    t.ints = {t.q.get(), t.d.get(), t.s.get()};
    slot = std::move(in);
  }

  void run_tiles(int64_t t0, int64_t t1, const Input& input, int64_t n, float* y, int64_t ldy) const override {
    const auto& in = static_cast<const Int8Input&>(input);
    const int64_t padded = (cols_ + kChunk - 1) / kChunk * kChunk;
    std::vector<float> out(static_cast<size_t>(n * kTileRows)), panel;
    if (!in.columns.empty()) panel.resize(static_cast<size_t>(padded * kTileRows));
    for (int64_t t = t0; t < t1; ++t) {
      child_->int_product(t, in.tile, n, out.data());
      if (!in.columns.empty()) {
        child_->weights(t, panel.data());
        for (int64_t k = 0; k < n; ++k) {
          for (int64_t j : in.columns) {
            const float x = in.x[k * cols_ + j];
            const float* w = panel.data() + j * kTileRows;
            for (int64_t r = 0; r < kTileRows; ++r) out[static_cast<size_t>(k * kTileRows + r)] += x * w[r];
          }
        }
      }
      const int64_t width = std::min(kTileRows, rows_ - t * kTileRows);
      for (int64_t k = 0; k < n; ++k) std::copy_n(out.data() + k * kTileRows, width, y + k * ldy + t * kTileRows);
    }
  }
  void decode_row(int64_t r, float* out) const override { static_cast<const Linear&>(*child_).decode_row(r, out); }
  uint64_t ram_bytes() const override { return child_->ram_bytes(); }
  std::string describe() const override {
    return fmt::format("int8 activations, outliers from {} ({})", threshold_, child_->describe());
  }

 private:
  std::unique_ptr<IntTiles> child_;
  float threshold_;
};

TileSparse sparse_rows(const Csr& csr) {
  TileSparse s;
  s.row_start.assign(csr.row_start().begin(), csr.row_start().end());
  s.col.resize(static_cast<size_t>(csr.entries()));
  s.value.resize(s.col.size());
  for (size_t i = 0; i < s.col.size(); ++i) s.col[i] = static_cast<uint16_t>(csr.columns()[static_cast<int64_t>(i)]);
  csr.values().read(0, csr.entries(), s.value.data());
  return s;
}

std::vector<float> floats(const FloatArray& a) {
  std::vector<float> v(static_cast<size_t>(a.size()));
  a.read(0, a.size(), v.data());
  return v;
}

// A node that becomes one TileLinear whose single weights may be corrected; null for all others.
std::unique_ptr<TileLinear> prepare_tiles(const NodePtr& node, const KernelOptions& options) {
  if (CodedTiles::takes(*node)) return CodedTiles::make(static_cast<const Grid&>(*node), options);
  if (const auto layout = int_layout(*node)) return IntTiles::make(*node, *layout, {}, options);
  if (FloatTiles::takes(*node)) return FloatTiles::make(static_cast<const Dense&>(*node), options);
  return nullptr;
}

// Coded tiles have their columns in another order.
bool takes_corrections(const Node& node) {
  return node.cols() <= TileLinear::kMaxSparseCols && !CodedTiles::takes(node) &&
         (int_layout(node) || FloatTiles::takes(node));
}

// The columns' order when a Permuted child can be multiplied in its own order.
const Permuted* column_permutation(const Node& node) {
  const auto* p = dynamic_cast<const Permuted*>(&node);
  return p != nullptr && p->axis() == Axis::cols ? p : nullptr;
}

// Rows of blocks in another order are blocks again.
const Blocks* permuted_blocks(const Node& node) {
  const auto* p = dynamic_cast<const Permuted*>(&node);
  if (p == nullptr || p->axis() != Axis::rows) return nullptr;
  const auto* blocks = dynamic_cast<const Blocks*>(p->child().get());
  return blocks != nullptr && int_layout(*blocks) ? blocks : nullptr;
}

}  // namespace

Result<LinearPtr> prepare_linear(NodePtr node, const KernelOptions& options) {
  if (options.isa) {
    const auto& have = available_isas();
    if (std::find(have.begin(), have.end(), *options.isa) == have.end()) {
      return user_error(
          fmt::format("this CPU cannot run the {} kernels; it has {}", isa_name(*options.isa), isa_name(have.back())));
    }
  }
  KernelOptions part = options;
  part.keep_rows = true;
  if (auto tiles = prepare_tiles(node, options)) return LinearPtr(std::move(tiles));
  if (const Blocks* blocks = permuted_blocks(*node)) {
    const auto& permuted = static_cast<const Permuted&>(*node);
    return LinearPtr(IntTiles::make(*blocks, *int_layout(*blocks), permuted.inverse(), options));
  }
  if (const auto* over = dynamic_cast<const Override*>(node.get()); over && takes_corrections(*over->base())) {
    auto tiles = prepare_tiles(over->base(), options);
    // Corrections are differences to what the kernel decodes, so that base + correction is the stored value.
    TileSparse s = sparse_rows(over->sparse());
    std::vector<float> row(static_cast<size_t>(node->cols()));
    for (int64_t r = 0; r < node->rows(); ++r) {
      const uint32_t i0 = s.row_start[static_cast<size_t>(r)], i1 = s.row_start[static_cast<size_t>(r) + 1];
      if (i0 == i1) continue;
      over->base()->decode_rows(r, r + 1, row.data());
      for (uint32_t i = i0; i < i1; ++i) s.value[i] -= row[s.col[i]];
    }
    tiles->set_sparse(std::move(s));
    return LinearPtr(std::move(tiles));
  }
  if (const auto* sum = dynamic_cast<const Sum*>(node.get())) {
    std::vector<LinearPtr> terms;
    for (const auto& t : sum->terms()) {
      PITH_ASSIGN(auto linear, prepare_linear(t, part));
      terms.push_back(std::move(linear));
    }
    std::vector<float> ones(terms.size(), 1.0f);
    return LinearPtr(new SumLinear(std::move(terms), std::move(ones)));
  }
  if (const auto* line = dynamic_cast<const DepthLine*>(node.get())) {
    std::vector<LinearPtr> terms;
    PITH_ASSIGN(auto base, prepare_linear(line->base(), part));
    PITH_ASSIGN(auto slope, prepare_linear(line->slope(), part));
    terms.push_back(std::move(base));
    terms.push_back(std::move(slope));
    return LinearPtr(new SumLinear(std::move(terms), {1.0f, line->t()}));
  }
  if (const auto* csr = dynamic_cast<const Csr*>(node.get()); csr && csr->cols() <= TileLinear::kMaxSparseCols) {
    return LinearPtr(new CsrLinear(csr->rows(), csr->cols(), sparse_rows(*csr)));
  }
  const auto* prefix = dynamic_cast<const Prefix*>(node.get());
  const auto* low_rank = prefix ? &prefix->low_rank() : dynamic_cast<const LowRank*>(node.get());
  if (low_rank != nullptr && low_rank->rank() > 0) {
    PITH_ASSIGN(auto u, prepare_linear(low_rank->u(), part));
    PITH_ASSIGN(auto v, prepare_linear(low_rank->v(), part));
    return LinearPtr(new LowRankLinear(std::move(u), std::move(v), prefix ? prefix->rank() : low_rank->rank()));
  }
  if (const Permuted* permuted = column_permutation(*node)) {
    PITH_ASSIGN(auto child, prepare_linear(permuted->child(), part));
    std::vector<uint32_t> order(static_cast<size_t>(node->cols()));
    for (size_t j = 0; j < order.size(); ++j) order[j] = permuted->order()[static_cast<int64_t>(j)];
    return LinearPtr(new ColumnLinear(std::move(child), std::move(order), {}, {}));
  }
  if (const auto* scaled = dynamic_cast<const Scaled*>(node.get())) {
    PITH_ASSIGN(auto child, prepare_linear(scaled->child(), part));
    auto scales = floats(scaled->scales());
    if (scaled->axis() == Axis::rows) return LinearPtr(new ColumnLinear(std::move(child), {}, {}, std::move(scales)));
    return LinearPtr(new ColumnLinear(std::move(child), {}, std::move(scales), {}));
  }
  if (const auto* dynamic = dynamic_cast<const DynamicInt8*>(node.get())) {
    PITH_ASSIGN(auto child, prepare_linear(dynamic->child(), part));
    const auto* tiles = dynamic_cast<const IntTiles*>(child.get());
    if (tiles == nullptr) return child;
    std::unique_ptr<IntTiles> owned(const_cast<IntTiles*>(static_cast<const IntTiles*>(child.release())));
    return LinearPtr(new DynamicInt8Linear(std::move(owned), dynamic->threshold()));
  }
  if (const auto* book = dynamic_cast<const Codebook*>(node.get())) return LinearPtr(new CodebookTiles(*book, options));
  return LinearPtr(new NodeLinear(std::move(node), options));
}

uint64_t planned_ram_bytes(const Node& node, bool keep_rows) {
  const auto sparse_bytes = [](const Csr& csr) {
    return static_cast<uint64_t>(csr.rows() + 1) * 4 + static_cast<uint64_t>(csr.entries()) * 6;
  };
  if (CodedTiles::takes(node)) return CodedTiles::planned_bytes(static_cast<const Grid&>(node), keep_rows);
  if (const auto layout = int_layout(node)) {
    return layout->side_bytes() + static_cast<uint64_t>(layout->tiles() * layout->chunks()) * layout->bits * 64;
  }
  if (FloatTiles::takes(node)) return FloatTiles::planned_bytes(static_cast<const Dense&>(node));
  if (const Blocks* blocks = permuted_blocks(node)) return planned_ram_bytes(*blocks);
  if (const auto* over = dynamic_cast<const Override*>(&node); over && takes_corrections(*over->base())) {
    return planned_ram_bytes(*over->base()) + sparse_bytes(over->sparse());
  }
  const auto* csr = dynamic_cast<const Csr*>(&node);
  if (csr != nullptr && csr->cols() <= TileLinear::kMaxSparseCols) return sparse_bytes(*csr);
  if (dynamic_cast<const Sum*>(&node) || dynamic_cast<const DepthLine*>(&node) ||
      dynamic_cast<const DynamicInt8*>(&node)) {
    uint64_t n = 0;
    for (const auto& child : node.children()) n += planned_ram_bytes(*child, true);
    return n;
  }
  const auto* prefix = dynamic_cast<const Prefix*>(&node);
  const auto* low_rank = prefix ? &prefix->low_rank() : dynamic_cast<const LowRank*>(&node);
  if (low_rank != nullptr && low_rank->rank() > 0) {
    return planned_ram_bytes(*low_rank->u(), true) + planned_ram_bytes(*low_rank->v(), true);
  }
  if (const Permuted* permuted = column_permutation(node)) {
    return planned_ram_bytes(*permuted->child(), true) + static_cast<uint64_t>(node.cols()) * 4;
  }
  if (const auto* scaled = dynamic_cast<const Scaled*>(&node)) {
    return planned_ram_bytes(*scaled->child(), true) + static_cast<uint64_t>(scaled->scales().size()) * 4;
  }
  if (const auto* book = dynamic_cast<const Codebook*>(&node)) return CodebookTiles::planned_bytes(*book);
  return (node.bits().total() + 7) / 8;
}

}  // namespace pith
