// The keys and values of some tokens of one head of one layer, in one stored form: plain rows, or codes.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/kv_rows.h"

namespace pith {

/// Ascending positions. A run without gaps, which is what nobody has dropped from, takes no memory.
class KvPositions {
 public:
  KvPositions() = default;
  explicit KvPositions(std::span<const int32_t> positions);
  KvPositions(int32_t first, int64_t count) : size_(count), first_(first) {}
  int64_t size() const { return size_; }
  int32_t operator[](int64_t i) const {
    return list_.empty() ? first_ + static_cast<int32_t>(i) : list_[static_cast<size_t>(i)];
  }
  int32_t back() const { return (*this)[size_ - 1]; }
  bool gapless() const { return list_.empty(); }
  /// Positions [i0, i1).
  void copy(int64_t i0, int64_t i1, int32_t* out) const;
  void push(int32_t position);
  void drop_first(int64_t count);
  void keep_first(int64_t count);
  /// How many lie before `position`.
  int64_t count_before(int32_t position) const;

 private:
  int64_t size_ = 0;
  int32_t first_ = 0;
  std::vector<int32_t> list_;  ///< empty when gapless
};

/// Channels of a head.
struct KvWidths {
  int64_t key = 0, value = 0;
  bool operator==(const KvWidths&) const = default;
};

/// A stored form.
struct KvFormat {
  enum class Kind : uint8_t { f32, f16, coded };
  Kind kind = Kind::f16;
  bool rotated = false;  ///< coded rows were multiplied by a Hadamard matrix
  KvGrid keys = {}, values = {};
  bool operator==(const KvFormat&) const = default;

  /// Tokens that are rounded together.
  int64_t group() const;
  /// Bytes of a token of one head, scales with it.
  double bytes_per_token(KvWidths width) const;
  /// Fails when the kernels cannot handle it at this width.
  Status check(KvWidths width) const;
};

class KvSegment {
 public:
  virtual ~KvSegment() = default;
  virtual int64_t size() const = 0;
  virtual const KvPositions& positions() const = 0;
  /// Tokens [i0, i1) as fp32 rows of the layer's widths, keys after RoPE; multiplied by the Hadamard matrix when
  /// `rotated`.
  virtual void decode(int64_t i0, int64_t i1, float* keys, float* values) const = 0;
  virtual bool rotated() const { return false; }
  /// What is added to each token's attention score (the logarithm of how many tokens it stands for); null: nothing.
  virtual const float* bias() const { return nullptr; }
  /// True when keys and values already lie there as fp32 rows, which saves the copy.
  virtual bool plain(const float** /*keys*/, const float** /*values*/) const { return false; }
  /// True when attention can work on the codes themselves.
  virtual bool coded(KvRows* /*keys*/, KvRows* /*values*/) const { return false; }
  virtual std::unique_ptr<KvSegment> clone() const = 0;
  /// Exact bytes of what `write` appends: a header, positions with gaps, codes, scales.
  virtual uint64_t bytes() const = 0;
  virtual void write(std::string& out) const = 0;
};

/// Bytes that every written segment begins with.
inline constexpr uint64_t kKvSegmentHeader = 16;

/// A segment that can take more tokens at its end.
class KvRowSegment : public KvSegment {
 public:
  KvRowSegment(const KvFormat& format, KvWidths width) : format_(format), width_(width) {}
  int64_t size() const final { return positions_.size(); }
  const KvPositions& positions() const final { return positions_; }
  const KvFormat& format() const { return format_; }
  const float* bias() const final { return bias_.empty() ? nullptr : bias_.data(); }
  /// Rounds more tokens; rows are fp32, not rotated. `bias`: one each, or none.
  void push(std::span<const int32_t> positions, const float* keys, const float* values,
            std::span<const float> bias = {});
  /// False when a short last group stands in the way.
  bool open() const { return size() % format_.group() == 0; }
  uint64_t bytes() const final;
  void write(std::string& out) const final;

 protected:
  friend Result<std::unique_ptr<KvRowSegment>> read_kv_segment(std::string_view& in, KvWidths width);
  virtual void push_rows(int64_t count, const float* keys, const float* values) = 0;
  virtual uint64_t row_bytes() const = 0;
  virtual void write_rows(std::string& out) const = 0;
  virtual Status read_rows(int64_t count, std::string_view& in) = 0;
  KvFormat format_;
  KvWidths width_;
  KvPositions positions_;
  std::vector<float> bias_;  ///< empty when nobody has one
};

/// fp32 or fp16 rows, which can also leave at both ends: the window of every head.
class KvPlain final : public KvRowSegment {
 public:
  using KvRowSegment::KvRowSegment;
  void decode(int64_t i0, int64_t i1, float* keys, float* values) const override;
  bool plain(const float** keys, const float** values) const override;
  std::unique_ptr<KvSegment> clone() const override { return std::make_unique<KvPlain>(*this); }
  void drop_from(int32_t position);
  void drop_first(int64_t count);

 private:
  void push_rows(int64_t count, const float* keys, const float* values) override;
  uint64_t row_bytes() const override;
  void write_rows(std::string& out) const override;
  Status read_rows(int64_t count, std::string_view& in) override;
  std::vector<float> k32_, v32_;
  std::vector<uint16_t> k16_, v16_;
};

std::unique_ptr<KvRowSegment> new_kv_segment(const KvFormat& format, KvWidths width);
/// Reads what `write` wrote and moves `in` behind it. Every length is checked.
Result<std::unique_ptr<KvRowSegment>> read_kv_segment(std::string_view& in, KvWidths width);

}  // namespace pith
