#include "runtime/kv_segment.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "kernels/ops.h"

namespace pith {

KvPositions::KvPositions(std::span<const int32_t> positions) {
  for (const int32_t p : positions) push(p);
}

void KvPositions::copy(int64_t i0, int64_t i1, int32_t* out) const {
  for (int64_t i = i0; i < i1; ++i) *out++ = (*this)[i];
}

void KvPositions::push(int32_t position) {
  if (size_ == 0) first_ = position;
  if (list_.empty() && position != first_ + size_) {
    list_.reserve(static_cast<size_t>(size_) + 1);
    for (int64_t i = 0; i < size_; ++i) list_.push_back(first_ + static_cast<int32_t>(i));
  }
  if (!list_.empty() || position != first_ + size_) list_.push_back(position);
  ++size_;
}

void KvPositions::drop_first(int64_t count) {
  if (list_.empty()) {
    first_ += static_cast<int32_t>(count);
    size_ -= count;
    return;
  }
  // Built anew: what remains may have no gaps.
  *this = KvPositions(std::span(list_).subspan(static_cast<size_t>(count)));
}

void KvPositions::keep_first(int64_t count) {
  if (list_.empty()) {
    size_ = count;
  } else {
    *this = KvPositions(std::span(list_).first(static_cast<size_t>(count)));
  }
}

int64_t KvPositions::count_before(int32_t position) const {
  if (list_.empty()) return std::clamp<int64_t>(int64_t{position} - first_, 0, size_);
  return std::lower_bound(list_.begin(), list_.end(), position) - list_.begin();
}

int64_t KvFormat::group() const { return kind == Kind::coded && keys.by_channel ? keys.group : 1; }

static double grid_bytes(const KvGrid& g, int64_t dim) {
  const double scales =
      static_cast<double>(kv_scales(g, g.by_channel ? g.group : 1, dim)) / (g.by_channel ? g.group : 1);
  return static_cast<double>(kv_row_bytes(g, dim)) + scales * (g.centred ? 2 : 4);
}

double KvFormat::bytes_per_token(KvWidths width) const {
  if (kind != Kind::coded) return static_cast<double>(width.key + width.value) * (kind == Kind::f32 ? 4 : 2);
  return grid_bytes(keys, width.key) + grid_bytes(values, width.value);
}

Status KvFormat::check(KvWidths width) const {
  if (kind != Kind::coded) return {};
  for (const auto& [grid, dim, what] : {std::tuple{keys, width.key, "keys"}, {values, width.value, "values"}}) {
    if (!kv_grid_fits(grid, dim)) {
      return user_error(fmt::format(
          "{} of {} channels cannot be stored in {} bits with groups of {}: there are 2, 4 and 8 bits, groups "
          "within a token are multiples of 64 / bits channels, and heads have at most {}",
          what, dim, grid.bits, grid.group, kKvMaxDim));
    }
  }
  if (values.by_channel) return bug_error("KV format: values are rounded token by token");
  return {};
}

namespace {

template <class T>
void put(std::string& out, const std::vector<T>& v) {
  out.append(reinterpret_cast<const char*>(v.data()), v.size() * sizeof(T));
}

enum Flag : uint8_t { kGapless = 1, kRotated = 2, kByChannel = 4, kKeysCentred = 8, kValuesCentred = 16, kBias = 32 };

struct Header {
  uint8_t kind, key_bits, value_bits, flags;
  uint16_t key_group, value_group;
  uint32_t count;
  int32_t first;
};
static_assert(sizeof(Header) == kKvSegmentHeader);

void write_head(const KvFormat& f, const KvPositions& positions, bool bias, std::string& out) {
  Header h{static_cast<uint8_t>(f.kind),
           f.keys.bits,
           f.values.bits,
           static_cast<uint8_t>((positions.gapless() ? kGapless : 0) | (f.rotated ? kRotated : 0) |
                                (f.keys.by_channel ? kByChannel : 0) | (f.keys.centred ? kKeysCentred : 0) |
                                (f.values.centred ? kValuesCentred : 0) | (bias ? kBias : 0)),
           f.keys.group,
           f.values.group,
           static_cast<uint32_t>(positions.size()),
           positions.size() > 0 ? positions[0] : 0};
  out.append(reinterpret_cast<const char*>(&h), sizeof h);
  if (positions.gapless()) return;
  for (int64_t i = 0; i < positions.size(); ++i) {
    const int32_t p = positions[i];
    out.append(reinterpret_cast<const char*>(&p), sizeof p);
  }
}

// Grows by an eighth: what is reserved but unused stays small beside what is held.
template <class T>
void grow(std::vector<T>& v, size_t more) {
  if (v.size() + more > v.capacity()) v.reserve(v.size() + more + v.size() / 8);
  v.resize(v.size() + more);
}

template <class T>
Status take(std::string_view& in, size_t count, std::vector<T>& out) {
  if (in.size() / sizeof(T) < count)
    return data_error(fmt::format("cache file: {} bytes of rows expected, {} are left: it is cut short",
                                  count * sizeof(T), in.size()));
  out.resize(count);
  std::memcpy(out.data(), in.data(), count * sizeof(T));
  in.remove_prefix(count * sizeof(T));
  return {};
}

}  // namespace

void KvPlain::decode(int64_t i0, int64_t i1, float* keys, float* values) const {
  const int64_t n = i1 - i0;
  if (format_.kind == KvFormat::Kind::f32) {
    std::copy_n(k32_.data() + i0 * width_.key, n * width_.key, keys);
    std::copy_n(v32_.data() + i0 * width_.value, n * width_.value, values);
  } else {
    const Ops& o = ops(default_isa());
    o.half_to_f32(k16_.data() + i0 * width_.key, n * width_.key, keys);
    o.half_to_f32(v16_.data() + i0 * width_.value, n * width_.value, values);
  }
}

bool KvPlain::plain(const float** keys, const float** values) const {
  if (format_.kind != KvFormat::Kind::f32) return false;
  *keys = k32_.data();
  *values = v32_.data();
  return true;
}

uint64_t KvPlain::row_bytes() const { return (k32_.size() + v32_.size()) * 4 + (k16_.size() + v16_.size()) * 2; }

void KvPlain::write_rows(std::string& out) const { put(out, k32_), put(out, v32_), put(out, k16_), put(out, v16_); }

Status KvPlain::read_rows(int64_t count, std::string_view& in) {
  const auto keys = static_cast<size_t>(count * width_.key), values = static_cast<size_t>(count * width_.value);
  const bool wide = format_.kind == KvFormat::Kind::f32;
  PITH_TRY(wide ? take(in, keys, k32_) : take(in, keys, k16_));
  return wide ? take(in, values, v32_) : take(in, values, v16_);
}

void KvPlain::push_rows(int64_t n, const float* keys, const float* values) {
  const Ops& o = ops(default_isa());
  const auto add = [&](const float* rows, int64_t width, std::vector<float>& wide, std::vector<uint16_t>& narrow) {
    const auto count = static_cast<size_t>(n * width);
    if (format_.kind == KvFormat::Kind::f32) {
      wide.insert(wide.end(), rows, rows + count);
    } else {
      narrow.resize(narrow.size() + count);
      o.f32_to_half(rows, static_cast<int64_t>(count), narrow.data() + narrow.size() - count);
    }
  };
  add(keys, width_.key, k32_, k16_);
  add(values, width_.value, v32_, v16_);
}

void KvPlain::drop_from(int32_t position) {
  const int64_t keep = positions_.count_before(position);
  positions_.keep_first(keep);
  bias_.resize(std::min(bias_.size(), static_cast<size_t>(keep)));
  const auto cut = [&](auto& v, int64_t width) { v.resize(std::min(v.size(), static_cast<size_t>(keep * width))); };
  cut(k32_, width_.key), cut(v32_, width_.value), cut(k16_, width_.key), cut(v16_, width_.value);
}

void KvPlain::drop_first(int64_t count) {
  positions_.drop_first(count);
  if (!bias_.empty()) bias_.erase(bias_.begin(), bias_.begin() + count);
  // Memory goes back when much is dropped at once, as after a prompt; a window that slides keeps its own.
  const auto cut = [&](auto& v, int64_t width) {
    if (v.empty()) return;
    v.erase(v.begin(), v.begin() + count * width);
    if (v.capacity() > 4096 && v.size() < v.capacity() / 2) v.shrink_to_fit();
  };
  cut(k32_, width_.key), cut(v32_, width_.value), cut(k16_, width_.key), cut(v16_, width_.value);
}

namespace {

// Codes with scales.
class Coded final : public KvRowSegment {
 public:
  using KvRowSegment::KvRowSegment;

  void decode(int64_t i0, int64_t i1, float* keys, float* values) const override {
    const KvRowOps& o = kv_row_ops(default_isa());
    o.decode(keys_.view(format_.keys, width_.key), i0, i1, keys);
    o.decode(values_.view(format_.values, width_.value), i0, i1, values);
  }
  bool rotated() const override { return format_.rotated; }
  bool coded(KvRows* keys, KvRows* values) const override {
    *keys = keys_.view(format_.keys, width_.key);
    *values = values_.view(format_.values, width_.value);
    return true;
  }
  std::unique_ptr<KvSegment> clone() const override { return std::make_unique<Coded>(*this); }
  void push_rows(int64_t n, const float* keys, const float* values) override {
    std::vector<float> turned;
    const auto add = [&](const float* rows, int64_t width, const KvGrid& grid, Rows& into) {
      if (format_.rotated) {
        turned.assign(rows, rows + n * width);
        hadamard_rows(turned.data(), n, width);
        rows = turned.data();
      }
      into.push(grid, rows, size(), n, width);
    };
    add(keys, width_.key, format_.keys, keys_);
    add(values, width_.value, format_.values, values_);
  }

 private:
  uint64_t row_bytes() const override { return keys_.bytes() + values_.bytes(); }
  void write_rows(std::string& out) const override { keys_.write(out), values_.write(out); }
  Status read_rows(int64_t count, std::string_view& in) override {
    PITH_TRY(keys_.read(format_.keys, count, width_.key, in));
    return values_.read(format_.values, count, width_.value, in);
  }
  struct Rows {
    std::vector<uint8_t> codes;
    std::vector<uint16_t> d, m;
    KvRows view(const KvGrid& grid, int64_t dim) const {
      return {grid, dim, codes.data(), d.data(), grid.centred ? nullptr : m.data()};
    }
    uint64_t bytes() const { return codes.size() + (d.size() + m.size()) * 2; }
    void write(std::string& out) const { put(out, codes), put(out, d), put(out, m); }
    void push(const KvGrid& grid, const float* rows, int64_t before, int64_t n, int64_t dim) {
      const int64_t had = kv_scales(grid, before, dim), more = kv_scales(grid, n, dim);
      grow(codes, static_cast<size_t>(n * kv_row_bytes(grid, dim)));
      grow(d, static_cast<size_t>(more));
      if (!grid.centred) grow(m, static_cast<size_t>(more));
      kv_encode(grid, rows, n, dim, codes.data() + before * kv_row_bytes(grid, dim), d.data() + had, m.data() + had);
    }
    Status read(const KvGrid& grid, int64_t n, int64_t dim, std::string_view& in) {
      const auto scales = static_cast<size_t>(kv_scales(grid, n, dim));
      PITH_TRY(take(in, static_cast<size_t>(n * kv_row_bytes(grid, dim)), codes));
      PITH_TRY(take(in, scales, d));
      return take(in, grid.centred ? 0 : scales, m);
    }
  };
  Rows keys_, values_;
};

}  // namespace

uint64_t KvRowSegment::bytes() const {
  if (size() == 0) return 0;
  return kKvSegmentHeader + (positions_.gapless() ? 0 : static_cast<uint64_t>(size()) * 4) + bias_.size() * 4 +
         row_bytes();
}

void KvRowSegment::push(std::span<const int32_t> positions, const float* keys, const float* values,
                        std::span<const float> bias) {
  push_rows(static_cast<int64_t>(positions.size()), keys, values);
  for (const int32_t p : positions) positions_.push(p);
  if (bias_.empty() && bias.empty()) return;
  bias_.resize(static_cast<size_t>(size()) - positions.size());
  bias_.insert(bias_.end(), bias.begin(), bias.end());
  bias_.resize(static_cast<size_t>(size()));
}

void KvRowSegment::write(std::string& out) const {
  write_head(format_, positions_, !bias_.empty(), out);
  put(out, bias_);
  write_rows(out);
}

std::unique_ptr<KvRowSegment> new_kv_segment(const KvFormat& format, KvWidths width) {
  if (format.kind == KvFormat::Kind::coded) return std::make_unique<Coded>(format, width);
  return std::make_unique<KvPlain>(format, width);
}

Result<std::unique_ptr<KvRowSegment>> read_kv_segment(std::string_view& in, KvWidths width) {
  Header h{};
  if (in.size() < sizeof h)
    return data_error(
        fmt::format("cache file: a segment begins with {} bytes, {} are left: it is cut short", sizeof h, in.size()));
  std::memcpy(&h, in.data(), sizeof h);
  in.remove_prefix(sizeof h);
  if (h.kind > static_cast<uint8_t>(KvFormat::Kind::coded) || h.count == 0 || h.count > INT32_MAX || h.first < 0 ||
      h.flags >= 64)
    return data_error(
        fmt::format("cache file: no segment begins like this (kind {}, {} tokens from {})", h.kind, h.count, h.first));
  KvFormat f;
  f.kind = static_cast<KvFormat::Kind>(h.kind);
  f.rotated = (h.flags & kRotated) != 0;
  f.keys = {h.key_bits, (h.flags & kByChannel) != 0, (h.flags & kKeysCentred) != 0, h.key_group};
  f.values = {h.value_bits, false, (h.flags & kValuesCentred) != 0, h.value_group};
  if (const Status status = f.check(width); !status.ok()) return data_error("cache file: " + status.error().message);
  auto segment = new_kv_segment(f, width);
  KvPositions& positions = segment->positions_;
  if ((h.flags & kGapless) != 0) {
    if (int64_t{h.first} + h.count > INT32_MAX) return data_error("cache file: positions beyond 2^31");
    positions = KvPositions(h.first, h.count);
  } else {
    std::vector<int32_t> list;
    PITH_TRY(take(in, h.count, list));
    if (list[0] != h.first || !std::is_sorted(list.begin(), list.end(), std::less_equal<>()))
      return data_error("cache file: the positions of a segment do not ascend");
    positions = KvPositions(list);
  }
  if ((h.flags & kBias) != 0) PITH_TRY(take(in, h.count, segment->bias_));
  PITH_TRY(segment->read_rows(h.count, in));
  return segment;
}

}  // namespace pith
