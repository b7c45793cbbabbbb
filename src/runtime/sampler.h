// From logits to the next token. Reproducible: same logits, options and seed give the same tokens on every machine.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace pith {

struct SampleOptions {
  double temperature = 0;  ///< 0 = greedy
  int64_t top_k = 0;       ///< 0 = off
  double top_p = 1;        ///< smallest set of tokens with at least this probability; 1 = off
  double min_p = 0;        ///< at least this share of the most probable token; 0 = off
  uint64_t seed = 1;
};

class Sampler {
 public:
  explicit Sampler(const SampleOptions& options);
  /// Index of the chosen token. Ties go to the smaller index.
  int32_t next(std::span<const float> logits);

 private:
  double uniform();
  SampleOptions options_;
  uint64_t state_;
  std::vector<int32_t> order_;
  std::vector<double> weights_;
};

}  // namespace pith
