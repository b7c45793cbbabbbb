// The report of `pith cache eval`: every cache on every task, as JSON and as one HTML page that works offline.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pith {

/// One cache on one task at one length. Errors are those of the mean over items.
struct CacheScore {
  std::string cache, task;
  int64_t length = 0, items = 0;
  double accuracy = 0;            ///< share of items answered right, every token; of "ppl": share of tokens
  double nll = 0, nll_error = 0;  ///< nats a scored token
  double kl = 0, kl_error = 0;    ///< KL(dense || this), nats a scored token
  double same_top = 0;            ///< share of scored tokens with the same most probable token as the dense cache
  double bytes = 0;               ///< held after the prompt, mean
  double prefill_per_second = 0, decode_per_second = 0;  ///< tokens; decode 0 when not measured
  double policy_share = 0;     ///< time of choosing and storing, as a share of reading the prompt
  std::vector<double> depths;  ///< where each item's fact stands; empty for "ppl"
  std::vector<double> scores;  ///< accuracy of each item
  std::vector<double> losses;  ///< nll of each item, for paired comparisons
};

struct CacheReport {
  std::string title, model, command, version, date, machine;
  bool ask_after = false;
  uint64_t seed = 0;
  std::vector<CacheScore> scores;  ///< of each task and length the dense cache first
  std::vector<std::string> notes;
};

std::string cache_report_to_json(const CacheReport& report);
std::string cache_report_to_html(const CacheReport& report);

}  // namespace pith
