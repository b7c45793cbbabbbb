// The decoder-only language model on tensors (fp32), block by block. One definition covers everything that LmConfig can
// say (formats/lm_config.h). A block is a value: named weights and a pure forward pass, so a caller holds one block at
// a time, replaces weights, differentiates, or looks at what flows between its parts.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "formats/lm_config.h"
#include "represent/model.h"
#include "tensor/tensor.h"

namespace pith {

using TensorMap = std::map<std::string, Tensor, std::less<>>;

/// Where weights come from, one tensor at a time.
class LmWeights {
 public:
  virtual ~LmWeights() = default;
  virtual const LmConfig& config() const = 0;
  virtual bool has(std::string_view name) const = 0;
  /// fp32 on the CPU, in the shape of expected_tensors. Throws Failure when there is none.
  virtual Tensor tensor(std::string_view name) const = 0;
  /// Rows [r0, r1) of a matrix, [r1 - r0, cols] fp32, without decoding the rest where the stored form allows.
  virtual Tensor rows(std::string_view name, int64_t r0, int64_t r1) const = 0;
  /// Hash of configuration and weights, 32 hex digits: the key of what is derived from them.
  virtual std::string content_hash() const = 0;
};

/// `model` must outlive the result.
std::unique_ptr<LmWeights> weights_of(const Model& model);
/// Tensors by canonical name; missing or misshapen ones throw Failure when they are asked for.
std::unique_ptr<LmWeights> weights_of(LmConfig config, TensorMap tensors);

/// One matrix of a block.
struct LmLinear {
  std::string name;   ///< canonical: "model.layers.3.mlp.gate_proj.weight"
  std::string input;  ///< what flows in: "attn_in" (q, k, v), "attn_out" (o), "mlp_in" (gate, up, router), "mlp_act"
                      ///< (down); experts: "expert.2.in" (w1, w3), "expert.2.act" (w2)
  int64_t out = 0, in = 0;
  bool router = false;  ///< chooses experts; tiny, seldom worth compressing
};
/// In the order in which they run.
std::vector<LmLinear> block_linears(const LmConfig& config, int64_t layer);
/// The distinct inputs of a block's linears and their widths, in the order in which they are seen.
std::vector<std::pair<std::string, int64_t>> block_inputs(const LmConfig& config, int64_t layer);
/// Names of all tensors of a block.
std::vector<std::string> block_tensors(const LmConfig& config, int64_t layer);

/// What the blocks share for sequences of `tokens` tokens that begin at position 0: rotations and masks.
struct LmContext {
  int64_t tokens = 0;
  Tensor cos, sin;              ///< [tokens, head_dim], global layers
  Tensor cos_local, sin_local;  ///< of sliding layers; undefined = as global
  Tensor window;                ///< [tokens, tokens] bool, true where a sliding layer may look; undefined when no need
  Tensor causal;                ///< the same for plain causal attention; only made for soft-capped attention
};
LmContext make_context(const LmConfig& config, int64_t tokens, at::Device device = at::kCPU);

/// Callbacks into a forward pass. Empty ones cost nothing. Called in the order of block_inputs and block_linears;
/// experts that no token chose are called with zero rows.
struct Taps {
  std::function<void(const std::string& input, const Tensor& x)>
      input;  ///< [rows, width], once for each distinct input
  std::function<void(const std::string& linear, const Tensor& y)>
      output;  ///< [rows, out], bias included; may carry grad
  std::function<void(const Tensor& q, const Tensor& k)>
      rope;                ///< after RoPE: [batch, heads or kv_heads, tokens, key_dim]
  std::string stop_after;  ///< forward returns an undefined tensor once this input was seen
};

class LmBlock {
 public:
  /// `compute` is what set_compute would make of the matrices; converting each as it comes holds less at once.
  static LmBlock load(const LmWeights& weights, int64_t layer, at::Device device = at::kCPU,
                      at::ScalarType compute = at::kFloat);

  int64_t layer() const { return layer_; }
  const LmConfig& config() const { return config_; }
  const std::vector<LmLinear>& linears() const { return linears_; }

  /// x: [batch, tokens, hidden] fp32 -> the same shape. Differentiable. A matrix in bf16 is multiplied in bf16 (its
  /// input rounded, its result widened); everything else stays fp32.
  Tensor forward(const Tensor& x, const LmContext& context, const Taps* taps = nullptr) const;

  /// By canonical name. A weight may be replaced by any tensor of its shape, one that carries gradients included.
  const Tensor& weight(std::string_view name) const;
  void set_weight(std::string_view name, Tensor value);
  const TensorMap& weights() const { return weights_; }
  /// Converts the linears' matrices (not norms, biases and the router) for faster products: at::kBFloat16 or
  /// at::kFloat.
  void set_compute(at::ScalarType type);

 private:
  Tensor linear(const std::string& name, const Tensor& x, const Taps* taps) const;
  Tensor norm(const Tensor& x, const std::string& name) const;
  Tensor attention(const Tensor& x, const LmContext& context, const Taps* taps) const;
  Tensor mlp(const Tensor& x, const Taps* taps) const;
  Tensor experts(const Tensor& x, const Taps* taps) const;

  LmConfig config_;
  int64_t layer_ = 0;
  std::string prefix_;
  std::vector<LmLinear> linears_;
  TensorMap weights_;
};

/// What stands before the first and behind the last block.
/// tokens: [batch, tokens] int64 -> [batch, tokens, hidden]. Reads only the rows that occur.
Tensor embed(const LmWeights& weights, const Tensor& tokens);
/// The final norm, [.., hidden].
Tensor final_norm(const LmWeights& weights, const Tensor& x);
/// "lm_head.weight", or the embedding's name when they are tied.
std::string head_name(const LmConfig& config);
/// Root-mean-square norm with the configuration's epsilon and gain convention.
Tensor rms_norm(const LmConfig& config, const Tensor& x, const Tensor& gain);
/// c tanh(x / c), or x when c = 0.
Tensor soft_cap(const Tensor& x, double cap);

/// Logits [batch, tokens, vocab] of a model whose tensors are all in memory, differentiable. `ends` holds embedding,
/// final norm and head; with `bf16` the head multiplies in bf16 (blocks do as their matrices say).
Tensor lm_logits(const LmConfig& config, const TensorMap& ends, const std::vector<LmBlock>& blocks,
                 const LmContext& context, const Tensor& tokens, bool bf16);
/// tokens: [batch, tokens] int64 -> logits [batch, tokens, vocab]. For small models and tests: everything in memory.
Tensor lm_logits(const LmWeights& weights, const Tensor& tokens);
/// -log p(tokens[:, t + 1] | tokens[:, : t + 1]) in nats, [batch, tokens - 1] fp64. Streams blocks and vocabulary.
Tensor lm_nll(const LmWeights& weights, const Tensor& tokens);

}  // namespace pith
