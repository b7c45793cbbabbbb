#include "engine/activations.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace pith {
namespace {

[[noreturn]] void fail(const std::string& path, const char* what) {
  throw Failure(user_error(path + ": cannot " + what + " the activations: " + std::strerror(errno)));
}

}  // namespace

ActivationStore::ActivationStore(int64_t sequences, int64_t tokens, int64_t width, at::Device device)
    : sequences_(sequences),
      tokens_(tokens),
      width_(width),
      memory_(at::empty({sequences, tokens, width}, at::TensorOptions().dtype(at::kFloat).device(device))) {}

ActivationStore::ActivationStore(int64_t sequences, int64_t tokens, int64_t width, const std::string& path)
    : sequences_(sequences), tokens_(tokens), width_(width), path_(path) {
  if (path.ends_with('/')) {
    std::string name = path + "pith-activations-XXXXXX";
    fd_ = ::mkstemp(name.data());
    if (fd_ >= 0) ::unlink(name.c_str());
  } else {
    fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  }
  if (fd_ < 0) fail(path_, "create a file for");
}

ActivationStore::ActivationStore(ActivationStore&& other) noexcept
    : sequences_(other.sequences_),
      tokens_(other.tokens_),
      width_(other.width_),
      memory_(std::move(other.memory_)),
      fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)) {}

ActivationStore::~ActivationStore() {
  if (fd_ >= 0) ::close(fd_);
}

uint64_t ActivationStore::bytes() const { return static_cast<uint64_t>(sequences_ * tokens_ * width_) * sizeof(float); }

Tensor ActivationStore::read(int64_t first, int64_t count) const {
  if (fd_ < 0) return memory_.narrow(0, first, count);
  Tensor out = at::empty({count, tokens_, width_}, at::kFloat);
  auto* to = static_cast<char*>(out.data_ptr());
  size_t left = static_cast<size_t>(out.numel()) * sizeof(float);
  off_t at = static_cast<off_t>(first * tokens_ * width_) * static_cast<off_t>(sizeof(float));
  while (left > 0) {
    const ssize_t n = ::pread(fd_, to, left, at);
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) errno = EIO;  // shorter than what was written
    if (n <= 0) fail(path_, "read");
    to += n, at += n, left -= static_cast<size_t>(n);
  }
  return out;
}

void ActivationStore::write(int64_t first, const Tensor& values) {
  if (fd_ < 0) {
    memory_.narrow(0, first, values.size(0)).copy_(values);
    return;
  }
  const Tensor dense = values.to(at::kCPU, at::kFloat).contiguous();
  const auto* from = static_cast<const char*>(dense.const_data_ptr());
  size_t left = static_cast<size_t>(dense.numel()) * sizeof(float);
  off_t at = static_cast<off_t>(first * tokens_ * width_) * static_cast<off_t>(sizeof(float));
  while (left > 0) {
    const ssize_t n = ::pwrite(fd_, from, left, at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail(path_, "write");
    from += n, at += n, left -= static_cast<size_t>(n);
  }
}

void ActivationStore::sync() const {
  if (fd_ >= 0 && ::fdatasync(fd_) != 0) fail(path_, "write");
}

}  // namespace pith
