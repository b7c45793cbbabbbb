#include "measure/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace pith {

double mean(std::span<const double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  double sum = 0;
  for (const double v : values) sum += v;
  return sum / static_cast<double>(values.size());
}

double standard_deviation(std::span<const double> values) {
  if (values.size() < 2) return 0;
  const double m = mean(values);
  double sum = 0;
  for (const double v : values) sum += (v - m) * (v - m);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

double standard_error(std::span<const double> values) {
  if (values.size() < 2) return 0;
  return standard_deviation(values) / std::sqrt(static_cast<double>(values.size()));
}

double quantile(std::span<const double> values, double q) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::vector<double> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  const double at = std::clamp(q, 0.0, 1.0) * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

PairedDifference paired_difference(std::span<const double> a, std::span<const double> b) {
  std::vector<double> difference(std::min(a.size(), b.size()));
  for (size_t i = 0; i < difference.size(); ++i) difference[i] = a[i] - b[i];
  return {mean(difference), standard_error(difference), difference.size()};
}

double perplexity(double nll_sum, uint64_t tokens) { return std::exp(nll_sum / static_cast<double>(tokens)); }

double log_sum_exp(std::span<const float> logits) {
  if (logits.empty()) return -std::numeric_limits<double>::infinity();
  const float top = *std::max_element(logits.begin(), logits.end());
  if (std::isinf(top)) return top;
  double sum = 0;
  for (const float v : logits) sum += std::exp(static_cast<double>(v) - top);
  return top + std::log(sum);
}

double negative_log_likelihood(std::span<const float> logits, size_t target) {
  return log_sum_exp(logits) - static_cast<double>(logits[target]);
}

double kl_divergence(std::span<const float> reference, std::span<const float> other) {
  const double zp = log_sum_exp(reference), zq = log_sum_exp(other);
  double sum = 0;
  for (size_t i = 0; i < reference.size() && i < other.size(); ++i) {
    const double log_p = static_cast<double>(reference[i]) - zp;
    const double p = std::exp(log_p);
    if (p > 0) sum += p * (log_p - (static_cast<double>(other[i]) - zq));
  }
  return std::max(sum, 0.0);
}

size_t argmax(std::span<const float> values) {
  return static_cast<size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

KlSummary summarize_kl(std::span<const double> per_token) {
  KlSummary s;
  s.tokens = per_token.size();
  if (per_token.empty()) return s;
  s.mean = mean(per_token);
  s.error = standard_error(per_token);
  s.median = quantile(per_token, 0.5);
  s.p99 = quantile(per_token, 0.99);
  s.max = *std::max_element(per_token.begin(), per_token.end());
  return s;
}

}  // namespace pith
