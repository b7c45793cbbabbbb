// Result<T>: a value or an error. The torch-free side of Pith throws nothing, aborts nothing and prints nothing:
// every function that can fail returns a Result, and the compiler refuses to let one be dropped.
#pragma once

#include <cstdlib>
#include <string>
#include <utility>
#include <variant>

namespace pith {

/// Who has to act. The numbers are the exit codes of the command line.
enum class ErrorKind {
  user = 2,  ///< a wrong option, an impossible budget, an unwritable path
  data = 3,  ///< a broken or unsupported input file
  bug = 70,  ///< Pith itself is wrong
};

/// What went wrong. `message` names what, where, expected, found, and what to do.
struct Error {
  ErrorKind kind = ErrorKind::bug;
  std::string message;
};

inline Error user_error(std::string message) { return {ErrorKind::user, std::move(message)}; }
inline Error data_error(std::string message) { return {ErrorKind::data, std::move(message)}; }
inline Error bug_error(std::string message) { return {ErrorKind::bug, std::move(message)}; }

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  /// The value; calling it on an error is a bug of the caller.
  T& value() & { return *checked(); }
  const T& value() const& { return *const_cast<Result*>(this)->checked(); }
  T&& value() && { return std::move(*checked()); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const { return std::get<1>(state_); }

  /// The same result with `where` put before the error's message ("model.gguf: …").
  Result context(const std::string& where) && {
    if (!ok()) std::get<1>(state_).message = where + ": " + std::get<1>(state_).message;
    return std::move(*this);
  }

 private:
  T* checked() {
    if (!ok()) std::abort();  // reading a value that is not there can only be a bug in Pith
    return &std::get<0>(state_);
  }
  std::variant<T, Error> state_;
};

/// A Result without a value.
template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : failed_(true), error_(std::move(error)) {}  // NOLINT(google-explicit-constructor)
  bool ok() const { return !failed_; }
  explicit operator bool() const { return ok(); }
  const Error& error() const { return error_; }
  Result context(const std::string& where) && {
    if (failed_) error_.message = where + ": " + error_.message;
    return std::move(*this);
  }

 private:
  bool failed_ = false;
  Error error_;
};

using Status = Result<void>;

}  // namespace pith

#define PITH_CONCAT_(a, b) a##b
#define PITH_CONCAT(a, b) PITH_CONCAT_(a, b)

/// Returns the error of a Result from the enclosing function.
#define PITH_TRY(expr)                                   \
  do {                                                   \
    auto pith_status_ = (expr);                          \
    if (!pith_status_.ok()) return pith_status_.error(); \
  } while (false)

/// `PITH_ASSIGN(auto x, f());` takes the value out of a Result or returns its error.
#define PITH_ASSIGN(decl, expr) PITH_ASSIGN_(PITH_CONCAT(pith_result_, __LINE__), decl, expr)
#define PITH_ASSIGN_(tmp, decl, expr) \
  auto tmp = (expr);                  \
  if (!tmp.ok()) return tmp.error();  \
  decl = std::move(tmp).value()
