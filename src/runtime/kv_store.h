// Keys and values of the tokens a model has seen. Each (layer, KV head) has its own list of segments, so that cache
// methods may keep different tokens in different forms per head: a segment of plain rows here, a compressed one from a
// codec there. Segments are attended one tile at a time and merged by log-sum-exp.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace pith {

enum class KvType : uint8_t { f32, f16 };

/// The keys and values of some tokens of one head of one layer.
class KvSegment {
 public:
  virtual ~KvSegment() = default;
  virtual int64_t size() const = 0;
  /// Position of each token in the sequence, ascending.
  virtual std::span<const int32_t> positions() const = 0;
  /// Tokens [i0, i1) as fp32 rows of the layer's key_dim and value_dim, keys after RoPE.
  virtual void decode(int64_t i0, int64_t i1, float* keys, float* values) const = 0;
  /// True when keys and values already lie there as fp32 rows, which saves the copy.
  virtual bool plain(const float** /*keys*/, const float** /*values*/) const { return false; }
  /// Exact bytes of the stored form, with scales, indices and tables.
  virtual uint64_t bytes() const = 0;
};

struct KvShape {
  int64_t heads = 0;  ///< KV heads
  struct Widths {
    int64_t key = 0, value = 0;
    bool operator==(const Widths&) const = default;
  };
  std::vector<Widths> layers;  ///< channels of a head, layer by layer
  bool operator==(const KvShape&) const = default;
};

class KvStore {
 public:
  KvStore(KvShape shape, KvType type);
  ~KvStore();
  KvStore(KvStore&&) noexcept;
  KvStore& operator=(KvStore&&) noexcept;

  const KvShape& shape() const { return shape_; }
  /// Tokens seen so far: the position of the next one. Not the number kept: a policy may have dropped some.
  int64_t length() const { return length_; }
  /// Appends n tokens to all heads of one layer. Rows are [n][heads][width of the layer], keys after RoPE.
  /// Every layer gets the same tokens; `advance` ends the round.
  void append(int64_t layer, const float* keys, const float* values, int64_t n);
  void advance(int64_t n) { length_ += n; }
  /// Forgets everything at or after position `length` (a rejected draft, the next chunk of an evaluation).
  /// Compressed segments are dropped whole when any of their tokens goes.
  void truncate(int64_t length);
  void clear();

  /// What a cache method calls: replaces the first `count` plain tokens of a head by a segment of its own, or by
  /// nothing when it drops them (null).
  Status seal(int64_t layer, int64_t head, int64_t count, std::unique_ptr<KvSegment> segment);

  /// Segments of one head, oldest first; the last one is the plain window that `append` writes.
  std::vector<const KvSegment*> segments(int64_t layer, int64_t head) const;
  /// Exact bytes of everything held.
  uint64_t bytes() const;

 private:
  class Window;
  struct Head;
  Head& head(int64_t layer, int64_t head) const;
  KvShape shape_;
  KvType type_;
  int64_t length_ = 0;
  std::vector<std::unique_ptr<Head>> heads_;
};

}  // namespace pith
