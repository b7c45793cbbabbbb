#include "engine/measure_model.h"

#include <algorithm>
#include <cmath>

#include "kernels/linear.h"
#include "runtime/builtin_text.h"
#include "runtime/chat.h"
#include "runtime/evaluate.h"
#include "runtime/generate.h"
#include "runtime/tokenizer.h"
#include "tensor/tensor.h"

namespace pith {

std::vector<HeldOut> held_out_texts(const std::vector<std::string>& paths) {
  std::vector<HeldOut> texts;
  for (const std::string& path : paths) {
    const size_t cut = path.find_last_of("/:");
    texts.push_back({path.substr(cut == std::string::npos ? 0 : cut + 1), must(read_named_text(path))});
  }
  if (paths.empty())
    for (const HeldoutText& t : builtin_heldout_texts()) texts.push_back({std::string(t.domain), std::string(t.text)});
  return texts;
}

uint64_t loaded_bytes(const Model& model) {
  uint64_t bytes = 0;
  for (const ModelTensor& t : model.tensors) {
    bytes += t.shape.size() == 1 ? 4 * static_cast<uint64_t>(t.node->cols()) : planned_ram_bytes(*t.node);
    drop_mapped_pages(*t.node);
  }
  return bytes;
}

namespace {

/// Two models in files of at most this size together are loaded as a whole; larger ones go through memory block by
/// block, so that compressing a model never needs the memory to run it.
constexpr uint64_t kLoadedBytes = 640ull << 20;

struct Pair {
  Tokenizer tokenizer;
  bool streamed;
  std::unique_ptr<Lm> before, after;
};

Pair load_pair(const Model& before, const Model& after, ThreadPool& pool, Progress& progress) {
  const bool streamed = (before.bits().total() + after.bits().total()) / 8 > kLoadedBytes;
  const LmOptions options{.streamed = streamed};
  return {must(Tokenizer::create(before.tokenizer)), streamed, must(Lm::load(before, options, pool, progress)),
          must(Lm::load(after, options, pool, progress))};
}

/// `chunks` chunks spread over the whole text.
std::vector<int32_t> spread(const std::vector<int32_t>& tokens, int64_t chunks, int64_t length) {
  const auto available = static_cast<int64_t>(tokens.size()) / length;
  const int64_t n = std::min(chunks, available);
  std::vector<int32_t> out;
  for (int64_t k = 0; k < n; ++k) {
    const int64_t chunk = k * available / n;
    out.insert(out.end(), tokens.begin() + chunk * length, tokens.begin() + (chunk + 1) * length);
  }
  return out;
}

/// Tokens of a chunk: 512, or what a smaller model was made for.
int64_t chunk_length(const Model& model) {
  constexpr int64_t kContext = 512;
  return model.config.context > 0 ? std::min(kContext, model.config.context) : kContext;
}

std::string answer(const Lm& lm, const Tokenizer& tokenizer, const std::string& prompt, ThreadPool& pool,
                   std::optional<double>& speed) {
  const ChatMessage message{"user", prompt};
  const auto chat = render_chat(tokenizer.spec(), std::span(&message, 1), true);
  const EncodeOptions as_chat{.add_special = false, .parse_special = true};
  const auto tokens = must(tokenizer.encode(chat.ok() ? *chat : prompt, chat.ok() ? as_chat : EncodeOptions{}));
  GenerateOptions options;
  options.sample.temperature = 0;
  options.max_tokens = 64;
  options.stop.assign(tokenizer.stop_ids().begin(), tokenizer.stop_ids().end());
  KvStore kv = lm.new_kv();
  const Generated out = must(generate(lm, tokenizer, tokens, kv, options, pool, [](std::string_view) { return true; }));
  if (out.decode_seconds > 0 && out.tokens.size() > 8)
    speed = static_cast<double>(out.tokens.size()) / out.decode_seconds;
  return out.text;
}

}  // namespace

void measure_model(const Model& before, const Model& after, const std::vector<std::string>& paths, int64_t chunks,
                   ThreadPool& pool, Progress& progress, Report& report) {
  if (before.tokenizer.kind == TokenizerSpec::Kind::none) {
    report.notes.push_back("not measured: the model has no tokenizer");
    return;
  }
  Pair pair = load_pair(before, after, pool, progress);
  double log_ratio = 0, weight = 0;
  for (const HeldOut& held : held_out_texts(paths)) {
    const auto tokens =
        spread(must(pair.tokenizer.encode(held.text, {.add_special = false})), chunks, chunk_length(before));
    if (tokens.empty()) {
      report.notes.push_back(held.name + ": shorter than one chunk of " + std::to_string(chunk_length(before)) +
                             " tokens");
      continue;
    }
    EvalOptions options;
    options.context = chunk_length(before);
    if (before.tokenizer.add_bos) options.bos = pair.tokenizer.bos();
    const ComparisonResult c = must(compare(*pair.after, *pair.before, tokens, options, pool, progress));
    ReportText text;
    text.name = held.name;
    text.tokens = static_cast<uint64_t>(c.model.tokens);
    text.perplexity_before = c.reference.ppl;
    text.perplexity_after = c.model.ppl;
    text.kl = c.mean_kl;
    text.kl_error = c.mean_kl_error;
    text.top1 = c.same_top;
    report.texts.push_back(std::move(text));
    log_ratio += std::log(c.ratio) * static_cast<double>(c.model.tokens);
    weight += static_cast<double>(c.model.tokens);
  }
  if (weight > 0) report.measured_loss = log_ratio / weight;
  if (pair.streamed) {
    report.notes.push_back("no sample answers: the models are too large to be loaded beside each other here");
    return;
  }
  pair.before.reset();
  pair.after.reset();
  const std::vector<std::string> prompts = {"What is the capital of France, and what is it known for?",
                                            "Explain in two sentences why the sky is blue."};
  // With the kernels that `pith generate` uses.
  const auto answers = [&](const Model& model, std::optional<double>& speed) {
    const auto lm = must(Lm::load(model, {.precision = Precision::fast}, pool, progress));
    std::vector<std::string> out;
    for (const std::string& prompt : prompts) out.push_back(answer(*lm, pair.tokenizer, prompt, pool, speed));
    return out;
  };
  const auto originals = answers(before, report.before.tokens_per_second);
  const auto compressed = answers(after, report.after.tokens_per_second);
  for (size_t i = 0; i < prompts.size(); ++i) report.samples.push_back({prompts[i], originals[i], compressed[i]});
}

double measured_loss(const Model& before, const Model& after, const std::vector<std::string>& paths, ThreadPool& pool,
                     Progress& progress) {
  const Pair pair = load_pair(before, after, pool, progress);
  double log_ratio = 0, weight = 0;
  for (const HeldOut& held : held_out_texts(paths)) {
    const auto tokens = spread(must(pair.tokenizer.encode(held.text, {.add_special = false})), 6, chunk_length(before));
    if (tokens.empty()) continue;
    EvalOptions options;
    options.context = chunk_length(before);
    if (before.tokenizer.add_bos) options.bos = pair.tokenizer.bos();
    const ComparisonResult c = must(compare(*pair.after, *pair.before, tokens, options, pool, progress));
    log_ratio += std::log(c.ratio) * static_cast<double>(c.model.tokens);
    weight += static_cast<double>(c.model.tokens);
  }
  if (weight == 0)
    throw Failure(
        user_error("--max-loss needs held-out text to measure on; give --eval FILE with at least 512 tokens"));
  return std::expm1(log_ratio / weight);
}

void measure_alone(const Model& model, const std::vector<Alone>& matrices, std::span<const int32_t> tokens,
                   int64_t length, ThreadPool& pool, const std::function<bool(size_t i, double kl)>& found) {
  const LmOptions load{.streamed = model.bits().total() / 4 > kLoadedBytes};
  const auto reference = must(Lm::load(model, load, pool, quiet_progress()));
  EvalOptions options;
  options.context = length;
  options.full_window = true;
  const auto changed = must(Lm::load(model, load, pool, quiet_progress()));
  for (size_t i = 0; i < matrices.size(); ++i) {
    const Alone& a = matrices[i];
    must(changed->take_block(with_nodes(model, {{a.name, a.node()}}), a.layer, pool));
    if (!found(i, must(compare(*changed, *reference, tokens, options, pool, quiet_progress())).mean_kl)) return;
    must(changed->take_block(model, a.layer, pool));
  }
}

std::string short_report(const Report& report) {
  Report out;
  const auto round = [](std::optional<double>& x, double step) {
    if (x) x = std::round(*x / step) * step;
  };
  for (ReportText text : report.texts) {
    round(text.perplexity_before, 1e-4), round(text.perplexity_after, 1e-4);
    round(text.kl, 1e-5), round(text.kl_error, 1e-5), round(text.top1, 1e-4);
    out.texts.push_back(std::move(text));
  }
  out.predicted_loss = report.predicted_loss;
  return report_to_json(out);
}

}  // namespace pith
