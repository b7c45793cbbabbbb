// Where tensors live: "cpu", or "cuda" when libtorch's CUDA library and a GPU are there.
#pragma once

#include <string>

#include "tensor/tensor.h"

namespace pith {

/// The device of this name ("cpu", "cuda", "cuda:1"). CUDA is loaded on the first request, so that programs start fast
/// without it. Throws Failure when the name is unknown or there is no such device.
at::Device open_device(const std::string& name);

/// While it lives, operations on a GPU sum in a fixed order, those without such a form fail. Nothing to do for the CPU.
class FixedOrder {
 public:
  explicit FixedOrder(at::Device device);
  ~FixedOrder();
  FixedOrder(const FixedOrder&) = delete;
  FixedOrder& operator=(const FixedOrder&) = delete;

 private:
  bool changed_;
};

}  // namespace pith
