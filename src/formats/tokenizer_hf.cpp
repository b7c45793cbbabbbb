// TokenizerSpec from and to tokenizer.json, tokenizer_config.json and generation_config.json.
#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/base64.h"
#include "formats/json_text.h"
#include "formats/tokenizer_spec.h"

namespace pith {
namespace {

using json = nlohmann::json;
using Spec = TokenizerSpec;
using NormalizerOp = TokenizerSpec::Normalizer::Op;
using SplitOp = TokenizerSpec::Split::Op;
using Behavior = TokenizerSpec::Split::Behavior;
using Prefix = TokenizerSpec::Split::Prefix;
using TokenType = TokenizerSpec::TokenType;

constexpr std::string_view kSpace = "\xe2\x96\x81";  // U+2581, sentencepiece's space

constexpr std::array<std::pair<std::string_view, Behavior>, 5> kBehaviors{
    {{"Removed", Behavior::removed},
     {"Isolated", Behavior::isolated},
     {"MergedWithPrevious", Behavior::merged_with_previous},
     {"MergedWithNext", Behavior::merged_with_next},
     {"Contiguous", Behavior::contiguous}}};

std::string gpt2_pattern() {
  const auto gpt2 = pre_tokenizer_from_gguf("gpt-2");
  return gpt2.ok() ? gpt2->splits.front().pattern : std::string();
}

// The members of a {"type": "Sequence", …} in order, or the step itself; null gives none.
Result<std::vector<const json*>> steps_of(const json& value, const char* list_key, const std::string& what) {
  std::vector<const json*> out;
  if (value.is_null()) return out;
  if (!value.is_object()) return data_error(what + " should be an object");
  PITH_ASSIGN(const std::string type, json_string(value, "type", ""));
  if (type != "Sequence") {
    out.push_back(&value);
    return out;
  }
  const auto list = value.find(list_key);
  if (list == value.end() || !list->is_array())
    return data_error(what + ": Sequence without list \"" + list_key + "\"");
  for (const auto& step : *list) {
    if (!step.is_object()) return data_error(what + ": step should be an object");
    PITH_ASSIGN(const std::string inner, json_string(step, "type", ""));
    if (inner == "Sequence") {
      PITH_ASSIGN(const auto nested, steps_of(step, list_key, what));
      out.insert(out.end(), nested.begin(), nested.end());
    } else {
      out.push_back(&step);
    }
  }
  return out;
}

const json& member(const json& object, const char* key) {
  static const json none;
  const auto it = object.find(key);
  return it == object.end() ? none : *it;
}

// {"String": "x"} or {"Regex": "x"}; older files hold the text itself.
Status read_pattern(const json& value, const std::string& what, std::string& text, bool& regex) {
  regex = false;
  if (value.is_string()) {
    text = value.get<std::string>();
    return {};
  }
  if (value.is_object())
    for (const auto& [key, v] : value.items())
      if ((key == "String" || key == "Regex") && v.is_string()) {
        text = v.get<std::string>();
        regex = key == "Regex";
        return {};
      }
  return data_error(what + ": pattern should be {\"String\": …} or {\"Regex\": …}");
}

Status read_normalizer(const json& value, Spec& spec) {
  PITH_ASSIGN(const auto steps, steps_of(value, "normalizers", "normalizer"));
  for (const json* step : steps) {
    PITH_ASSIGN(const std::string type, json_string(*step, "type", ""));
    Spec::Normalizer n;
    if (type == "NFC") {
      n.op = NormalizerOp::nfc;
    } else if (type == "NFD") {
      n.op = NormalizerOp::nfd;
    } else if (type == "NFKC") {
      n.op = NormalizerOp::nfkc;
    } else if (type == "NFKD") {
      n.op = NormalizerOp::nfkd;
    } else if (type == "Lowercase") {
      n.op = NormalizerOp::lowercase;
    } else if (type == "Prepend") {
      n.op = NormalizerOp::prepend;
      PITH_ASSIGN(n.content, json_string(*step, "prepend", ""));
    } else if (type == "Replace") {
      bool regex = false;
      PITH_TRY(read_pattern(member(*step, "pattern"), "normalizer Replace", n.pattern, regex));
      n.op = regex ? NormalizerOp::replace_regex : NormalizerOp::replace;
      PITH_ASSIGN(n.content, json_string(*step, "content", ""));
    } else if (type == "Strip") {
      PITH_ASSIGN(const bool left, json_bool(*step, "strip_left", true));
      PITH_ASSIGN(const bool right, json_bool(*step, "strip_right", true));
      if (left) spec.normalizers.push_back({NormalizerOp::strip_left, "", ""});
      if (right) spec.normalizers.push_back({NormalizerOp::strip_right, "", ""});
      continue;
    } else if (type == "Precompiled") {
      n.op = NormalizerOp::charsmap;
      PITH_ASSIGN(const std::string text, json_string(*step, "precompiled_charsmap", ""));
      auto map = from_base64(text);
      if (!map) return data_error("precompiled_charsmap is not base64");
      n.content = std::move(*map);
    } else {
      return data_error("normalizer \"" + type.substr(0, 60) + "\" is not supported");
    }
    spec.normalizers.push_back(std::move(n));
  }
  return {};
}

Status read_pre_tokenizer(const json& value, Spec& spec, bool& byte_level) {
  PITH_ASSIGN(const auto steps, steps_of(value, "pretokenizers", "pre_tokenizer"));
  const auto regex = [&](std::string pattern, Behavior behavior) {
    spec.splits.push_back({.op = SplitOp::regex, .pattern = std::move(pattern), .behavior = behavior});
  };
  for (const json* step : steps) {
    PITH_ASSIGN(const std::string type, json_string(*step, "type", ""));
    if (byte_level)
      return data_error("pre_tokenizer: step \"" + type.substr(0, 60) + "\" after ByteLevel is not supported");
    PITH_ASSIGN(const std::string behavior_name, json_string(*step, "behavior", "Isolated"));
    auto behavior = Behavior::isolated;
    bool known = false;
    for (const auto& [name, b] : kBehaviors)
      if (name == behavior_name) behavior = b, known = true;
    if (!known) return data_error("pre_tokenizer: behavior \"" + behavior_name.substr(0, 60) + "\" is unknown");
    if (type == "ByteLevel") {
      byte_level = true;
      PITH_ASSIGN(const bool prefix, json_bool(*step, "add_prefix_space", true));
      PITH_ASSIGN(const bool use_regex, json_bool(*step, "use_regex", true));
      if (prefix) spec.splits.push_back({.op = SplitOp::prefix_space, .pattern = ""});
      if (use_regex) regex(gpt2_pattern(), Behavior::isolated);
    } else if (type == "Split") {
      Spec::Split split;
      bool is_regex = false;
      PITH_TRY(read_pattern(member(*step, "pattern"), "pre_tokenizer Split", split.pattern, is_regex));
      split.op = is_regex ? SplitOp::regex : SplitOp::literal;
      split.behavior = behavior;
      PITH_ASSIGN(split.invert, json_bool(*step, "invert", false));
      spec.splits.push_back(std::move(split));
    } else if (type == "Metaspace") {
      PITH_ASSIGN(const std::string replacement, json_string(*step, "replacement", std::string(kSpace)));
      if (replacement != kSpace) return data_error("pre_tokenizer Metaspace: replacement should be U+2581");
      PITH_ASSIGN(const bool old_prefix, json_bool(*step, "add_prefix_space", true));
      PITH_ASSIGN(const std::string scheme, json_string(*step, "prepend_scheme", old_prefix ? "always" : "never"));
      if (scheme != "always" && scheme != "never" && scheme != "first")
        return data_error("pre_tokenizer Metaspace: prepend_scheme \"" + scheme.substr(0, 60) + "\" is unknown");
      spec.splits.push_back({.op = SplitOp::metaspace,
                             .pattern = "",
                             .prefix = scheme == "always"  ? Prefix::always
                                       : scheme == "first" ? Prefix::first
                                                           : Prefix::never});
      PITH_ASSIGN(const bool split, json_bool(*step, "split", true));
      if (split)
        spec.splits.push_back(
            {.op = SplitOp::literal, .pattern = std::string(kSpace), .behavior = Behavior::merged_with_next});
    } else if (type == "Digits") {
      PITH_ASSIGN(const bool single, json_bool(*step, "individual_digits", false));
      regex(single ? "\\p{N}" : "\\p{N}+", Behavior::isolated);
    } else if (type == "Punctuation") {
      regex("[!-/:-@\\[-`{-~]|\\p{P}", behavior);
    } else if (type == "WhitespaceSplit") {
      regex("\\s+", Behavior::removed);
    } else if (type == "Whitespace") {
      spec.splits.push_back(
          {.op = SplitOp::regex, .pattern = "\\w+|[^\\w\\s]+", .invert = true, .behavior = Behavior::removed});
    } else {
      return data_error("pre_tokenizer \"" + type.substr(0, 60) + "\" is not supported");
    }
  }
  return {};
}

// Whether decoding drops the space that encoding put at the front.
Status read_decoder(const json& value, Spec& spec) {
  PITH_ASSIGN(const auto steps, steps_of(value, "decoders", "decoder"));
  for (const json* step : steps) {
    PITH_ASSIGN(const std::string type, json_string(*step, "type", ""));
    if (type == "Strip") {
      PITH_ASSIGN(const std::string content, json_string(*step, "content", ""));
      PITH_ASSIGN(const int64_t start, json_int(*step, "start", 0));
      if (content == " " && start > 0) spec.strip_prefix_space = true;
    } else if (type == "Metaspace") {
      PITH_ASSIGN(const bool old_prefix, json_bool(*step, "add_prefix_space", true));
      PITH_ASSIGN(const std::string scheme, json_string(*step, "prepend_scheme", old_prefix ? "always" : "never"));
      spec.strip_prefix_space = scheme != "never";
    }
  }
  return {};
}

struct Vocabulary {
  std::unordered_map<std::string_view, int32_t> ids;  // views of the JSON's strings

  Result<int32_t> find(const std::string& text, const char* what) const {
    const auto it = ids.find(text);
    if (it == ids.end())
      return data_error(std::string(what) + " \"" + text.substr(0, 60) + "\" is not in the vocabulary");
    return it->second;
  }
};

// "<0x41>"
bool is_byte_token(std::string_view text) {
  const auto hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'); };
  return text.size() == 6 && text.starts_with("<0x") && text[5] == '>' && hex(text[3]) && hex(text[4]);
}

// Places texts under their ids; ids that are not used get a name of their own, as llama.cpp's conversion does.
Status place_tokens(const std::vector<std::pair<std::string_view, int64_t>>& entries, const Limits& limits,
                    Spec& spec) {
  int64_t largest = -1;
  for (const auto& [text, id] : entries) {
    if (id < 0) return data_error("token \"" + std::string(text.substr(0, 60)) + "\" has the id " + std::to_string(id));
    largest = std::max(largest, id);
  }
  const auto count = static_cast<int64_t>(entries.size());
  if (largest >= 4 * count + 4096 || largest >= static_cast<int64_t>(limits.max_array_items))
    return data_error("the largest token id is " + std::to_string(largest) + " among " + std::to_string(count) +
                      " tokens");
  spec.tokens.resize(static_cast<size_t>(largest + 1));
  spec.types.assign(spec.tokens.size(), TokenType::unused);
  for (const auto& [text, id] : entries) {
    auto& slot = spec.tokens[static_cast<size_t>(id)];
    if (spec.types[static_cast<size_t>(id)] != TokenType::unused && slot != text)
      return data_error("id " + std::to_string(id) + " belongs to \"" + slot.substr(0, 60) + "\" and \"" +
                        std::string(text.substr(0, 60)) + "\"");
    slot = text;
    spec.types[static_cast<size_t>(id)] = TokenType::normal;
  }
  for (size_t i = 0; i < spec.tokens.size(); ++i)
    if (spec.types[i] == TokenType::unused) spec.tokens[i] = "[PAD" + std::to_string(i) + "]";
  return {};
}

Status read_merges(const json& value, const Limits& limits, Spec& spec) {
  if (!value.is_array()) return data_error("model: \"merges\" should be a list");
  if (value.size() > limits.max_array_items) return data_error("model: too many merges");
  spec.merges.reserve(value.size());
  for (const auto& m : value) {
    if (m.is_array() && m.size() == 2 && m[0].is_string() && m[1].is_string()) {
      spec.merges.emplace_back(m[0].get<std::string>(), m[1].get<std::string>());
      continue;
    }
    const std::string* text = m.is_string() ? &m.get_ref<const std::string&>() : nullptr;
    const size_t space = text ? text->find(' ') : std::string::npos;
    if (space == std::string::npos || text->find(' ', space + 1) != std::string::npos)
      return data_error("model: merge " + std::to_string(spec.merges.size()) + " should be two tokens, is " +
                        json_text(m).substr(0, 60));
    spec.merges.emplace_back(text->substr(0, space), text->substr(space + 1));
  }
  return {};
}

// "bos_token": "<s>" or {"content": "<s>", …} or null.
Result<std::string> token_text(const json& config, const char* key) {
  const json& v = member(config, key);
  if (v.is_null()) return std::string();
  if (v.is_object()) return json_string(v, "content", "");
  return json_string(config, key, "");
}

Status read_post_processor(const json& value, const Vocabulary& vocabulary, Spec& spec, bool& template_found) {
  PITH_ASSIGN(const auto steps, steps_of(value, "processors", "post_processor"));
  for (const json* step : steps) {
    PITH_ASSIGN(const std::string type, json_string(*step, "type", ""));
    if (type == "ByteLevel") continue;  // trims offsets only
    if (type != "TemplateProcessing")
      return data_error("post_processor \"" + type.substr(0, 60) + "\" is not supported");
    template_found = true;
    const json& single = member(*step, "single");
    if (!single.is_array()) return data_error("post_processor: \"single\" should be a list");
    bool text_seen = false;
    for (const auto& part : single) {
      if (!part.is_object()) return data_error("post_processor: \"single\" should hold objects");
      if (part.contains("Sequence")) {
        text_seen = true;
        continue;
      }
      const json& special = member(part, "SpecialToken");
      PITH_ASSIGN(const std::string text, json_string(special, "id", ""));
      PITH_ASSIGN(const int32_t id, vocabulary.find(text, "post_processor: token"));
      if ((text_seen ? spec.add_eos : spec.add_bos))
        return data_error("post_processor puts more than one token at an end of the text; not supported");
      (text_seen ? spec.add_eos : spec.add_bos) = true;
      (text_seen ? spec.eos : spec.bos) = id;
    }
  }
  return {};
}

// Sets `id` from generation_config's number or list; a list's further ids are stop tokens.
Status read_generation_id(const json& config, const char* key, int32_t& id, std::vector<int32_t>* more) {
  const json& v = member(config, key);
  if (v.is_null()) return {};
  std::vector<int64_t> ids;
  const auto take = [&](const json& n) {
    const auto number = json_unsigned(n);
    const bool fits = number && *number < (1u << 30);
    if (fits) ids.push_back(static_cast<int64_t>(*number));
    return fits;
  };
  bool good = true;
  if (v.is_array()) {
    if (v.size() > 1024) return data_error(std::string(key) + " lists too many ids");
    for (const auto& n : v) good = good && take(n);
  } else {
    good = take(v);
  }
  if (!good) return data_error(std::string(key) + " should be a token id or a list of them");
  for (const int64_t n : ids) {
    if (id < 0)
      id = static_cast<int32_t>(n);
    else if (more != nullptr && n != id && std::find(more->begin(), more->end(), n) == more->end())
      more->push_back(static_cast<int32_t>(n));
  }
  return {};
}

// sentencepiece BPE without merges (GGUF): a pair may merge when both parts and the whole are tokens; the whole's score
// is its rank. This is how transformers turns such models into merges.
std::vector<std::pair<std::string, std::string>> merges_from_scores(const Spec& spec) {
  std::unordered_map<std::string_view, size_t> ids;
  for (size_t i = 0; i < spec.tokens.size(); ++i) ids.emplace(spec.tokens[i], i);
  struct Merge {
    size_t left, right, whole;
  };
  std::vector<Merge> found;
  for (size_t i = 0; i < spec.tokens.size(); ++i) {
    if (spec.types[i] != TokenType::normal || spec.tokens[i].size() > 256) continue;
    const std::string_view text = spec.tokens[i];
    const size_t first = found.size();
    for (size_t k = 1; k < text.size(); ++k) {
      if ((static_cast<uint8_t>(text[k]) & 0xc0) == 0x80) continue;  // inside a character
      const auto left = ids.find(text.substr(0, k)), right = ids.find(text.substr(k));
      if (left != ids.end() && right != ids.end()) found.push_back({left->second, right->second, i});
    }
    std::sort(found.begin() + static_cast<std::ptrdiff_t>(first), found.end(),
              [](const Merge& a, const Merge& b) { return a.left != b.left ? a.left < b.left : a.right < b.right; });
  }
  std::stable_sort(found.begin(), found.end(),
                   [&](const Merge& a, const Merge& b) { return spec.scores[a.whole] > spec.scores[b.whole]; });
  std::vector<std::pair<std::string, std::string>> out;
  out.reserve(found.size());
  for (const auto& m : found) out.emplace_back(spec.tokens[m.left], spec.tokens[m.right]);
  return out;
}

}  // namespace

Result<TokenizerSpec> tokenizer_from_hf(const json& tokenizer, const json& tokenizer_config,
                                        const json& generation_config, const Limits& limits) {
  if (!tokenizer.is_object()) return data_error("tokenizer.json should be an object");
  const json& model = member(tokenizer, "model");
  if (!model.is_object()) return data_error("tokenizer.json: \"model\" is missing");
  Spec spec;
  PITH_ASSIGN(std::string type, json_string(model, "type", ""));
  if (type.empty()) type = model.contains("merges") ? "BPE" : "Unigram";
  if (type != "BPE" && type != "Unigram")
    return data_error("tokenizer model \"" + type.substr(0, 60) + "\" is not supported (BPE and Unigram are)");

  bool byte_level = false;
  PITH_TRY(read_normalizer(member(tokenizer, "normalizer"), spec));
  PITH_TRY(read_pre_tokenizer(member(tokenizer, "pre_tokenizer"), spec, byte_level));
  PITH_TRY(read_decoder(member(tokenizer, "decoder"), spec));
  spec.kind = type == "Unigram" ? Spec::Kind::unigram : byte_level ? Spec::Kind::byte_bpe : Spec::Kind::spm_bpe;
  PITH_ASSIGN(spec.byte_fallback, json_bool(model, "byte_fallback", false));
  PITH_ASSIGN(spec.fuse_unk, json_bool(model, "fuse_unk", false));
  PITH_ASSIGN(spec.ignore_merges, json_bool(model, "ignore_merges", false));
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    PITH_ASSIGN(const std::string text, json_string(model, key, ""));
    if (!text.empty()) return data_error(std::string("tokenizer model with ") + key + " is not supported");
  }

  // Vocabulary, then added tokens (which may be in it already).
  std::vector<std::pair<std::string_view, int64_t>> entries;
  const json& vocab = member(model, "vocab");
  std::vector<float> scores;
  if (type == "Unigram") {
    if (!vocab.is_array()) return data_error("tokenizer model: \"vocab\" should be a list of [token, score]");
    for (const auto& row : vocab) {
      if (!row.is_array() || row.size() != 2 || !row[0].is_string() || !row[1].is_number())
        return data_error("tokenizer model: vocab entry should be [token, score], is " + json_text(row).substr(0, 60));
      entries.emplace_back(row[0].get_ref<const std::string&>(), static_cast<int64_t>(entries.size()));
      scores.push_back(static_cast<float>(row[1].get<double>()));
    }
  } else {
    if (!vocab.is_object()) return data_error("tokenizer model: \"vocab\" should be an object of token: id");
    for (const auto& [text, id] : vocab.items()) {
      const auto number = json_unsigned(id);
      if (!number || *number > INT32_MAX)
        return data_error("tokenizer model: id of \"" + text.substr(0, 60) + "\" should be an integer >= 0");
      entries.emplace_back(text, static_cast<int64_t>(*number));
    }
    // items() gives references to the keys, which live as long as the JSON does.
  }
  const json& added = member(tokenizer, "added_tokens");
  if (!added.is_null() && !added.is_array()) return data_error("\"added_tokens\" should be a list");
  for (const auto& a : added) {
    if (!a.is_object()) return data_error("\"added_tokens\" should hold objects");
    const json& content = member(a, "content");
    PITH_ASSIGN(const int64_t id, json_int(a, "id", -1));
    if (!content.is_string() || content.get_ref<const std::string&>().empty() || id < 0 || id > INT32_MAX)
      return data_error("an entry of \"added_tokens\" needs a content and an id");
    entries.emplace_back(content.get_ref<const std::string&>(), id);
    Spec::Added token;
    token.id = static_cast<int32_t>(id);
    PITH_ASSIGN(token.special, json_bool(a, "special", false));
    PITH_ASSIGN(token.normalized, json_bool(a, "normalized", !token.special));
    PITH_ASSIGN(token.lstrip, json_bool(a, "lstrip", false));
    PITH_ASSIGN(token.rstrip, json_bool(a, "rstrip", false));
    PITH_ASSIGN(token.single_word, json_bool(a, "single_word", false));
    spec.added.push_back(token);
  }
  if (entries.empty()) return data_error("the tokenizer has no vocabulary");
  PITH_TRY(place_tokens(entries, limits, spec));
  Vocabulary vocabulary;
  for (const auto& [text, id] : entries) vocabulary.ids.emplace(text, static_cast<int32_t>(id));
  if (type == "Unigram") {
    scores.resize(spec.tokens.size(), 0.0f);
    spec.scores = std::move(scores);
  } else {
    if (!model.contains("merges")) return data_error("the tokenizer has no merges");
    PITH_TRY(read_merges(member(model, "merges"), limits, spec));
    if (spec.merges.empty() && spec.tokens.size() > 1024) return data_error("the tokenizer has no merges");
  }
  if (spec.byte_fallback)
    for (size_t i = 0; i < spec.tokens.size(); ++i)
      if (is_byte_token(spec.tokens[i])) spec.types[i] = TokenType::byte;
  for (const auto& a : spec.added)
    spec.types[static_cast<size_t>(a.id)] = a.special ? TokenType::control : TokenType::user_defined;

  // Unknown token: a text for BPE, an id for Unigram.
  PITH_ASSIGN(const std::string unk, json_string(model, "unk_token", ""));
  if (!unk.empty()) {
    PITH_ASSIGN(spec.unk, vocabulary.find(unk, "unk_token"));
  }
  PITH_ASSIGN(const int64_t unk_id, json_int(model, "unk_id", -1));
  if (unk_id >= static_cast<int64_t>(spec.tokens.size())) return data_error("unk_id is outside the vocabulary");
  if (unk_id >= 0) spec.unk = static_cast<int32_t>(unk_id);
  if (spec.unk >= 0 && spec.kind != Spec::Kind::byte_bpe)
    spec.types[static_cast<size_t>(spec.unk)] = TokenType::unknown;

  const std::pair<const char*, int32_t*> named[] = {
      {"bos_token", &spec.bos}, {"eos_token", &spec.eos}, {"pad_token", &spec.pad}};
  for (const auto& [key, id] : named) {
    PITH_ASSIGN(const std::string text, token_text(tokenizer_config, key));
    if (text.empty()) continue;
    const auto it = vocabulary.ids.find(text);
    if (it != vocabulary.ids.end()) *id = it->second;  // some configurations name tokens that the model has not
  }
  bool template_found = false;
  PITH_TRY(read_post_processor(member(tokenizer, "post_processor"), vocabulary, spec, template_found));
  if (!template_found) {
    PITH_ASSIGN(spec.add_bos, json_bool(tokenizer_config, "add_bos_token", false));
    PITH_ASSIGN(spec.add_eos, json_bool(tokenizer_config, "add_eos_token", false));
  }
  PITH_TRY(read_generation_id(generation_config, "bos_token_id", spec.bos, nullptr).context("generation_config.json"));
  PITH_TRY(
      read_generation_id(generation_config, "eos_token_id", spec.eos, &spec.stop).context("generation_config.json"));
  PITH_TRY(read_generation_id(generation_config, "pad_token_id", spec.pad, nullptr).context("generation_config.json"));
  const auto outside = [&](int32_t id) { return id >= static_cast<int32_t>(spec.tokens.size()); };
  for (int32_t* id : {&spec.bos, &spec.eos, &spec.pad})
    if (outside(*id))
      return data_error("generation_config.json: token id " + std::to_string(*id) + " is outside the vocabulary");
  spec.stop.erase(std::remove_if(spec.stop.begin(), spec.stop.end(), outside), spec.stop.end());

  const json& chat = member(tokenizer_config, "chat_template");
  if (chat.is_string()) {
    spec.chat_template = chat.get<std::string>();
  } else if (chat.is_array()) {
    for (const auto& t : chat) {
      PITH_ASSIGN(const std::string name, json_string(t, "name", ""));
      if (name != "default" && !spec.chat_template.empty()) continue;
      PITH_ASSIGN(spec.chat_template, json_string(t, "template", ""));
    }
  }
  return spec;
}

json tokenizer_to_hf(const TokenizerSpec& spec) {
  json out = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
  const auto text_of = [&](int32_t id) { return spec.tokens[static_cast<size_t>(id)]; };
  const auto valid = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < spec.tokens.size(); };

  json added = json::array();
  const auto add = [&](const Spec::Added& a) {
    added.push_back({{"id", a.id},
                     {"content", text_of(a.id)},
                     {"single_word", a.single_word},
                     {"lstrip", a.lstrip},
                     {"rstrip", a.rstrip},
                     {"normalized", a.normalized},
                     {"special", a.special}});
  };
  if (!spec.added.empty()) {
    for (const auto& a : spec.added) add(a);
  } else {
    for (size_t i = 0; i < spec.types.size(); ++i) {
      const TokenType t = spec.types[i];
      if (t == TokenType::control || t == TokenType::unknown || t == TokenType::user_defined)
        add({.id = static_cast<int32_t>(i), .special = t != TokenType::user_defined});
    }
  }
  out["added_tokens"] = added;

  json normalizers = json::array();
  for (const auto& n : spec.normalizers) {
    switch (n.op) {
      case NormalizerOp::nfc:
        normalizers.push_back({{"type", "NFC"}});
        break;
      case NormalizerOp::nfd:
        normalizers.push_back({{"type", "NFD"}});
        break;
      case NormalizerOp::nfkc:
        normalizers.push_back({{"type", "NFKC"}});
        break;
      case NormalizerOp::nfkd:
        normalizers.push_back({{"type", "NFKD"}});
        break;
      case NormalizerOp::lowercase:
        normalizers.push_back({{"type", "Lowercase"}});
        break;
      case NormalizerOp::prepend:
        normalizers.push_back({{"type", "Prepend"}, {"prepend", n.content}});
        break;
      case NormalizerOp::replace:
      case NormalizerOp::replace_regex:
        normalizers.push_back({{"type", "Replace"},
                               {"pattern", {{n.op == NormalizerOp::replace ? "String" : "Regex", n.pattern}}},
                               {"content", n.content}});
        break;
      case NormalizerOp::strip_left:
      case NormalizerOp::strip_right:
        normalizers.push_back({{"type", "Strip"},
                               {"strip_left", n.op == NormalizerOp::strip_left},
                               {"strip_right", n.op == NormalizerOp::strip_right}});
        break;
      case NormalizerOp::charsmap:
        normalizers.push_back({{"type", "Precompiled"}, {"precompiled_charsmap", to_base64(n.content)}});
        break;
    }
  }
  out["normalizer"] = normalizers.empty() ? json() : json{{"type", "Sequence"}, {"normalizers", normalizers}};

  // ByteLevel comes last: it turns bytes into characters, and may add the prefix space and GPT-2's expression.
  json pre = json::array();
  const bool byte_level = spec.kind == Spec::Kind::byte_bpe;
  bool prefix = false, gpt2 = false;
  for (size_t i = 0; i < spec.splits.size(); ++i) {
    const auto& s = spec.splits[i];
    switch (s.op) {
      case SplitOp::prefix_space: {
        prefix = true;
        const bool last_regex = i + 2 == spec.splits.size() && spec.splits[i + 1].op == SplitOp::regex &&
                                spec.splits[i + 1].pattern == gpt2_pattern();
        if (last_regex) gpt2 = true, ++i;
        break;
      }
      case SplitOp::metaspace:
        pre.push_back({{"type", "Metaspace"},
                       {"replacement", std::string(kSpace)},
                       {"prepend_scheme", s.prefix == Prefix::always  ? "always"
                                          : s.prefix == Prefix::first ? "first"
                                                                      : "never"},
                       {"split", false}});
        break;
      case SplitOp::regex:
      case SplitOp::literal:
        pre.push_back({{"type", "Split"},
                       {"pattern", {{s.op == SplitOp::regex ? "Regex" : "String", s.pattern}}},
                       {"behavior", std::string(kBehaviors[static_cast<size_t>(s.behavior)].first)},
                       {"invert", s.invert}});
        break;
    }
  }
  if (byte_level)
    pre.push_back({{"type", "ByteLevel"}, {"add_prefix_space", prefix}, {"trim_offsets", true}, {"use_regex", gpt2}});
  out["pre_tokenizer"] = pre.empty() ? json() : json{{"type", "Sequence"}, {"pretokenizers", pre}};

  json single = json::array(), pair = json::array(), specials = json::object();
  const auto special = [&](int32_t id, int type_id) {
    specials[text_of(id)] = {{"id", text_of(id)}, {"ids", {id}}, {"tokens", {text_of(id)}}};
    return json{{"SpecialToken", {{"id", text_of(id)}, {"type_id", type_id}}}};
  };
  const bool bos = spec.add_bos && valid(spec.bos), eos = spec.add_eos && valid(spec.eos);
  if (bos || eos) {
    if (bos) single.push_back(special(spec.bos, 0));
    single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    if (eos) single.push_back(special(spec.eos, 0));
    pair = single;
    if (bos) pair.push_back(special(spec.bos, 1));
    pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
    if (eos) pair.push_back(special(spec.eos, 1));
    out["post_processor"] = {
        {"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", specials}};
  } else {
    out["post_processor"] = nullptr;
  }

  if (byte_level) {
    out["decoder"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  } else {
    json steps =
        json::array({json{{"type", "Replace"}, {"pattern", {{"String", std::string(kSpace)}}}, {"content", " "}},
                     json{{"type", "ByteFallback"}}, json{{"type", "Fuse"}}});
    if (spec.strip_prefix_space) steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    out["decoder"] = {{"type", "Sequence"}, {"decoders", steps}};
  }

  json model;
  if (spec.kind == Spec::Kind::unigram) {
    json vocab = json::array();
    for (size_t i = 0; i < spec.tokens.size(); ++i)
      vocab.push_back({spec.tokens[i], i < spec.scores.size() ? static_cast<double>(spec.scores[i]) : 0.0});
    model = {{"type", "Unigram"},
             {"unk_id", spec.unk >= 0 ? json(spec.unk) : json()},
             {"vocab", vocab},
             {"byte_fallback", spec.byte_fallback}};
  } else {
    json vocab = json::object(), merges = json::array();
    for (size_t i = 0; i < spec.tokens.size(); ++i) vocab.emplace(spec.tokens[i], i);
    const bool from_scores = spec.merges.empty() && spec.scores.size() == spec.tokens.size();
    for (const auto& [a, b] : from_scores ? merges_from_scores(spec) : spec.merges) merges.push_back({a, b});
    model = {{"type", "BPE"},
             {"dropout", nullptr},
             {"unk_token", valid(spec.unk) ? json(text_of(spec.unk)) : json()},
             {"continuing_subword_prefix", nullptr},
             {"end_of_word_suffix", nullptr},
             {"fuse_unk", spec.fuse_unk},
             {"byte_fallback", spec.byte_fallback},
             {"ignore_merges", spec.ignore_merges},
             {"vocab", vocab},
             {"merges", merges}};
  }
  out["model"] = model;
  return out;
}

json tokenizer_config_to_hf(const TokenizerSpec& spec) {
  json out = {{"tokenizer_class", "PreTrainedTokenizerFast"},
              {"add_bos_token", spec.add_bos},
              {"add_eos_token", spec.add_eos},
              {"clean_up_tokenization_spaces", false}};
  const std::pair<const char*, int32_t> named[] = {
      {"bos_token", spec.bos}, {"eos_token", spec.eos}, {"unk_token", spec.unk}, {"pad_token", spec.pad}};
  for (const auto& [key, id] : named)
    if (id >= 0 && static_cast<size_t>(id) < spec.tokens.size()) out[key] = spec.tokens[static_cast<size_t>(id)];
  if (!spec.chat_template.empty()) out["chat_template"] = spec.chat_template;
  return out;
}

}  // namespace pith
