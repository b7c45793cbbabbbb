#include "runtime/cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <numeric>

#include "plan/size.h"
#include "runtime/lm.h"
#include "runtime/method.h"

namespace pith {

Result<KvBudget> KvBudget::parse(std::string_view text) {
  if (text.empty()) return KvBudget{};
  const auto wrong = [&](const std::string& why) {
    return user_error(
        fmt::format("budget '{}': {}; expected tokens of a head (256), a share of the tokens (25%), or "
                    "the size of the whole cache (2MB)",
                    text, why));
  };
  const bool digits = std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (digits) {
    const double count = std::strtod(std::string(text).c_str(), nullptr);
    if (count < 1 || count > 1e9) return wrong("no number of tokens");
    return KvBudget{Kind::count, count};
  }
  const bool plain = std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || c == '.'; });
  if (plain || text.back() == '%') {
    const auto share = parse_share(text);
    if (!share.ok()) return wrong("no share");
    if (*share <= 0 || *share > 1) return wrong("shares lie between 0 and 100%");
    return KvBudget{Kind::ratio, *share};
  }
  const auto size = parse_size(text);
  if (!size.ok() || *size == 0) return wrong("neither a number nor a size");
  return KvBudget{Kind::bytes, static_cast<double>(*size)};
}

std::string KvBudget::print() const {
  if (kind == Kind::count) return fmt::format("{:.0f}", value);
  if (kind == Kind::ratio) return fmt::format("{:.12g}%", value * 100);
  if (kind == Kind::bytes) return print_exact_size(static_cast<uint64_t>(value));
  return "";
}

Result<KvPlan> parse_cache(std::string_view text) {
  if (text.find("..") != std::string_view::npos)
    return user_error(fmt::format("cache '{}': ranges have no meaning here, give one value", text));
  PITH_ASSIGN(const auto specs, parse_allow(text));
  KvPlan plan;
  std::string policy, format;
  for (const MethodSpec& spec : specs) {
    const KvMethod* found = nullptr;
    std::vector<std::string> known;
    for (const KvMethod* m : all_kv_methods()) {
      known.emplace_back(m->name);
      if (m->name == spec.method) found = m;
    }
    if (found == nullptr)
      return user_error(fmt::format("cache '{}': there is no cache method '{}'{}", text, spec.method,
                                    did_you_mean(spec.method, known)));
    PITH_ASSIGN(const Options options,
                Options::parse(spec.options, find_method(found->name)->params).context(spec.method));
    PITH_ASSIGN(KvStage stage, found->make(options).context(spec.method));
    const auto once = [&](std::string& taken, const char* what) -> Status {
      if (!taken.empty())
        return user_error(
            fmt::format("cache '{}': {} and {} both say {}; give one of them", text, taken, spec.method, what));
      taken = spec.method;
      return {};
    };
    if (stage.policy != nullptr) {
      PITH_TRY(once(policy, "which tokens stay"));
      plan.stage.policy = std::move(stage.policy);
      plan.stage.budget = stage.budget;
    }
    if (stage.format) {
      PITH_TRY(once(format, "how tokens are stored"));
      plan.stage.format = stage.format;
    }
    plan.stage.window = std::max(plan.stage.window, stage.window);
    plan.text += (plan.text.empty() ? "" : ";") + MethodSpec{spec.method, options.print()}.print();
  }
  if (plan.text.empty()) plan.text = "full";
  return plan;
}

Result<KvStage> evicting(std::unique_ptr<KvPolicy> policy, const Options& options, int64_t window) {
  KvStage stage;
  PITH_ASSIGN(stage.budget, KvBudget::parse(options.text("budget")));
  stage.policy = std::move(policy);
  stage.window = window;
  return stage;
}

KvStage scaled_codes(uint8_t bits, const Options& options) {
  const KvGrid grid{bits, false, true, 32};
  KvStage stage;
  stage.format = KvFormat{KvFormat::Kind::coded, options.flag("rotate"), grid, grid};
  stage.window = options.integer("window");
  return stage;
}

KvDriver::KvDriver(KvPlan plan, const Lm& lm) : plan_(std::move(plan)), lm_(&lm) {
  const KvStore empty = lm.new_kv();
  shape_ = empty.shape();
  type_ = empty.type();
}

Result<KvDriver> KvDriver::create(KvPlan plan, const Lm& lm) {
  KvDriver driver(std::move(plan), lm);
  if (driver.plan_.stage.format) {
    for (const KvWidths& width : driver.shape_.layers)
      PITH_TRY(driver.plan_.stage.format->check(width).context("cache '" + driver.plan_.text + "'"));
  }
  return driver;
}

KvFormat KvDriver::plain() const { return {type_ == KvType::f32 ? KvFormat::Kind::f32 : KvFormat::Kind::f16}; }

KvFormat KvDriver::target() const { return plan_.stage.format.value_or(plain()); }

// Bytes of one more token in all heads, and of those that do not shrink.
static double token_bytes(const KvShape& shape, const KvFormat& format) {
  double bytes = 0;
  for (const KvWidths& w : shape.layers) bytes += format.bytes_per_token(w) * static_cast<double>(shape.heads);
  return bytes;
}

int64_t KvDriver::entries(int64_t tokens) const {
  const KvBudget& b = plan_.stage.budget;
  if (b.kind == KvBudget::Kind::count) return std::min(tokens, static_cast<int64_t>(b.value));
  if (b.kind == KvBudget::Kind::ratio) {
    // A hair more, so that 10 % of 1000 are 100.
    return static_cast<int64_t>(std::floor(b.value * static_cast<double>(tokens) + 1e-9));
  }
  if (b.kind != KvBudget::Kind::bytes) return tokens;
  const double heads = static_cast<double>(shape_.heads) * static_cast<double>(shape_.layers.size());
  // Each entry has its position (there are gaps) and the sums that are carried; two segments a head.
  const KvPolicy::Wants wants = plan_.stage.policy != nullptr ? plan_.stage.policy->wants() : KvPolicy::Wants{};
  const double beside =
      heads * (4.0 + (wants.mass ? 4.0 : 0.0) + (wants.recent > 0 ? 4.0 : 0.0) + (wants.bias ? 4.0 : 0.0));
  const auto window = plan_.stage.format ? static_cast<double>(plan_.stage.window + target().group() - 1) : 0.0;
  const double fixed = heads * 2 * static_cast<double>(kKvSegmentHeader) +
                       window * (token_bytes(shape_, plain()) - token_bytes(shape_, target()));
  const double room = (b.value - fixed) / (token_bytes(shape_, target()) + beside);
  return std::min(tokens, static_cast<int64_t>(std::floor(std::max(room, 0.0))));
}

Status KvDriver::check(int64_t prompt_tokens) const {
  if (plan_.stage.policy == nullptr) return {};
  const int64_t most = entries(prompt_tokens), always = plan_.stage.policy->always_kept();
  if (most >= prompt_tokens || most > always) return {};
  return user_error(
      fmt::format("cache '{}': the budget of {} leaves {} tokens of a prompt of {}, but {} are always kept "
                  "(the window and the first tokens); give a larger budget or a smaller window",
                  plan_.text, plan_.stage.budget.print(), most, prompt_tokens, always));
}

uint64_t KvDriver::prompt_bytes(int64_t prompt_tokens) const {
  const auto n = static_cast<double>(prompt_tokens);
  if (plan_.stage.policy != nullptr || !plan_.stage.format)
    return static_cast<uint64_t>(n * token_bytes(shape_, plain()));
  const double window = std::min(n, static_cast<double>(plan_.stage.window) + 512);
  return static_cast<uint64_t>(window * token_bytes(shape_, plain()) + (n - window) * token_bytes(shape_, target()));
}

Status KvDriver::begin(KvStore& kv, int64_t prompt_tokens) {
  PITH_TRY(check(prompt_tokens));
  prompt_end_ = kv.length() + prompt_tokens;
  reading_ = true;
  seconds_ = 0;
  if (plan_.stage.policy == nullptr) return {};
  const KvPolicy::Wants wants = plan_.stage.policy->wants();
  KvWatch watch;
  watch.mass = wants.mass;
  if (wants.recent > 0) watch.recent_from = std::max<int64_t>(0, prompt_end_ - wants.recent);
  kv.watch(watch);
  return {};
}

Status KvDriver::take_over(const KvStore& kv) {
  PITH_TRY(check(kv.length()));
  prompt_end_ = kv.length();
  reading_ = true;
  seconds_ = 0;
  return {};
}

Status KvDriver::after(KvStore& kv, ThreadPool& pool) {
  if (plan_.whole()) return {};
  const auto start = std::chrono::steady_clock::now();
  const bool read = kv.length() >= prompt_end_;
  if (plan_.stage.policy == nullptr) {
    PITH_TRY(roll(kv, pool));
  } else if (read) {
    // Then again whenever a window of new tokens has come: at most that many more than the budget are held.
    const int64_t most = entries(kv.length()), slack = std::max<int64_t>(plan_.stage.window, 16);
    int64_t held = 0;  // of the layer that holds most
    for (int64_t l = 0; l < static_cast<int64_t>(shape_.layers.size()); ++l) {
      int64_t sum = 0;
      for (int64_t h = 0; h < shape_.heads; ++h) sum += kv.held(l, h);
      held = std::max(held, sum);
    }
    const bool due = (reading_ && most < kv.length()) || held >= shape_.heads * (most + slack);
    if (due) {
      PITH_TRY(compress(kv, pool));
    } else if (plan_.stage.format) {
      PITH_TRY(roll(kv, pool));
    }
    if (due || reading_) {  // the sums by recent queries begin anew
      const KvPolicy::Wants wants = plan_.stage.policy->wants();
      kv.watch({wants.mass, wants.recent > 0 ? kv.length() : KvWatch{}.recent_from});
    }
  }
  if (read && reading_) {
    reading_ = false;
    return_free_memory();
  }
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return {};
}

// Heads are independent; errors are reported in their order.
template <class F>
static Status for_each(ThreadPool& pool, int64_t n, F body) {
  std::vector<Status> done(static_cast<size_t>(n));
  pool.parallel_for(n, [&](int64_t i) { done[static_cast<size_t>(i)] = body(i); });
  for (const Status& s : done) PITH_TRY(s);
  return {};
}

Status KvDriver::roll(KvStore& kv, ThreadPool& pool) const {
  const KvFormat format = target();
  // A few at a time: rounding has a cost for each call.
  const int64_t group = format.group(), burst = (16 + group - 1) / group * group;
  std::vector<int64_t> due;
  const auto layers = static_cast<int64_t>(shape_.layers.size());
  for (int64_t i = 0; i < layers * shape_.heads; ++i) {
    if (kv.in_window(i / shape_.heads, i % shape_.heads) >= plan_.stage.window + burst) due.push_back(i);
  }
  if (due.empty()) return {};
  return for_each(pool, static_cast<int64_t>(due.size()), [&](int64_t k) {
    const int64_t layer = due[static_cast<size_t>(k)] / shape_.heads, head = due[static_cast<size_t>(k)] % shape_.heads;
    const int64_t count = (kv.in_window(layer, head) - plan_.stage.window) / group * group;
    return kv.encode(layer, head, count, format);
  });
}

Status KvDriver::compress(KvStore& kv, ThreadPool& pool) const {
  return for_each(pool, static_cast<int64_t>(shape_.layers.size()), [&](int64_t l) { return compress_layer(kv, l); });
}

namespace {

// The chosen entries; merged ones are weighted means, and take the sums of what they hold.
KvEntries chosen(const KvEntries& all, KvWidths width, const KvSelection& s) {
  KvEntries out;
  const size_t n = s.keep.size();
  std::vector<int32_t> place(s.merges.empty() ? 0 : static_cast<size_t>(all.size()), -1);
  for (size_t i = 0; i < n; ++i) {
    const auto from = static_cast<int64_t>(s.keep[i]);
    out.positions.push_back(all.positions[static_cast<size_t>(from)]);
    const auto row = [&](const std::vector<float>& rows, int64_t w, std::vector<float>& into) {
      into.insert(into.end(), rows.begin() + from * w, rows.begin() + (from + 1) * w);
    };
    row(all.keys, width.key, out.keys), row(all.values, width.value, out.values);
    if (!all.mass.empty()) out.mass.push_back(all.mass[static_cast<size_t>(from)]);
    if (!all.bias.empty()) out.bias.push_back(all.bias[static_cast<size_t>(from)]);
    if (!place.empty()) place[static_cast<size_t>(from)] = static_cast<int32_t>(i);
  }
  if (s.merges.empty()) return out;
  std::vector<float> total = s.weights;
  for (const KvSelection::Merge& m : s.merges)
    total[static_cast<size_t>(place[static_cast<size_t>(m.into)])] += m.weight;
  if (s.keep_mass) {
    out.bias.resize(n);
    for (size_t i = 0; i < n; ++i) out.bias[i] += std::log(total[i] / s.weights[i]);
  }
  std::vector<uint8_t> touched(n, 0);
  for (const KvSelection::Merge& m : s.merges) {
    const auto i = static_cast<size_t>(place[static_cast<size_t>(m.into)]);
    const float own = touched[i] != 0 ? 1.0f : s.weights[i] / total[i], share = m.weight / total[i];
    touched[i] = 1;
    const auto blend = [&](const std::vector<float>& rows, int64_t w, std::vector<float>& into) {
      const float* from = rows.data() + m.from * w;
      float* to = into.data() + static_cast<int64_t>(i) * w;
      for (int64_t d = 0; d < w; ++d) to[d] = own * to[d] + share * from[d];
    };
    blend(all.keys, width.key, out.keys), blend(all.values, width.value, out.values);
    if (!all.mass.empty()) out.mass[i] += all.mass[static_cast<size_t>(m.from)];
  }
  return out;
}

// A policy that breaks its promise must not spoil the store.
Status check_selection(const KvSelection& s, int64_t entries) {
  bool good = !s.keep.empty() && s.keep.front() >= 0 && s.keep.back() < entries;
  for (size_t i = 1; i < s.keep.size() && good; ++i) good = s.keep[i - 1] < s.keep[i];
  const auto kept = [&](int32_t e) { return std::binary_search(s.keep.begin(), s.keep.end(), e); };
  for (const KvSelection::Merge& m : s.merges) {
    good = good && m.from >= 0 && m.from < entries && kept(m.into) && !kept(m.from) && m.weight >= 0;
  }
  good = good && (s.merges.empty() || s.weights.size() == s.keep.size());
  for (const float w : s.weights) good = good && w > 0;
  if (good) return {};
  return bug_error(fmt::format("cache: a policy chose {} of {} entries, which makes no sense", s.keep.size(), entries));
}

}  // namespace

Status KvDriver::compress_layer(KvStore& kv, int64_t layer) const {
  const int64_t budget = entries(kv.length());
  std::vector<KvEntries> heads;
  for (int64_t h = 0; h < shape_.heads; ++h) {
    heads.push_back(kv.entries(layer, h));
    for (const auto* sums : {&heads.back().mass, &heads.back().recent}) {
      for (const float v : *sums) {
        if (!std::isfinite(v))
          return data_error(
              fmt::format("cache: attention in layer {} is not finite: the model's weights are damaged", layer));
      }
    }
  }
  const KvLayerView view{layer, kv.length(), shape_.layers[static_cast<size_t>(layer)], heads,
                         [&](int64_t head, int32_t position, float* key) { lm_->unturn(layer, head, position, key); }};
  PITH_ASSIGN(const std::vector<KvSelection> chosen_of, plan_.stage.policy->select(view, budget));
  if (chosen_of.size() != heads.size()) return bug_error("cache: a policy chose for another number of heads");
  const KvFormat format = target();
  for (int64_t h = 0; h < shape_.heads; ++h) {
    const KvSelection& s = chosen_of[static_cast<size_t>(h)];
    KvEntries& all = heads[static_cast<size_t>(h)];
    PITH_TRY(check_selection(s, all.size()));
    const KvEntries kept = chosen(all, view.width, s);
    all = {};
    int64_t plain = kept.size();
    if (plan_.stage.format) {
      const int64_t coded = std::max<int64_t>(0, kept.size() - plan_.stage.window);
      plain = kept.size() - coded / format.group() * format.group();
    }
    PITH_TRY(kv.rebuild(layer, h, kept, plain, format));
  }
  return {};
}

std::vector<float> pooled(std::span<const float> scores, int64_t kernel, bool largest) {
  const auto n = static_cast<int64_t>(scores.size()), half = kernel / 2;
  std::vector<float> out(scores.size());
  for (int64_t i = 0; i < n; ++i) {
    const int64_t a = std::max<int64_t>(0, i - half), b = std::min(n, i + half + 1);
    float value = largest ? scores[static_cast<size_t>(a)] : 0.0f;
    for (int64_t j = a; j < b; ++j) {
      const float s = scores[static_cast<size_t>(j)];
      value = largest ? std::max(value, s) : value + s;
    }
    out[static_cast<size_t>(i)] = largest ? value : value / static_cast<float>(b - a);
  }
  return out;
}

std::vector<int32_t> keep_best(std::span<const float> scores, int64_t sinks, int64_t window, int64_t budget) {
  const auto n = static_cast<int64_t>(scores.size());
  std::vector<int32_t> keep(static_cast<size_t>(n));
  std::iota(keep.begin(), keep.end(), 0);
  if (budget >= n) return keep;
  sinks = std::min(sinks, n), window = std::min(window, n - sinks);
  const int64_t free = std::max<int64_t>(0, budget - sinks - window);
  // [sinks | candidates | window]: the best candidates to the front of theirs.
  const auto first = keep.begin() + sinks, last = keep.end() - window;
  std::partial_sort(first, first + std::min(free, static_cast<int64_t>(last - first)), last, [&](int32_t a, int32_t b) {
    const float x = scores[static_cast<size_t>(a)], y = scores[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
  keep.erase(first + std::min(free, static_cast<int64_t>(last - first)), last);
  std::sort(keep.begin(), keep.end());
  return keep;
}

std::vector<float> per_query(const KvEntries& e, int64_t length) {
  std::vector<float> out(e.mass.size());
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = e.mass[i] / static_cast<float>(std::max<int64_t>(1, length - e.positions[i]));
  }
  return out;
}

}  // namespace pith
