// What Pith predicts for token ids read from standard input, for tests/peers/lm_peers_test.py.
// usage: lm_peer MODEL CONTEXT < ids: for each chunk of CONTEXT ids one line with the most probable next token at each
// position of the second half (but the last), then "nll SUM COUNT".
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <string>

#include "runtime/lm.h"
#include "runtime/model_file.h"

int main(int argc, char** argv) {
  using namespace pith;
  if (argc != 3) return 2;
  const auto context = static_cast<size_t>(std::atoi(argv[2]));
  std::vector<int32_t> ids;
  for (int32_t id = 0; std::cin >> id;) ids.push_back(id);
  ThreadPool pool(2);
  const auto model = open_model(argv[1]);
  if (!model.ok()) return fmt::print(stderr, "{}\n", model.error().message), 3;
  const auto lm = Lm::load(*model, {Precision::exact, KvType::f32, {}}, pool, quiet_progress());
  if (!lm.ok()) return fmt::print(stderr, "{}\n", lm.error().message), 3;
  const auto vocab = static_cast<size_t>(model->config.vocab);
  std::vector<float> logits;
  double nll = 0;
  size_t count = 0;
  for (size_t at = 0; at + context <= ids.size(); at += context) {
    KvStore kv = (*lm)->new_kv();
    const auto status = (*lm)->forward(std::span(ids).subspan(at, context), kv, Lm::Logits::all, logits, pool);
    if (!status.ok()) return fmt::print(stderr, "{}\n", status.error().message), 3;
    for (size_t i = context / 2; i + 1 < context; ++i, ++count) {
      const float* row = logits.data() + i * vocab;
      const float* top = std::max_element(row, row + vocab);
      fmt::print("{} ", top - row);
      double sum = 0;
      for (size_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(row[v] - *top));
      nll += std::log(sum) + *top - row[ids[at + i + 1]];
    }
    fmt::print("\n");
  }
  fmt::print("nll {:.9f} {}\n", nll, count);
  return 0;
}
