#include "train/losses.h"

namespace pith {

Tensor next_token_loss(const Tensor& logits, const Tensor& targets) {
  return at::cross_entropy_loss(logits.reshape({-1, logits.size(-1)}), targets.reshape({-1}));
}

Tensor distillation_loss(const Tensor& student, const Tensor& teacher, double temperature) {
  const Tensor p = at::log_softmax(teacher.detach() / temperature, -1);
  const Tensor q = at::log_softmax(student / temperature, -1);
  return (p.exp() * (p - q)).sum(-1).mean() * (temperature * temperature);
}

}  // namespace pith
