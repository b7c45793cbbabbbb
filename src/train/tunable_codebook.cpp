// Codebooks (aqlm, lr2vq), as the tuner sees them.
#include <algorithm>
#include <cmath>
#include <vector>

#include "maths/additive_code.h"
#include "represent/codebook.h"
#include "represent/combine.h"
#include "train/tunable_kinds.h"

namespace pith {
namespace {

/// Combinations of entries that are kept while the codes of a group are searched.
constexpr int64_t kBeam = 4;

bool plain(const FloatArray& values) {
  return values.type() == DType::f16 || values.type() == DType::bf16 || values.type() == DType::f32;
}

/// How far an entry's values are from those of the nearest entry of its book: the mean over the book's entries, in the
/// finest book. table: [M, entries, length].
double gap_of(const Tensor& table) {
  const int64_t entries = table.size(1), some = std::clamp<int64_t>((int64_t{1} << 22) / entries, 1, entries);
  double gap = 0;
  for (int64_t m = 0; m < table.size(0); ++m) {
    const Tensor book = table[m], squares = book.square().sum(1);
    const Tensor apart =
        squares.narrow(0, 0, some).unsqueeze(1) + squares - 2 * at::mm(book.narrow(0, 0, some), book.t());
    apart.diagonal().fill_(INFINITY);
    const double mean = entries > 1 ? apart.amin(1).clamp_min(0).sqrt().mean().item<double>() : 0;
    if (m == 0 || mean < gap) gap = mean;
  }
  return gap / std::sqrt(static_cast<double>(table.size(2)));
}

class TunableCodebook final : public Tunable {
 public:
  TunableCodebook(const Codebook& node, const FloatArray* scales, at::Device device)
      : cols_(node.cols()), length_(node.length()), books_type_(node.books().type()) {
    const int64_t m = node.books_count(), k = node.entries(), groups = node.groups();
    const std::vector<int16_t> codes = all_codes(*node.codes());
    codes_ = at::from_blob(const_cast<int16_t*>(codes.data()), {node.rows() * groups, m}, at::kShort).to(at::kFloat);
    codes_ = (codes_ - node.first_code()).to(device);
    rows_ = node.rows(), groups_ = groups;
    books_ = tensor_of(node.books(), {m, k, node.books().size() / (m * k)}, device).requires_grad_(true);
    if (node.basis().size() > 0) {
      basis_ = tensor_of(node.basis(), {books_.size(2), length_}, device).requires_grad_(true);
      basis_type_ = node.basis().type();
    }
    if (scales != nullptr) {
      scales_ = tensor_of(*scales, {rows_}, device).requires_grad_(true);
      scales_type_ = scales->type();
    }
    const at::NoGradGuard no_grad;
    gap_ = gap_of(table());
  }

  Tensor values() const override { return scaled(sums()); }
  std::vector<Continuous> continuous() const override {
    // Entries move by shares of what is usual in their book.
    std::vector<Continuous> all{{books_, books_.detach().square().mean({1, 2}, true).sqrt()}};
    if (basis_.defined()) all.push_back({basis_, basis_.detach().square().mean().sqrt()});
    if (scales_.defined()) all.push_back({scales_, scales_.detach().abs()});
    return all;
  }
  Tensor codes() const override { return codes_; }
  int64_t group() const override { return length_; }
  Tensor unit() const override {
    if (!scales_.defined()) return at::full({}, gap_, codes_.options());
    return as_stored(scales_, scales_type_).detach().abs().unsqueeze(1) * gap_;
  }

  void project(const Tensor& target, double /*price*/) override {
    const at::NoGradGuard no_grad;
    const Tensor now = sums();  // [rows * groups, length]; beyond the last column nothing is asked for
    const Tensor moves = at::zeros({rows_, groups_ * length_}, now.options().dtype(at::kBool));
    moves.narrow(1, 0, cols_).copy_(target.ne(scaled(now)));
    const Tensor places = moves.view({rows_ * groups_, length_}).any(1).nonzero().squeeze(1);
    if (places.numel() == 0) return;
    const Tensor wanted = now.clone().view({rows_, groups_ * length_});
    Tensor inside = wanted.narrow(1, 0, cols_);
    if (scales_.defined()) {
      const Tensor scale = as_stored(scales_, scales_type_).unsqueeze(1);
      inside.copy_(at::where(scale.eq(0), inside, target / scale));
    } else {
      inside.copy_(target);
    }
    const Tensor found = nearest_codes(wanted.view_as(now).index_select(0, places), table(),
                                       codes_.index_select(0, places).to(at::kLong), kBeam);
    codes_.index_copy_(0, places, found.to(at::kFloat));
  }

  NodePtr node() const override {
    const auto host = [](const Tensor& t) { return t.defined() ? t.detach().to(at::kCPU) : t; };
    return codebook_node({.cols = cols_,
                          .length = length_,
                          .codes = host(codes_).view({rows_, -1}),
                          .books = host(books_),
                          .basis = host(basis_),
                          .scales = host(scales_),
                          .books_type = books_type_,
                          .basis_type = basis_type_,
                          .scales_type = scales_type_});
  }

 private:
  /// Entries with the basis multiplied in, [M, entries, length], in the node's order of sums.
  Tensor table() const {
    const Tensor books = as_stored(books_, books_type_);
    if (!basis_.defined()) return books;
    const Tensor basis = as_stored(basis_, basis_type_);
    Tensor out = books.narrow(2, 0, 1) * basis[0];
    for (int64_t k = 1; k < basis.size(0); ++k) out = out + books.narrow(2, k, 1) * basis[k];
    return out;
  }
  /// Sums of entries, [rows * groups, length].
  Tensor sums() const {
    const Tensor all = table(), codes = codes_.to(at::kLong);
    Tensor out;
    for (int64_t m = 0; m < all.size(0); ++m) {
      const Tensor entry = all[m].gather(0, codes.select(1, m).unsqueeze(1).expand({codes.size(0), length_}));
      out = m == 0 ? entry : out + entry;
    }
    return out;
  }
  Tensor scaled(const Tensor& sums) const {
    const Tensor x = sums.view({rows_, groups_ * length_}).narrow(1, 0, cols_);
    return scales_.defined() ? x * as_stored(scales_, scales_type_).unsqueeze(1) : x;
  }

  int64_t rows_ = 0, cols_, groups_ = 0, length_;
  DType books_type_, basis_type_ = DType::f16, scales_type_ = DType::f16;
  Tensor codes_;  ///< [rows * groups, M], counted from 0
  Tensor books_, basis_, scales_;
  double gap_ = 0;
};

}  // namespace

std::unique_ptr<Tunable> tunable_codebook(const Node& node, at::Device device) {
  const auto* scaled = dynamic_cast<const Scaled*>(&node);
  const auto* book = dynamic_cast<const Codebook*>(scaled != nullptr ? scaled->child().get() : &node);
  if (book == nullptr || !plain(book->books()) || (book->basis().size() > 0 && !plain(book->basis()))) return nullptr;
  if (scaled == nullptr) return std::make_unique<TunableCodebook>(*book, nullptr, device);
  if (scaled->axis() != Axis::rows) return nullptr;
  return std::make_unique<TunableCodebook>(*book, &scaled->scales(), device);
}

}  // namespace pith
