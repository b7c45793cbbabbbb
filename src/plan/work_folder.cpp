#include "plan/work_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "base/checked.h"
#include "base/file.h"
#include "base/hash.h"

namespace pith {

namespace {

// A unit file: magic, bytes of the name, bytes of the data, hash of name and data, name, data. Only ever read by the
// same program on the same machine, so native byte order will do.
constexpr char kMagic[8] = {'P', 'I', 'T', 'H', 'U', 'N', 'T', '1'};
constexpr std::string_view kEnding = ".unit", kTemporary = ".tmp";
constexpr std::string_view kNote = "work.json";

struct UnitHeader {
  char magic[8];
  uint64_t name_bytes, data_bytes, check;
};

uint64_t unit_check(std::string_view name, std::span<const std::byte> data) { return hash64(data, hash64(name)); }

Error io_error(const std::string& path, const char* what) {
  return user_error(path + ": " + what + ": " + std::strerror(errno));
}

bool ends_with(std::string_view s, std::string_view end) {
  return s.size() >= end.size() && s.substr(s.size() - end.size()) == end;
}

/// What a killed run may leave half written.
bool is_leftover(std::string_view name) {
  return ends_with(name, kTemporary) || (name.size() > kNote.size() && name.substr(0, kNote.size()) == kNote);
}

/// Makes names in a folder durable. Best effort: some file systems refuse to sync a folder.
void sync_folder(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

Status write_all(int fd, const std::string& path, std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t n = ::write(fd, data.data(), std::min<size_t>(data.size(), size_t{1} << 30));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return io_error(path, "cannot write");
    data = data.subspan(static_cast<size_t>(n));
  }
  return {};
}

struct Unit {
  std::string name;
  Bytes data;
};

/// A unit file, checked; an error when it is damaged.
Result<Unit> read_unit(const std::string& path) {
  PITH_ASSIGN(auto file, MappedFile::open(path));
  const auto bytes = file->bytes();
  UnitHeader h;
  if (bytes.size() < sizeof h) return data_error(path + ": is cut short");
  std::memcpy(&h, bytes.data(), sizeof h);
  if (std::memcmp(h.magic, kMagic, sizeof kMagic) != 0) return data_error(path + ": is no unit of a work folder");
  const uint64_t rest = bytes.size() - sizeof h;
  if (h.name_bytes > rest || h.data_bytes != rest - h.name_bytes) return data_error(path + ": is cut short");
  const std::string name(reinterpret_cast<const char*>(bytes.data()) + sizeof h, h.name_bytes);
  const auto data = bytes.subspan(sizeof h + h.name_bytes);
  if (unit_check(name, data) != h.check) return data_error(path + ": its checksum is wrong");
  drop_mapped_pages(data);  // a reader may want little of it
  return Unit{name, Bytes(data, file)};
}

std::vector<std::string> list_folder(const std::string& path) {
  std::vector<std::string> names;
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) return names;
  while (const dirent* entry = ::readdir(dir)) names.emplace_back(entry->d_name);
  ::closedir(dir);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

struct WorkFolder::State {
  std::string path;
  int lock = -1;
  bool joined = false;  // without the lock
  std::vector<std::string> dropped;
  mutable std::mutex mutex;
  std::map<std::string, std::string, std::less<>> files;  // unit -> file name
  std::string temporary_prefix;                           // of this process, where several write
  std::atomic<uint64_t> next_temporary{0};
  bool removed = false;

  ~State() {
    if (lock >= 0) ::close(lock);  // gives the flock back
  }
  std::string at(std::string_view name) const { return path + "/" + std::string(name); }
  /// File of a finished unit, or nothing; looks on disk for what others have finished.
  std::optional<std::string> find(std::string_view unit);
};

/// File names follow from unit names, so a unit committed again replaces itself.
static std::string unit_file(std::string_view unit) {
  std::string readable;
  for (const char c : unit.substr(0, 80)) {
    const bool plain =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '_';
    readable += plain ? c : '_';
  }
  return readable + "-" + Hasher().add(unit).hex().substr(0, 16) + std::string(kEnding);
}

std::optional<std::string> WorkFolder::State::find(std::string_view unit) {
  const std::lock_guard guard(mutex);
  auto known = files.find(unit);
  if (known == files.end()) {
    const std::string file = unit_file(unit);
    if (!file_exists(at(file)) || !read_unit(at(file)).ok()) return std::nullopt;
    known = files.emplace(unit, file).first;
  }
  return known->second;
}

/// That the note of a folder names this plan and this input.
static Status check_note(const std::string& folder, const std::string& note, const std::string& plan_hash,
                         const std::string& input_hash) {
  PITH_ASSIGN(const std::string text, read_text(note, 1 << 20));
  const auto json = nlohmann::json::parse(text, nullptr, false);
  const auto field = [&json](const char* key) {
    const auto it = json.find(key);
    return it != json.end() && it->is_string() ? it->get<std::string>() : std::string();
  };
  const std::string advice =
      "; finish it with the same command, pass --restart to throw its work away, or choose another output name";
  if (!json.is_object() || field("input").empty())
    return data_error(note + ": is damaged; pass --restart to begin anew");
  if (field("input") != input_hash)
    return user_error(folder + ": holds unfinished work on another input (the model file has changed)" + advice);
  if (field("plan") != plan_hash)
    return user_error(folder + ": holds unfinished work of another plan (other options, budget or version of Pith)" +
                      advice);
  return {};
}

/// The flock. The file may have been deleted between open and flock by a run that just ended: then try again.
static Result<int> take_lock(const std::string& folder) {
  const std::string path = folder + "/lock";
  for (int attempt = 0; attempt < 100; ++attempt) {
    if (::mkdir(folder.c_str(), 0755) != 0 && errno != EEXIST) return io_error(folder, "cannot create the work folder");
    if (!is_directory(folder))
      return user_error(folder + ": is in the way, a folder of this name is needed for unfinished work");
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 && errno == ENOENT) continue;
    if (fd < 0) return io_error(folder, "cannot write into the work folder");
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
      const int reason = errno;
      ::close(fd);
      errno = reason;
      if (reason == EWOULDBLOCK)
        return user_error(folder + ": another run is working there; wait for it, or choose another output name");
      return io_error(path, "cannot lock");
    }
    struct stat held {
    }, named{};
    if (::fstat(fd, &held) == 0 && ::stat(path.c_str(), &named) == 0 && held.st_ino == named.st_ino &&
        held.st_dev == named.st_dev)
      return fd;
    ::close(fd);
  }
  return user_error(folder + ": the work folder keeps disappearing while it is opened");
}

Result<WorkFolder> WorkFolder::open(const std::string& folder, const std::string& plan_hash,
                                    const std::string& input_hash, bool restart) {
  auto state = std::make_unique<State>();
  state->path = folder;
  PITH_ASSIGN(state->lock, take_lock(folder));

  const std::string note = state->at(kNote);
  const std::vector<std::string> names = list_folder(folder);
  const bool units = std::any_of(names.begin(), names.end(), [](const auto& name) { return ends_with(name, kEnding); });
  const bool fresh = restart || !units || !file_exists(note);
  if (!fresh) PITH_TRY(check_note(folder, note, plan_hash, input_hash));
  for (const std::string& name : names) {
    const std::string path = state->at(name);
    if (is_leftover(name) || (fresh && ends_with(name, kEnding))) {
      ::unlink(path.c_str());
    } else if (ends_with(name, kEnding)) {
      auto unit = read_unit(path);
      if (unit.ok() && unit_file(unit->name) == name) {
        state->files[unit->name] = name;
      } else {
        state->dropped.push_back(name);
        ::unlink(path.c_str());
      }
    }
  }
  if (fresh) {
    // Units were deleted first: never old units under a new hash.
    sync_folder(folder);
    const nlohmann::json json = {{"pith_work", 1}, {"plan", plan_hash}, {"input", input_hash}};
    PITH_TRY(write_file(note, json.dump() + "\n", true));
    sync_folder(folder);
  }
  return WorkFolder(std::move(state));
}

/// Whether another process holds the flock of this folder.
static bool locked(const std::string& folder) {
  const int fd = ::open((folder + "/lock").c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return false;
  const bool held = ::flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  ::close(fd);
  return held;
}

Result<std::optional<WorkFolder>> WorkFolder::join(const std::string& folder, const std::string& plan_hash,
                                                   const std::string& input_hash) {
  auto state = std::make_unique<State>();
  state->path = folder;
  state->joined = true;
  char host[64] = {};
  (void)::gethostname(host, sizeof host - 1);
  state->temporary_prefix = std::string(host) + "-" + std::to_string(::getpid()) + "-";
  const std::string note = state->at(kNote);
  if (!locked(folder) || !file_exists(note)) return std::optional<WorkFolder>();
  PITH_TRY(check_note(folder, note, plan_hash, input_hash));
  return std::optional<WorkFolder>(WorkFolder(std::move(state)));
}

bool WorkFolder::owner_at_work() const { return state_->joined && locked(state_->path); }

WorkFolder::WorkFolder(std::unique_ptr<State> state) : state_(std::move(state)) {}
WorkFolder::WorkFolder(WorkFolder&&) noexcept = default;
WorkFolder::~WorkFolder() {
  const bool owner = state_ != nullptr && !state_->joined && !state_->removed;
  if (owner && state_->files.empty()) (void)remove();  // it holds nothing
}

const std::string& WorkFolder::path() const { return state_->path; }
const std::vector<std::string>& WorkFolder::dropped() const { return state_->dropped; }

std::vector<std::string> WorkFolder::done() const {
  const std::lock_guard lock(state_->mutex);
  std::vector<std::string> names;
  for (const auto& [unit, file] : state_->files) names.push_back(unit);
  return names;
}

bool WorkFolder::has(std::string_view unit) const { return state_->find(unit).has_value(); }

Status WorkFolder::commit(std::string_view unit, std::span<const std::byte> data) {
  State& s = *state_;
  const std::string file = unit_file(unit);
  const std::string temporary =
      s.at(s.temporary_prefix + std::to_string(s.next_temporary.fetch_add(1)) + std::string(kTemporary));
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return io_error(s.path, "cannot write into the work folder");
  UnitHeader h{{}, unit.size(), data.size(), unit_check(unit, data)};
  std::memcpy(h.magic, kMagic, sizeof kMagic);
  Status status = write_all(fd, temporary, std::as_bytes(std::span(&h, 1)));
  if (status.ok()) status = write_all(fd, temporary, std::as_bytes(std::span(unit.data(), unit.size())));
  if (status.ok()) status = write_all(fd, temporary, data);
  if (status.ok() && ::fsync(fd) != 0) status = io_error(temporary, "cannot write");
  ::close(fd);
  if (status.ok() && ::rename(temporary.c_str(), s.at(file).c_str()) != 0)
    status = io_error(s.at(file), "cannot rename into place");
  if (!status.ok()) {
    ::unlink(temporary.c_str());
    return status;
  }
  sync_folder(s.path);
  const std::lock_guard lock(s.mutex);
  s.files[std::string(unit)] = file;
  return {};
}

Result<Bytes> WorkFolder::read(std::string_view unit) const {
  const std::optional<std::string> file = state_->find(unit);
  if (!file) return bug_error(state_->path + ": unit '" + std::string(unit) + "' is not finished");
  PITH_ASSIGN(auto loaded, read_unit(state_->at(*file)));
  return loaded.data;
}

Status WorkFolder::remove(std::string_view last) {
  State& s = *state_;
  const std::lock_guard lock(s.mutex);
  s.files.clear();
  s.removed = true;
  // A kill in between leaves fewer units than before, which is a state like any other.
  const std::string last_file = unit_file(last);
  for (const std::string& name : list_folder(s.path))
    if (name != last_file && name != kNote && (ends_with(name, kEnding) || is_leftover(name)))
      ::unlink(s.at(name).c_str());
  for (const std::string_view name : {std::string_view(last_file), kNote, std::string_view("lock")})
    ::unlink(s.at(name).c_str());
  if (::rmdir(s.path.c_str()) != 0 && errno != ENOENT && errno != ENOTEMPTY && errno != EEXIST)
    return io_error(s.path, "cannot remove the work folder");
  return {};
}

}  // namespace pith
