#include "entropy/codes.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/checked.h"
#include "base/hash.h"

namespace pith {

static constexpr int64_t kChunkCodes = 1 << 18;  ///< codes in a chunk: long enough to make 64 bytes of states cheap
static constexpr int64_t kLaneCodes = 1 << 13;   ///< fewer codes than this go on one lane
static constexpr int64_t kFewRows = 8;           ///< fewer rows say too little about a column for a term of its own
static constexpr int8_t kNoClass = -64;          ///< an all-zero row: class 0 whatever the column says

static unsigned lanes_of(int64_t rows, int64_t cols) { return rows * cols < kLaneCodes ? 1 : 16; }

// ---- classes
// -----------------------------------------------------------------------------------------------------------

CodeClasses fit_classes(const int16_t* codes, int64_t rows, int64_t cols) {
  std::vector<double> a(static_cast<size_t>(rows), 1), b(static_cast<size_t>(cols), 1);
  for (int round = 0; round < 3; ++round) {
    std::vector<double> col_sum(static_cast<size_t>(cols), 0);
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (int64_t c = 0; c < cols; ++c) {
        const double x = codes[r * cols + c];
        sum += x * x / b[static_cast<size_t>(c)];
      }
      const double mean = sum / static_cast<double>(cols);
      a[static_cast<size_t>(r)] = mean > 0 ? mean : 0;
      if (mean <= 0) continue;
      for (int64_t c = 0; c < cols; ++c) {
        const double x = codes[r * cols + c];
        col_sum[static_cast<size_t>(c)] += x * x / mean;
      }
    }
    for (int64_t c = 0; c < cols; ++c)
      // Half a code's weight of prior keeps a column of zeros at a small finite variance.
      if (rows >= kFewRows)
        b[static_cast<size_t>(c)] = (col_sum[static_cast<size_t>(c)] + 0.5) / (static_cast<double>(rows) + 0.5);
  }
  CodeClasses out;
  const auto quarter_octaves = [](double variance) { return static_cast<int>(std::lround(2 * std::log2(variance))); };
  for (const double v : a)
    out.row.push_back(v > 0 ? static_cast<int8_t>(std::clamp(quarter_octaves(v) + RansModel::kClassZero, -63, 127))
                            : kNoClass);
  for (const double v : b) out.col.push_back(static_cast<int8_t>(std::clamp(quarter_octaves(v), -100, 100)));
  return out;
}

// ---- side arrays (row and column classes): coded by the same tables as one row around their mean
// ------------------------

namespace {
struct Side {
  int8_t centre = 0;
  int8_t klass = 0;
  bool constant = true;
  std::vector<int16_t> residual;
};

Side centred(const std::vector<int8_t>& values) {
  Side side;
  double sum = 0;
  for (const int8_t v : values) sum += v;
  side.centre = static_cast<int8_t>(std::lround(sum / static_cast<double>(std::max<size_t>(values.size(), 1))));
  double energy = 0;
  for (const int8_t v : values) {
    side.residual.push_back(static_cast<int16_t>(v - side.centre));
    energy += static_cast<double>(side.residual.back()) * side.residual.back();
  }
  side.constant = energy == 0;
  const double variance = energy / static_cast<double>(std::max<size_t>(values.size(), 1));
  side.klass = static_cast<int8_t>(
      side.constant ? 0 : std::clamp<long>(std::lround(2 * std::log2(variance)) + RansModel::kClassZero, 0, 63));
  return side;
}

void put_varint(std::vector<std::byte>& out, uint64_t v) {
  for (; v >= 128; v >>= 7) out.push_back(static_cast<std::byte>(v | 128));
  out.push_back(static_cast<std::byte>(v));
}

struct Reader {
  std::span<const std::byte> bytes;
  size_t at = 0;
  bool failed = false;

  uint64_t varint() {
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 63; shift += 7) {
      const uint64_t b = byte();
      v |= (b & 127) << shift;
      if (b < 128) return v;
    }
    failed = true;
    return 0;
  }
  uint8_t byte() {
    if (at >= bytes.size()) {
      failed = true;
      return 0;
    }
    return static_cast<uint8_t>(bytes[at++]);
  }
  std::span<const std::byte> run(uint64_t n) {
    if (!in_range(at, n, bytes.size())) {
      failed = true;
      return {};
    }
    const auto out = bytes.subspan(at, n);
    at += n;
    return out;
  }
};

void put_side(const RansModel& model, const std::vector<int8_t>& values, std::vector<std::byte>& out) {
  const Side side = centred(values);
  out.push_back(static_cast<std::byte>(side.centre));
  out.push_back(static_cast<std::byte>(side.klass));
  std::vector<std::byte> coded;
  if (!side.constant) {
    const std::vector<int8_t> flat(values.size(), 0);
    rans_encode(model, side.residual.data(), 1, static_cast<int64_t>(values.size()), &side.klass, flat.data(), 1,
                coded);
  }
  put_varint(out, coded.size());
  out.insert(out.end(), coded.begin(), coded.end());
}

bool get_side(const RansModel& model, Reader& in, int64_t n, std::vector<int8_t>& values) {
  const auto centre = static_cast<int8_t>(in.byte());
  const auto klass = static_cast<int8_t>(in.byte());
  const auto coded = in.run(in.varint());
  if (in.failed) return false;
  values.assign(static_cast<size_t>(n), centre);
  if (coded.empty()) return true;
  const std::vector<int8_t> flat(values.size(), 0);
  std::vector<int16_t> residual(values.size());
  if (!rans_decode(model, coded, 1, n, &klass, flat.data(), 1, residual.data())) return false;
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int8_t>(centre + residual[i]);
  return true;
}
}  // namespace

// ---- RansCodes
// -----------------------------------------------------------------------------------------------------------

static uint64_t next_id() {
  static std::atomic<uint64_t> counter{1};
  return counter++;
}

bool RansCodes::decode_chunk(int64_t chunk, int16_t* out) const {
  const auto i = static_cast<size_t>(chunk);
  const size_t begin = i == 0 ? chunks_begin_ : chunk_end_[i - 1];
  const int64_t r0 = chunk * chunk_rows_;
  const int64_t n = std::min(chunk_rows_, rows_ - r0);
  return rans_decode(*model_, stream_.view.subspan(begin, chunk_end_[i] - begin), n, cols_, classes_.row.data() + r0,
                     classes_.col.data(), lanes_, out);
}

void RansCodes::read_rows(int64_t r0, int64_t r1, int16_t* out) const {
  // Readers come by small tiles; the last chunk of each thread is kept so that every chunk is decoded once.
  thread_local uint64_t cached_id = 0;
  thread_local int64_t cached_chunk = -1;
  thread_local std::vector<int16_t> cache;
  while (r0 < r1) {
    const int64_t chunk = r0 / chunk_rows_;
    const int64_t first = chunk * chunk_rows_;
    const int64_t last = std::min(first + chunk_rows_, rows_);
    if (r0 == first && r1 >= last) {
      decode_chunk(chunk, out);
      out += (last - first) * cols_;
      r0 = last;
      continue;
    }
    if (cached_id != id_ || cached_chunk != chunk) {
      cache.resize(static_cast<size_t>((last - first) * cols_));
      decode_chunk(chunk, cache.data());
      cached_id = id_;
      cached_chunk = chunk;
    }
    const int64_t end = std::min(r1, last);
    std::copy_n(cache.data() + (r0 - first) * cols_, (end - r0) * cols_, out);
    out += (end - r0) * cols_;
    r0 = end;
  }
}

bool RansCodes::intact() const {
  std::vector<int16_t> codes(static_cast<size_t>(chunk_rows_ * cols_));
  for (int64_t chunk = 0; chunk < static_cast<int64_t>(chunk_end_.size()); ++chunk)
    if (!decode_chunk(chunk, codes.data())) return false;
  return true;
}

BitReport RansCodes::bits() const {
  BitReport report;
  report.payload = (stream_.size() - chunks_begin_) * 8;
  report.scales = chunks_begin_ * 8;  // classes and chunk lengths
  return report;
}

nlohmann::json RansCodes::serialize(const std::string& prefix, SectionSink& sink) const {
  auto tables = model_->serialize();
  const auto size = static_cast<int64_t>(tables.size());
  // The key says which tables: matrices out of two builders may meet in one model.
  const std::string key = "rans-" + hash_hex(tables).substr(0, 8);
  const std::string shared = sink.add_shared(key, DType::u8, {size}, Bytes::own(std::move(tables)));
  sink.add(prefix + ".codes", DType::u8, {static_cast<int64_t>(stream_.size())}, stream_);
  return {{"codes", "rans"}, {"section", prefix + ".codes"}, {"tables", shared}};
}

Result<CodesPtr> RansCodes::parse(const nlohmann::json& tree, int64_t rows, int64_t cols, const ParseContext& context) {
  const auto name = [&](const char* key) -> std::string {
    const auto it = tree.find(key);
    return it != tree.end() && it->is_string() ? it->get<std::string>() : std::string();
  };
  PITH_ASSIGN(Section tables, context.sections.find(name("tables")));
  PITH_ASSIGN(Section stream, context.sections.find(name("section")));
  // All matrices of a model share one table; parsing it once a matrix would cost more than the rest of opening.
  thread_local std::weak_ptr<const RansModel> last_model;
  thread_local std::vector<std::byte> last_bytes;
  auto model = last_model.lock();
  if (model == nullptr || !std::ranges::equal(last_bytes, tables.data.view)) {
    PITH_ASSIGN(model, RansModel::parse(tables.data.view));
    last_model = model;
    last_bytes.assign(tables.data.view.begin(), tables.data.view.end());
  }
  std::shared_ptr<RansCodes> codes(new RansCodes(rows, cols));
  codes->model_ = std::move(model);
  codes->stream_ = std::move(stream.data);
  codes->id_ = next_id();
  PITH_TRY(codes->parse_stream(context.limits).context(name("section")));
  return CodesPtr(std::move(codes));
}

// Section: lanes (1 byte), rows a chunk (varint), row classes, column classes, length of each chunk (varint), chunks.
// A side array: centre, class (1 byte each), coded length (varint; 0 = constant), coded.
Status RansCodes::parse_stream(const Limits&) {
  Reader in{stream_.view};
  lanes_ = in.byte();
  chunk_rows_ = static_cast<int64_t>(in.varint());
  if (in.failed || (lanes_ != 1 && lanes_ != 16) || rows_ < 1 || cols_ < 1 || chunk_rows_ < 1 || chunk_rows_ > rows_)
    return data_error("entropy-coded codes: broken header");
  // A chunk holds at least one row and, with several rows, no more codes than the writer puts in one: this bounds what
  // a reader allocates by the matrix itself.
  const auto chunk_codes = checked_mul(static_cast<uint64_t>(chunk_rows_), static_cast<uint64_t>(cols_));
  if (!chunk_codes || (chunk_rows_ > 1 && *chunk_codes > 4u * kChunkCodes))
    return data_error("entropy-coded codes: chunks of " + std::to_string(chunk_rows_) + " rows are too long");
  // Every chunk has a length and at least one coder state: together with the bounds on columns and rows this keeps the
  // arrays of classes in proportion, whatever rows and columns the tree claims.
  const auto chunks = ceil_div(static_cast<uint64_t>(rows_), static_cast<uint64_t>(chunk_rows_));
  if (chunks > stream_.size()) return data_error("entropy-coded codes: cut short");
  if (rows_ > int64_t{1} << 26 || cols_ > int64_t{1} << 24)
    return data_error("entropy-coded codes: a matrix of " + std::to_string(rows_) + " x " + std::to_string(cols_) +
                      " is too large");
  if (!get_side(*model_, in, rows_, classes_.row) || !get_side(*model_, in, cols_, classes_.col))
    return data_error("entropy-coded codes: broken row or column classes");
  std::vector<uint64_t> length(chunks);
  for (uint64_t& l : length) l = in.varint();
  if (in.failed) return data_error("entropy-coded codes: broken chunk lengths");
  chunks_begin_ = in.at;
  uint64_t at = in.at;
  for (const uint64_t l : length) {
    if (!in_range(at, l, stream_.size())) return data_error("entropy-coded codes: a chunk runs past the section");
    at += l;
    chunk_end_.push_back(at);
  }
  if (at != stream_.size()) return data_error("entropy-coded codes: bytes left over after the last chunk");
  return {};
}

// ---- builder
// -------------------------------------------------------------------------------------------------------------

CodeClasses CodeModelBuilder::add(const int16_t* codes, int64_t rows, int64_t cols) {
  CodeClasses classes = fit_classes(codes, rows, cols);
  count(codes, rows, cols, classes);
  return classes;
}

void CodeModelBuilder::count(const int16_t* codes, int64_t rows, int64_t cols, const CodeClasses& classes) {
  // Counting in a plain array is far faster than in a map.
  static constexpr int kSpan = 512;
  std::vector<uint32_t> counts(static_cast<size_t>(RansModel::kClasses) * kSpan, 0);
  std::vector<std::pair<int, int>> rare;  // class and code
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      const int k = code_class(classes.row[static_cast<size_t>(r)], classes.col[static_cast<size_t>(c)]);
      const int code = codes[r * cols + c];
      if (code >= -kSpan / 2 && code < kSpan / 2)
        ++counts[static_cast<size_t>(k * kSpan + code + kSpan / 2)];
      else
        rare.emplace_back(k, code);
    }
  const Side sides[] = {centred(classes.row), centred(classes.col)};
  const std::lock_guard lock(mutex_);
  for (const Side& side : sides) {
    fixed_bits_ += side.constant ? 24 : 24 + 8 + 32;
    if (side.constant) continue;
    for (const int16_t v : side.residual) ++histogram_[static_cast<size_t>(side.klass)][v];
  }
  fixed_bits_ += 32 + lanes_of(rows, cols) * 32 * ceil_div(static_cast<uint64_t>(rows * cols), kChunkCodes);
  for (const auto& [k, code] : rare) ++histogram_[static_cast<size_t>(k)][code];
  for (int k = 0; k < RansModel::kClasses; ++k)
    for (int i = 0; i < kSpan; ++i)
      if (const uint32_t n = counts[static_cast<size_t>(k * kSpan + i)]; n != 0)
        histogram_[static_cast<size_t>(k)][i - kSpan / 2] += n;
}

double CodeModelBuilder::estimated_bits() const {
  double bits = static_cast<double>(fixed_bits_);
  std::vector<CodeTable> tables;
  for (const auto& histogram : histogram_) {
    tables.push_back(CodeTable::fit(histogram));
    for (const auto& [code, count] : histogram) bits += static_cast<double>(count) * tables.back().cost(code);
  }
  return bits + 8.0 * static_cast<double>(RansModel(std::move(tables)).serialize().size());
}

void CodeModelBuilder::finish() {
  std::vector<CodeTable> tables;
  for (const auto& histogram : histogram_) tables.push_back(CodeTable::fit(histogram));
  model_ = std::make_shared<const RansModel>(std::move(tables));
}

CodesPtr CodeModelBuilder::encode(const int16_t* codes, int64_t rows, int64_t cols, const CodeClasses& classes) const {
  std::shared_ptr<RansCodes> out(new RansCodes(rows, cols));
  out->model_ = model_;
  out->classes_ = classes;
  out->lanes_ = lanes_of(rows, cols);
  out->chunk_rows_ = std::clamp<int64_t>(kChunkCodes / cols, 1, rows);
  out->id_ = next_id();
  std::vector<std::byte> stream;
  stream.push_back(static_cast<std::byte>(out->lanes_));
  put_varint(stream, static_cast<uint64_t>(out->chunk_rows_));
  put_side(*model_, classes.row, stream);
  put_side(*model_, classes.col, stream);
  std::vector<std::byte> chunks;
  std::vector<size_t> ends;
  for (int64_t r0 = 0; r0 < rows; r0 += out->chunk_rows_) {
    const int64_t n = std::min(out->chunk_rows_, rows - r0);
    const size_t before = chunks.size();
    rans_encode(*model_, codes + r0 * cols, n, cols, classes.row.data() + r0, classes.col.data(), out->lanes_, chunks);
    put_varint(stream, chunks.size() - before);
    ends.push_back(chunks.size());
  }
  out->chunks_begin_ = stream.size();
  for (const size_t e : ends) out->chunk_end_.push_back(out->chunks_begin_ + e);
  stream.insert(stream.end(), chunks.begin(), chunks.end());
  out->stream_ = Bytes::own(std::move(stream));
  return out;
}

std::vector<CodesFormat> entropy_codes_formats() { return {{"rans", &RansCodes::parse}}; }

}  // namespace pith
