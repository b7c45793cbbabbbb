#include "engine/calibrate.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <span>
#include <utility>

#include "base/file.h"
#include "base/hash.h"
#include "engine/activations.h"
#include "engine/statistics_file.h"
#include "maths/linalg.h"
#include "measure/memory.h"
#include "tensor/device.h"
#include "tensor/parallel.h"

namespace pith {
namespace {

constexpr int64_t kBatchTokens = 2048;            // tokens of one task, when memory allows
constexpr uint64_t kTaskBytes = 256ull << 20;     // activations of one task with gradients
constexpr int64_t kDeviceTasks = 8;               // a GPU takes so many times more at once
constexpr int64_t kHeadTokens = 128;              // tokens whose logits are formed at a time
constexpr int64_t kDeviceHeadTokens = 4096;       // the same on a GPU
constexpr int64_t kVocabRows = 8192;              // head rows at a time
constexpr const char* kFormat = "calibration 1";  // part of the key: change it when results change

// How the sequences are cut into tasks. Depends on sizes and the device only, never on threads or memory: it decides
// the order of sums.
struct Cut {
  int64_t sequences = 0, length = 0, batch = 1;
  uint64_t task_bytes = 0;
  bool gpu = false;

  Cut(const LmConfig& c, int64_t n, int64_t tokens, at::Device device)
      : sequences(n), length(tokens), gpu(device.is_cuda()) {
    const int64_t times = gpu ? kDeviceTasks : 1;
    const int64_t experts = std::max<int64_t>(1, c.experts_per_token);
    const uint64_t per_token = 4ull * static_cast<uint64_t>(20 * c.hidden + 4 * (c.heads + c.kv_heads) * c.head_dim +
                                                            8 * c.intermediate * experts);
    const uint64_t sequence = per_token * static_cast<uint64_t>(tokens);
    batch = std::clamp<int64_t>(times * static_cast<int64_t>(kTaskBytes / std::max<uint64_t>(sequence, 1)), 1,
                                std::max<int64_t>(1, times * kBatchTokens / tokens));
    task_bytes = sequence * static_cast<uint64_t>(batch);
  }
  int64_t tasks(int64_t count) const { return (count + batch - 1) / batch; }
  int64_t first(int64_t task) const { return task * batch; }
  int64_t count(int64_t task, int64_t of) const { return std::min(batch, of - task * batch); }
  // Fewer threads when their activations would not fit; a GPU is busy with one task.
  unsigned threads(uint64_t memory) const {
    if (gpu) return 1;
    const auto room = std::max<uint64_t>(1, memory / std::max<uint64_t>(task_bytes, 1));
    return static_cast<unsigned>(std::min<uint64_t>(room, static_cast<uint64_t>(at::get_num_threads())));
  }
};

void check_tokens(const LmConfig& config, const Tensor& tokens) {
  if (!tokens.defined() || tokens.dim() != 2 || tokens.size(0) < 1 || tokens.size(1) < 1)
    throw Failure(user_error("calibration needs at least one sequence of tokens; is the calibration text empty?"));
  if (tokens.min().item<int64_t>() < 0 || tokens.max().item<int64_t>() >= config.vocab)
    throw Failure(user_error("a calibration token lies outside the model's vocabulary of " +
                             std::to_string(config.vocab) + " entries; was the text made with another tokenizer?"));
}

bool use_bf16(Compute compute, at::Device device) {
  return compute == Compute::bf16 || (compute == Compute::automatic && (device.is_cuda() || fast_bf16()));
}

LmBlock load_block(const LmWeights& weights, int64_t layer, at::Device device, bool bf16) {
  return LmBlock::load(weights, layer, device, bf16 ? at::kBFloat16 : at::kFloat);
}

at::TensorOptions doubles(at::Device device) { return at::TensorOptions().dtype(at::kDouble).device(device); }

std::string spill_folder(const std::string& wanted) {
  if (!wanted.empty()) return wanted + "/";
  const char* t = std::getenv("TMPDIR");
  return std::string(t != nullptr && *t != '\0' ? t : "/tmp") + "/";
}

// Runs body(task) for all tasks; a failing task frees those that wait for its turn. Errors of the data name `where`.
void run_tasks(const std::string& where, int64_t tasks, unsigned threads, Turns& turns,
               const std::function<void(int64_t)>& body) {
  parallel_tasks(
      tasks,
      [&](int64_t task) {
        try {
          body(task);
        } catch (const Failure& failure) {
          turns.fail();
          Error error = failure.error();
          error.message = where + ": " + error.message;
          throw Failure(std::move(error));
        } catch (...) {
          turns.fail();
          throw;
        }
      },
      threads);
}

// Adds to `moments` in the task's turn.
void add_in_turn(Moments& moments, const Tensor& x, Turns& turns, const std::string& key, int64_t task) {
  moments.add(x, [&](int64_t step, const std::function<void()>& commit) {
    turns.turn(key + ":" + std::to_string(step), task, commit);
  });
}

std::map<std::string, Moments, std::less<>> empty_moments(const LmConfig& config, int64_t layer, at::Device device) {
  std::map<std::string, Moments, std::less<>> all;
  for (const auto& [input, width] : block_inputs(config, layer)) all.emplace(input, Moments(width, device));
  return all;
}

// --- the cache folder ------------------------------------------------------------------------------------------------

class Folder {
 public:
  /// Waits while another run collects these statistics.
  Folder(const std::string& root, const std::string& key, Progress& progress)
      : key_(key), path_(root + "/stats-" + key) {
    do {  // again when forget_statistics() removed the folder before the lock was taken
      open();
      const bool taken = wait_until(progress, path_ + ": another run collects these statistics: waiting for it", [&] {
        exclusive_ = ::flock(lock_, LOCK_EX | LOCK_NB) == 0;
        return exclusive_ || ::flock(lock_, LOCK_SH | LOCK_NB) == 0;
      });
      if (taken) continue;
      ::close(lock_);
      throw Failure(user_error("stopped; the same command continues here"));
    } while (!lock_is_there());
  }
  /// Before anything is written: throws when others read this folder (statistics that turned out to be damaged).
  void need_exclusive() const {
    if (!exclusive_)
      throw Failure(user_error(path_ + ": another run is using these statistics, which are damaged; wait for its end"));
  }
  /// Nothing is written any more: others may read too.
  void share() {
    ::flock(lock_, LOCK_SH | LOCK_NB);
    exclusive_ = false;
  }
  ~Folder() { ::close(lock_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::string numbered(const char* kind, int64_t layer) const {
    char digits[24];
    std::snprintf(digits, sizeof digits, "-%05lld", static_cast<long long>(layer));
    return file(kind + std::string(digits));
  }
  void save(const std::string& name, const TensorMap& tensors) const { save_tensors(name, key_, tensors); }
  std::optional<TensorMap> load(const std::string& name) const { return load_tensors(name, key_); }
  static void remove(const std::string& name) { ::unlink(name.c_str()); }

 private:
  void open() {
    if (lock_ >= 0) ::close(lock_);
    do {
      std::error_code error;
      std::filesystem::create_directories(path_, error);
      if (error) unusable(error.message());
      lock_ = ::open((path_ + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
      if (lock_ < 0 && errno != ENOENT) unusable(std::strerror(errno));
    } while (lock_ < 0);
  }
  bool lock_is_there() const {
    struct stat mine {
    }, named{};
    return ::fstat(lock_, &mine) == 0 && ::stat((path_ + "/lock").c_str(), &named) == 0 && mine.st_ino == named.st_ino;
  }
  [[noreturn]] void unusable(const std::string& reason) const {
    throw Failure(
        user_error(path_ + ": cannot keep statistics here: " + reason + "; name another folder with --cache"));
  }
  std::string key_, path_;
  int lock_ = -1;
  bool exclusive_ = false;
};

// --- results
// -----------------------------------------------------------------------------------------------------------

TensorMap pack_inputs(const std::map<std::string, Moments, std::less<>>& inputs) {
  TensorMap t;
  for (const auto& [name, moments] : inputs) put_moments(t, name, moments);
  return t;
}

class Collected final : public Statistics {
 public:
  std::string key_;
  int64_t tokens_ = 0, fisher_tokens_ = 0;
  bool moments_ = false;
  LmConfig config_;
  at::Device device_ = at::kCPU;         // where factors are made
  std::unique_ptr<Folder> folder_;       // null: everything in memory
  std::vector<BlockStatistics> blocks_;  // when in memory
  EndStatistics ends_;

  BlockStatistics block(int64_t layer) const override {
    if (layer < 0 || layer >= config_.layers)
      throw Failure(bug_error("statistics of layer " + std::to_string(layer) + " were asked for"));
    if (!folder_) return blocks_[static_cast<size_t>(layer)];
    BlockStatistics result;
    if (moments_) {
      const TensorMap t = need(folder_->numbered("moments", layer));
      for (const auto& [input, width] : block_inputs(config_, layer))
        result.inputs.emplace(input, get_moments(t, input));
    }
    if (fisher_tokens_ > 0)
      for (auto& [name, g] : need(folder_->numbered("fisher", layer))) result.row_fisher.emplace(name, g);
    return result;
  }
  EndStatistics ends() const override { return ends_; }
  int64_t tokens() const override { return tokens_; }
  int64_t fisher_tokens() const override { return fisher_tokens_; }
  const std::string& key() const override { return key_; }
  Tensor upper_factor(int64_t layer, const std::string& input, const Moments& moments, double damp) const override {
    const auto make = [&] {
      const std::string what = "block " + std::to_string(layer) + ", " + input;
      return upper_inverse_factor(moments, damp, what, device_).upper.to(at::kFloat).to(at::kCPU);
    };
    if (!folder_) return make();
    const std::string file = folder_->numbered(("factor-" + input + "-" + std::to_string(damp)).c_str(), layer);
    std::mutex* mine = nullptr;
    {
      const std::lock_guard lock(mutex_);
      mine = &files_[file];
    }
    const std::lock_guard lock(*mine);
    const int64_t n = moments.width();
    if (auto found = folder_->load(file)) {
      const Tensor& packed = (*found)["upper"];
      if (packed.defined() && packed.scalar_type() == at::kFloat && packed.numel() == n * (n + 1) / 2) {
        Tensor upper = at::zeros({n, n}, at::kFloat);
        const float* from = packed.const_data_ptr<float>();
        for (int64_t i = 0; i < n; from += n - i, ++i) std::copy_n(from, n - i, upper.data_ptr<float>() + i * n + i);
        return upper;
      }
    }
    const Tensor upper = make();
    Tensor packed = at::empty({n * (n + 1) / 2}, at::kFloat);
    float* to = packed.data_ptr<float>();
    for (int64_t i = 0; i < n; to += n - i, ++i) std::copy_n(upper.const_data_ptr<float>() + i * n + i, n - i, to);
    folder_->save(file, {{"upper", packed}});
    return upper;
  }

 private:
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::mutex> files_;  // one thread makes a factor, the others wait and read it
  TensorMap need(const std::string& file) const {
    auto found = folder_->load(file);
    if (!found)
      throw Failure(data_error(file + ": statistics are missing or damaged; delete the folder and run again"));
    return std::move(*found);
  }
};

// --- the calibration
// ---------------------------------------------------------------------------------------------------

class Calibration {
 public:
  Calibration(const LmWeights& weights, const Tensor& tokens, const CalibrationOptions& options, Progress& progress)
      : weights_(weights),
        config_(weights.config()),
        options_(options),
        device_(options.device),
        progress_(progress),
        cut_(config_, tokens.size(0), tokens.size(1), options.device),
        tokens_(tokens.to(at::kLong).contiguous()),
        fisher_(std::clamp<int64_t>(options.fisher_sequences, 0, tokens.size(0))),
        bf16_(use_bf16(options.compute, options.device)),
        context_(make_context(config_, tokens.size(1), options.device)),
        result_(std::make_unique<Collected>()) {}

  std::unique_ptr<Statistics> run() {
    Collected& r = *result_;
    r.config_ = config_;
    r.device_ = device_;
    r.moments_ = options_.moments;
    r.tokens_ = tokens_.numel();
    r.fisher_tokens_ = fisher_ * (cut_.length - (options_.empirical ? 1 : 0));
    r.key_ = make_key();
    if (!options_.cache_folder.empty()) r.folder_ = std::make_unique<Folder>(options_.cache_folder, r.key_, progress_);
    r.blocks_.resize(r.folder_ ? 0 : static_cast<size_t>(config_.layers));
    total_ = static_cast<uint64_t>(config_.layers) * (fisher_ > 0 ? 2 : 1) + 1;
    if (complete()) {
      progress_.note("statistics found in " + options_.cache_folder);
      folder()->share();
      return std::move(result_);
    }
    if (folder() != nullptr) folder()->need_exclusive();
    last_commit_ = Clock::now();
    const int64_t backward_from = resume_backward();
    if (backward_from < 0) {
      forward();
      ends();
      backward(config_.layers - 1);
    } else {
      backward(backward_from);
    }
    embedding();
    finish();
    return std::move(result_);
  }

 private:
  using Clock = std::chrono::steady_clock;

  std::string make_key() const {
    Hasher h;
    h.add(kFormat).add(weights_.content_hash());
    h.add(static_cast<uint64_t>(cut_.sequences)).add(static_cast<uint64_t>(cut_.length));
    h.add(std::as_bytes(std::span(tokens_.const_data_ptr<int64_t>(), static_cast<size_t>(tokens_.numel()))));
    h.add(static_cast<uint64_t>(options_.moments)).add(static_cast<uint64_t>(fisher_));
    h.add(static_cast<uint64_t>(options_.empirical)).add(options_.seed).add(static_cast<uint64_t>(bf16_));
    if (cut_.gpu) h.add("on a GPU");
    return h.hex();
  }

  void step(const std::string& unit) {
    if (!progress_.step({"calibrate", unit, ++done_, total_}))
      throw Failure(user_error("stopped; the same command continues here"));
  }

  Folder* folder() { return result_->folder_.get(); }
  bool time_to_commit() const {
    return std::chrono::duration<double>(Clock::now() - last_commit_).count() >= options_.commit_seconds;
  }

  ActivationStore make_store(int64_t sequences, const std::string& name) {
    const uint64_t bytes = static_cast<uint64_t>(sequences * cut_.length * config_.hidden) * sizeof(float);
    if (folder() != nullptr && !name.empty()) return {sequences, cut_.length, config_.hidden, name};
    if (held_ + bytes <= options_.memory / 2) {
      held_ += bytes;
      return {sequences, cut_.length, config_.hidden, device_};
    }
    return {sequences, cut_.length, config_.hidden, spill_folder(options_.cache_folder)};
  }

  /// Sequences of a store, on the device.
  Tensor read(const ActivationStore& store, int64_t first, int64_t count) const {
    return store.read(first, count).to(device_);
  }

  // A store's content as a tensor file: the state from which an interrupted run goes on.
  void save_state(const std::string& name, const ActivationStore& store, int64_t next) {
    folder()->save(folder()->file(name), {{"values", store.read(0, store.sequences()).to(at::kCPU)},
                                          {"next", at::full({1}, next, at::kLong)}});
  }
  std::optional<int64_t> load_state(const std::string& name, ActivationStore& store) {
    auto state = folder()->load(folder()->file(name));
    if (!state || !state->contains("values") || !state->contains("next")) return std::nullopt;
    const Tensor& values = (*state)["values"];
    if (values.dim() != 3 || values.size(0) != store.sequences()) return std::nullopt;
    store.write(0, values);
    return (*state)["next"].item<int64_t>();
  }

  ActivationStore& block_input(int64_t layer) {
    while (static_cast<int64_t>(inputs_.size()) <= layer) {
      const int64_t n = static_cast<int64_t>(inputs_.size());
      inputs_.push_back(make_store(fisher_, folder() != nullptr ? folder()->numbered("input", n) : ""));
    }
    return inputs_[static_cast<size_t>(layer)];
  }

  bool complete() {
    if (folder() == nullptr) return false;
    auto ends = folder()->load(folder()->file("ends"));
    if (!ends || !ends->contains("done")) return false;
    for (int64_t layer = 0; layer < config_.layers; ++layer) {  // a damaged file means: do it again
      if (options_.moments && !folder()->load(folder()->numbered("moments", layer))) return false;
      if (fisher_ > 0 && !folder()->load(folder()->numbered("fisher", layer))) return false;
    }
    unpack_ends(*ends);
    return true;
  }

  void forward() {
    const at::NoGradGuard no_grad;
    const FixedOrder fixed(device_);
    hidden_ = std::make_unique<ActivationStore>(make_store(cut_.sequences, ""));
    int64_t layer = 0;
    if (folder() != nullptr)
      if (const auto next = load_state("forward", *hidden_)) layer = *next;
    done_ = static_cast<uint64_t>(layer);
    const unsigned threads = cut_.threads(options_.memory / 2);
    if (layer == 0) {
      for (int64_t task = 0; task < cut_.tasks(cut_.sequences); ++task) {
        const int64_t s = cut_.first(task), n = cut_.count(task, cut_.sequences);
        hidden_->write(s, embed(weights_, tokens_.narrow(0, s, n)));
      }
    }
    for (; layer < config_.layers; ++layer) {
      const LmBlock block = load_block(weights_, layer, device_, bf16_);
      ActivationStore* keep = fisher_ > 0 ? &block_input(layer) : nullptr;
      auto inputs =
          options_.moments ? empty_moments(config_, layer, device_) : std::map<std::string, Moments, std::less<>>{};
      Turns turns;
      run_tasks("block " + std::to_string(layer), cut_.tasks(cut_.sequences), threads, turns, [&](int64_t task) {
        const int64_t s = cut_.first(task), n = cut_.count(task, cut_.sequences);
        const Tensor x = read(*hidden_, s, n);
        if (s < fisher_) keep->write(s, x.narrow(0, 0, std::min(n, fisher_ - s)));
        Taps taps;
        if (options_.moments)
          taps.input = [&](const std::string& input, const Tensor& v) {
            add_in_turn(inputs.find(input)->second, v, turns, input, task);
          };
        hidden_->write(s, block.forward(x, context_, &taps));
      });
      for (auto& [input, moments] : inputs) moments.compact(), moments.to_cpu();
      if (folder() != nullptr) {
        if (options_.moments) folder()->save(folder()->numbered("moments", layer), pack_inputs(inputs));
        if (time_to_commit()) {
          for (const ActivationStore& store : inputs_) store.sync();
          save_state("forward", *hidden_, layer + 1);
          last_commit_ = Clock::now();
        }
      } else {
        result_->blocks_[static_cast<size_t>(layer)].inputs = std::move(inputs);
      }
      step("block " + std::to_string(layer));
    }
  }

  // Statistics at the head, and the gradient that enters the last block from above.
  void ends() {
    const at::NoGradGuard no_grad;
    EndStatistics& e = result_->ends_;
    e.token_count = at::bincount(tokens_.view({-1}), {}, config_.vocab);
    const unsigned threads = cut_.threads(options_.memory / 2);
    if (options_.moments) {
      e.head_input = Moments(config_.hidden, device_);
      Turns turns;
      run_tasks("head", cut_.tasks(cut_.sequences), threads, turns, [&](int64_t task) {
        const Tensor x = read(*hidden_, cut_.first(task), cut_.count(task, cut_.sequences));
        add_in_turn(e.head_input, final_norm(weights_, x), turns, "head", task);
      });
      e.head_input.compact(), e.head_input.to_cpu();
    }
    if (fisher_ > 0) head_gradient(threads);
    hidden_.reset();
    if (folder() != nullptr) {
      for (const ActivationStore& store : inputs_) store.sync();
      folder()->save(folder()->file("ends"), pack_ends(false));
      if (fisher_ > 0) save_state("backward", *gradient_, config_.layers - 1);
      Folder::remove(folder()->file("forward"));
      last_commit_ = Clock::now();
    }
    step("head");
  }

  // G of the head's rows, and dL / d(last block's output) into gradient_. Two passes over the vocabulary in chunks: the
  // first for the normaliser, the second for gradients. A label is drawn by first choosing its chunk, then its row.
  void head_gradient(unsigned threads) {
    const int64_t chunks = (config_.vocab + kVocabRows - 1) / kVocabRows, tasks = cut_.tasks(fisher_);
    const int64_t per_sequence = cut_.length;
    gradient_ = std::make_unique<ActivationStore>(make_store(fisher_, ""));
    const int64_t at_once = cut_.gpu ? kDeviceHeadTokens : kHeadTokens;
    const Tensor gain = weights_.tensor("model.norm.weight").to(device_);
    const std::string head = head_name(config_);
    const auto normed = [&](int64_t s, int64_t n) {
      return rms_norm(config_, read(*hidden_, s, n), gain).view({-1, config_.hidden});
    };
    // Logits are formed for some tokens at a time, so that they stay in the cache.
    const auto slices = [&](int64_t task, const auto& body) {
      const int64_t begin = cut_.first(task) * per_sequence, end = begin + cut_.count(task, fisher_) * per_sequence;
      const Tensor x = normed(cut_.first(task), cut_.count(task, fisher_));
      for (int64_t t = begin; t < end; t += at_once) {
        const int64_t n = std::min(at_once, end - t);
        body(t, n, x.narrow(0, t - begin, n));
      }
    };
    Tensor log_sums = at::empty({chunks, fisher_ * per_sequence}, doubles(device_));
    for (int64_t k = 0; k < chunks; ++k) {
      const int64_t v0 = k * kVocabRows, v1 = std::min(config_.vocab, v0 + kVocabRows);
      const Tensor rows = weights_.rows(head, v0, v1).to(device_);
      parallel_tasks(
          tasks,
          [&](int64_t task) {
            slices(task, [&](int64_t t, int64_t n, const Tensor& x) {
              const Tensor logits = soft_cap(at::linear(x, rows), config_.logit_softcap);
              log_sums[k].narrow(0, t, n).copy_(logits.logsumexp(-1));
            });
          },
          threads);
    }
    const Tensor log_sum = log_sums.logsumexp(0);
    // Labels: label[t] inside the vocabulary when known (empirical), else chunk_of[t] and the rest of the draw in it.
    Tensor label = at::full({fisher_ * per_sequence}, -1, doubles(device_).dtype(at::kLong)), chunk_of, rest;
    if (options_.empirical) {
      Tensor next = label.view({fisher_, per_sequence});
      next.narrow(1, 0, per_sequence - 1).copy_(tokens_.narrow(0, 0, fisher_).narrow(1, 1, per_sequence - 1));
    } else {
      at::Generator generator = at::detail::createCPUGenerator(options_.seed);
      const Tensor draw = at::rand({fisher_ * per_sequence}, generator, doubles(at::kCPU)).to(device_).unsqueeze(0);
      const Tensor up_to = (log_sums - log_sum).exp().cumsum(0);
      chunk_of = up_to.le(draw).sum(0).clamp_max(chunks - 1);
      const Tensor before = at::cat({at::zeros({1, up_to.size(1)}, doubles(device_)), up_to}, 0);
      rest = (draw - before.gather(0, chunk_of.unsqueeze(0))).squeeze(0);
    }
    const double labelled = static_cast<double>(result_->fisher_tokens_);
    Tensor g = at::zeros({config_.vocab}, doubles(device_));
    for (int64_t k = 0; k < chunks; ++k) {
      const int64_t v0 = k * kVocabRows, v1 = std::min(config_.vocab, v0 + kVocabRows);
      const Tensor rows = weights_.rows(head, v0, v1).to(device_);
      Turns turns;
      run_tasks("head", tasks, threads, turns, [&](int64_t task) {
        const int64_t s = cut_.first(task), sequences = cut_.count(task, fisher_);
        std::vector<Tensor> down;
        Tensor sum = at::zeros({v1 - v0}, doubles(device_));
        slices(task, [&](int64_t t, int64_t n, const Tensor& x) {
          const Tensor logits = soft_cap(at::linear(x, rows), config_.logit_softcap);
          // d loss / d(product before the soft cap) = (p - y) * slope
          const Tensor slope = config_.logit_softcap > 0 ? 1 - (logits / config_.logit_softcap).square() : Tensor();
          Tensor d = (logits - log_sum.narrow(0, t, n).to(at::kFloat).unsqueeze(1)).exp_();  // p
          Tensor mine = label.narrow(0, t, n);
          if (!options_.empirical) {
            const Tensor here = chunk_of.narrow(0, t, n).eq(k).nonzero().squeeze(1);
            const Tensor up_to = d.index_select(0, here).cumsum(1, at::kDouble);
            const Tensor drawn = rest.narrow(0, t, n).index_select(0, here).unsqueeze(1);
            mine.index_put_({here}, up_to.le(drawn).sum(1).clamp_max(v1 - v0 - 1) + v0);
            const Tensor variance = slope.defined() ? (d - d.square()) * slope.square() : d - d.square();
            sum.add_(variance.sum(0, false, at::kDouble));
          }
          const Tensor hit = mine.ge(v0).logical_and(mine.lt(v1)).nonzero().squeeze(1);
          d.index_put_({hit, mine.index_select(0, hit) - v0}, -at::ones({hit.size(0)}, d.options()),
                       /*accumulate=*/true);
          if (slope.defined()) d.mul_(slope);
          if (options_.empirical) {
            d.masked_fill_(mine.lt(0).unsqueeze(1), 0);  // the last token has no next one
            sum.add_(d.square().sum(0, false, at::kDouble));
          }
          down.push_back(at::mm(d, rows));
        });
        turns.turn("g", task, [&] { g.narrow(0, v0, v1 - v0).add_(sum); });
        const Tensor gradient = at::cat(down).view({sequences, per_sequence, config_.hidden});
        gradient_->write(s, k == 0 ? gradient : read(*gradient_, s, sequences) + gradient);
      });
    }
    result_->ends_.head_fisher = (g / labelled).to(at::kCPU);
    parallel_tasks(
        tasks,
        [&](int64_t task) {
          const int64_t s = cut_.first(task), n = cut_.count(task, fisher_);
          const at::AutoGradMode grad(true);
          Tensor x = read(*hidden_, s, n).detach().clone().requires_grad_(true);
          rms_norm(config_, x, gain).backward(read(*gradient_, s, n));
          gradient_->write(s, x.grad());
        },
        threads);
  }

  // The block from which an interrupted backward pass goes on; -1: there was none.
  int64_t resume_backward() {
    if (folder() == nullptr || fisher_ == 0) return -1;
    auto ends = folder()->load(folder()->file("ends"));
    if (!ends) return -1;
    for (int64_t layer = 0; options_.moments && layer < config_.layers; ++layer)
      if (!folder()->load(folder()->numbered("moments", layer))) return -1;
    gradient_ = std::make_unique<ActivationStore>(make_store(fisher_, ""));
    const auto next = load_state("backward", *gradient_);
    if (!next || *next >= config_.layers) {
      gradient_.reset();
      return -1;
    }
    for (int64_t layer = 0; layer <= *next; ++layer) {
      if (!file_exists(folder()->numbered("input", layer))) return -1;
      block_input(layer);
    }
    unpack_ends(*ends);
    done_ = static_cast<uint64_t>(2 * config_.layers - *next);
    return *next;
  }

  void backward(int64_t from) {
    if (fisher_ == 0) return;
    const at::AutoGradMode grad(true);
    const FixedOrder fixed(device_);
    const unsigned threads = cut_.threads(options_.memory / 2);
    const double labelled = static_cast<double>(result_->fisher_tokens_);
    for (int64_t layer = from; layer >= 0; --layer) {
      const LmBlock block = load_block(weights_, layer, device_, bf16_);
      std::map<std::string, Tensor, std::less<>> sums;
      for (const LmLinear& l : block.linears()) sums.emplace(l.name, at::zeros({l.out}, doubles(device_)));
      Turns turns;
      run_tasks("block " + std::to_string(layer), cut_.tasks(fisher_), threads, turns, [&](int64_t task) {
        const int64_t s = cut_.first(task), n = cut_.count(task, fisher_);
        Tensor x = read(block_input(layer), s, n).detach().clone().requires_grad_(true);
        std::map<std::string, Tensor> mine;
        Taps taps;
        taps.output = [&](const std::string& name, const Tensor& y) {
          if (!y.requires_grad()) return;
          y.register_hook([&mine, name](const Tensor& g) {
            const at::NoGradGuard no_grad;
            mine[name] = g.reshape({-1, g.size(-1)}).square().sum(0, false, at::kDouble);
          });
        };
        block.forward(x, context_, &taps).backward(read(*gradient_, s, n));
        gradient_->write(s, x.grad());
        turns.turn("fisher", task, [&] {
          for (const auto& [name, sum] : mine) sums.find(name)->second.add_(sum);
        });
      });
      for (auto& [name, sum] : sums) sum = sum.div_(labelled).to(at::kCPU);
      if (folder() != nullptr) {
        folder()->save(folder()->numbered("fisher", layer), TensorMap(sums.begin(), sums.end()));
        if (layer > 0 && time_to_commit()) {
          save_state("backward", *gradient_, layer - 1);
          last_commit_ = Clock::now();
        }
      } else {
        result_->blocks_[static_cast<size_t>(layer)].row_fisher = std::move(sums);
        inputs_.pop_back();
      }
      step("gradients of block " + std::to_string(layer));
    }
  }

  void embedding() {
    if (fisher_ == 0) return;
    const at::NoGradGuard no_grad;
    Tensor sum = at::zeros({config_.vocab}, at::kDouble);
    for (int64_t task = 0; task < cut_.tasks(fisher_); ++task) {
      const int64_t s = cut_.first(task), n = cut_.count(task, fisher_);
      const Tensor square = gradient_->read(s, n).square().mean(-1).to(at::kCPU, at::kDouble).view({-1});
      sum.index_add_(0, tokens_.narrow(0, s, n).reshape({-1}), square);
    }
    result_->ends_.embedding_fisher =
        sum * (config_.embedding_scale * config_.embedding_scale / static_cast<double>(result_->fisher_tokens_));
    gradient_.reset();
  }

  void finish() {
    if (folder() == nullptr) return;
    folder()->save(folder()->file("ends"), pack_ends(true));
    inputs_.clear();
    for (int64_t layer = 0; layer < config_.layers; ++layer) Folder::remove(folder()->numbered("input", layer));
    Folder::remove(folder()->file("forward"));
    Folder::remove(folder()->file("backward"));
    folder()->share();
  }

  TensorMap pack_ends(bool done) const {
    const EndStatistics& e = result_->ends_;
    TensorMap t{{"token_count", e.token_count}};
    if (options_.moments) put_moments(t, "head_input", e.head_input);
    if (e.head_fisher.defined()) t["head_fisher"] = e.head_fisher;
    if (e.embedding_fisher.defined()) t["embedding_fisher"] = e.embedding_fisher;
    if (done) t["done"] = at::ones({1}, at::kLong);
    return t;
  }
  void unpack_ends(const TensorMap& t) {
    EndStatistics& e = result_->ends_;
    const auto get = [&](const char* name) {
      const auto found = t.find(name);
      return found == t.end() ? Tensor() : found->second;
    };
    e.token_count = get("token_count");
    e.head_fisher = get("head_fisher");
    e.embedding_fisher = get("embedding_fisher");
    if (options_.moments) e.head_input = get_moments(t, "head_input");
  }

  const LmWeights& weights_;
  const LmConfig config_;
  const CalibrationOptions& options_;
  const at::Device device_;
  Progress& progress_;
  const Cut cut_;
  const Tensor tokens_;
  const int64_t fisher_;
  const bool bf16_;
  const LmContext context_;
  std::unique_ptr<Collected> result_;
  std::unique_ptr<ActivationStore> hidden_, gradient_;
  std::vector<ActivationStore> inputs_;  // of each block, the Fisher sequences
  uint64_t held_ = 0, done_ = 0, total_ = 0;
  Clock::time_point last_commit_;
};

}  // namespace

uint64_t activation_memory() {
  constexpr uint64_t kLeast = 1ull << 30;
  const uint64_t wanted = 2 * kTaskBytes * static_cast<uint64_t>(at::get_num_threads());
  return std::max(kLeast, std::min(wanted, available_memory() / 4));
}

void forget_statistics(const std::string& cache_folder, const std::string& key) {
  const std::string folder = cache_folder + "/stats-" + key;
  const int lock = ::open((folder + "/lock").c_str(), O_RDWR | O_CLOEXEC);
  if (lock < 0) return;
  std::error_code ignored;
  if (::flock(lock, LOCK_EX | LOCK_NB) == 0) std::filesystem::remove_all(folder, ignored);
  ::close(lock);
}

std::unique_ptr<Statistics> calibrate(const LmWeights& weights, const Tensor& tokens, const CalibrationOptions& options,
                                      Progress& progress) {
  check_tokens(weights.config(), tokens);
  if (options.empirical && options.fisher_sequences > 0 && tokens.size(1) < 2)
    throw Failure(user_error("the empirical Fisher information needs sequences of at least two tokens"));
  return Calibration(weights, tokens, options, progress).run();
}

// --- layer by layer
// ------------------------------------------------------------------------------------------------------

struct BlockSession::State {
  const LmWeights& weights;
  LmConfig config;
  Options options;
  Cut cut;
  LmContext context;
  bool bf16;
  std::unique_ptr<ActivationStore> x, xq;
  int64_t layer = -1;
  std::optional<LmBlock> fp, changed;

  unsigned threads() const { return cut.threads(options.memory / 2); }
  Tensor read(const ActivationStore& store, int64_t first, int64_t count) const {
    return store.read(first, count).to(options.device);
  }
};

BlockSession::BlockSession(const LmWeights& weights, const Tensor& tokens, const Options& options) {
  check_tokens(weights.config(), tokens);
  const LmConfig& c = weights.config();
  state_.reset(new State{weights, c, options, Cut(c, tokens.size(0), tokens.size(1), options.device),
                         make_context(c, tokens.size(1), options.device), use_bf16(options.compute, options.device),
                         nullptr, nullptr, -1, std::nullopt, std::nullopt});
  State& s = *state_;
  const uint64_t bytes = static_cast<uint64_t>(tokens.numel() * c.hidden) * sizeof(float);
  const bool in_memory = bytes * (options.prefix ? 2 : 1) <= options.memory / 2;
  const auto make = [&] {
    return in_memory ? std::make_unique<ActivationStore>(tokens.size(0), tokens.size(1), c.hidden, options.device)
                     : std::make_unique<ActivationStore>(tokens.size(0), tokens.size(1), c.hidden,
                                                         spill_folder(options.spill_folder));
  };
  const at::NoGradGuard no_grad;
  const auto fill = [&](ActivationStore& store, const LmWeights& from) {
    for (int64_t task = 0; task < s.cut.tasks(s.cut.sequences); ++task) {
      const int64_t first = s.cut.first(task);
      store.write(first, embed(from, tokens.narrow(0, first, s.cut.count(task, s.cut.sequences))));
    }
  };
  s.x = make();
  fill(*s.x, weights);
  if (!options.prefix) return;
  s.xq = make();
  fill(*s.xq, options.prefix_embedding != nullptr ? *options.prefix_embedding : weights);
}

BlockSession::~BlockSession() = default;

bool BlockSession::next() {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  const FixedOrder fixed(s.options.device);
  if (s.layer >= s.config.layers) return false;
  if (s.layer >= 0) {
    if (s.bf16) s.changed->set_compute(at::kBFloat16);
    parallel_tasks(
        s.cut.tasks(s.cut.sequences),
        [&](int64_t task) {
          const int64_t first = s.cut.first(task), n = s.cut.count(task, s.cut.sequences);
          s.x->write(first, s.fp->forward(s.read(*s.x, first, n), s.context));
          if (s.xq) s.xq->write(first, s.changed->forward(s.read(*s.xq, first, n), s.context));
        },
        s.threads());
  }
  s.fp.reset();
  s.changed.reset();
  if (++s.layer >= s.config.layers) return false;
  s.fp = load_block(s.weights, s.layer, s.options.device, s.bf16);
  s.changed = s.fp;
  return true;
}

const LmBlock& BlockSession::block() const { return state_->fp.value(); }
const LmBlock& BlockSession::compressed() const { return state_->changed.value(); }

void BlockSession::replace(const std::string& name, const Tensor& weight) {
  State& s = *state_;
  s.changed->set_weight(name, weight.to(s.options.device, s.changed->weight(name).scalar_type()));
}

// Sums become means, on the CPU.
static void finish(BlockSession::InputStatistics& r, double tokens) {
  r.fp.to_cpu(), r.prefix.to_cpu();
  if (r.cross.defined()) r.cross = r.cross.div_(tokens).to(at::kCPU);
}

void BlockSession::replace_block(LmBlock block) {
  State& s = *state_;
  if (s.bf16) block.set_compute(at::kBFloat16);
  s.changed = std::move(block);
}

double BlockSession::influence() {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  if (!s.fp) throw Failure(bug_error("BlockSession: influence() without a block"));
  std::vector<double> cosines(static_cast<size_t>(s.cut.tasks(s.cut.sequences)));
  Turns turns;
  run_tasks("block " + std::to_string(s.layer), s.cut.tasks(s.cut.sequences), s.threads(), turns, [&](int64_t task) {
    const Tensor x = s.x->read(s.cut.first(task), s.cut.count(task, s.cut.sequences));
    const Tensor y = s.fp->forward(x, s.context);
    const Tensor lengths = (x.square().sum(-1) * y.square().sum(-1)).sqrt().clamp_min(1e-30);
    cosines[static_cast<size_t>(task)] = ((x * y).sum(-1) / lengths).sum(at::kDouble).item<double>();
  });
  double sum = 0;
  for (const double c : cosines) sum += c;
  return 1 - sum / static_cast<double>(s.cut.sequences * s.cut.length);
}

BlockSession::HeadSquares BlockSession::head_squares() {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  if (!s.fp || !s.xq) throw Failure(bug_error("BlockSession: squares of heads without a block or a prefix"));
  HeadSquares sums;
  Turns turns;
  run_tasks("block " + std::to_string(s.layer), s.cut.tasks(s.cut.sequences), s.threads(), turns, [&](int64_t task) {
    const int64_t first = s.cut.first(task), n = s.cut.count(task, s.cut.sequences);
    Taps taps;
    taps.stop_after = "attn_out";
    taps.rope = [&](const Tensor& q, const Tensor& k) {
      const auto squares = [](const Tensor& x) { return x.square().sum({2, 0}, false, at::kDouble); };
      const Tensor of_q = squares(q), of_k = squares(k);
      turns.turn("heads", task, [&] {
        sums.queries = sums.queries.defined() ? sums.queries + of_q : of_q;
        sums.keys = sums.keys.defined() ? sums.keys + of_k : of_k;
      });
    };
    s.changed->forward(s.xq->read(first, n), s.context, &taps);
  });
  const auto tokens = static_cast<double>(s.cut.sequences * s.cut.length);
  return {sums.queries / tokens, sums.keys / tokens};
}

std::map<std::string, BlockSession::InputStatistics, std::less<>> BlockSession::collect(
    const std::vector<std::string>& inputs, const Wanted& wanted) {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  const FixedOrder fixed(s.options.device);
  if (!s.fp) throw Failure(bug_error("BlockSession: collect() without a block"));
  if (!s.xq && (wanted.prefix || wanted.cross))
    throw Failure(bug_error("BlockSession: statistics of the prefix, but it is not carried"));
  std::map<std::string, InputStatistics, std::less<>> result;
  std::string last;
  const auto narrowed = block_inputs(s.changed->config(), s.layer);
  for (const auto& [input, width] : block_inputs(s.config, s.layer)) {
    if (!inputs.empty() && std::find(inputs.begin(), inputs.end(), input) == inputs.end()) continue;
    InputStatistics& r = result[input];
    const auto twin = std::find_if(narrowed.begin(), narrowed.end(), [&](const auto& n) { return n.first == input; });
    if (wanted.fp) r.fp = Moments(width, s.options.device);
    if (wanted.prefix) r.prefix = Moments(twin->second, s.options.device);
    if (wanted.cross && !input.starts_with("expert."))
      r.cross = at::zeros({width, twin->second}, doubles(s.options.device));
    last = input;
  }
  if (result.size() < inputs.size()) throw Failure(bug_error("BlockSession: an input of no such name"));
  Turns turns;
  run_tasks("block " + std::to_string(s.layer), s.cut.tasks(s.cut.sequences), s.threads(), turns, [&](int64_t task) {
    const int64_t first = s.cut.first(task), n = s.cut.count(task, s.cut.sequences);
    TensorMap seen;  // inputs of the float model, until their twins come
    Taps taps;
    taps.stop_after = last;
    taps.input = [&](const std::string& input, const Tensor& v) {
      const auto found = result.find(input);
      if (found == result.end()) return;
      if (wanted.fp) add_in_turn(found->second.fp, v, turns, input, task);
      if (found->second.cross.defined()) seen[input] = v.contiguous();
    };
    if (wanted.fp || wanted.cross) s.fp->forward(s.read(*s.x, first, n), s.context, &taps);
    taps.input = [&](const std::string& input, const Tensor& v) {
      const auto found = result.find(input);
      if (found == result.end()) return;
      if (wanted.prefix) add_in_turn(found->second.prefix, v, turns, input + "'", task);
      if (found->second.cross.defined()) {
        const Tensor x = seen[input].t();
        const int64_t width = x.size(0);
        for (int64_t i = 0; i < width; i += Moments::kPanel) {  // panel by panel, to hold little
          const int64_t h = std::min(Moments::kPanel, width - i);
          const Tensor product = at::mm(x.narrow(0, i, h), v);
          turns.turn(input + "x" + std::to_string(i), task, [&] { found->second.cross.narrow(0, i, h).add_(product); });
        }
        seen[input] = Tensor();
      }
    };
    if (wanted.prefix || wanted.cross) s.changed->forward(s.read(*s.xq, first, n), s.context, &taps);
  });
  const double tokens = static_cast<double>(s.cut.sequences * s.cut.length);
  for (auto& [input, r] : result) finish(r, tokens);
  return result;
}

BlockSession::InputStatistics BlockSession::head_input(const Wanted& wanted) {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  if (s.layer < s.config.layers) throw Failure(bug_error("BlockSession: head_input() before the last block is done"));
  if (!s.xq && (wanted.prefix || wanted.cross))
    throw Failure(bug_error("BlockSession: statistics of the prefix, but it is not carried"));
  InputStatistics r;
  const int64_t width = s.config.hidden;
  if (wanted.fp) r.fp = Moments(width, s.options.device);
  if (wanted.prefix) r.prefix = Moments(width, s.options.device);
  if (wanted.cross) r.cross = at::zeros({width, width}, doubles(s.options.device));
  Turns turns;
  run_tasks("head", s.cut.tasks(s.cut.sequences), s.threads(), turns, [&](int64_t task) {
    const int64_t first = s.cut.first(task), n = s.cut.count(task, s.cut.sequences);
    const Tensor x = final_norm(s.weights, s.read(*s.x, first, n)).view({-1, width});
    if (wanted.fp) add_in_turn(r.fp, x, turns, "x", task);
    if (!wanted.prefix && !wanted.cross) return;
    const Tensor q = final_norm(s.weights, s.read(*s.xq, first, n)).view({-1, width});
    if (wanted.prefix) add_in_turn(r.prefix, q, turns, "q", task);
    if (!wanted.cross) return;
    const Tensor product = at::mm(x.t(), q);
    turns.turn("cross", task, [&] { r.cross.add_(product); });
  });
  finish(r, static_cast<double>(s.cut.sequences * s.cut.length));
  return r;
}

}  // namespace pith
