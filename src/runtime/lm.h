// The language model, torch-free: LmConfig plus one Linear for each matrix.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/progress.h"
#include "base/threads.h"
#include "formats/lm_config.h"
#include "kernels/linear.h"
#include "runtime/kv_store.h"

namespace pith {

class Model;  // represent/model.h

struct LmOptions {
  Precision precision = Precision::exact;
  KvType kv = KvType::f16;
  std::optional<Isa> isa = {};
  /// Blocks are prepared when a pass reaches them and dropped behind it: the memory of one block instead of all, for
  /// long passes over models that do not fit. The model's files must stay.
  bool streamed = false;
};

class Lm {
 public:
  /// Brings all matrices into their kernel layouts. The model's files may be closed afterwards.
  static Result<std::unique_ptr<Lm>> load(const Model& model, const LmOptions& options, ThreadPool& pool,
                                          Progress& progress);
  ~Lm();
  /// Takes block `layer` (-1: embedding, head and final norm) from `model` instead: the loaded model with other nodes.
  /// When it fails, the block is unusable.
  Status take_block(const Model& model, int64_t layer, ThreadPool& pool);

  const LmConfig& config() const;
  /// Bytes of memory that the weights take; the KV store counts its own, and streamed blocks are left out.
  uint64_t ram_bytes() const;
  KvStore new_kv() const;
  /// Takes the rotary position out of a stored key of one KV head, in place.
  void unturn(int64_t layer, int64_t head, int32_t position, float* key) const;

  enum class Logits : uint8_t { last, all };
  /// Runs `tokens`, which follow what `kv` holds, and appends them to it. `logits` receives [1 or n, vocab].
  /// Fails on a token outside the vocabulary and when a result is not finite.
  Status forward(std::span<const int32_t> tokens, KvStore& kv, Logits which, std::vector<float>& logits,
                 ThreadPool& pool) const;
  /// The two halves of forward: what comes out of the final norm for the last `rows` tokens, [rows, hidden], and the
  /// logits of some rows of that, [.., vocab].
  Status states(std::span<const int32_t> tokens, KvStore& kv, size_t rows, std::vector<float>& out,
                ThreadPool& pool) const;
  void logits(std::span<const float> states, std::vector<float>& out, ThreadPool& pool) const;

 private:
  struct Impl;
  explicit Lm(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace pith
