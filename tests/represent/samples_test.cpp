// The makers of tests/represent/samples.h.
#include "represent/samples.h"

#include "entropy/codes.h"
#include "formats/ggml_blocks.h"

namespace pith::test {

namespace {

using std::vector;

template <class T>
T must(Result<T> result) {
  if (!result.ok()) {
    ADD_FAILURE() << result.error().message;
    std::abort();
  }
  return std::move(result).value();
}

DType some_float(Random& random) {
  constexpr DType kTypes[] = {DType::f16, DType::bf16, DType::f32};
  return kTypes[random.between(0, 2)];
}

// A value as storing it in `type` leaves it.
float rounded(float v, DType type) {
  if (type == DType::f16) return half_to_float(float_to_half(v));
  if (type == DType::bf16) return bf16_to_float(float_to_bf16(v));
  return v;
}

vector<float> some_reals(Random& random, int64_t n, DType type) {
  vector<float> values(static_cast<size_t>(n));
  for (float& v : values) v = rounded(random.real(), type);
  return values;
}

size_t at(int64_t i) { return static_cast<size_t>(i); }

vector<double> as_double(const vector<float>& v) { return {v.begin(), v.end()}; }

// ---- leaves -------------------------------------------------------------------------------------

Sample dense(Random& random, int64_t rows, int64_t cols, int) {
  const DType type = some_float(random);
  const auto values = some_reals(random, rows * cols, type);
  return {must(Dense::from(type, rows, cols, values)), as_double(values)};
}

Sample blocks(Random& random, int64_t rows, int64_t cols, int) {
  // Q8_0 and Q4_0 by hand: fp16 step d, then 32 codes. Q4_0 keeps value i in the low and i + 16 in the high nibble of
  // byte i.
  if (cols % 32 != 0) return {};
  const bool wide = random.coin();
  vector<std::byte> data;
  vector<double> reference(at(rows * cols));
  for (int64_t b = 0; b < rows * cols / 32; ++b) {
    const uint16_t d = float_to_half(random.real());
    data.push_back(static_cast<std::byte>(d & 255));
    data.push_back(static_cast<std::byte>(d >> 8));
    for (int i = 0; i < (wide ? 32 : 16); ++i) {
      const auto byte = static_cast<uint8_t>(random.next());
      data.push_back(static_cast<std::byte>(byte));
      const double step = half_to_float(d);
      if (wide) {
        reference[at(b * 32 + i)] = step * static_cast<int8_t>(byte);
      } else {
        reference[at(b * 32 + i)] = step * ((byte & 15) - 8);
        reference[at(b * 32 + i + 16)] = step * ((byte >> 4) - 8);
      }
    }
  }
  return {must(Blocks::make(wide ? GgmlType::q8_0 : GgmlType::q4_0, rows, cols, Bytes::own(std::move(data)))),
          std::move(reference)};
}

struct SomeCodes {
  CodesPtr codes;
  vector<int> values;
};

// Codes in [low, high]; the width leaves room when it is not a whole number of bits.
SomeCodes some_codes(Random& random, int64_t rows, int64_t cols, int low, int high) {
  unsigned width = 1;
  while ((1 << width) <= high - low) ++width;
  vector<int16_t> raw(at(rows * cols));
  for (auto& v : raw) v = static_cast<int16_t>(random.between(low, high));
  if (random.between(1, 12) == 1) {  // the other kind of codes
    CodeModelBuilder builder;
    const CodeClasses classes = builder.add(raw.data(), rows, cols);
    builder.finish();
    return {builder.encode(raw.data(), rows, cols, classes), {raw.begin(), raw.end()}};
  }
  return {must(PackedCodes::pack(rows, cols, width, low, raw)), {raw.begin(), raw.end()}};
}

struct SomeField {
  FieldPtr field;
  vector<double> values;  // [rows, cols]
};

SomeField some_field(Random& random, int64_t rows, int64_t cols) {
  SomeField out;
  out.values.resize(at(rows * cols));
  const int64_t group = random.coin() ? cols : random.between(1, cols);
  const int64_t groups = (cols + group - 1) / group;
  switch (random.between(0, 3)) {
    case 0: {
      const DType type = some_float(random);
      const auto v = some_reals(random, rows * groups, type);
      out.field = must(AffineField::from(rows, cols, group, type, v));
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c) out.values[at(r * cols + c)] = v[at(r * groups + c / group)];
      break;
    }
    case 1: {
      const DType type = some_float(random);
      const auto v = some_reals(random, groups, type);
      out.field = must(AffineField::from(rows, cols, group, type, v, true));
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c) out.values[at(r * cols + c)] = v[at(c / group)];
      break;
    }
    case 2: {
      const int64_t stat_group = random.between(1, rows), tiles = (rows + stat_group - 1) / stat_group;
      const auto codes = some_codes(random, rows, groups, 0, (1 << random.between(1, 8)) - 1);
      const auto stats = some_reals(random, 2 * tiles * groups, DType::f16);
      out.field = must(TwoLevelField::make(cols, group, stat_group, codes.codes,
                                           must(FloatArray::from(DType::f16, stats, "stats"))));
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c) {
          const int64_t g = c / group, tile = r / stat_group;
          const float difference =
              static_cast<float>(codes.values[at(r * groups + g)]) - stats[at((tiles + tile) * groups + g)];
          out.values[at(r * cols + c)] = static_cast<float>(stats[at(tile * groups + g)] * difference);
        }
      break;
    }
    default: {
      vector<uint8_t> row(at(rows)), col(at(cols));
      for (auto& v : row) v = static_cast<uint8_t>(random.between(0, 120));
      for (auto& v : col) v = static_cast<uint8_t>(random.between(0, 120));
      const float base = 0.001f + std::abs(random.real());
      out.field = must(RowColField::make(base, row, col));
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c)
          out.values[at(r * cols + c)] =
              static_cast<float>(static_cast<double>(base) * std::exp2((row[at(r)] + col[at(c)]) / 16.0));
    }
  }
  return out;
}

Sample grid(Random& random, int64_t rows, int64_t cols, int) {
  const auto width = static_cast<int>(random.between(1, random.coin() ? 4 : 14));
  vector<float> levels;
  SomeCodes codes;
  if (random.coin()) {
    for (int64_t n = random.between(1, 1 << std::min(width, 8)); n > 0; --n) levels.push_back(random.real());
    codes = some_codes(random, rows, cols, 0, static_cast<int>(levels.size()) - 1);
  } else {
    const auto low = static_cast<int>(random.between(-200, 10));
    codes = some_codes(random, rows, cols, low, low + (1 << width) - 1);
  }
  const SomeField scale = some_field(random, rows, cols);
  SomeField zero;
  if (random.coin()) zero = some_field(random, rows, cols);
  Sample sample;
  for (size_t i = 0; i < codes.values.size(); ++i) {
    const double level = levels.empty() ? codes.values[i] : levels[at(codes.values[i])];
    const auto difference = static_cast<float>(level - (zero.field ? zero.values[i] : 0.0));
    sample.reference.push_back(static_cast<float>(scale.values[i] * difference));
  }
  sample.node = must(Grid::make(codes.codes, levels, scale.field, zero.field));
  return sample;
}

Sample codebook(Random& random, int64_t rows, int64_t cols, int) {
  const int64_t length = random.between(1, std::min<int64_t>(cols, 8)), groups = (cols + length - 1) / length;
  const int64_t books = random.between(1, 3), entries = random.between(1, 20);
  const bool with_basis = random.coin();
  const int64_t width = with_basis ? random.between(1, 4) : length;
  const DType type = some_float(random);
  const auto codes = some_codes(random, rows, groups * books, 0, static_cast<int>(entries) - 1);
  const auto book = some_reals(random, books * entries * width, type);
  const auto basis = some_reals(random, width * length, type);
  Sample sample;
  sample.exact = false;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t g = c / length, i = c % length;
      double sum = 0;
      for (int64_t m = 0; m < books; ++m) {
        const int64_t entry = (m * entries + codes.values[at((r * groups + g) * books + m)]) * width;
        if (!with_basis) sum += book[at(entry + i)];
        for (int64_t k = 0; with_basis && k < width; ++k)
          sum += static_cast<double>(book[at(entry + k)]) * basis[at(k * length + i)];
      }
      sample.reference.push_back(sum);
    }
  sample.node = must(Codebook::make(cols, books, entries, length, codes.codes, must(FloatArray::from(type, book, "b")),
                                    with_basis ? must(FloatArray::from(type, basis, "b")) : FloatArray()));
  return sample;
}

Sample csr(Random& random, int64_t rows, int64_t cols, int) {
  const DType type = some_float(random);
  const int64_t one_in = random.between(1, 12);
  vector<uint32_t> start = {0}, columns;
  vector<float> values;
  Sample sample;
  sample.reference.assign(at(rows * cols), 0.0);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c)
      if (random.between(1, one_in) == 1) {
        columns.push_back(static_cast<uint32_t>(c));
        values.push_back(rounded(random.real(), type));
        sample.reference[at(r * cols + c)] = values.back();
      }
    start.push_back(static_cast<uint32_t>(columns.size()));
  }
  sample.node = must(Csr::from(rows, cols, start, columns, values, type));
  return sample;
}

Sample bitmap(Random& random, int64_t rows, int64_t cols, int) {
  const DType type = some_float(random);
  auto values = some_reals(random, rows * cols, type);
  for (float& v : values)
    if (random.coin()) v = 0;
  return {must(Bitmap::from(rows, cols, values, type)), as_double(values)};
}

Sample nmask(Random& random, int64_t rows, int64_t cols, int depth) {
  const int m = static_cast<int>(random.between(1, 16)), n = static_cast<int>(random.between(1, m));
  if (cols % m != 0) return {};
  const int64_t groups = cols / m;
  const auto count = static_cast<int>(nm_patterns(n, m).size()) / n;
  const auto codes = some_codes(random, rows, groups, 0, count - 1);
  const Sample values = any_sample(random, rows, groups * n, depth - 1);
  // The subset with number p in lexicographic order, by trying all subsets of m columns.
  vector<vector<int>> subsets;
  for (int bits = 0; bits < 1 << m; ++bits) {
    vector<int> set;
    for (int i = 0; i < m; ++i)
      if (bits >> i & 1) set.push_back(i);
    if (static_cast<int>(set.size()) == n) subsets.push_back(set);
  }
  std::sort(subsets.begin(), subsets.end());
  Sample sample{must(NMask::make(n, m, codes.codes, values.node)), vector<double>(at(rows * cols), 0.0), values.exact};
  for (int64_t g = 0; g < rows * groups; ++g)
    for (int i = 0; i < n; ++i)
      sample.reference[at(g * m + subsets[at(codes.values[at(g)])][at(i)])] = values.reference[at(g * n + i)];
  return sample;
}

// ---- combinators --------------------------------------------------------------------------------

Sample low_rank(Random& random, int64_t rows, int64_t cols, int depth) {
  const int64_t rank = random.between(1, 5);
  const Sample u = any_sample(random, rows, rank, depth - 1), v = any_sample(random, rank, cols, depth - 1);
  NodePtr mean;
  if (random.coin()) mean = dense(random, 1, rows, 0).node;
  Sample sample{must(LowRank::make(u.node, v.node, mean)), {}, false};
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      double sum = 0;
      for (int64_t k = 0; k < rank; ++k) sum += u.reference[at(r * rank + k)] * v.reference[at(k * cols + c)];
      sample.reference.push_back(sum);
    }
  return sample;
}

Sample prefix(Random& random, int64_t rows, int64_t cols, int depth) {
  const int64_t full = random.between(1, 5), rank = random.between(0, full);
  const Sample u = any_sample(random, rows, full, depth - 1), v = any_sample(random, full, cols, depth - 1);
  Sample sample{must(Prefix::make(must(LowRank::make(u.node, v.node)), rank)), {}, false};
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      double sum = 0;
      for (int64_t k = 0; k < rank; ++k) sum += u.reference[at(r * full + k)] * v.reference[at(k * cols + c)];
      sample.reference.push_back(sum);
    }
  return sample;
}

Sample sum(Random& random, int64_t rows, int64_t cols, int depth) {
  vector<NodePtr> terms;
  vector<double> reference(at(rows * cols), 0.0);
  for (int64_t n = random.between(2, 3); n > 0; --n) {
    const Sample term = any_sample(random, rows, cols, depth - 1);
    for (size_t i = 0; i < reference.size(); ++i) reference[i] += term.reference[i];
    terms.push_back(term.node);
  }
  return {must(Sum::make(std::move(terms))), std::move(reference), false};
}

Sample override_(Random& random, int64_t rows, int64_t cols, int depth) {
  Sample base = any_sample(random, rows, cols, depth - 1);
  const Sample sparse = csr(random, rows, cols, 0);
  // Which entries are replaced, zeros included, is asked of the node's own lists.
  const auto& lists = static_cast<const Csr&>(*sparse.node);
  for (int64_t r = 0; r < rows; ++r)
    for (uint32_t i = lists.row_start()[at(r)]; i < lists.row_start()[at(r) + 1]; ++i) {
      const int64_t c = lists.columns()[i];
      base.reference[at(r * cols + c)] = sparse.reference[at(r * cols + c)];
    }
  return {must(Override::make(base.node, sparse.node)), std::move(base.reference), base.exact};
}

Sample permuted(Random& random, int64_t rows, int64_t cols, int depth) {
  const Sample child = any_sample(random, rows, cols, depth - 1);
  const Axis axis = random.coin() ? Axis::rows : Axis::cols;
  vector<uint32_t> order(at(axis == Axis::rows ? rows : cols));
  std::iota(order.begin(), order.end(), 0u);
  for (size_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[at(random.between(0, static_cast<int64_t>(i) - 1))]);
  Sample sample{must(Permuted::from(child.node, axis, order)), vector<double>(at(rows * cols)), child.exact};
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      (axis == Axis::rows ? sample.reference[at(order[at(r)] * cols + c)]
                          : sample.reference[at(r * cols + order[at(c)])]) = child.reference[at(r * cols + c)];
  return sample;
}

Sample scaled(Random& random, int64_t rows, int64_t cols, int depth) {
  const Sample child = any_sample(random, rows, cols, depth - 1);
  const Axis axis = random.coin() ? Axis::rows : Axis::cols;
  const DType type = some_float(random);
  const auto scales = some_reals(random, axis == Axis::rows ? rows : cols, type);
  Sample sample{must(Scaled::make(child.node, axis, must(FloatArray::from(type, scales, "scales")))), {}, false};
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      sample.reference.push_back(child.reference[at(r * cols + c)] * scales[at(axis == Axis::rows ? r : c)]);
  return sample;
}

Sample depth_line(Random& random, int64_t rows, int64_t cols, int depth) {
  const Sample a = any_sample(random, rows, cols, depth - 1), b = any_sample(random, rows, cols, depth - 1);
  const float t = random.real();
  Sample sample{must(DepthLine::make(a.node, b.node, t)), {}, false};
  for (size_t i = 0; i < a.reference.size(); ++i)
    sample.reference.push_back(a.reference[i] + static_cast<double>(t) * b.reference[i]);
  return sample;
}

Sample dynamic_int8(Random& random, int64_t rows, int64_t cols, int depth) {
  Sample child = any_sample(random, rows, cols, depth - 1);
  child.node = must(DynamicInt8::make(child.node, random.coin() ? 6.0f : 0.0f));
  return child;
}

constexpr SampleMaker kSamples[] = {
    {"bitmap", bitmap},
    {"blocks", blocks},
    {"codebook", codebook},
    {"csr", csr},
    {"dense", dense},
    {"depth_line", depth_line},
    {"dynamic_int8", dynamic_int8},
    {"grid", grid},
    {"low_rank", low_rank},
    {"nmask", nmask},
    {"override", override_},
    {"permuted", permuted},
    {"prefix", prefix},
    {"scaled", scaled},
    {"sum", sum},
};
constexpr std::string_view kLeaves[] = {"bitmap", "blocks", "codebook", "csr", "dense", "grid"};

}  // namespace

std::span<const SampleMaker> sample_makers() { return kSamples; }

Sample any_sample(Random& random, int64_t rows, int64_t cols, int depth) {
  for (;;) {
    const SampleMaker& maker = kSamples[random.between(0, std::size(kSamples) - 1)];
    const bool leaf = std::find(std::begin(kLeaves), std::end(kLeaves), maker.kind) != std::end(kLeaves);
    if (depth <= 0 && !leaf) continue;
    Sample sample = maker.make(random, rows, cols, depth);
    if (sample.node != nullptr) return sample;
  }
}

}  // namespace pith::test
