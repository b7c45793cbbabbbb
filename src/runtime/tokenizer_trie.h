// A trie over bytes whose edges are one hash table: few allocations, fast to build for hundreds of thousands of words.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace pith {

class ByteTrie {
 public:
  static constexpr uint32_t kNone = 0xffffffffu;
  static constexpr uint32_t kRoot = 0;

  ByteTrie() : values_(1, -1), slots_(64, Slot{}) {}

  /// A word given twice keeps its first value.
  void insert(std::string_view word, int32_t value) {
    uint32_t node = kRoot;
    for (const char c : word) {
      const uint64_t key = key_of(node, static_cast<uint8_t>(c));
      Slot* slot = &slots_[find(key)];
      if (slot->key == 0) {
        if ((values_.size() + 1) * 2 > slots_.size()) {
          grow();
          slot = &slots_[find(key)];
        }
        *slot = {key, static_cast<uint32_t>(values_.size())};
        values_.push_back(-1);
      }
      node = slot->node;
    }
    if (values_[node] < 0) values_[node] = value;
  }

  /// The node after `byte`, or kNone.
  uint32_t step(uint32_t node, uint8_t byte) const {
    const Slot& slot = slots_[find(key_of(node, byte))];
    return slot.key == 0 ? kNone : slot.node;
  }

  /// Value of the word that ends at `node`, or -1.
  int32_t value(uint32_t node) const { return values_[node]; }

 private:
  struct Slot {
    uint64_t key = 0;
    uint32_t node = 0;
  };
  static uint64_t key_of(uint32_t node, uint8_t byte) { return (static_cast<uint64_t>(node) << 8 | byte) + 1; }
  size_t find(uint64_t key) const {
    size_t i = (key * 0x9e3779b97f4a7c15ull) >> 20 & (slots_.size() - 1);
    while (slots_[i].key != 0 && slots_[i].key != key) i = (i + 1) & (slots_.size() - 1);
    return i;
  }
  void grow() {
    std::vector<Slot> old(slots_.size() * 2, Slot{});
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.key != 0) slots_[find(slot.key)] = slot;
    }
  }

  std::vector<int32_t> values_;
  std::vector<Slot> slots_;
};

}  // namespace pith
