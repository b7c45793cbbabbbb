#include "engine/fit.h"

#include "engine/claim.h"

namespace pith {

const Fit* find_fit(std::string_view name) {
  for (const Fit* fit : all_fits())
    if (fit->name == name) return fit;
  return nullptr;
}

const Claim* find_claim(std::string_view name) {
  for (const Claim* claim : all_claims())
    if (claim->name == name) return claim;
  return nullptr;
}

double predicted_loss(const FitJob& job, const Node& node) {
  std::vector<float> decoded = decode_all(node);
  const Tensor approx = at::from_blob(decoded.data(), {node.rows(), node.cols()}, at::kFloat);
  const Tensor error = job.weight - approx;
  Tensor per_row;
  if (job.inputs != nullptr)
    per_row = (at::mm(error, job.inputs->second().to(at::kFloat)) * error).sum(1, false, at::kDouble);
  else
    per_row = (error * error).sum(1, false, at::kDouble);
  if (job.row_fisher.defined()) per_row = per_row * job.row_fisher.to(at::kDouble);
  return 0.5 * per_row.sum().item<double>();
}

}  // namespace pith
