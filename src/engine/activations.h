// Activations of all calibration sequences at one place of the model, in memory or in a file.
#pragma once

#include <cstdint>
#include <string>

#include "tensor/tensor.h"

namespace pith {

/// [sequences, tokens, width] fp32. Different sequences may be read and written from several threads at once.
class ActivationStore {
 public:
  /// In memory of this device.
  ActivationStore(int64_t sequences, int64_t tokens, int64_t width, at::Device device = at::kCPU);
  /// In a file of this path, kept; or, when `path` ends with '/', in an unnamed file in that folder.
  ActivationStore(int64_t sequences, int64_t tokens, int64_t width, const std::string& path);
  ~ActivationStore();
  ActivationStore(ActivationStore&& other) noexcept;
  ActivationStore& operator=(ActivationStore&&) = delete;

  int64_t sequences() const { return sequences_; }
  uint64_t bytes() const;
  /// Sequences [first, first + count), [count, tokens, width], on the store's device (the CPU for a file). Written may
  /// be from any.
  Tensor read(int64_t first, int64_t count) const;
  void write(int64_t first, const Tensor& values);
  /// Makes a file durable; nothing to do in memory.
  void sync() const;

 private:
  int64_t sequences_, tokens_, width_;
  Tensor memory_;
  int fd_ = -1;
  std::string path_;
};

}  // namespace pith
