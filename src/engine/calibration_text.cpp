#include "engine/calibration_text.h"

#include <dirent.h>

#include <algorithm>
#include <vector>

#include "base/file.h"
#include "runtime/builtin_text.h"
#include "runtime/generate.h"
#include "runtime/lm.h"

namespace pith {

static constexpr uint64_t kLongestText = 1ull << 30;

namespace {

void append_path(const std::string& path, std::string& text) {
  if (!is_directory(path)) {
    text += must(read_named_text(path, kLongestText));
    text += "\n";
    return;
  }
  std::vector<std::string> names;
  if (DIR* dir = ::opendir(path.c_str())) {
    while (const dirent* entry = ::readdir(dir))
      if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
    ::closedir(dir);
  }
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) append_path(path + "/" + name, text);
}

std::string read_texts(const std::string& spec) {
  std::string text;
  for (size_t at = 0; at <= spec.size();) {
    const size_t comma = std::min(spec.find(',', at), spec.size());
    append_path(spec.substr(at, comma - at), text);
    at = comma + 1;
  }
  return text;
}

/// What the model itself writes at temperature 1, from nothing but the begin token: its own idea of text.
std::vector<int32_t> self_written(const Model& model, const Tokenizer& tokenizer, int64_t sequences, int64_t length,
                                  uint64_t seed, unsigned threads, Progress& progress) {
  ThreadPool pool(threads);
  const auto lm = must(Lm::load(model, {.precision = Precision::fast}, pool, progress));
  std::vector<int32_t> out;
  const int32_t first = tokenizer.bos() >= 0 ? tokenizer.bos() : std::max(tokenizer.eos(), 0);
  for (int64_t s = 0; s < sequences; ++s) {
    GenerateOptions options;
    options.sample.temperature = 1;
    options.sample.seed = seed * 1000003 + static_cast<uint64_t>(s);
    options.max_tokens = length - 1;
    KvStore kv = lm->new_kv();
    const Generated text =
        must(generate(*lm, tokenizer, std::span(&first, 1), kv, options, pool, [](std::string_view) { return true; }));
    out.push_back(first);
    out.insert(out.end(), text.tokens.begin(), text.tokens.end());
    if (!progress.step(
            {"write calibration text", "sequence", static_cast<uint64_t>(s + 1), static_cast<uint64_t>(sequences)}))
      throw Failure(user_error("stopped"));
  }
  return out;
}

}  // namespace

std::string calibration_source(const std::string& spec) {
  return spec == "self" ? spec : spec.empty() ? must(builtin_calibration_text()) : read_texts(spec);
}

CalibrationText calibration_text(const Model& model, const Tokenizer& tokenizer, const std::string& spec,
                                 int64_t sequences, int64_t length, uint64_t seed, unsigned threads,
                                 Progress& progress) {
  CalibrationText out;
  out.source = spec.empty() ? "built-in" : spec;
  length = std::min(length, model.config.context > 0 ? model.config.context : length);
  std::vector<int32_t> tokens;
  if (spec == "self") {
    tokens = self_written(model, tokenizer, sequences, length, seed, threads, progress);
  } else {
    const std::string text = calibration_source(spec);
    if (text.find_first_not_of(" \t\r\n") == std::string::npos)
      throw Failure(user_error("calibration text '" + out.source + "' is empty; give a text of at least " +
                               std::to_string(length) + " tokens"));
    tokens = must(tokenizer.encode(text, {.add_special = false}));
  }
  const int64_t available = static_cast<int64_t>(tokens.size()) / length;
  if (available == 0)
    throw Failure(user_error("calibration text '" + out.source + "' has " + std::to_string(tokens.size()) +
                             " tokens, at least " + std::to_string(length) + " are needed"));
  const int64_t n = std::min(sequences, available);
  out.tokens = at::empty({n, length}, at::kLong);
  int64_t* p = out.tokens.data_ptr<int64_t>();
  for (int64_t s = 0; s < n; ++s) {
    // Sequence s of the text's equal parts, in a fixed shuffled order, so that any prefix of the calibration set
    // covers the whole text as well.
    const int64_t part = available * ((s * 2654435761LL) % n) / n;
    for (int64_t t = 0; t < length; ++t) p[s * length + t] = tokens[static_cast<size_t>(part * length + t)];
  }
  if (model.tokenizer.add_bos && tokenizer.bos() >= 0)
    for (int64_t s = 0; s < n; ++s) p[s * length] = tokenizer.bos();
  return out;
}

}  // namespace pith
