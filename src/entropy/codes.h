// Entropy-coded codes of a matrix (a Codes of represent/node.h), and the two-pass builder that shares tables in a
// model.
//
// The coder adapts without contexts: the rms of code (r, c) is modelled as a product of a row and a column term, both
// sent as whole quarter octaves, and their sum picks one of 64 tables that all matrices of a model share.
#pragma once

#include <array>
#include <map>
#include <mutex>
#include <string>

#include "entropy/rans.h"
#include "represent/node.h"

namespace pith {

/// Row and column terms of one matrix in quarter octaves of rms: class(r, c) = clamp(row[r] + col[c]).
struct CodeClasses {
  std::vector<int8_t> row, col;
};
/// Alternating maximum-likelihood fit of the two terms (Gaussian codes), rounded.
CodeClasses fit_classes(const int16_t* codes, int64_t rows, int64_t cols);

class RansCodes final : public Codes {
 public:
  std::string_view kind() const override { return "rans"; }
  void read_rows(int64_t r0, int64_t r1, int16_t* out) const override;
  std::pair<int, int> range() const override { return {-32768, 32767}; }
  BitReport bits() const override;
  nlohmann::json serialize(const std::string& prefix, SectionSink& sink) const override;

  /// Rows that are coded as one piece; reading whole pieces is fastest.
  int64_t chunk_rows() const { return chunk_rows_; }
  /// True when every chunk ends as an undamaged one does (decodes everything; for `pith verify`).
  bool intact() const;

  static Result<CodesPtr> parse(const nlohmann::json& tree, int64_t rows, int64_t cols, const ParseContext& context);

 private:
  friend class CodeModelBuilder;
  RansCodes(int64_t rows, int64_t cols) : Codes(rows, cols) {}
  Status parse_stream(const Limits& limits);
  bool decode_chunk(int64_t chunk, int16_t* out) const;

  std::shared_ptr<const RansModel> model_;
  unsigned lanes_ = 16;
  int64_t chunk_rows_ = 0;
  CodeClasses classes_;
  std::vector<size_t> chunk_end_;  ///< offsets into stream_
  size_t chunks_begin_ = 0;
  Bytes stream_;
  uint64_t id_ = 0;  ///< for the per-thread cache of the last decoded chunk
};

/// First pass: show it all matrices; second pass: encode each. Same input, same bytes.
class CodeModelBuilder {
 public:
  /// Counts one matrix of codes [rows, cols] whose classes are known. Several threads may count; order does not matter.
  void count(const int16_t* codes, int64_t rows, int64_t cols, const CodeClasses& classes);
  /// fit_classes, then count; returns the classes for `encode`.
  CodeClasses add(const int16_t* codes, int64_t rows, int64_t cols);
  /// Bits that the matrices added so far will take, tables included (the tables' own optimum; within 0.2 % of the
  /// file).
  double estimated_bits() const;
  /// Fixes the tables.
  void finish();
  /// Needs finish(). The result shares the tables with all others.
  CodesPtr encode(const int16_t* codes, int64_t rows, int64_t cols, const CodeClasses& classes) const;
  const RansModel& model() const { return *model_; }

 private:
  std::mutex mutex_;
  std::array<std::map<int, uint64_t>, RansModel::kClasses> histogram_;
  uint64_t fixed_bits_ = 0;  ///< states, lengths
  std::shared_ptr<const RansModel> model_;
};

/// What this layer adds to parse_node.
std::vector<CodesFormat> entropy_codes_formats();

}  // namespace pith
