// Which sequences a training step reads: all of them once in each round through the text, in an order of its own.
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace pith {

class Rounds {
 public:
  /// Orders of `sequences` sequences; the same seed gives the same ones.
  Rounds(int64_t sequences, uint64_t seed) : sequences_(sequences), seed_(seed) {}
  /// The places of the `batch` sequences of a step, [batch] int64.
  Tensor places(int64_t step, int64_t batch);

 private:
  int64_t sequences_;
  uint64_t seed_;
  int64_t round_ = -1;  ///< of order_
  Tensor order_;
};

}  // namespace pith
