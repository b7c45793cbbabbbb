#include "train/rounds.h"

#include <vector>

#include "base/hash.h"

namespace pith {

Tensor Rounds::places(int64_t step, int64_t batch) {
  std::vector<int64_t> out;
  for (int64_t k = step * batch; k < (step + 1) * batch; ++k) {
    if (round_ != k / sequences_) {
      round_ = k / sequences_;
      auto generator = at::detail::createCPUGenerator(hash64("round", seed_ * 1000003 + static_cast<uint64_t>(round_)));
      order_ = at::randperm(sequences_, generator);
    }
    out.push_back(order_[k % sequences_].item<int64_t>());
  }
  return at::tensor(out, at::kLong);
}

}  // namespace pith
