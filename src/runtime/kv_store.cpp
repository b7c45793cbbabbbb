#include "runtime/kv_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "kernels/ops.h"

namespace pith {

// Plain rows, fp16 or fp32, that grow at the end.
class KvStore::Window final : public KvSegment {
 public:
  Window(KvType type, KvShape::Widths width) : type_(type), width_(width) {}

  int64_t size() const override { return static_cast<int64_t>(positions_.size()); }
  std::span<const int32_t> positions() const override { return positions_; }

  void decode(int64_t i0, int64_t i1, float* keys, float* values) const override {
    const int64_t n = i1 - i0;
    if (type_ == KvType::f32) {
      std::copy_n(k32_.data() + i0 * width_.key, n * width_.key, keys);
      std::copy_n(v32_.data() + i0 * width_.value, n * width_.value, values);
    } else {
      const Ops& o = ops(default_isa());
      o.half_to_f32(k16_.data() + i0 * width_.key, n * width_.key, keys);
      o.half_to_f32(v16_.data() + i0 * width_.value, n * width_.value, values);
    }
  }

  bool plain(const float** keys, const float** values) const override {
    if (type_ != KvType::f32) return false;
    *keys = k32_.data();
    *values = v32_.data();
    return true;
  }

  uint64_t bytes() const override {
    return positions_.size() * 4 + (k32_.size() + v32_.size()) * 4 + (k16_.size() + v16_.size()) * 2;
  }

  void push(int32_t position, const float* key, const float* value) {
    positions_.push_back(position);
    if (type_ == KvType::f32) {
      k32_.insert(k32_.end(), key, key + width_.key);
      v32_.insert(v32_.end(), value, value + width_.value);
    } else {
      const Ops& o = ops(default_isa());
      const auto narrow = [&](const float* row, int64_t n, std::vector<uint16_t>& out) {
        out.resize(out.size() + static_cast<size_t>(n));
        o.f32_to_half(row, n, out.data() + out.size() - n);
      };
      narrow(key, width_.key, k16_);
      narrow(value, width_.value, v16_);
    }
  }

  void drop_from(int32_t position) {
    const auto keep = std::lower_bound(positions_.begin(), positions_.end(), position) - positions_.begin();
    positions_.resize(static_cast<size_t>(keep));
    const auto cut = [&](auto& v, int64_t width) { v.resize(std::min(v.size(), static_cast<size_t>(keep * width))); };
    cut(k32_, width_.key), cut(v32_, width_.value), cut(k16_, width_.key), cut(v16_, width_.value);
  }

  void drop_first(int64_t count) {
    positions_.erase(positions_.begin(), positions_.begin() + count);
    const auto cut = [&](auto& v, int64_t width) {
      if (!v.empty()) v.erase(v.begin(), v.begin() + count * width);
    };
    cut(k32_, width_.key), cut(v32_, width_.value), cut(k16_, width_.key), cut(v16_, width_.value);
  }

 private:
  KvType type_;
  KvShape::Widths width_;
  std::vector<int32_t> positions_;
  std::vector<float> k32_, v32_;
  std::vector<uint16_t> k16_, v16_;
};

struct KvStore::Head {
  std::vector<std::unique_ptr<KvSegment>> sealed;
  Window window;
  Head(KvType type, KvShape::Widths width) : window(type, width) {}
};

KvStore::KvStore(KvShape shape, KvType type) : shape_(std::move(shape)), type_(type) { clear(); }
KvStore::~KvStore() = default;
KvStore::KvStore(KvStore&&) noexcept = default;
KvStore& KvStore::operator=(KvStore&&) noexcept = default;

KvStore::Head& KvStore::head(int64_t layer, int64_t head) const {
  return *heads_[static_cast<size_t>(layer * shape_.heads + head)];
}

void KvStore::clear() {
  length_ = 0;
  heads_.clear();
  for (const KvShape::Widths& width : shape_.layers) {
    for (int64_t h = 0; h < shape_.heads; ++h) heads_.push_back(std::make_unique<Head>(type_, width));
  }
}

void KvStore::append(int64_t layer, const float* keys, const float* values, int64_t n) {
  const KvShape::Widths width = shape_.layers[static_cast<size_t>(layer)];
  for (int64_t h = 0; h < shape_.heads; ++h) {
    Window& w = head(layer, h).window;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = i * shape_.heads + h;
      w.push(static_cast<int32_t>(length_ + i), keys + row * width.key, values + row * width.value);
    }
  }
}

void KvStore::truncate(int64_t length) {
  if (length >= length_) return;
  for (auto& h : heads_) {
    h->window.drop_from(static_cast<int32_t>(length));
    std::erase_if(h->sealed, [&](const auto& s) { return s->size() > 0 && s->positions().back() >= length; });
  }
  length_ = std::max<int64_t>(length, 0);
}

Status KvStore::seal(int64_t layer, int64_t h, int64_t count, std::unique_ptr<KvSegment> segment) {
  if (layer < 0 || layer >= static_cast<int64_t>(shape_.layers.size()) || h < 0 || h >= shape_.heads) {
    return bug_error(fmt::format("KV store: no head {} in layer {}", h, layer));
  }
  Head& at = head(layer, h);
  if (count < 0 || count > at.window.size()) {
    return bug_error(fmt::format("KV store: {} tokens to seal in a window of {}", count, at.window.size()));
  }
  at.window.drop_first(count);
  if (segment != nullptr && segment->size() > 0) at.sealed.push_back(std::move(segment));
  return {};
}

std::vector<const KvSegment*> KvStore::segments(int64_t layer, int64_t h) const {
  const Head& at = head(layer, h);
  std::vector<const KvSegment*> out;
  for (const auto& s : at.sealed) out.push_back(s.get());
  if (at.window.size() > 0) out.push_back(&at.window);
  return out;
}

uint64_t KvStore::bytes() const {
  uint64_t n = 0;
  for (const auto& h : heads_) {
    n += h->window.bytes();
    for (const auto& s : h->sealed) n += s->bytes();
  }
  return n;
}

}  // namespace pith
