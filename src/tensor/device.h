// Where tensors live: "cpu", or "cuda" when libtorch's CUDA library and a GPU are there.
#pragma once

#include <string>

#include "tensor/tensor.h"

namespace pith {

/// The device of this name ("cpu", "cuda", "cuda:1"). CUDA is loaded on the first request, so that programs start fast
/// without it. Throws Failure when the name is unknown or there is no such device.
at::Device open_device(const std::string& name);

}  // namespace pith
