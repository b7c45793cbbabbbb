// Keys and values of the tokens a model has seen. Each (layer, KV head) has its own list of segments, so that cache
// methods may keep different tokens in different forms per head: a window of plain rows here, codes there. Segments are
// attended one tile at a time and merged by log-sum-exp, so their order does not matter.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/kv_segment.h"

namespace pith {

enum class KvType : uint8_t { f32, f16 };

struct KvShape {
  int64_t heads = 0;  ///< KV heads
  using Widths = KvWidths;
  std::vector<Widths> layers;  ///< channels of a head, layer by layer
  bool operator==(const KvShape&) const = default;
};

/// What attention notes beside its result: how much each key was attended to, as the mean over the query heads that
/// share it, summed over queries. A cache method asks for it.
struct KvWatch {
  bool mass = false;  ///< sums over all queries, carried along with the tokens
  /// Queries at this position and later are also summed by themselves.
  int64_t recent_from = std::numeric_limits<int64_t>::max();
  bool recent() const { return recent_from != std::numeric_limits<int64_t>::max(); }
};

/// All that a head holds, as plain numbers in the order of positions.
struct KvEntries {
  std::vector<int32_t> positions;
  std::vector<float> keys, values;  ///< [size][width], keys after RoPE
  std::vector<float> mass, recent;  ///< one each, or empty when nobody watched
  std::vector<float> bias;          ///< added to attention scores: one each, or empty
  int64_t size() const { return static_cast<int64_t>(positions.size()); }
};

class KvStore {
 public:
  KvStore(KvShape shape, KvType type);
  ~KvStore();
  KvStore(KvStore&&) noexcept;
  KvStore& operator=(KvStore&&) noexcept;
  KvStore copy() const;

  const KvShape& shape() const { return shape_; }
  KvType type() const { return type_; }
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

  /// Replaces the first `count` plain tokens of a head by a segment of any kind, or by nothing (null).
  Status seal(int64_t layer, int64_t head, int64_t count, std::unique_ptr<KvSegment> segment);
  /// Stores the first `count` plain tokens of a head in another format, behind what is already in it.
  Status encode(int64_t layer, int64_t head, int64_t count, const KvFormat& format);
  /// Replaces a head by `entries`, positions ascending: the last `plain` of them in the window, those before in
  /// `format`.
  Status rebuild(int64_t layer, int64_t head, const KvEntries& entries, int64_t plain, const KvFormat& format);
  /// Everything a head holds.
  KvEntries entries(int64_t layer, int64_t head) const;

  /// Segments of one head, oldest first; the last one is the plain window that `append` writes.
  std::vector<const KvSegment*> segments(int64_t layer, int64_t head) const;
  /// Tokens that a head holds, and those of them in the plain window.
  int64_t held(int64_t layer, int64_t head) const;
  int64_t in_window(int64_t layer, int64_t head) const;

  /// What attention shall note from now on. Sums by recent queries begin anew; the mass stays while it is wanted.
  void watch(KvWatch watch);
  const KvWatch& watched() const { return watch_; }
  /// Adds to the sums of a head's tokens, in the order of its segments; either may be empty.
  void note(int64_t layer, int64_t head, std::span<const float> mass, std::span<const float> recent);

  /// Exact bytes of everything held: segments with their headers, and sums that are carried.
  uint64_t bytes() const;
  /// As bytes: a header of `header_bytes`, then exactly `bytes()` more.
  std::string write() const;
  uint64_t header_bytes() const;
  /// Reads what `write` wrote for a model of this shape; every length is checked.
  static Result<KvStore> read(std::string_view in, const KvShape& shape, KvType type);

 private:
  struct Head;
  Head& head(int64_t layer, int64_t head) const;
  Status check_head(int64_t layer, int64_t head) const;
  KvFormat plain_format() const { return {type_ == KvType::f32 ? KvFormat::Kind::f32 : KvFormat::Kind::f16}; }
  KvShape shape_;
  KvType type_;
  int64_t length_ = 0;
  KvWatch watch_;
  std::vector<std::unique_ptr<Head>> heads_;
};

/// Gives memory that was freed back to the system: after a prompt's cache has been compressed.
void return_free_memory();

}  // namespace pith
