// Errors as exceptions, for the side of Pith that throws (tensors, commands); see result.h for the other.
#pragma once

#include <pith/result.h>

#include <exception>
#include <utility>

namespace pith {

/// The one exception type of Pith: thrown on the tensor side and by commands, never by the torch-free library; carries
/// what a Result would.
class Failure : public std::exception {
 public:
  explicit Failure(Error error) : error_(std::move(error)) {}
  const char* what() const noexcept override { return error_.message.c_str(); }
  const Error& error() const { return error_; }

 private:
  Error error_;
};

/// Takes the value out of a Result, or throws its error.
template <class T>
T must(Result<T> result) {
  if (!result.ok()) throw Failure(result.error());
  return std::move(result).value();
}
inline void must(Status status) {
  if (!status.ok()) throw Failure(status.error());
}

}  // namespace pith
