// OUT.work/: finished units of a long job. A unit is committed atomically (write, fsync, rename), so after kill -9 the
// same command goes on with what is there and ends with the same bytes.
//
//   OUT.work/work.json     hashes of plan and input
//   OUT.work/lock          flock of the run that owns the folder; others may join it and finish units for it
//   OUT.work/N.unit        one finished unit: header with name and checksum, then its bytes
#pragma once

#include <pith/result.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/bytes.h"

namespace pith {

class WorkFolder {
 public:
  /// Opens or creates `folder` (normally OUT + ".work") and takes its lock. Units of another plan or input are an
  /// error that says so, unless `restart` is set: then they are thrown away. Damaged units are dropped and done again.
  /// A folder in which no unit was finished is removed when it is closed.
  static Result<WorkFolder> open(const std::string& folder, const std::string& plan_hash, const std::string& input_hash,
                                 bool restart);
  /// The folder of a run that is working there now, without its lock, to finish units for it; nullopt when no run is.
  /// A run with another plan or input is an error.
  static Result<std::optional<WorkFolder>> join(const std::string& folder, const std::string& plan_hash,
                                                const std::string& input_hash);
  /// Whether the run that owns the folder is still at work. False in the owner itself.
  bool owner_at_work() const;
  WorkFolder(WorkFolder&&) noexcept;
  WorkFolder& operator=(WorkFolder&&) = delete;
  ~WorkFolder();

  const std::string& path() const;
  /// Names of finished units, sorted: those of this process and those that were there when the folder was opened.
  std::vector<std::string> done() const;
  /// Also sees what others have committed since.
  bool has(std::string_view unit) const;
  /// Names of unit files that were damaged when the folder was opened.
  const std::vector<std::string>& dropped() const;

  /// Makes a unit durable. May be called from several threads and processes. A unit committed twice keeps the later
  /// bytes.
  Status commit(std::string_view unit, std::span<const std::byte> data);
  /// The bytes of a finished unit (a mapping), checksum verified again.
  Result<Bytes> read(std::string_view unit) const;

  /// Deletes everything, at the end of a job whose result is in place; the unit `last` after all others.
  Status remove(std::string_view last = {});

 private:
  struct State;
  explicit WorkFolder(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace pith
