// Losses of language models.
#pragma once

#include "tensor/tensor.h"

namespace pith {

/// Mean of -log p(target) in nats. logits: [.., vocab]; targets: [..] int64.
Tensor next_token_loss(const Tensor& logits, const Tensor& targets);

/// Mean over positions of T^2 KL(teacher || student), both softened by temperature T (Hinton et al., 2015, arXiv
/// 1503.02531). Both [.., vocab]; gradients flow into the student only.
Tensor distillation_loss(const Tensor& student, const Tensor& teacher, double temperature);

}  // namespace pith
