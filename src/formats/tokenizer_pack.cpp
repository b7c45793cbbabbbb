// The compact form of a tokenizer in `.pith` files: one zstd frame.
//
// Most of a BPE tokenizer follows from its merges: token number k was made by merge k out of two earlier tokens. So a
// merge is stored as two ids and, when it makes the token after the last one made, nothing else; only texts that no
// merge makes are stored. For SmolLM2 that is 158 kB, against 353 kB for texts and merges under the same zstd.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <unordered_map>

#include "base/zstd.h"
#include "formats/tokenizer_spec.h"

namespace pith {
namespace {

using Spec = TokenizerSpec;

constexpr uint8_t kVersion = 1;
constexpr uint64_t kMaxUnpacked = 64ull << 20;

class Writer {
 public:
  void number(uint64_t v) {
    for (; v >= 128; v >>= 7) out.push_back(static_cast<char>(v | 128));
    out.push_back(static_cast<char>(v));
  }
  void integer(int64_t v) { number(static_cast<uint64_t>(v) << 1 ^ static_cast<uint64_t>(v >> 63)); }
  void text(std::string_view v) {
    number(v.size());
    out += v;
  }
  // Byte planes: the upper bytes of ids are nearly constant, which zstd sees only when they stand together.
  void planes(const std::vector<uint32_t>& v) {
    number(v.size());
    for (int k = 0; k < 3; ++k)
      for (const uint32_t n : v) out.push_back(static_cast<char>(n >> (8 * k)));
  }
  std::string out;
};

class Reader {
 public:
  explicit Reader(std::string_view text) : in_(text) {}
  bool good() const { return good_; }
  bool at_end() const { return good_ && in_.empty(); }
  size_t left() const { return in_.size(); }

  uint64_t number() {
    uint64_t v = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (in_.empty()) break;
      const auto b = static_cast<uint8_t>(in_[0]);
      in_.remove_prefix(1);
      v |= static_cast<uint64_t>(b & 127) << shift;
      if (b < 128) return v;
    }
    good_ = false;
    return 0;
  }
  int64_t integer() {
    const uint64_t v = number();
    return static_cast<int64_t>(v >> 1) ^ -static_cast<int64_t>(v & 1);
  }
  // A count of things that take at least `least` bytes each here; anything larger than what is left is broken.
  size_t count(size_t least) {
    const uint64_t n = number();
    if (n > in_.size() / least) good_ = false;
    return good_ ? static_cast<size_t>(n) : 0;
  }
  std::string text() {
    const size_t n = count(1);
    std::string v(in_.substr(0, n));
    in_.remove_prefix(n);
    return v;
  }
  std::vector<uint32_t> planes() {
    std::vector<uint32_t> v(count(3));
    for (int k = 0; k < 3; ++k)
      for (size_t i = 0; i < v.size(); ++i)
        v[i] |= static_cast<uint32_t>(static_cast<uint8_t>(in_[i + static_cast<size_t>(k) * v.size()])) << (8 * k);
    in_.remove_prefix(3 * v.size());
    return v;
  }
  float raw_float() {
    float v = 0;
    if (in_.size() < 4) {
      good_ = false;
      return 0;
    }
    std::memcpy(&v, in_.data(), 4);
    in_.remove_prefix(4);
    return v;
  }
  uint8_t byte() {
    const uint64_t v = number();
    if (v > 255) good_ = false;
    return static_cast<uint8_t>(v);
  }

 private:
  std::string_view in_;
  bool good_ = true;
};

Error broken() { return data_error("packed tokenizer is damaged"); }

// Tokens and merges, when every merge joins two tokens into a third; false when not.
bool pack_merges(const Spec& spec, Writer& w) {
  std::unordered_map<std::string_view, uint32_t> ids;
  for (size_t i = 0; i < spec.tokens.size(); ++i) ids.emplace(spec.tokens[i], static_cast<uint32_t>(i));
  if (spec.tokens.size() >= (1u << 24)) return false;
  std::vector<uint32_t> left, right;
  std::vector<int64_t> targets;
  std::vector<bool> known(spec.tokens.size(), false), made(spec.tokens.size(), false);
  // A token counts as made when a merge makes it before any merge uses it; found by walking the merges once to see
  // which are used too early.
  std::vector<bool> explicit_text(spec.tokens.size(), true);
  for (const auto& [a, b] : spec.merges) {
    const auto l = ids.find(a), r = ids.find(b);
    if (l == ids.end() || r == ids.end()) return false;
    const auto whole = ids.find(a + b);
    if (whole == ids.end()) return false;
    known[l->second] = known[r->second] = true;  // used: must exist by now
    if (!known[whole->second] && !made[whole->second]) made[whole->second] = true, explicit_text[whole->second] = false;
    known[whole->second] = true;
    left.push_back(l->second), right.push_back(r->second), targets.push_back(whole->second);
  }
  // A duplicate text has two ids, of which `ids` knows the first; the second stays explicit.
  w.number(spec.tokens.size());
  uint64_t run = 0;
  Writer flags, kept;
  bool state = true;
  for (size_t i = 0; i < spec.tokens.size(); ++i) {
    if (explicit_text[i] != state) flags.number(run), run = 0, state = !state;
    ++run;
    if (explicit_text[i]) kept.text(spec.tokens[i]);
  }
  flags.number(run);
  w.text(flags.out);
  w.text(kept.out);
  w.planes(left);
  w.planes(right);
  int64_t expected = 0;
  for (const int64_t t : targets) {
    w.integer(t - expected);
    expected = t + 1;
  }
  return true;
}

Status unpack_merges(Reader& r, const Limits& limits, Spec& spec) {
  const uint64_t n = r.number();
  const std::string flags_text = r.text(), kept_text = r.text();
  // A token that is not stored as text was made by a merge, which takes at least 6 bytes.
  if (!r.good() || n > limits.max_array_items || n > kept_text.size() + r.left() / 6 + 1) return broken();
  Reader flags(flags_text), kept(kept_text);
  spec.tokens.resize(n);
  std::vector<bool> known(n, false);
  bool state = true;
  for (uint64_t i = 0, run = flags.number(); i < n; ++i) {
    while (run == 0) {
      if (flags.at_end() || !flags.good()) return broken();
      run = flags.number(), state = !state;
    }
    --run;
    if (state) spec.tokens[i] = kept.text(), known[i] = true;
  }
  if (!kept.at_end()) return broken();
  const auto left = r.planes(), right = r.planes();
  if (!r.good() || left.size() != right.size()) return broken();
  uint64_t total = 0;
  int64_t expected = 0;
  spec.merges.reserve(left.size());
  for (size_t k = 0; k < left.size(); ++k) {
    const int64_t delta = r.integer();
    if (!r.good() || delta > static_cast<int64_t>(n) || delta < -static_cast<int64_t>(n)) return broken();
    const int64_t target = expected + delta;
    if (target < 0 || target >= static_cast<int64_t>(n) || left[k] >= n || right[k] >= n || !known[left[k]] ||
        !known[right[k]])
      return broken();
    expected = target + 1;
    const auto t = static_cast<size_t>(target);
    total += 2 * (spec.tokens[left[k]].size() + spec.tokens[right[k]].size());
    if (total > kMaxUnpacked) return broken();  // lengths can double with every merge
    if (!known[t]) spec.tokens[t] = spec.tokens[left[k]] + spec.tokens[right[k]], known[t] = true;
    spec.merges.emplace_back(spec.tokens[left[k]], spec.tokens[right[k]]);
  }
  if (std::find(known.begin(), known.end(), false) != known.end()) return broken();
  return {};
}

template <class Enum>
bool to_enum(uint8_t v, Enum last, Enum& out) {
  if (v > static_cast<uint8_t>(last)) return false;
  out = static_cast<Enum>(v);
  return true;
}

}  // namespace

std::string pack_tokenizer(const TokenizerSpec& spec) {
  Writer w;
  w.number(static_cast<uint8_t>(spec.kind));
  Writer merged;
  const bool compact = !spec.merges.empty() && pack_merges(spec, merged);
  w.number(compact);
  if (compact) {
    w.out += merged.out;
  } else {
    w.number(spec.tokens.size());
    for (const auto& t : spec.tokens) w.text(t);
    w.number(spec.merges.size());
    for (const auto& [a, b] : spec.merges) w.text(a), w.text(b);
  }
  w.number(spec.types.size());
  for (const auto t : spec.types) w.number(static_cast<uint8_t>(t));
  // sentencepiece numbers its pieces 0, -1, -2, …: whole numbers are stored as differences.
  const bool whole = std::all_of(spec.scores.begin(), spec.scores.end(), [](float s) {
    return std::fabs(s) < 1e7f && s == std::floor(s) && !(s == 0 && std::signbit(s));
  });
  w.number(spec.scores.size());
  w.number(whole);
  int64_t last = 0;
  for (const float s : spec.scores) {
    if (whole) {
      w.integer(static_cast<int64_t>(s) - last);
      last = static_cast<int64_t>(s);
    } else {
      w.out.append(reinterpret_cast<const char*>(&s), 4);
    }
  }
  w.number(spec.normalizers.size());
  for (const auto& n : spec.normalizers) w.number(static_cast<uint8_t>(n.op)), w.text(n.pattern), w.text(n.content);
  w.number(spec.splits.size());
  for (const auto& s : spec.splits) {
    w.number(static_cast<uint8_t>(s.op)), w.text(s.pattern), w.number(s.invert);
    w.number(static_cast<uint8_t>(s.behavior)), w.number(static_cast<uint8_t>(s.prefix));
  }
  w.text(spec.pre_name);
  w.number(spec.added.size());
  for (const auto& a : spec.added) {
    w.integer(a.id);
    w.number(static_cast<unsigned>(a.special) | a.normalized << 1 | a.lstrip << 2 | a.rstrip << 3 | a.single_word << 4);
  }
  w.number(static_cast<unsigned>(spec.byte_fallback) | spec.fuse_unk << 1 | spec.ignore_merges << 2 |
           spec.strip_prefix_space << 3 | spec.add_bos << 4 | spec.add_eos << 5);
  for (const int32_t id : {spec.bos, spec.eos, spec.unk, spec.pad}) w.integer(id);
  w.number(spec.stop.size());
  for (const int32_t id : spec.stop) w.integer(id);
  w.text(spec.chat_template);
  return std::string(1, static_cast<char>(kVersion)) +
         zstd_compress(std::as_bytes(std::span(w.out.data(), w.out.size())), 19);
}

Result<TokenizerSpec> unpack_tokenizer(const std::string& packed, const Limits& limits) {
  if (packed.empty() || static_cast<uint8_t>(packed[0]) != kVersion)
    return data_error("packed tokenizer has version " +
                      (packed.empty() ? std::string("none") : std::to_string(static_cast<uint8_t>(packed[0]))) +
                      ", this program reads " + std::to_string(kVersion));
  // Tokenizers shrink two- to tenfold; a frame that grows a hundredfold was made to fill memory.
  const uint64_t bound = std::min({limits.max_header_bytes, kMaxUnpacked, 100 * uint64_t{packed.size()} + 65536});
  PITH_ASSIGN(const std::string data,
              zstd_decompress(std::as_bytes(std::span(packed.data() + 1, packed.size() - 1)), bound));
  Reader r(data);
  Spec spec;
  if (!to_enum(r.byte(), Spec::Kind::unigram, spec.kind)) return broken();
  if (r.number() == 1) {
    PITH_TRY(unpack_merges(r, limits, spec));
  } else {
    spec.tokens.resize(r.count(1));
    for (auto& t : spec.tokens) t = r.text();
    spec.merges.resize(r.count(2));
    for (auto& [a, b] : spec.merges) a = r.text(), b = r.text();
  }
  spec.types.resize(r.count(1));
  if (!spec.types.empty() && spec.types.size() != spec.tokens.size()) return broken();
  for (auto& t : spec.types) {
    const uint8_t v = r.byte();
    if (v == 0 || !to_enum(v, Spec::TokenType::byte, t)) return broken();
  }
  spec.scores.resize(r.count(1));
  if (!spec.scores.empty() && spec.scores.size() != spec.tokens.size()) return broken();
  const bool whole = r.number() == 1;
  int64_t last = 0;
  if (!whole && r.left() / 4 < spec.scores.size()) return broken();
  for (auto& s : spec.scores) {
    if (whole) {
      const int64_t delta = r.integer();
      if (delta > 100'000'000 || delta < -100'000'000) return broken();
      last = std::clamp<int64_t>(last + delta, -100'000'000, 100'000'000);
      s = static_cast<float>(last);
    } else {
      s = r.raw_float();
    }
  }
  spec.normalizers.resize(r.count(3));
  for (auto& n : spec.normalizers) {
    if (!to_enum(r.byte(), Spec::Normalizer::Op::charsmap, n.op)) return broken();
    n.pattern = r.text(), n.content = r.text();
  }
  spec.splits.resize(r.count(5));
  for (auto& s : spec.splits) {
    if (!to_enum(r.byte(), Spec::Split::Op::prefix_space, s.op)) return broken();
    s.pattern = r.text(), s.invert = r.number() != 0;
    if (!to_enum(r.byte(), Spec::Split::Behavior::contiguous, s.behavior)) return broken();
    if (!to_enum(r.byte(), Spec::Split::Prefix::always, s.prefix)) return broken();
  }
  spec.pre_name = r.text();
  const auto id = [&](int32_t& out) {
    const int64_t v = r.integer();
    out = static_cast<int32_t>(std::clamp<int64_t>(v, -1, INT32_MAX));
    return v >= -1 && v < static_cast<int64_t>(spec.tokens.size());
  };
  spec.added.resize(r.count(2));
  for (auto& a : spec.added) {
    if (!id(a.id) || a.id < 0) return broken();
    const uint8_t f = r.byte();
    a.special = f & 1, a.normalized = f >> 1 & 1, a.lstrip = f >> 2 & 1, a.rstrip = f >> 3 & 1,
    a.single_word = f >> 4 & 1;
  }
  const uint8_t f = r.byte();
  spec.byte_fallback = f & 1, spec.fuse_unk = f >> 1 & 1, spec.ignore_merges = f >> 2 & 1;
  spec.strip_prefix_space = f >> 3 & 1, spec.add_bos = f >> 4 & 1, spec.add_eos = f >> 5 & 1;
  for (int32_t* out : {&spec.bos, &spec.eos, &spec.unk, &spec.pad})
    if (!id(*out)) return broken();
  spec.stop.resize(r.count(1));
  for (auto& s : spec.stop)
    if (!id(s) || s < 0) return broken();
  spec.chat_template = r.text();
  if (!r.at_end()) return broken();
  return spec;
}

}  // namespace pith
