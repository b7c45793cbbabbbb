// Retrieval tasks over real text, made from a seed, with a solver that reads a finished task and finds the answer: what
// `pith cache eval` asks a model.
#pragma once

#include <pith/result.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace pith {

class Tokenizer;  // runtime/tokenizer.h

/// One task. text, question and answer follow each other; text and question together have the length that was asked
/// for.
struct TextTask {
  std::vector<int32_t> text, question, answer;
  std::string solution;  ///< the answer as text, without blanks
  double depth = 0;      ///< where the fact stands, 0 = at the beginning; of several the first
};

/// "passkey" one number in the text; "niah" four numbers with names, one is asked for; "vt" a number that is handed
/// from name to name.
const std::vector<std::string>& text_task_names();

/// A task of `length` tokens: sentences put into a passage of `document`. Depths are spread evenly over `items`. Fails
/// when the document or the length is too short, and as a bug when the solver does not find the answer.
Result<TextTask> make_text_task(std::string_view name, const Tokenizer& tokenizer, std::span<const int32_t> document,
                                int64_t length, int64_t item, int64_t items, uint64_t seed);

/// What a reader of the whole task would answer; empty when the text does not say, or says two things.
std::string solve_text_task(std::string_view name, std::string_view task);

}  // namespace pith
