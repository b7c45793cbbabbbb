#include "maths/additive_code.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <span>

#include "base/half.h"
#include "maths/kmeans.h"
#include "represent/codebook.h"
#include "represent/codes.h"
#include "represent/combine.h"
#include "tensor/parallel.h"

namespace pith {
namespace {

constexpr int64_t kTileRows = 64;

size_t at_(int64_t i) { return static_cast<size_t>(i); }

Tensor rounded_to_half(const Tensor& t) { return t.to(at::kHalf).to(at::kFloat); }

template <class Body>
void for_tiles(int64_t rows, Body body) {
  parallel_tasks((rows + kTileRows - 1) / kTileRows,
                 [&](int64_t tile) { body(tile * kTileRows, std::min(kTileRows, rows - tile * kTileRows)); });
}

// sum_m book_m[code] of rows [r0, r0 + n), not yet scaled. books: [M, entries, width] of any values.
Tensor gather(const AdditiveCode& code, const Tensor& books, int64_t r0, int64_t n) {
  const int64_t m = code.books_count(), k = code.entries(), width = code.width;
  Tensor out = at::zeros({n, code.groups * width}, at::kFloat);
  float* to = out.data_ptr<float>();
  const float* from = books.const_data_ptr<float>();
  const int32_t* codes = code.codes.data() + r0 * code.groups * m;
  for (int64_t i = 0; i < n * code.groups; ++i, to += width)
    for (int64_t b = 0; b < m; ++b) {
      const float* entry = from + (b * k + codes[i * m + b]) * width;
      for (int64_t j = 0; j < width; ++j) to[j] += entry[j];
    }
  return out;
}

// The transpose of `gather` with scales: for each entry the sum of s_r g[r, group] over the places that use it.
Tensor scatter(const AdditiveCode& code, const Tensor& g) {
  const int64_t m = code.books_count(), k = code.entries(), width = code.width;
  Tensor out = at::zeros({m, k, width}, at::kDouble);
  double* to = out.data_ptr<double>();
  const float* from = g.const_data_ptr<float>();
  const float* scales = code.scales.const_data_ptr<float>();
  for (int64_t i = 0; i < code.rows * code.groups; ++i, from += width) {
    const double s = scales[i / code.groups];
    for (int64_t b = 0; b < m; ++b) {
      double* entry = to + (b * k + code.codes[at_(i * m + b)]) * width;
      for (int64_t j = 0; j < width; ++j) entry[j] += s * from[j];
    }
  }
  return out;
}

// Rows of (W - Q) H.
Tensor pull(const AdditiveTarget& target, const AdditiveCode& code) {
  Tensor out = at::empty_like(target.weight);
  for_tiles(code.rows, [&](int64_t r0, int64_t n) {
    const Tensor q = gather(code, code.books, r0, n) * code.scales.narrow(0, r0, n).unsqueeze(1);
    out.narrow(0, r0, n).copy_(at::mm(target.weight.narrow(0, r0, n) - q, target.h));
  });
  return out;
}

// One after the other: the sum must not depend on threads.
double dot(const Tensor& a, const Tensor& b) {
  const double *x = a.const_data_ptr<double>(), *y = b.const_data_ptr<double>();
  double sum = 0;
  for (int64_t i = 0; i < a.numel(); ++i) sum += x[i] * y[i];
  return sum;
}

}  // namespace

Tensor AdditiveCode::decode() const { return gather(*this, books, 0, rows) * scales.unsqueeze(1); }

double AdditiveTarget::loss(const AdditiveCode& code) const {
  std::vector<double> part(at_((code.rows + kTileRows - 1) / kTileRows));
  for_tiles(code.rows, [&](int64_t r0, int64_t n) {
    const Tensor d =
        weight.narrow(0, r0, n) - gather(code, code.books, r0, n) * code.scales.narrow(0, r0, n).unsqueeze(1);
    part[at_(r0 / kTileRows)] = (at::mm(d, h) * d).sum(at::kDouble).item<double>();
  });
  double sum = 0;
  for (const double p : part) sum += p;
  return sum;
}

Tensor RowScales::divide(const Tensor& weight) const {
  return weight / at::where(values.gt(0), values, at::ones_like(values)).unsqueeze(1);
}

RowScales row_scales(const Tensor& weight) {
  const OneThread one;
  const Tensor size = weight.pow(2).mean(1).sqrt();
  const bool half = size.max().item<float>() < 60000 && (size.eq(0) | size.gt(6e-5)).all().item<bool>();
  return {half ? rounded_to_half(size) : size.contiguous(), half};
}

AdditiveCode residual_kmeans(const AdditiveTarget& target, int64_t width, int64_t books, int64_t entries,
                             int64_t rounds, uint64_t seed, const std::string& what) {
  AdditiveCode code;
  code.rows = target.weight.size(0), code.width = width, code.groups = target.weight.size(1) / width;
  const RowScales scales = row_scales(target.weight);
  code.scales = scales.values, code.half_scales = scales.half;
  Tensor left = scales.divide(target.weight).reshape({-1, width}).contiguous();
  code.books = at::zeros({books, entries, width}, at::kFloat);
  code.codes.assign(at_(code.rows * code.groups * books), 0);
  for (int64_t m = 0; m < books; ++m) {
    const KMeans found = kmeans(left, {}, entries, rounds, seed + static_cast<uint64_t>(m), what);
    const Tensor book = rounded_to_half(found.centres);
    code.books[m].copy_(book);
    float* l = left.data_ptr<float>();
    const float* c = book.const_data_ptr<float>();
    for (int64_t i = 0; i < left.size(0); ++i) {
      const int32_t entry = found.codes[at_(i)];
      code.codes[at_(i * books + m)] = entry;
      for (int64_t j = 0; j < width; ++j) l[i * width + j] -= c[entry * width + j];
    }
  }
  return code;
}

bool fit_books(const AdditiveTarget& target, AdditiveCode& code, int64_t steps) {
  const double before = target.loss(code);
  // A x = b for the change x of all books: A is `scatter` of the scaled, gathered x times H, b is `scatter` of the
  // pull. Entries are used unequally often: dividing by their use and the inputs' power makes their equations alike.
  Tensor use = at::zeros_like(code.books, at::kDouble);
  {
    const Tensor power = target.h.diagonal().to(at::kDouble).contiguous();
    const double* p = power.const_data_ptr<double>();
    const float* s = code.scales.const_data_ptr<float>();
    double* u = use.data_ptr<double>();
    const int64_t m = code.books_count();
    for (int64_t i = 0; i < code.rows * code.groups; ++i) {
      const double weight = static_cast<double>(s[i / code.groups]) * s[i / code.groups];
      for (int64_t b = 0; b < m; ++b) {
        double* entry = u + (b * code.entries() + code.codes[at_(i * m + b)]) * code.width;
        for (int64_t j = 0; j < code.width; ++j) entry[j] += weight * p[i % code.groups * code.width + j];
      }
    }
  }
  const Tensor inverse = at::where(use.gt(0), 1 / use, at::zeros_like(use));
  const auto apply = [&](const Tensor& x) {
    const Tensor books = x.to(at::kFloat).contiguous();
    Tensor product = at::empty_like(target.weight);
    for_tiles(code.rows, [&](int64_t r0, int64_t n) {
      const Tensor q = gather(code, books, r0, n) * code.scales.narrow(0, r0, n).unsqueeze(1);
      product.narrow(0, r0, n).copy_(at::mm(q, target.h));
    });
    return scatter(code, product);
  };
  Tensor x = at::zeros_like(use), residual = scatter(code, pull(target, code));
  Tensor preconditioned = residual * inverse, direction = preconditioned.clone();
  double energy = dot(residual, preconditioned);
  const double enough = 1e-10 * energy;
  for (int64_t step = 0; step < steps && energy > enough && energy > 0; ++step) {
    const Tensor image = apply(direction);
    const double curvature = dot(direction, image);
    if (!(curvature > 0)) break;
    const double length = energy / curvature;
    x += direction * length;
    residual -= image * length;
    preconditioned = residual * inverse;
    const double next = dot(residual, preconditioned);
    direction = preconditioned + direction * (next / energy);
    energy = next;
  }
  AdditiveCode fitted = code;
  fitted.books = rounded_to_half((code.books.to(at::kDouble) + x).to(at::kFloat));
  if (!(target.loss(fitted) < before)) return false;
  code = std::move(fitted);
  return true;
}

void fit_scales(const AdditiveTarget& target, AdditiveCode& code) {
  Tensor scales = code.scales.clone();
  float* s = scales.data_ptr<float>();
  for_tiles(code.rows, [&](int64_t r0, int64_t n) {
    const Tensor q = gather(code, code.books, r0, n), qh = at::mm(q, target.h);
    const Tensor square = (qh * q).sum(1, false, at::kDouble),
                 mixed = (qh * target.weight.narrow(0, r0, n)).sum(1, false, at::kDouble);
    for (int64_t i = 0; i < n; ++i) {
      const double a = square[i].item<double>(), b = mixed[i].item<double>();
      if (!(a > 0)) continue;
      const auto best = static_cast<float>(b / a);
      const float stored = code.half_scales ? half_to_float(float_to_half(best)) : best;
      const double old = s[r0 + i];
      if (std::isfinite(stored) && a * stored * stored - 2 * b * stored < a * old * old - 2 * b * old)
        s[r0 + i] = stored;
    }
  });
  code.scales = scales;
}

namespace {

// One combination of entries for a group of a row.
struct Choice {
  double cost;
  int64_t from;   // the combination of the last step that it extends
  int32_t entry;  // in place of the present entry of this book
};

}  // namespace

void search_codes(const AdditiveTarget& target, AdditiveCode& code, int64_t beam, uint64_t seed) {
  const int64_t books = code.books_count(), k = code.entries(), width = code.width, groups = code.groups;
  beam = books == 1 ? 1 : std::max<int64_t>(beam, 1);
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const Tensor drawn = at::randperm(groups, generator, at::kLong);
  const int64_t* order = drawn.const_data_ptr<int64_t>();
  Tensor all = pull(target, code);
  std::vector<Tensor> turned;
  for (int64_t m = 0; m < books; ++m) turned.push_back(code.books[m].t().contiguous());
  const float* book = code.books.const_data_ptr<float>();

  for_tiles(code.rows, [&](int64_t r0, int64_t n) {
    const Tensor rows = all.narrow(0, r0, n);
    const float* s = code.scales.const_data_ptr<float>() + r0;
    // Combinations that are still in the race: their codes and the sum of their entries, for each row of the tile.
    std::vector<int32_t> lists(at_(n * beam * books)), next_lists(lists.size());
    std::vector<int64_t> count(at_(n)), next_count(at_(n));
    for (int64_t o = 0; o < groups; ++o) {
      const int64_t group = order[o];
      const Tensor hg = target.h.narrow(0, group * width, width);  // [width, cols]
      const Tensor hgg = hg.narrow(1, group * width, width).contiguous();
      const float* h = hgg.const_data_ptr<float>();
      const Tensor here = rows.narrow(1, group * width, width).contiguous();  // (W - Q) H at this group
      const float* t = here.const_data_ptr<float>();
      int32_t* const codes = code.codes.data() + (r0 * groups + group) * books;  // row i's at i * groups * books
      const auto sum_of = [&](const int32_t* combination, double* out) {
        std::fill_n(out, width, 0.0);
        for (int64_t m = 0; m < books; ++m)
          for (int64_t j = 0; j < width; ++j) out[j] += book[(m * k + combination[m]) * width + j];
      };
      std::vector<double> q(at_(width)), change(at_(width));
      // loss(q + change) - loss(q) of one row, in fp64.
      const auto rise = [&](int64_t i, const double* d) {
        double cost = 0;
        for (int64_t a = 0; a < width; ++a) {
          double hd = 0;
          for (int64_t b = 0; b < width; ++b) hd += h[a * width + b] * d[b];
          cost += d[a] * (s[i] * hd - 2.0 * t[i * width + a]);
        }
        return cost * s[i];
      };
      for (int64_t i = 0; i < n; ++i) {
        count[at_(i)] = 1;
        std::copy_n(codes + i * groups * books, books, lists.data() + i * beam * books);
      }
      for (int64_t m = 0; m < books; ++m) {
        // For every row and combination without its entry of book m: loss as a function of the entry c is
        //   const + s^2 c H c^T - 2 s c (t + s (q_now - q_rest) H),  q_now the stored sum, q_rest the combination's.
        int64_t total = 0;
        for (int64_t i = 0; i < n; ++i) total += count[at_(i)];
        Tensor slope = at::empty({total, width}, at::kFloat);
        std::vector<double> base(at_(total));
        float* v = slope.data_ptr<float>();
        std::vector<double> rest(at_(width));
        for (int64_t i = 0, line = 0; i < n; ++i)
          for (int64_t c = 0; c < count[at_(i)]; ++c, ++line) {
            const int32_t* combination = lists.data() + (i * beam + c) * books;
            sum_of(codes + i * groups * books, q.data());
            sum_of(combination, rest.data());
            for (int64_t j = 0; j < width; ++j) {
              rest[at_(j)] -= book[(m * k + combination[m]) * width + j];
              change[at_(j)] = rest[at_(j)] - q[at_(j)];
            }
            base[at_(line)] = rise(i, change.data());
            for (int64_t a = 0; a < width; ++a) {
              double hd = 0;
              for (int64_t b = 0; b < width; ++b) hd += h[a * width + b] * change[at_(b)];
              v[line * width + a] = static_cast<float>(2 * s[i] * (s[i] * hd - t[i * width + a]));
            }
          }
        const Tensor square = (at::mm(code.books[m], hgg) * code.books[m]).sum(1);  // [k]
        const Tensor linear = at::mm(slope, turned[at_(m)]);                        // [total, k]
        const float* l = linear.const_data_ptr<float>();
        const float* sq = square.const_data_ptr<float>();
        std::vector<Choice> choices;
        for (int64_t i = 0, line = 0; i < n; ++i) {
          choices.clear();
          for (int64_t c = 0; c < count[at_(i)]; ++c, ++line) {
            // The best `beam` of one combination are enough: no more than that can be among the row's best.
            const double s2 = static_cast<double>(s[i]) * s[i];
            const size_t begin = choices.size();
            for (int64_t e = 0; e < k; ++e) {
              const double cost = base[at_(line)] + l[line * k + e] + s2 * sq[e];
              const auto kept = static_cast<int64_t>(choices.size() - begin);
              if (kept == beam && cost >= choices[begin].cost) continue;
              const auto worse = [](const Choice& a, const Choice& b) {
                return a.cost < b.cost || (a.cost == b.cost && a.entry < b.entry);
              };
              const auto first = choices.begin() + static_cast<std::ptrdiff_t>(begin);
              if (kept == beam) {
                std::pop_heap(first, choices.end(), worse);
                choices.pop_back();
              }
              choices.push_back({cost, c, static_cast<int32_t>(e)});
              std::push_heap(choices.begin() + static_cast<std::ptrdiff_t>(begin), choices.end(), worse);
            }
          }
          std::sort(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) {
            return a.cost < b.cost ||
                   (a.cost == b.cost && (a.from < b.from || (a.from == b.from && a.entry < b.entry)));
          });
          int64_t kept = 0;
          for (const Choice& choice : choices) {
            if (kept == beam) break;
            int32_t* to = next_lists.data() + (i * beam + kept) * books;
            std::copy_n(lists.data() + (i * beam + choice.from) * books, books, to);
            to[m] = choice.entry;
            bool twice = false;
            for (int64_t c = 0; c < kept && !twice; ++c)
              twice = std::equal(to, to + books, next_lists.data() + (i * beam + c) * books);
            if (!twice) ++kept;
          }
          next_count[at_(i)] = kept;
        }
        std::swap(lists, next_lists);
        std::swap(count, next_count);
      }
      // The winner replaces what is there when it is better in fp64; then the pull of the whole row follows.
      Tensor moved = at::zeros({n, width}, at::kFloat);
      float* d = moved.data_ptr<float>();
      bool any = false;
      for (int64_t i = 0; i < n; ++i) {
        int32_t* present = codes + i * groups * books;
        const int32_t* winner = lists.data() + i * beam * books;
        sum_of(present, q.data());
        sum_of(winner, change.data());
        for (int64_t j = 0; j < width; ++j) change[at_(j)] -= q[at_(j)];
        if (!(rise(i, change.data()) < 0)) continue;
        std::copy_n(winner, books, present);
        for (int64_t j = 0; j < width; ++j) d[i * width + j] = static_cast<float>(-change[at_(j)]) * s[i];
        any = true;
      }
      if (any) rows.addmm_(moved, hg);
    }
  });
}

// nearest_codes for so few rows that the distances to all entries of a book fit in memory.
static Tensor nearest_of_some(const Tensor& x, const Tensor& books, const Tensor& codes, int64_t beam) {
  const int64_t n = x.size(0), width = x.size(1), count = books.size(0), entries = books.size(1);
  const auto entry = [&](int64_t m, const Tensor& code) {
    std::vector<int64_t> shape = code.sizes().vec();
    shape.push_back(width);
    return books[m].index_select(0, code.flatten()).view(shape);
  };
  Tensor left = x.unsqueeze(1);  // what each combination of a row, [n, combinations], leaves of it
  for (int64_t m = 0; m < count; ++m) left = left - entry(m, codes.select(1, m)).unsqueeze(1);
  const Tensor before = left.select(1, 0).square().sum(1);
  Tensor lists = codes.unsqueeze(1);  // [n, combinations, M]
  for (int64_t m = 0; m < count; ++m) {
    left = left + entry(m, lists.select(2, m));
    // |left - c|^2 without a tensor of all differences
    const Tensor cost =
        left.square().sum(2, true) - 2 * at::matmul(left, books[m].t()) + books[m].square().sum(1);  // [n, b, entries]
    const int64_t kept = m + 1 == count ? 1 : std::min(beam, lists.size(1) * entries);
    const Tensor place = std::get<1>(cost.view({n, -1}).topk(kept, 1, /*largest=*/false));  // [n, kept]
    const Tensor from = place.div(entries, "floor"), chosen = place - from * entries;
    // No combination comes twice: those that go on differ in the books before, or in this one.
    lists = lists.gather(1, from.unsqueeze(2).expand({n, kept, count}));
    lists.select(2, m).copy_(chosen);
    left = left.gather(1, from.unsqueeze(2).expand({n, kept, width})) - entry(m, chosen);
  }
  const Tensor nearer = left.select(1, 0).square().sum(1).lt(before);
  return at::where(nearer.unsqueeze(1), lists.select(1, 0), codes);
}

Tensor nearest_codes(const Tensor& x, const Tensor& books, const Tensor& codes, int64_t beam) {
  const at::NoGradGuard no_grad;
  const int64_t rows = std::max<int64_t>(1, (int64_t{1} << 22) / (books.size(1) * (books.size(0) == 1 ? 1 : beam)));
  Tensor out = at::empty_like(codes);
  for (int64_t r = 0; r < x.size(0); r += rows) {
    const int64_t n = std::min(rows, x.size(0) - r);
    out.narrow(0, r, n).copy_(nearest_of_some(x.narrow(0, r, n), books, codes.narrow(0, r, n), beam));
  }
  return out;
}

NodePtr codebook_node(const CodebookParts& p) {
  const auto array = [](const Tensor& t, DType type, const char* what) {
    const Tensor flat = t.detach().to(at::kFloat).contiguous();
    return must(FloatArray::from(type, {flat.const_data_ptr<float>(), at_(flat.numel())}, what));
  };
  const int64_t books = p.books.size(0), entries = p.books.size(1);
  const int first = Codebook::first_code(entries);
  const Tensor codes = (p.codes.to(at::kInt) + first).to(at::kShort).contiguous();
  const auto width = std::max(1u, static_cast<unsigned>(std::bit_width(static_cast<uint64_t>(entries - 1))));
  const NodePtr book = must(Codebook::make(
      p.cols, books, entries, p.length,
      must(PackedCodes::pack(codes.size(0), codes.size(1), width, first,
                             std::span(codes.const_data_ptr<int16_t>(), at_(codes.numel())))),
      array(p.books, p.books_type, "books"), p.basis.defined() ? array(p.basis, p.basis_type, "basis") : FloatArray()));
  if (!p.scales.defined()) return book;
  return must(Scaled::make(book, Axis::rows, array(p.scales, p.scales_type, "scales")));
}

}  // namespace pith
