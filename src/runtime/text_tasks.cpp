#include "runtime/text_tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/hash.h"
#include "plan/options.h"
#include "runtime/tokenizer.h"

namespace pith {
namespace {

// A counter through a mixing function: the same numbers on every machine.
class Draw {
 public:
  explicit Draw(uint64_t seed) : state_(seed) {}
  uint64_t below(uint64_t n) {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) % n;
  }
  std::string number() { return std::to_string(10000 + below(90000)); }

 private:
  uint64_t state_;
};

constexpr std::string_view kColours[] = {"amber", "silver", "crimson", "olive", "violet", "copper", "ivory", "scarlet"};
constexpr std::string_view kThings[] = {"lantern", "harbour", "violin", "garden",
                                        "compass", "kettle",  "ladder", "bridge"};
constexpr std::string_view kNames[] = {"kappa", "sigma", "omega", "delta", "theta", "lambda"};
constexpr int kNeedles = 4, kHops = 3;

struct Wording {
  std::vector<std::string> facts;  // in the order of the text
  std::string question, answer;
};

Wording passkey(Draw& draw) {
  const std::string n = draw.number();
  return {{fmt::format(" The door code is {}. Remember that the door code is {}.", n, n)},
          "\n\nQuestion: What is the door code?\nAnswer: The door code is",
          n};
}

Wording niah(Draw& draw) {
  Wording w;
  std::set<std::string> used, numbers;
  std::vector<std::pair<std::string, std::string>> pairs;
  while (pairs.size() < kNeedles) {
    const std::string name =
        fmt::format("{} {}", kColours[draw.below(std::size(kColours))], kThings[draw.below(std::size(kThings))]);
    const std::string n = draw.number();
    if (used.insert(name).second && numbers.insert(n).second) pairs.emplace_back(name, n);
  }
  for (const auto& [name, n] : pairs) w.facts.push_back(fmt::format(" The number of the {} is {}.", name, n));
  const auto& [name, n] = pairs[draw.below(pairs.size())];
  w.question = fmt::format("\n\nQuestion: What is the number of the {0}?\nAnswer: The number of the {0} is", name);
  w.answer = n;
  return w;
}

Wording vt(Draw& draw) {
  std::vector<std::string_view> names(std::begin(kNames), std::end(kNames));
  for (size_t i = names.size() - 1; i > 0; --i) std::swap(names[i], names[draw.below(i + 1)]);
  Wording w;
  w.answer = draw.number();
  w.facts.push_back(fmt::format(" The value of {} is {}.", names[0], w.answer));
  for (int i = 1; i < kHops; ++i)
    w.facts.push_back(fmt::format(" The value of {} is the value of {}.", names[static_cast<size_t>(i)],
                                  names[static_cast<size_t>(i - 1)]));
  w.question = fmt::format("\n\nQuestion: What is the value of {0}?\nAnswer: The value of {0} is", names[kHops - 1]);
  return w;
}

// All that stands between `before` and `after` in the text, each thing once.
std::set<std::string> all_between(std::string_view text, std::string_view before, std::string_view after) {
  std::set<std::string> found;
  for (size_t at = text.find(before); at != std::string_view::npos; at = text.find(before, at + 1)) {
    const size_t from = at + before.size(), end = text.find(after, from);
    if (end != std::string_view::npos) found.emplace(text.substr(from, end - from));
  }
  return found;
}

}  // namespace

const std::vector<std::string>& text_task_names() {
  static const std::vector<std::string> names{"passkey", "niah", "vt"};
  return names;
}

std::string solve_text_task(std::string_view name, std::string_view task) {
  const size_t asked = task.rfind("\n\nQuestion: ");
  if (asked == std::string_view::npos) return "";
  const std::string_view text = task.substr(0, asked), question = task.substr(asked);
  const auto only = [](const std::set<std::string>& found) {
    return found.size() == 1 ? *found.begin() : std::string();
  };
  if (name == "passkey") return only(all_between(text, "The door code is ", "."));
  if (name == "niah") {
    const std::string of = only(all_between(question, "What is the number of the ", "?"));
    return of.empty() ? of : only(all_between(text, "The number of the " + of + " is ", "."));
  }
  std::string of = only(all_between(question, "What is the value of ", "?"));
  for (int i = 0; i < kHops && !of.empty(); ++i) {
    const std::string said = only(all_between(text, "The value of " + of + " is ", "."));
    constexpr std::string_view hop = "the value of ";
    if (!said.starts_with(hop)) return said;
    of = said.substr(hop.size());
  }
  return "";
}

Result<TextTask> make_text_task(std::string_view name, const Tokenizer& tokenizer, std::span<const int32_t> document,
                                int64_t length, int64_t item, int64_t items, uint64_t seed) {
  Draw draw(hash64(fmt::format("{} {} {} {}", name, seed, length, item)));
  Wording w;
  if (name == "passkey") w = passkey(draw);
  if (name == "niah") w = niah(draw);
  if (name == "vt") w = vt(draw);
  if (w.facts.empty())
    return user_error(fmt::format("there is no task '{}'{}", name, did_you_mean(name, text_task_names())));
  TextTask task;
  task.solution = w.answer;
  PITH_ASSIGN(task.question, tokenizer.encode(w.question, {false, false}));
  PITH_ASSIGN(task.answer, tokenizer.encode(" " + w.answer, {false, false}));
  std::vector<std::vector<int32_t>> facts;
  int64_t taken = static_cast<int64_t>(task.question.size());
  for (const std::string& f : w.facts) {
    PITH_ASSIGN(auto tokens, tokenizer.encode(f, {false, false}));
    taken += static_cast<int64_t>(tokens.size());
    facts.push_back(std::move(tokens));
  }
  const bool bos = tokenizer.spec().add_bos;
  const int64_t straw = length - taken - (bos ? 1 : 0);
  if (straw < 16)
    return user_error(
        fmt::format("a task '{}' of {} tokens has no room for text around its {} tokens; ask for {} or more", name,
                    length, taken, taken + 64));
  if (static_cast<int64_t>(document.size()) < straw)
    return user_error(fmt::format("a task of {} tokens needs a document of {}, but this one has {}: give a longer text",
                                  length, straw, document.size()));
  const auto passage =
      document.subspan(draw.below(document.size() - static_cast<size_t>(straw) + 1), static_cast<size_t>(straw));
  // The first fact stands at depth (item + 1/2) / items, further ones spread over what follows. Each goes to the next
  // end of a sentence.
  const double depth = (static_cast<double>(item % items) + 0.5) / static_cast<double>(items);
  std::vector<size_t> places;
  const double share = facts.size() == 1 ? depth : depth * 0.5;
  for (size_t i = 0; i < facts.size(); ++i) {
    const double at = share + (1 - share) * 0.9 * static_cast<double>(i) / static_cast<double>(facts.size());
    auto place = static_cast<size_t>(at * static_cast<double>(straw));
    for (size_t tries = 0; tries < passage.size() / 20 + 8 && place < passage.size(); ++tries, ++place) {
      const std::string before = place > 0 ? tokenizer.decode({&passage[place - 1], 1}) : ".";
      if (before.find_first_of(".!?\n") != std::string::npos) break;
    }
    place = std::min(place, passage.size());
    places.push_back(places.empty() ? place : std::max(place, places.back()));
  }
  if (bos) task.text.push_back(tokenizer.bos());
  size_t fact = 0;
  for (size_t i = 0; i <= passage.size(); ++i) {
    for (; fact < facts.size() && places[fact] == i; ++fact)
      task.text.insert(task.text.end(), facts[fact].begin(), facts[fact].end());
    if (i < passage.size()) task.text.push_back(passage[i]);
  }
  task.depth = static_cast<double>(places[0]) / static_cast<double>(straw);
  std::vector<int32_t> all = task.text;
  all.insert(all.end(), task.question.begin(), task.question.end());
  const std::string solved = solve_text_task(name, tokenizer.decode(all));
  if (solved != w.answer)
    return bug_error(
        fmt::format("task '{}', seed {}: the solver found '{}', the answer is '{}'", name, seed, solved, w.answer));
  return task;
}

}  // namespace pith
