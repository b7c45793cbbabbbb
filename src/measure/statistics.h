// Numbers about numbers: means, errors, paired differences; perplexity and KL as functions of plain arrays.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace pith {

double mean(std::span<const double> values);
/// Sample standard deviation (n - 1); 0 for fewer than two values.
double standard_deviation(std::span<const double> values);
/// Standard error of the mean; 0 for fewer than two values.
double standard_error(std::span<const double> values);
/// Linear interpolation between order statistics, q in [0, 1]; NaN when empty.
double quantile(std::span<const double> values, double q);

/// a - b item by item: what two arms differ by when both saw the same items. Extra items of the longer run are ignored.
struct PairedDifference {
  double mean = 0;
  double error = 0;  ///< standard error of the mean difference
  size_t count = 0;
};
PairedDifference paired_difference(std::span<const double> a, std::span<const double> b);

/// exp(sum of negative log-likelihoods / tokens), natural logarithms.
double perplexity(double nll_sum, uint64_t tokens);

/// log(sum(exp(x))) without overflow, summed in double.
double log_sum_exp(std::span<const float> logits);
/// -log softmax(logits)[target], in nats.
double negative_log_likelihood(std::span<const float> logits, size_t target);
/// KL(softmax(reference) || softmax(other)) in nats; both of one length; never negative.
double kl_divergence(std::span<const float> reference, std::span<const float> other);
/// Index of the largest value; the first of equals.
size_t argmax(std::span<const float> values);

/// KL of many tokens in one line.
struct KlSummary {
  double mean = 0, error = 0, median = 0, p99 = 0, max = 0;
  size_t tokens = 0;
};
KlSummary summarize_kl(std::span<const double> per_token);

}  // namespace pith
