// TokenizerSpec from and to the `tokenizer.*` metadata of GGUF.
#include <algorithm>
#include <unordered_map>

#include "formats/gguf_model.h"

namespace pith {
namespace {

using Spec = TokenizerSpec;
using NormalizerOp = TokenizerSpec::Normalizer::Op;
using SplitOp = TokenizerSpec::Split::Op;
using TokenType = TokenizerSpec::TokenType;

constexpr const char* kSpace = "\xe2\x96\x81";  // U+2581

// One name of each family of pre-tokenizers, tried in this order when a spec did not come from GGUF.
constexpr const char* kPreNames[] = {"gpt-2",        "smollm",         "llama-bpe",  "dbrx",   "glm4",
                                     "qwen2",        "qwen35",         "tekken",     "gpt-4o", "deepseek-v3",
                                     "deepseek-llm", "deepseek-coder", "falcon",     "bloom",  "viking",
                                     "minicpm5",     "bailingmoe",     "seed-coder", "default"};

bool same_splits(const std::vector<Spec::Split>& a, const std::vector<Spec::Split>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Spec::Split& x, const Spec::Split& y) {
    return x.op == y.op && x.pattern == y.pattern && x.invert == y.invert && x.behavior == y.behavior;
  });
}

// llama.cpp's name for these pre-tokenizer steps; prefers one that agrees on ignore_merges.
std::string pre_name_for(const Spec& spec) {
  const auto fits = [&](const std::string& name, bool strict) {
    const auto pre = pre_tokenizer_from_gguf(name);
    return pre.ok() && same_splits(pre->splits, spec.splits) && (!strict || pre->ignore_merges == spec.ignore_merges);
  };
  if (!spec.pre_name.empty() && fits(spec.pre_name, false)) return spec.pre_name;
  for (const bool strict : {true, false})
    for (const char* name : kPreNames)
      if (fits(name, strict)) return name;
  return {};
}

Result<int32_t> token_id(const GgufMetadata& m, const char* key, size_t tokens) {
  const GgufValue* v = m.find(key);
  if (v == nullptr) return -1;
  const auto id = v->as_i64();
  if (id && (*id < 0 || *id >= INT32_MAX)) return -1;  // 2^32 - 1 and -1 mean "none"
  if (!id || *id >= static_cast<int64_t>(tokens))
    return data_error(std::string("metadata key ") + key + " should be a token id below " + std::to_string(tokens));
  return static_cast<int32_t>(*id);
}

// Scores from the rank of the merge that makes a token, as sentencepiece itself numbers them; what no merge makes comes
// last, as single characters do.
std::vector<float> scores_from_merges(const Spec& spec) {
  std::unordered_map<std::string_view, size_t> ids;
  for (size_t i = 0; i < spec.tokens.size(); ++i) ids.emplace(spec.tokens[i], i);
  std::vector<float> scores(spec.tokens.size(), -static_cast<float>(spec.merges.size()) - 1);
  std::vector<bool> done(spec.tokens.size());
  for (size_t k = 0; k < spec.merges.size(); ++k) {
    const auto it = ids.find(spec.merges[k].first + spec.merges[k].second);
    if (it == ids.end() || done[it->second]) continue;
    done[it->second] = true;
    scores[it->second] = -static_cast<float>(k);
  }
  for (size_t i = 0; i < scores.size(); ++i)
    if (!spec.types.empty() && spec.types[i] != TokenType::normal) scores[i] = 0;
  return scores;
}

}  // namespace

Result<TokenizerSpec> tokenizer_from_gguf(const GgufMetadata& m, const Limits& limits) {
  Spec spec;
  PITH_ASSIGN(const std::string model, m.get_string("tokenizer.ggml.model", "none"));
  if (model == "none" || model == "no_vocab") return spec;
  const GgufValue* tokens = m.find("tokenizer.ggml.tokens");
  const auto texts = tokens ? tokens->as_strings() : std::nullopt;
  if (!texts) return data_error("metadata key tokenizer.ggml.tokens should be a list of strings");
  if (texts->empty() || texts->size() > limits.max_array_items)
    return data_error("tokenizer.ggml.tokens holds " + std::to_string(texts->size()) + " tokens");
  spec.tokens.assign(texts->begin(), texts->end());
  const size_t n = spec.tokens.size();
  for (size_t i = 0; i < n; ++i)
    if (spec.tokens[i].empty()) spec.tokens[i] = "[EMPTY_" + std::to_string(i) + "]";

  spec.types.assign(n, TokenType::normal);
  if (const GgufValue* types = m.find("tokenizer.ggml.token_type")) {
    const auto values = types->as_i64s();
    if (!values || values->size() != n)
      return data_error("metadata key tokenizer.ggml.token_type should list " + std::to_string(n) + " integers");
    for (size_t i = 0; i < n; ++i)
      if ((*values)[i] >= 1 && (*values)[i] <= 6) spec.types[i] = static_cast<TokenType>((*values)[i]);
  }
  if (const GgufValue* scores = m.find("tokenizer.ggml.scores"); scores && model != "gpt2") {
    const auto values = scores->as_f32s();
    if (!values || values->size() != n)
      return data_error("metadata key tokenizer.ggml.scores should list " + std::to_string(n) + " numbers");
    spec.scores = *values;
  }

  bool add_bos = false, add_eos = false, prefix = true;
  if (model == "gpt2") {
    spec.kind = Spec::Kind::byte_bpe;
    PITH_ASSIGN(spec.pre_name, m.get_string("tokenizer.ggml.pre", ""));
    PITH_ASSIGN(auto pre, pre_tokenizer_from_gguf(spec.pre_name));
    spec.splits = std::move(pre.splits);
    spec.ignore_merges = pre.ignore_merges;
    add_bos = pre.add_bos;
    prefix = false;
    const GgufValue* merges = m.find("tokenizer.ggml.merges");
    const auto pairs = merges ? merges->as_strings() : std::nullopt;
    if (!pairs)
      return data_error("metadata key tokenizer.ggml.merges should be a list of strings; a BPE tokenizer needs it");
    spec.merges.reserve(pairs->size());
    for (const auto& text : *pairs) {
      const size_t space = text.find(' ', 1);  // a token may begin with a space in old files
      if (space == std::string_view::npos)
        return data_error("tokenizer.ggml.merges: merge " + std::to_string(spec.merges.size()) +
                          " should be two tokens, is \"" + std::string(text.substr(0, 60)) + "\"");
      spec.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
    }
  } else if (model == "llama" || model == "t5") {
    spec.kind = model == "llama" ? Spec::Kind::spm_bpe : Spec::Kind::unigram;
    if (spec.scores.empty()) return data_error("metadata key tokenizer.ggml.scores is missing");
    spec.byte_fallback = model == "llama";
    add_bos = model == "llama";
    add_eos = model == "t5";
  } else {
    return data_error("tokenizer \"" + model.substr(0, 60) + "\" is not supported (gpt2, llama and t5 are)");
  }
  PITH_ASSIGN(prefix, m.get_bool("tokenizer.ggml.add_space_prefix", prefix));
  if (spec.kind != Spec::Kind::byte_bpe) {
    if (const GgufValue* map = m.find("tokenizer.ggml.precompiled_charsmap")) {
      if (map->type() != GgufType::array || (map->item_type() != GgufType::u8 && map->item_type() != GgufType::i8))
        return data_error("metadata key tokenizer.ggml.precompiled_charsmap should be a list of bytes");
      const auto raw = map->raw();
      spec.normalizers.push_back(
          {NormalizerOp::charsmap, "", std::string(reinterpret_cast<const char*>(raw.data()), raw.size())});
    }
    PITH_ASSIGN(const bool squeeze, m.get_bool("tokenizer.ggml.remove_extra_whitespaces", false));
    if (squeeze) {
      spec.normalizers.push_back({NormalizerOp::strip_left, "", ""});
      spec.normalizers.push_back({NormalizerOp::strip_right, "", ""});
      spec.normalizers.push_back({NormalizerOp::replace_regex, " {2,}", " "});
    }
    if (prefix) spec.normalizers.push_back({NormalizerOp::prepend, "", kSpace});
    spec.normalizers.push_back({NormalizerOp::replace, " ", kSpace});
    spec.strip_prefix_space = prefix;
  }
  PITH_ASSIGN(spec.add_bos, m.get_bool("tokenizer.ggml.add_bos_token", add_bos));
  PITH_ASSIGN(spec.add_eos, m.get_bool("tokenizer.ggml.add_eos_token", add_eos));
  PITH_ASSIGN(spec.bos, token_id(m, "tokenizer.ggml.bos_token_id", n));
  PITH_ASSIGN(spec.eos, token_id(m, "tokenizer.ggml.eos_token_id", n));
  PITH_ASSIGN(spec.unk, token_id(m, "tokenizer.ggml.unknown_token_id", n));
  PITH_ASSIGN(spec.pad, token_id(m, "tokenizer.ggml.padding_token_id", n));
  if (model == "llama") {  // what llama.cpp takes when the file is silent
    const auto assume = [&](int32_t& id, const char* key, int32_t fallback) {
      if (id < 0 && m.find(key) == nullptr && static_cast<size_t>(fallback) < n) id = fallback;
    };
    assume(spec.bos, "tokenizer.ggml.bos_token_id", 1);
    assume(spec.eos, "tokenizer.ggml.eos_token_id", 2);
    assume(spec.unk, "tokenizer.ggml.unknown_token_id", 0);
  }
  for (const char* key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    PITH_ASSIGN(const int32_t id, token_id(m, key, n));
    if (id >= 0 && id != spec.eos && std::find(spec.stop.begin(), spec.stop.end(), id) == spec.stop.end())
      spec.stop.push_back(id);
  }
  PITH_ASSIGN(spec.chat_template, m.get_string("tokenizer.chat_template", ""));
  return spec;
}

Status gguf_metadata_from_tokenizer(const TokenizerSpec& spec, GgufMetadata& m) {
  if (spec.kind == Spec::Kind::none) {
    m.set("tokenizer.ggml.model", GgufValue::string("none"));
    return {};
  }
  std::string model = "gpt2", pre;
  std::vector<float> scores;
  bool prefix = false;
  if (spec.kind == Spec::Kind::byte_bpe) {
    pre = pre_name_for(spec);
    if (pre.empty())
      return data_error(
          "llama.cpp has no name for this model's pre-tokenizer, so the tokenizer cannot be written as GGUF");
    if (!spec.normalizers.empty() && !(spec.normalizers.size() == 1 && spec.normalizers[0].op == NormalizerOp::nfc))
      return data_error(
          "llama.cpp does not normalise text before byte-level BPE; the tokenizer cannot be written as GGUF");
  } else {
    model = spec.kind == Spec::Kind::unigram ? "t5" : "llama";
    pre = "default";
    scores = spec.scores.size() == spec.tokens.size() ? spec.scores : scores_from_merges(spec);
    for (const auto& n : spec.normalizers) {
      if (n.op == NormalizerOp::prepend) prefix = true;
      if (n.op == NormalizerOp::replace_regex)
        m.set("tokenizer.ggml.remove_extra_whitespaces", GgufValue::boolean(true));
      if (n.op == NormalizerOp::charsmap)
        m.set("tokenizer.ggml.precompiled_charsmap",
              GgufValue::u8s({reinterpret_cast<const uint8_t*>(n.content.data()), n.content.size()}));
    }
    for (const auto& s : spec.splits)
      if (s.op == SplitOp::metaspace && s.prefix != Spec::Split::Prefix::never) prefix = true;
  }
  // llama.cpp wants as many tokens as the embedding has rows.
  std::vector<std::string> tokens = spec.tokens;
  std::vector<int32_t> types;
  for (size_t i = 0; i < tokens.size(); ++i)
    types.push_back(spec.types.empty() ? 1 : static_cast<int32_t>(spec.types[i]));
  if (const auto arch = m.get_string("general.architecture"); arch.ok()) {
    const auto vocab = m.get_u32(*arch + ".vocab_size");
    if (vocab.ok() && *vocab > 0 && *vocab < (1u << 26)) {
      for (size_t i = tokens.size(); i < *vocab; ++i) {
        tokens.push_back("[PAD" + std::to_string(i) + "]");
        types.push_back(static_cast<int32_t>(TokenType::unused));
      }
      tokens.resize(*vocab);
      types.resize(*vocab);
      if (!scores.empty()) scores.resize(*vocab, -1000.0f);
    }
  }
  m.set("tokenizer.ggml.model", GgufValue::string(model));
  m.set("tokenizer.ggml.pre", GgufValue::string(pre));
  m.set("tokenizer.ggml.tokens", GgufValue::strings(tokens));
  m.set("tokenizer.ggml.token_type", GgufValue::i32s(types));
  if (!scores.empty()) m.set("tokenizer.ggml.scores", GgufValue::f32s(scores));
  if (model == "gpt2") {
    std::vector<std::string> merges;
    merges.reserve(spec.merges.size());
    for (const auto& [a, b] : spec.merges) merges.push_back(a + " " + b);
    m.set("tokenizer.ggml.merges", GgufValue::strings(merges));
  }
  const std::pair<const char*, int32_t> ids[] = {
      {"bos", spec.bos}, {"eos", spec.eos}, {"unknown", spec.unk}, {"padding", spec.pad}};
  for (const auto& [name, id] : ids)
    if (id >= 0) m.set(std::string("tokenizer.ggml.") + name + "_token_id", GgufValue::u32(static_cast<uint32_t>(id)));
  if (!spec.stop.empty()) m.set("tokenizer.ggml.eot_token_id", GgufValue::u32(static_cast<uint32_t>(spec.stop[0])));
  if (spec.stop.size() > 1) m.set("tokenizer.ggml.eom_token_id", GgufValue::u32(static_cast<uint32_t>(spec.stop[1])));
  m.set("tokenizer.ggml.add_bos_token", GgufValue::boolean(spec.add_bos));
  m.set("tokenizer.ggml.add_eos_token", GgufValue::boolean(spec.add_eos));
  m.set("tokenizer.ggml.add_space_prefix", GgufValue::boolean(prefix));
  if (!spec.chat_template.empty()) m.set("tokenizer.chat_template", GgufValue::string(spec.chat_template));
  return {};
}

}  // namespace pith
