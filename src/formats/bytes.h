// A run of bytes with whoever keeps it alive: a mapped file, or memory of our own.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace pith {

struct Bytes {
  std::span<const std::byte> view;
  std::shared_ptr<const void> owner;

  Bytes() = default;
  Bytes(std::span<const std::byte> v, std::shared_ptr<const void> keep) : view(v), owner(std::move(keep)) {}

  /// Takes over a vector of any trivially copyable type.
  template <class T>
  static Bytes own(std::vector<T> values) {
    auto held = std::make_shared<const std::vector<T>>(std::move(values));
    const auto raw = std::as_bytes(std::span(*held));
    return {raw, held};
  }

  size_t size() const { return view.size(); }
  const std::byte* data() const { return view.data(); }
  /// The bytes as elements of T; the caller has checked size and alignment.
  template <class T>
  std::span<const T> as() const {
    return {reinterpret_cast<const T*>(view.data()), view.size() / sizeof(T)};
  }
  Bytes slice(size_t offset, size_t length) const { return {view.subspan(offset, length), owner}; }
};

}  // namespace pith
