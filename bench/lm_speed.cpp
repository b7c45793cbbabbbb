// Tokens a second of a model file, in the terms of llama-bench: a prompt of 512 tokens from nothing, and 64 single
// tokens from nothing. Prints one line: prefill decode. usage: lm_speed MODEL [threads] [prompt tokens] [generated
// tokens]
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <vector>

#include "runtime/lm.h"
#include "runtime/model_file.h"

namespace pith {
namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

int fail(const Error& error) {
  fmt::print(stderr, "{}\n", error.message);
  return static_cast<int>(error.kind);
}

int run(const std::string& path, unsigned threads, int64_t prompt, int64_t generated) {
  ThreadPool pool(threads);
  auto model = open_model(path);
  if (!model.ok()) return fail(model.error());
  auto lm = Lm::load(*model, {Precision::fast, KvType::f16, {}}, pool, quiet_progress());
  if (!lm.ok()) return fail(lm.error());
  std::vector<int32_t> tokens(static_cast<size_t>(std::max(prompt, generated)));
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<int32_t>(i * 7919 % static_cast<size_t>(model->config.vocab));
  }
  std::vector<float> logits;
  KvStore kv = (*lm)->new_kv();
  double prefill = 0, decode = 0;
  for (int pass = 0; pass < 2; ++pass) {  // the first one warms caches and memory
    kv.clear();
    double start = seconds();
    if (prompt > 0) {
      const auto status =
          (*lm)->forward(std::span(tokens).first(static_cast<size_t>(prompt)), kv, Lm::Logits::last, logits, pool);
      if (!status.ok()) return fail(status.error());
    }
    prefill = static_cast<double>(prompt) / (seconds() - start);
    kv.clear();
    start = seconds();
    for (int64_t i = 0; i < generated; ++i) {
      const auto status = (*lm)->forward({&tokens[static_cast<size_t>(i)], 1}, kv, Lm::Logits::last, logits, pool);
      if (!status.ok()) return fail(status.error());
    }
    decode = static_cast<double>(generated) / (seconds() - start);
  }
  fmt::print("{:.2f} {:.2f}\n", prefill, decode);
  return 0;
}

}  // namespace
}  // namespace pith

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: lm_speed MODEL [threads] [prompt tokens] [generated tokens]\n");
    return 2;
  }
  const auto number = [&](int i, int fallback) { return argc > i ? std::atoi(argv[i]) : fallback; };
  return pith::run(argv[1], static_cast<unsigned>(number(2, 0)), number(3, 512), number(4, 64));
}
