// Sections in memory, and a small random generator that gives the same numbers everywhere.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <string>

#include "represent/node.h"

namespace pith::test {

class MemorySections final : public SectionSink, public SectionSource {
 public:
  void add(std::string name, DType type, std::vector<int64_t> shape, Bytes data) override {
    check(name, type, shape, data);
    EXPECT_TRUE(sections.emplace(name, Section{type, std::move(shape), std::move(data)}).second)
        << "section " << name << " is written twice";
    own.push_back(name);
  }
  std::string add_shared(std::string key, DType type, std::vector<int64_t> shape, Bytes data) override {
    check(key, type, shape, data);
    const std::string name = "shared." + key;
    sections.emplace(name, Section{type, std::move(shape), std::move(data)});
    return name;
  }
  Result<Section> find(std::string_view name) const override {
    const auto it = sections.find(std::string(name));
    if (it == sections.end()) return data_error("section '" + std::string(name) + "' is missing");
    return it->second;
  }

  /// Bytes of the sections that belong to one node alone.
  uint64_t own_bytes() const {
    uint64_t bytes = 0;
    for (const std::string& name : own) bytes += sections.at(name).data.size();
    return bytes;
  }
  bool operator==(const MemorySections& o) const {
    if (sections.size() != o.sections.size()) return false;
    for (const auto& [name, s] : sections) {
      const auto it = o.sections.find(name);
      if (it == o.sections.end() || it->second.type != s.type || it->second.shape != s.shape ||
          it->second.data.size() != s.data.size() ||
          (s.data.size() > 0 && std::memcmp(it->second.data.data(), s.data.data(), s.data.size()) != 0))
        return false;
    }
    return true;
  }

  std::map<std::string, Section> sections;
  std::vector<std::string> own;

 private:
  static void check(const std::string& name, DType type, const std::vector<int64_t>& shape, const Bytes& data) {
    int64_t items = 1;
    for (const int64_t n : shape) items *= n;
    EXPECT_EQ(static_cast<uint64_t>(items) * dtype_size(type), data.size()) << "shape of section " << name;
  }
};

/// A copy of `data` that begins one byte past an aligned address, as sections in a file may.
inline Bytes misaligned(const Bytes& data) {
  std::vector<std::byte> shifted(data.size() + 1);
  if (data.size() > 0) std::memcpy(shifted.data() + 1, data.data(), data.size());
  const size_t n = data.size();
  return Bytes::own(std::move(shifted)).slice(1, n);
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  /// Integer in [low, high].
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(next() % static_cast<uint64_t>(high - low + 1));
  }
  /// Real in [-1, 1).
  float real() { return static_cast<float>(static_cast<int64_t>(next() >> 40)) * 0x1p-23f - 1.0f; }
  bool coin() { return (next() >> 33) & 1; }

 private:
  uint64_t state_;
};

}  // namespace pith::test
