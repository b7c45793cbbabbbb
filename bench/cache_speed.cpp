// Decoding over a smaller KV cache beside the dense one: tokens a second, bytes, and what the process really takes. The
// caches are filled with random keys and values, so nothing has to be read first. Dense and smaller take turns.
// usage: cache_speed MODEL CONTEXT CACHE… [threads from $THREADS]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "measure/memory.h"
#include "runtime/cache.h"
#include "runtime/lm.h"
#include "runtime/model_file.h"

namespace pith {
namespace {

constexpr int kRounds = 5, kTokens = 12;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

int fail(const Error& error) {
  fmt::print(stderr, "{}\n", error.message);
  return static_cast<int>(error.kind);
}

void fill(KvStore& kv, int64_t context) {
  uint32_t state = 1;
  std::vector<float> rows;
  constexpr int64_t kPiece = 256;
  for (int64_t at = 0; at < context; at += kPiece) {
    const int64_t n = std::min(kPiece, context - at);
    for (size_t l = 0; l < kv.shape().layers.size(); ++l) {
      const KvWidths w = kv.shape().layers[l];
      rows.resize(static_cast<size_t>(n * kv.shape().heads * std::max(w.key, w.value)));
      for (float& v : rows) v = static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-24f - 0.5f;
      kv.append(static_cast<int64_t>(l), rows.data(), rows.data(), n);
    }
    kv.advance(n);
  }
}

int run(const std::string& path, int64_t context, const std::vector<std::string>& caches) {
  const char* threads = std::getenv("THREADS");
  ThreadPool pool(threads != nullptr ? static_cast<unsigned>(std::atoi(threads)) : 0);
  auto model = open_model(path);
  if (!model.ok()) return fail(model.error());
  auto lm = Lm::load(*model, {Precision::fast, KvType::f16, {}}, pool, quiet_progress());
  if (!lm.ok()) return fail(lm.error());
  struct Arm {
    std::string name;
    KvStore kv;
    double bytes, resident;
    std::vector<double> rates;
  };
  std::vector<Arm> arms;
  std::vector<std::string> names{"full"};
  names.insert(names.end(), caches.begin(), caches.end());
  for (const std::string& name : names) {
    auto plan = parse_cache(name);
    if (!plan.ok()) return fail(plan.error());
    auto driver = KvDriver::create(std::move(plan).value(), **lm);
    if (!driver.ok()) return fail(driver.error());
    return_free_memory();
    const double before = static_cast<double>(current_anonymous_memory());
    KvStore kv = (*lm)->new_kv();
    if (const Status s = driver->begin(kv, context); !s.ok()) return fail(s.error());
    fill(kv, context);
    if (const Status s = driver->after(kv, pool); !s.ok()) return fail(s.error());
    return_free_memory();
    arms.push_back({name, std::move(kv), 0, static_cast<double>(current_anonymous_memory()) - before, {}});
    arms.back().bytes = static_cast<double>(arms.back().kv.bytes());
  }
  std::vector<float> logits;
  for (int round = 0; round <= kRounds; ++round) {  // the first one warms memory
    for (Arm& arm : arms) {
      const int64_t length = arm.kv.length();
      const double start = seconds();
      for (int32_t t = 0; t < kTokens; ++t) {
        const auto status = (*lm)->forward({&t, 1}, arm.kv, Lm::Logits::last, logits, pool);
        if (!status.ok()) return fail(status.error());
      }
      if (round > 0) arm.rates.push_back(kTokens / (seconds() - start));
      arm.kv.truncate(length);
    }
  }
  for (Arm& arm : arms) std::sort(arm.rates.begin(), arm.rates.end());
  for (const Arm& arm : arms) {
    fmt::print("{:32} {:7.2f} MB held, {:7.2f} MB of the process, {:6.1f} tokens/s (best {:.1f}), {:.2f} of dense\n",
               arm.name, arm.bytes / 1e6, arm.resident / 1e6, arm.rates[kRounds / 2], arm.rates.back(),
               arm.rates[kRounds / 2] / arms[0].rates[kRounds / 2]);
  }
  return 0;
}

}  // namespace
}  // namespace pith

int main(int argc, char** argv) {
  if (argc < 4) {
    fmt::print(stderr, "usage: cache_speed MODEL CONTEXT CACHE…\n");
    return 2;
  }
  return pith::run(argv[1], std::atoll(argv[2]), {argv + 3, argv + argc});
}
