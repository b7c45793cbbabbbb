#include "tensor/device.h"

#include <dlfcn.h>

#include <cstdlib>

namespace pith {

at::Device open_device(const std::string& name) {
  if (name == "cpu") return at::kCPU;
  if (name != "cuda" && !name.starts_with("cuda:"))
    throw Failure(user_error("there is no device '" + name + "'; known are cpu, cuda, cuda:1, …"));
  ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);  // cuBLAS sums in a fixed order then (FixedOrder)
  if (::dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr)
    throw Failure(user_error("device '" + name + "' needs a libtorch with CUDA, but its library cannot be loaded (" +
                             std::string(::dlerror()) + "); install a torch wheel with CUDA, or leave --device out"));
  try {
    const at::Device device(name);
    // libtorch loads its library of factorizations at the first call, which two threads must not do at once.
    (void)at::linalg_cholesky(at::ones({1, 1}, at::TensorOptions().device(device)));
    return device;
  } catch (const std::exception& e) {
    throw Failure(user_error("device '" + name + "' cannot be used: " + std::string(e.what()).substr(0, 200) +
                             "; leave --device out to run on the CPU"));
  }
}

FixedOrder::FixedOrder(at::Device device)
    : changed_(device.is_cuda() && !at::globalContext().deterministicAlgorithms()) {
  if (!changed_) return;
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  at::globalContext().setDeterministicFillUninitializedMemory(false);  // costs time, and nobody reads it
}

FixedOrder::~FixedOrder() {
  if (changed_) at::globalContext().setDeterministicAlgorithms(false, /*warn_only=*/false);
}

}  // namespace pith
