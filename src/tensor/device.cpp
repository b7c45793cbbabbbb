#include "tensor/device.h"

#include <dlfcn.h>

namespace pith {

at::Device open_device(const std::string& name) {
  if (name == "cpu") return at::kCPU;
  if (name != "cuda" && !name.starts_with("cuda:"))
    throw Failure(user_error("there is no device '" + name + "'; known are cpu, cuda, cuda:1, …"));
  if (::dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr)
    throw Failure(user_error("device '" + name + "' needs a libtorch with CUDA, but its library cannot be loaded (" +
                             std::string(::dlerror()) + "); install a torch wheel with CUDA, or leave --device out"));
  try {
    const at::Device device(name);
    (void)at::zeros({1}, at::TensorOptions().device(device));
    return device;
  } catch (const std::exception& e) {
    throw Failure(user_error("device '" + name + "' cannot be used: " + std::string(e.what()).substr(0, 200) +
                             "; leave --device out to run on the CPU"));
  }
}

}  // namespace pith
