#include "runtime/kv_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace pith {

struct KvStore::Head {
  std::vector<std::unique_ptr<KvSegment>> sealed;
  KvPlain window;
  std::vector<float> mass, recent;  ///< in the order of segments, shorter when newer tokens have none yet
  KvWidths width;
  Head(const KvFormat& format, KvWidths w) : window(format, w), width(w) {}
  int64_t sealed_tokens() const {
    int64_t n = 0;
    for (const auto& s : sealed) n += s->size();
    return n;
  }
};

KvStore::KvStore(KvShape shape, KvType type) : shape_(std::move(shape)), type_(type) { clear(); }
KvStore::~KvStore() = default;
KvStore::KvStore(KvStore&&) noexcept = default;
KvStore& KvStore::operator=(KvStore&&) noexcept = default;

KvStore KvStore::copy() const {
  KvStore out(shape_, type_);
  out.length_ = length_;
  out.watch_ = watch_;
  for (size_t i = 0; i < heads_.size(); ++i) {
    Head& to = *out.heads_[i];
    for (const auto& s : heads_[i]->sealed) to.sealed.push_back(s->clone());
    to.window = heads_[i]->window;
    to.mass = heads_[i]->mass;
    to.recent = heads_[i]->recent;
  }
  return out;
}

KvStore::Head& KvStore::head(int64_t layer, int64_t head) const {
  return *heads_[static_cast<size_t>(layer * shape_.heads + head)];
}

Status KvStore::check_head(int64_t layer, int64_t h) const {
  if (layer >= 0 && layer < static_cast<int64_t>(shape_.layers.size()) && h >= 0 && h < shape_.heads) return {};
  return bug_error(fmt::format("KV store: no head {} in layer {}", h, layer));
}

void KvStore::clear() {
  length_ = 0;
  heads_.clear();
  for (const KvWidths& width : shape_.layers) {
    for (int64_t h = 0; h < shape_.heads; ++h) heads_.push_back(std::make_unique<Head>(plain_format(), width));
  }
}

void KvStore::append(int64_t layer, const float* keys, const float* values, int64_t n) {
  const KvWidths width = shape_.layers[static_cast<size_t>(layer)];
  for (int64_t h = 0; h < shape_.heads; ++h) {
    KvPlain& w = head(layer, h).window;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = i * shape_.heads + h;
      const auto position = static_cast<int32_t>(length_ + i);
      w.push({&position, 1}, keys + row * width.key, values + row * width.value);
    }
  }
}

void KvStore::truncate(int64_t length) {
  if (length >= length_) return;
  length_ = std::max<int64_t>(length, 0);
  for (auto& h : heads_) {
    h->window.drop_from(static_cast<int32_t>(length_));
    // Sums are in the order of segments, so they go with a segment that goes.
    int64_t at = 0;
    std::erase_if(h->sealed, [&](const auto& s) {
      const int64_t n = s->size();
      const bool gone = n > 0 && s->positions().back() >= length_;
      if (gone) {
        for (auto* sums : {&h->mass, &h->recent}) {
          const int64_t have = static_cast<int64_t>(sums->size());
          sums->erase(sums->begin() + std::min(at, have), sums->begin() + std::min(at + n, have));
        }
      } else {
        at += n;
      }
      return gone;
    });
    const auto left = static_cast<size_t>(at + h->window.size());
    for (auto* sums : {&h->mass, &h->recent}) sums->resize(std::min(sums->size(), left));
  }
}

Status KvStore::seal(int64_t layer, int64_t h, int64_t count, std::unique_ptr<KvSegment> segment) {
  PITH_TRY(check_head(layer, h));
  Head& at = head(layer, h);
  if (count < 0 || count > at.window.size()) {
    return bug_error(fmt::format("KV store: {} tokens to seal in a window of {}", count, at.window.size()));
  }
  if (segment == nullptr || segment->size() == 0) {
    const int64_t first = at.sealed_tokens();
    for (auto* sums : {&at.mass, &at.recent}) {
      const int64_t have = static_cast<int64_t>(sums->size());
      sums->erase(sums->begin() + std::min(first, have), sums->begin() + std::min(first + count, have));
    }
  } else if (segment->size() == count) {
    at.sealed.push_back(std::move(segment));
  } else {
    return bug_error(fmt::format("KV store: a segment of {} tokens in place of {}", segment->size(), count));
  }
  at.window.drop_first(count);
  return {};
}

Status KvStore::encode(int64_t layer, int64_t h, int64_t count, const KvFormat& format) {
  PITH_TRY(check_head(layer, h));
  Head& at = head(layer, h);
  if (count < 0 || count > at.window.size()) {
    return bug_error(fmt::format("KV store: {} tokens to encode in a window of {}", count, at.window.size()));
  }
  if (count == 0) return {};
  PITH_TRY(format.check(at.width));
  std::vector<float> keys(static_cast<size_t>(count * at.width.key)),
      values(static_cast<size_t>(count * at.width.value));
  std::vector<int32_t> positions(static_cast<size_t>(count));
  at.window.decode(0, count, keys.data(), values.data());
  at.window.positions().copy(0, count, positions.data());
  auto* last = at.sealed.empty() ? nullptr : dynamic_cast<KvRowSegment*>(at.sealed.back().get());
  if (last == nullptr || !(last->format() == format) || !last->open()) {
    auto made = new_kv_segment(format, at.width);
    last = made.get();
    at.sealed.push_back(std::move(made));
  }
  const float* bias = at.window.bias();
  last->push(positions, keys.data(), values.data(),
             bias != nullptr ? std::span(bias, static_cast<size_t>(count)) : std::span<const float>());
  at.window.drop_first(count);
  return {};
}

KvEntries KvStore::entries(int64_t layer, int64_t h) const {
  const Head& at = head(layer, h);
  const auto list = segments(layer, h);
  int64_t n = 0;
  for (const KvSegment* s : list) n += s->size();
  const auto [key, value] = at.width;
  KvEntries all;
  all.keys.resize(static_cast<size_t>(n * key));
  all.values.resize(static_cast<size_t>(n * value));
  all.positions.resize(static_cast<size_t>(n));
  all.mass = at.mass;
  all.recent = at.recent;
  if (watch_.mass) all.mass.resize(static_cast<size_t>(n));
  if (watch_.recent()) all.recent.resize(static_cast<size_t>(n));
  int64_t i = 0;
  for (const KvSegment* s : list) {
    float *keys = all.keys.data() + i * key, *values = all.values.data() + i * value;
    s->decode(0, s->size(), keys, values);
    if (s->rotated()) hadamard_rows(keys, s->size(), key), hadamard_rows(values, s->size(), value);
    s->positions().copy(0, s->size(), all.positions.data() + i);
    if (s->bias() != nullptr) {
      all.bias.resize(static_cast<size_t>(n));
      std::copy_n(s->bias(), s->size(), all.bias.begin() + i);
    }
    i += s->size();
  }
  if (std::is_sorted(all.positions.begin(), all.positions.end())) return all;
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return all.positions[static_cast<size_t>(a)] < all.positions[static_cast<size_t>(b)];
  });
  const auto sorted = [&](auto& v, int64_t width) {
    if (v.empty()) return;
    auto from = v;
    for (int64_t j = 0; j < n; ++j) {
      std::copy_n(from.begin() + order[static_cast<size_t>(j)] * width, width, v.begin() + j * width);
    }
  };
  sorted(all.positions, 1), sorted(all.keys, key), sorted(all.values, value);
  sorted(all.mass, 1), sorted(all.recent, 1), sorted(all.bias, 1);
  return all;
}

Status KvStore::rebuild(int64_t layer, int64_t h, const KvEntries& e, int64_t plain, const KvFormat& format) {
  PITH_TRY(check_head(layer, h));
  const KvWidths width = head(layer, h).width;
  PITH_TRY(format.check(width));
  const int64_t n = e.size(), coded = n - std::clamp<int64_t>(plain, 0, n);
  if (static_cast<int64_t>(e.keys.size()) != n * width.key || static_cast<int64_t>(e.values.size()) != n * width.value)
    return bug_error(fmt::format("KV store: rows of {} entries have the wrong size", n));
  auto made = std::make_unique<Head>(plain_format(), width);
  const std::span positions(e.positions);
  const std::span<const float> bias(e.bias);
  if (coded > 0) {
    auto segment = new_kv_segment(format, width);
    segment->push(positions.first(static_cast<size_t>(coded)), e.keys.data(), e.values.data(),
                  bias.first(bias.empty() ? 0 : static_cast<size_t>(coded)));
    made->sealed.push_back(std::move(segment));
  }
  if (coded < n) {
    made->window.push(positions.subspan(static_cast<size_t>(coded)), e.keys.data() + coded * width.key,
                      e.values.data() + coded * width.value,
                      bias.subspan(bias.empty() ? 0 : static_cast<size_t>(coded)));
  }
  made->mass = e.mass;
  made->recent = e.recent;
  heads_[static_cast<size_t>(layer * shape_.heads + h)] = std::move(made);
  return {};
}

std::vector<const KvSegment*> KvStore::segments(int64_t layer, int64_t h) const {
  const Head& at = head(layer, h);
  std::vector<const KvSegment*> out;
  for (const auto& s : at.sealed) out.push_back(s.get());
  if (at.window.size() > 0) out.push_back(&at.window);
  return out;
}

int64_t KvStore::held(int64_t layer, int64_t h) const {
  const Head& at = head(layer, h);
  return at.sealed_tokens() + at.window.size();
}

int64_t KvStore::in_window(int64_t layer, int64_t h) const { return head(layer, h).window.size(); }

void KvStore::watch(KvWatch watch) {
  watch_ = watch;
  for (auto& h : heads_) {
    h->recent = {};
    if (!watch.mass) h->mass = {};
  }
}

void KvStore::note(int64_t layer, int64_t h, std::span<const float> mass, std::span<const float> recent) {
  Head& at = head(layer, h);
  const auto add = [](std::vector<float>& sums, std::span<const float> more) {
    if (more.size() > sums.capacity()) sums.reserve(more.size() + more.size() / 8);
    sums.resize(std::max(sums.size(), more.size()));
    for (size_t i = 0; i < more.size(); ++i) sums[i] += more[i];
  };
  add(at.mass, mass);
  add(at.recent, recent);
}

uint64_t KvStore::bytes() const {
  uint64_t n = 0;
  for (const auto& h : heads_) {
    n += h->window.bytes() + (h->mass.size() + h->recent.size()) * 4;
    for (const auto& s : h->sealed) n += s->bytes();
  }
  return n;
}

// The header: magic, version, type, length, layers, heads; widths of each layer; then for each head the number of
// segments, of the window's tokens, and of the sums.
static constexpr char kMagic[8] = {'P', 'I', 'T', 'H', 'K', 'V', '0', '1'};
namespace {
struct FileHead {
  char magic[8];
  uint32_t type, layers, heads, reserved;
  int64_t length;
};
struct HeadCounts {
  uint32_t sealed, window, mass, recent;
};
}  // namespace

uint64_t KvStore::header_bytes() const {
  return sizeof(FileHead) + shape_.layers.size() * 2 * sizeof(int64_t) + heads_.size() * sizeof(HeadCounts);
}

std::string KvStore::write() const {
  std::string out;
  out.reserve(header_bytes() + bytes());
  const auto put = [&](const void* p, size_t n) { out.append(static_cast<const char*>(p), n); };
  FileHead file{{},
                static_cast<uint32_t>(type_),
                static_cast<uint32_t>(shape_.layers.size()),
                static_cast<uint32_t>(shape_.heads),
                0,
                length_};
  std::memcpy(file.magic, kMagic, sizeof kMagic);
  put(&file, sizeof file);
  for (const KvWidths& w : shape_.layers) put(&w.key, sizeof w.key), put(&w.value, sizeof w.value);
  for (const auto& h : heads_) {
    const HeadCounts counts{static_cast<uint32_t>(h->sealed.size()), static_cast<uint32_t>(h->window.size()),
                            static_cast<uint32_t>(h->mass.size()), static_cast<uint32_t>(h->recent.size())};
    put(&counts, sizeof counts);
  }
  for (const auto& h : heads_) {
    for (const auto& s : h->sealed) s->write(out);
    if (h->window.size() > 0) h->window.write(out);
    put(h->mass.data(), h->mass.size() * 4), put(h->recent.data(), h->recent.size() * 4);
  }
  return out;
}

Result<KvStore> KvStore::read(std::string_view in, const KvShape& shape, KvType type) {
  const auto take = [&](void* to, size_t n) {
    if (in.size() < n) return false;
    std::memcpy(to, in.data(), n);
    in.remove_prefix(n);
    return true;
  };
  const auto cut = [&] { return data_error("cache file: it is cut short"); };
  FileHead file{};
  if (!take(&file, sizeof file)) return cut();
  if (std::memcmp(file.magic, kMagic, sizeof kMagic) != 0)
    return data_error("this is no cache file of Pith (or of another version)");
  KvShape own{static_cast<int64_t>(file.heads), {}};
  for (uint32_t i = 0; i < file.layers; ++i) {
    KvWidths w;
    if (!take(&w.key, sizeof w.key) || !take(&w.value, sizeof w.value)) return cut();
    own.layers.push_back(w);
  }
  if (!(own == shape))
    return user_error(
        fmt::format("the cache file belongs to another model: {} layers with {} KV heads, expected {} "
                    "with {} of the same widths",
                    file.layers, file.heads, shape.layers.size(), shape.heads));
  if (file.type != static_cast<uint32_t>(type))
    return user_error("the cache file holds plain rows of another precision than the model's cache");
  if (file.length < 0 || file.length > INT32_MAX)
    return data_error(fmt::format("cache file: {} tokens are impossible", file.length));
  KvStore out(shape, type);
  out.length_ = file.length;
  std::vector<HeadCounts> counts(out.heads_.size());
  if (!take(counts.data(), counts.size() * sizeof(HeadCounts))) return cut();
  for (size_t i = 0; i < counts.size(); ++i) {
    Head& h = *out.heads_[i];
    int64_t held = 0;
    const auto segment = [&]() -> Result<std::unique_ptr<KvRowSegment>> {
      PITH_ASSIGN(auto s, read_kv_segment(in, h.width));
      if (s->positions().back() >= file.length)
        return data_error(
            fmt::format("cache file: position {} in a cache of {} tokens", s->positions().back(), file.length));
      held += s->size();
      return s;
    };
    for (uint32_t k = 0; k < counts[i].sealed; ++k) {
      PITH_ASSIGN(auto s, segment());
      h.sealed.push_back(std::move(s));
    }
    if (counts[i].window > 0) {
      PITH_ASSIGN(auto s, segment());
      auto* plain = dynamic_cast<KvPlain*>(s.get());
      if (plain == nullptr || !(plain->format() == h.window.format()) || s->size() != counts[i].window)
        return data_error("cache file: the window of a head is not what its header says");
      h.window = std::move(*plain);
    }
    for (auto [sums, n] : {std::pair{&h.mass, counts[i].mass}, {&h.recent, counts[i].recent}}) {
      if (n > held || in.size() / 4 < n) return cut();
      sums->resize(n);
      take(sums->data(), n * sizeof(float));
    }
  }
  if (!in.empty()) return data_error(fmt::format("cache file: {} bytes too many at the end", in.size()));
  return out;
}

void return_free_memory() {
#if defined(__GLIBC__)
  ::malloc_trim(0);
#endif
}

}  // namespace pith
