// The native half of `import pith`: the torch-free library in the process. Objects are thin handles; anything that
// takes long lets go of the interpreter lock and listens to Ctrl-C. What Python sees is documented here; the stub
// python/pith/_pith.pyi is generated from it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/progress.h"
#include "base/threads.h"
#include "represent/model.h"
#include "runtime/builtin_text.h"
#include "runtime/cache.h"
#include "runtime/chat.h"
#include "runtime/evaluate.h"
#include "runtime/generate.h"
#include "runtime/lm.h"
#include "runtime/method.h"
#include "runtime/model_file.h"
#include "runtime/tokenizer.h"

namespace nb = nanobind;
using namespace nb::literals;  // NOLINT(google-build-using-namespace)

namespace pith {
namespace {

// ---- errors
// ----------------------------------------------------------------------------------------------------------
struct BaseFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct UserFault : BaseFault {
  using BaseFault::BaseFault;
};
struct DataFault : BaseFault {
  using BaseFault::BaseFault;
};
struct BugFault : BaseFault {
  using BaseFault::BaseFault;
};

[[noreturn]] void raise(const Error& error) {
  switch (error.kind) {
    case ErrorKind::user:
      throw UserFault(error.message);
    case ErrorKind::data:
      throw DataFault(error.message);
    case ErrorKind::bug:
      break;
  }
  throw BugFault(error.message);
}

template <class T>
T take(Result<T> result) {
  if (!result.ok()) raise(result.error());
  return std::move(result).value();
}

/// JSON text as Python objects.
nb::object from_json(const std::string& text) {
  if (text.empty()) return nb::none();
  return nb::module_::import_("json").attr("loads")(text);
}

using Callback = std::optional<std::function<void(std::string, std::string, uint64_t, uint64_t)>>;

/// Calls the user's function and notices Ctrl-C. Runs while the interpreter lock is released.
class PyProgress : public Progress {
 public:
  explicit PyProgress(Callback callback) : callback_(std::move(callback)) {}
  bool step(const ProgressEvent& event) override {
    const nb::gil_scoped_acquire lock;
    if (failed_) return false;
    try {
      if (callback_) (*callback_)(std::string(event.stage), std::string(event.unit), event.done, event.total);
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
    } catch (nb::python_error& error) {
      failed_ = std::make_unique<nb::python_error>(std::move(error));
      return false;
    }
    return true;
  }
  /// Raises what the callback or Ctrl-C raised.
  void rethrow() {
    if (failed_) throw std::move(*failed_);
  }
  /// Runs `body`; when it was stopped by the callback, that is what is raised, not "stopped".
  template <class Body>
  auto run(Body body) {
    try {
      return body();
    } catch (const BaseFault&) {
      rethrow();
      throw;
    }
  }

 private:
  Callback callback_;
  std::unique_ptr<nb::python_error> failed_;
};

// ---- model
// -----------------------------------------------------------------------------------------------------------
/// A model file, with what running it needs, made when first asked for.
class ModelHandle {
 public:
  ModelHandle(std::string path, Model model) : path(std::move(path)), model(std::move(model)) {}

  const std::string path;
  const Model model;

  const Tokenizer& tokenizer() {
    const std::scoped_lock lock(mutex_);
    if (!tokenizer_) tokenizer_ = std::make_unique<Tokenizer>(take(Tokenizer::create(model.tokenizer)));
    return *tokenizer_;
  }
  /// Runs `body` with the loaded model. One run at a time in the process: a pool is not re-entrant, and one run takes
  /// all cores anyway. Recursive, because a comparison holds two models.
  template <class Body>
  auto with_lm(Precision precision, unsigned threads, Progress& progress, Body body) {
    const std::scoped_lock lock(run_mutex());
    if (!pool_ || threads != threads_) {
      pool_ = std::make_unique<ThreadPool>(threads);
      threads_ = threads;
    }
    auto& lm = precision == Precision::exact ? exact_ : fast_;
    if (!lm) {
      LmOptions options;
      options.precision = precision;
      lm = take(Lm::load(model, options, *pool_, progress));
    }
    return body(*lm, *pool_);
  }

 private:
  static std::recursive_mutex& run_mutex() {
    static std::recursive_mutex mutex;
    return mutex;
  }
  std::mutex mutex_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ThreadPool> pool_;
  unsigned threads_ = 0;
  std::unique_ptr<Lm> exact_, fast_;
};
using ModelPtr = std::shared_ptr<ModelHandle>;

ModelPtr open(const std::string& path) {
  const nb::gil_scoped_release unlock;
  return std::make_shared<ModelHandle>(path, take(open_model(path)));
}

struct TensorHandle {
  ModelPtr owner;
  size_t index = 0;
  const ModelTensor& tensor() const { return owner->model.tensors[index]; }
};

nb::dict tensors(const ModelPtr& model) {
  nb::dict all;
  for (size_t i = 0; i < model->model.tensors.size(); ++i) {
    all[nb::str(model->model.tensors[i].name.c_str())] = nb::cast(TensorHandle{model, i});
  }
  return all;
}

nb::tuple shape_tuple(const std::vector<int64_t>& shape) { return nb::tuple(nb::cast(shape)); }

using FloatArray = nb::ndarray<nb::numpy, float, nb::c_contig>;

FloatArray decode_rows(const TensorHandle& handle, int64_t begin, int64_t end, std::vector<size_t> shape) {
  const Node& node = *handle.tensor().node;
  auto values = std::make_unique<std::vector<float>>();
  {
    const nb::gil_scoped_release unlock;
    values->resize(static_cast<size_t>((end - begin) * node.cols()));
    node.decode_rows(begin, end, values->data());
  }
  float* data = values->data();
  nb::capsule owner(values.release(), [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
  return FloatArray(data, shape.size(), shape.data(), owner);
}

FloatArray decode(const TensorHandle& handle) {
  const ModelTensor& tensor = handle.tensor();
  return decode_rows(handle, 0, tensor.node->rows(), {tensor.shape.begin(), tensor.shape.end()});
}

FloatArray rows(const TensorHandle& handle, int64_t begin, int64_t end) {
  const Node& node = *handle.tensor().node;
  if (begin < 0 || end < begin || end > node.rows()) {
    throw nb::index_error(
        ("rows " + std::to_string(begin) + ":" + std::to_string(end) + " of " + std::to_string(node.rows())).c_str());
  }
  return decode_rows(handle, begin, end, {static_cast<size_t>(end - begin), static_cast<size_t>(node.cols())});
}

/// One array of a representation as it is stored.
struct SectionHandle {
  std::string name;
  DType type{};
  std::vector<int64_t> shape;
  Bytes data;
};

/// Keeps what a node writes.
class Collector : public SectionSink {
 public:
  void add(std::string name, DType type, std::vector<int64_t> shape, Bytes data) override {
    sections.push_back({std::move(name), type, std::move(shape), std::move(data)});
  }
  std::string add_shared(std::string key, DType type, std::vector<int64_t> shape, Bytes data) override {
    sections.push_back({key, type, std::move(shape), std::move(data)});
    return key;
  }
  std::vector<SectionHandle> sections;
};

std::pair<std::string, std::vector<SectionHandle>> stored(const TensorHandle& handle) {
  const nb::gil_scoped_release unlock;
  Collector sink;
  const std::string tree = handle.tensor().node->serialize(handle.tensor().name, sink).dump();
  return {tree, std::move(sink.sections)};
}

/// numpy has no bfloat16 and no 8-bit floats: those come as unsigned integers of the same width.
nb::dlpack::dtype numpy_dtype(DType type) {
  using nb::dlpack::dtype_code;
  const auto bits = static_cast<uint8_t>(8 * dtype_size(type));
  auto code = dtype_code::UInt;
  switch (type) {
    case DType::f64:
    case DType::f32:
    case DType::f16:
      code = dtype_code::Float;
      break;
    case DType::i64:
    case DType::i32:
    case DType::i16:
    case DType::i8:
      code = dtype_code::Int;
      break;
    case DType::boolean:
      code = dtype_code::Bool;
      break;
    default:
      break;
  }
  return {static_cast<uint8_t>(code), bits, 1};
}

nb::ndarray<nb::numpy, nb::ro> section_array(const SectionHandle& section) {
  std::vector<size_t> shape(section.shape.begin(), section.shape.end());
  auto keep = std::make_unique<Bytes>(section.data);
  const void* data = keep->data();
  nb::capsule owner(keep.release(), [](void* p) noexcept { delete static_cast<Bytes*>(p); });
  return nb::ndarray<nb::numpy, nb::ro>(data, shape.size(), shape.data(), owner, nullptr, numpy_dtype(section.type));
}

// ---- running
// ---------------------------------------------------------------------------------------------------------
std::vector<ChatMessage> chat_messages(const std::vector<std::pair<std::string, std::string>>& messages) {
  std::vector<ChatMessage> out;
  out.reserve(messages.size());
  for (const auto& [role, content] : messages) out.push_back({role, content});
  return out;
}

Generated generate_text(const ModelPtr& model, const std::string& prompt, bool parse_special, bool add_special,
                        const GenerateOptions& given, const std::string& cache, unsigned threads,
                        std::optional<std::function<bool(std::string)>> on_text) {
  GenerateOptions options = given;
  KvPlan plan = take(parse_cache(cache));
  PyProgress progress(std::nullopt);
  std::unique_ptr<nb::python_error> failed;
  std::optional<Generated> out;
  {
    const nb::gil_scoped_release unlock;
    const Tokenizer& tokenizer = model->tokenizer();
    const auto stop = tokenizer.stop_ids();
    options.stop.assign(stop.begin(), stop.end());
    const auto ids = take(tokenizer.encode(prompt, {.add_special = add_special, .parse_special = parse_special}));
    const auto piece = [&](std::string_view text) {
      const nb::gil_scoped_acquire lock;
      try {
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
        return !on_text || (*on_text)(std::string(text));
      } catch (nb::python_error& error) {
        failed = std::make_unique<nb::python_error>(std::move(error));
        return false;
      }
    };
    out = model->with_lm(Precision::fast, threads, progress, [&](const Lm& lm, ThreadPool& pool) {
      KvStore kv = lm.new_kv();
      KvDriver driver = take(KvDriver::create(std::move(plan), lm));
      options.cache = &driver;
      return take(generate(lm, tokenizer, ids, kv, options, pool, piece));
    });
  }
  if (failed) throw std::move(*failed);
  return std::move(*out);
}

std::vector<int32_t> tokens_of(const ModelPtr& model, const std::string& text) {
  return take(model->tokenizer().encode(text, {.add_special = false}));
}

EvalOptions eval_options(const ModelPtr& model, int64_t context, int64_t max_chunks) {
  EvalOptions options{.context = context, .max_chunks = max_chunks};
  if (model->model.tokenizer.add_bos) options.bos = model->model.tokenizer.bos;
  return options;
}

PerplexityResult eval_perplexity(const ModelPtr& model, const std::string& text, int64_t context, int64_t max_chunks,
                                 unsigned threads, Callback callback) {
  PyProgress progress(std::move(callback));
  return progress.run([&] {
    const nb::gil_scoped_release unlock;
    const auto tokens = tokens_of(model, text);
    return model->with_lm(Precision::exact, threads, progress, [&](const Lm& lm, ThreadPool& pool) {
      return take(perplexity(lm, tokens, eval_options(model, context, max_chunks), pool, progress));
    });
  });
}

ComparisonResult eval_kl(const ModelPtr& model, const ModelPtr& reference, const std::string& text, int64_t context,
                         int64_t max_chunks, unsigned threads, Callback callback) {
  PyProgress progress(std::move(callback));
  return progress.run([&] {
    const nb::gil_scoped_release unlock;
    const auto tokens = tokens_of(model, text);
    const EvalOptions options = eval_options(model, context, max_chunks);
    return model->with_lm(Precision::exact, threads, progress, [&](const Lm& a, ThreadPool& pool) {
      const auto run = [&](const Lm& b) { return take(compare(a, b, tokens, options, pool, progress)); };
      if (reference == model) return run(a);
      return reference->with_lm(Precision::exact, threads, progress, [&](const Lm& b, ThreadPool&) { return run(b); });
    });
  });
}

std::vector<Check> verify(const std::string& path) {
  const nb::gil_scoped_release unlock;
  return verify_model(path);
}

std::string param_type(ParamType type) {
  switch (type) {
    case ParamType::integer:
      return "integer";
    case ParamType::real:
      return "real";
    case ParamType::boolean:
      return "boolean";
    case ParamType::choice:
      return "choice";
    case ParamType::text:
      break;
  }
  return "text";
}

nb::bytes decode_bytes(const ModelPtr& model, const std::vector<int32_t>& ids, bool skip_special) {
  const std::string text = model->tokenizer().decode(ids, {.skip_special = skip_special});
  return nb::bytes(text.data(), text.size());
}

}  // namespace
}  // namespace pith

NB_MODULE(_pith, m) {
  using namespace pith;  // NOLINT(google-build-using-namespace)
  m.doc() = "The torch-free library of Pith. Use the package `pith`, which gives these names a friendlier face.";

  const auto base = nb::exception<BaseFault>(m, "Error", PyExc_Exception);
  nb::exception<UserFault>(m, "UserError", base);
  nb::exception<DataFault>(m, "DataError", base);
  nb::exception<BugFault>(m, "BugError", base);

  nb::class_<BitReport>(m, "Bits", "Exact bits in a file, by what they are for.")
      .def_ro("payload", &BitReport::payload, "codes, dense values")
      .def_ro("scales", &BitReport::scales, "steps, scales, zeros, means")
      .def_ro("tables", &BitReport::tables, "codebooks, probability tables")
      .def_ro("indices", &BitReport::indices, "sparse positions, row pointers, masks")
      .def_ro("permutation", &BitReport::permutation)
      .def_ro("factors", &BitReport::factors, "low-rank factors")
      .def_prop_ro("total", &BitReport::total)
      .def("__repr__", [](const BitReport& b) { return "Bits(total=" + std::to_string(b.total()) + ")"; });

  nb::class_<SectionHandle>(m, "Section", "One array of a representation, as it is stored.")
      .def_ro("name", &SectionHandle::name)
      .def_prop_ro(
          "dtype", [](const SectionHandle& s) { return dtype_name(s.type); }, "as safetensors says it: 'BF16'")
      .def_prop_ro("shape", [](const SectionHandle& s) { return shape_tuple(s.shape); })
      .def_prop_ro("array", &section_array, nb::rv_policy::automatic,
                   nb::sig("def array(self) -> numpy.typing.NDArray[numpy.generic]"),
                   "The values, read-only, not copied. BF16 and 8-bit floats come as unsigned integers.");

  nb::class_<TensorHandle>(m, "Tensor",
                           "One tensor of a model, in stored form. Nothing is decoded before it is asked for.")
      .def_prop_ro("name", [](const TensorHandle& t) { return t.tensor().name; })
      .def_prop_ro(
          "shape", [](const TensorHandle& t) { return shape_tuple(t.tensor().shape); },
          nb::sig("def shape(self) -> tuple[int, ...]"))
      .def_prop_ro(
          "kind", [](const TensorHandle& t) { return t.tensor().node->kind(); }, "root node: 'grid', 'override'")
      .def_prop_ro(
          "description", [](const TensorHandle& t) { return t.tensor().node->describe(); }, "the tree in one line")
      .def_prop_ro("bits", [](const TensorHandle& t) { return t.tensor().node->bits(); })
      .def_prop_ro(
          "tree", [](const TensorHandle& t) { return from_json(stored(t).first); },
          nb::sig("def tree(self) -> dict[str, typing.Any]"), "The representation as the file describes it.")
      .def(
          "sections", [](const TensorHandle& t) { return stored(t).second; },
          "The stored arrays: codes, steps, tables, indices.")
      .def("decode", &decode, nb::sig("def decode(self) -> numpy.typing.NDArray[numpy.float32]"),
           "All values as float32, in the tensor's shape.")
      .def("rows", &rows, "begin"_a, "end"_a,
           nb::sig("def rows(self, begin: int, end: int) -> numpy.typing.NDArray[numpy.float32]"),
           "Rows begin to end of the matrix (a vector is one row), without decoding the rest.")
      .def("__repr__", [](const TensorHandle& t) {
        return "Tensor(" + t.tensor().name + ", " + t.tensor().node->describe() + ")";
      });

  nb::class_<ModelHandle>(m, "Model", "A model file, opened: weights stay on disk until they are asked for.")
      .def_ro("path", &ModelHandle::path)
      .def_prop_ro(
          "config", [](const ModelHandle& h) { return from_json(lm_config_to_hf(h.model.config).dump()); },
          nb::sig("def config(self) -> dict[str, typing.Any]"), "As the config.json of Hugging Face.")
      .def_prop_ro("tensors", &tensors, nb::sig("def tensors(self) -> dict[str, Tensor]"), "By name, in file order.")
      .def_prop_ro(
          "bits", [](const ModelHandle& h) { return h.model.bits(); },
          "Exact bits of all tensors; what several of them share is counted once.")
      .def_prop_ro("parameters", [](const ModelHandle& h) { return h.model.parameters(); })
      .def_prop_ro(
          "plan", [](const ModelHandle& h) { return from_json(h.model.plan_json); },
          nb::sig("def plan(self) -> dict[str, typing.Any] | None"), "The plan that made it.")
      .def_prop_ro(
          "report", [](const ModelHandle& h) { return from_json(h.model.report_json); },
          nb::sig("def report(self) -> dict[str, typing.Any] | None"), "What was measured when it was made.")
      .def(
          "content_hash",
          [](const ModelHandle& h) {
            const nb::gil_scoped_release unlock;
            return h.model.content_hash();
          },
          "Hash of everything that decides the numbers; reads all bytes.")
      .def(
          "encode",
          [](const ModelPtr& h, const std::string& text, bool add_special, bool parse_special) {
            return take(h->tokenizer().encode(text, {.add_special = add_special, .parse_special = parse_special}));
          },
          "text"_a, nb::kw_only(), "add_special"_a = true, "parse_special"_a = false, "Token ids of a text.")
      .def("decode_bytes", &decode_bytes, "ids"_a, nb::kw_only(), "skip_special"_a = false,
           "The bytes that token ids stand for; they may end inside a character.")
      .def(
          "render_chat",
          [](const ModelPtr& h, const std::vector<std::pair<std::string, std::string>>& messages) {
            return take(render_chat(h->model.tokenizer, chat_messages(messages), true));
          },
          "messages"_a, "The prompt for (role, content) pairs by the model's own chat template.")
      .def_prop_ro("has_chat_template", [](const ModelHandle& h) { return !h.model.tokenizer.chat_template.empty(); })
      .def("__repr__", [](const ModelHandle& h) {
        return "Model(" + h.path + ", " + std::to_string(h.model.parameters()) + " parameters)";
      });

  nb::class_<Generated>(m, "Generated", "An answer.")
      .def_ro("text", &Generated::text)
      .def_ro("tokens", &Generated::tokens, "without the stop token")
      .def_ro("stopped", &Generated::stopped, "by the model; False: by max_tokens, the context's end or the callback")
      .def_ro("prefill_seconds", &Generated::prefill_seconds)
      .def_ro("decode_seconds", &Generated::decode_seconds)
      .def("__str__", [](const Generated& g) { return g.text; });

  nb::class_<PerplexityResult>(m, "Perplexity")
      .def_ro("ppl", &PerplexityResult::ppl)
      .def_ro("ppl_error", &PerplexityResult::ppl_error, "one standard error")
      .def_ro("nll", &PerplexityResult::nll, "mean, in nats a token")
      .def_ro("tokens", &PerplexityResult::tokens, "scored")
      .def_ro("chunks", &PerplexityResult::chunks)
      .def("__repr__", [](const PerplexityResult& r) {
        return "Perplexity(ppl=" + std::to_string(r.ppl) + ", tokens=" + std::to_string(r.tokens) + ")";
      });

  nb::class_<ComparisonResult>(m, "Comparison")
      .def_ro("model", &ComparisonResult::model)
      .def_ro("reference", &ComparisonResult::reference)
      .def_ro("ratio", &ComparisonResult::ratio, "perplexity of the model / of the reference")
      .def_ro("mean_kl", &ComparisonResult::mean_kl, "KL(reference || model), nats a token")
      .def_ro("mean_kl_error", &ComparisonResult::mean_kl_error, "one standard error")
      .def_ro("max_kl", &ComparisonResult::max_kl)
      .def_ro("same_top", &ComparisonResult::same_top, "share of tokens with the same most probable continuation")
      .def_ro("same_top_error", &ComparisonResult::same_top_error)
      .def("__repr__", [](const ComparisonResult& r) {
        return "Comparison(ratio=" + std::to_string(r.ratio) + ", mean_kl=" + std::to_string(r.mean_kl) + ")";
      });

  nb::class_<Check>(m, "Check", "One thing that `verify` looked at.")
      .def_ro("name", &Check::name)
      .def_ro("passed", &Check::passed)
      .def_ro("detail", &Check::detail)
      .def("__repr__", [](const Check& c) {
        return "Check(" + c.name + ": " + (c.passed ? "passed" : "FAILED") + ", " + c.detail + ")";
      });

  nb::class_<Param>(m, "Param", "An option of a method.")
      .def_prop_ro("name", [](const Param& p) { return p.name; })
      .def_prop_ro("type", [](const Param& p) { return param_type(p.type); })
      .def_prop_ro(
          "default", [](const Param& p) { return p.fallback; }, "as text")
      .def_prop_ro("low", [](const Param& p) { return p.low; })
      .def_prop_ro("high", [](const Param& p) { return p.high; })
      .def_prop_ro(
          "choices", [](const Param& p) { return p.choices; }, "'asym|sym'")
      .def_prop_ro("help", [](const Param& p) { return p.help; });

  nb::class_<Method>(m, "Method", "A method as `pith methods` lists it.")
      .def_prop_ro("name", [](const Method& x) { return x.name; })
      .def_prop_ro("family", [](const Method& x) { return x.family; })
      .def_prop_ro("title", [](const Method& x) { return x.title; })
      .def_prop_ro("paper", [](const Method& x) { return x.paper; })
      .def_prop_ro("baseline", [](const Method& x) { return x.baseline; })
      .def_prop_ro("example", [](const Method& x) { return x.example; })
      .def_prop_ro("params", [](const Method& x) { return std::vector<Param>(x.params.begin(), x.params.end()); })
      .def("__repr__", [](const Method& x) { return "Method(" + std::string(x.name) + ")"; });

  m.def("open", &open, "path"_a, "Opens a .pith file, a GGUF, a safetensors file or a Hugging Face folder.");
  m.def("verify", &verify, "path"_a, "All invariants of a model file, each with its verdict.");
  m.def(
      "methods",
      [] {
        std::vector<Method> out;
        for (const Method* method : all_methods()) out.push_back(*method);
        return out;
      },
      "All methods, sorted by family and name.");
  m.def(
      "named_text", [](const std::string& name) { return take(read_named_text(name)); }, "name"_a,
      "A built-in text ('builtin:prose') or the text of a file.");
  m.def(
      "generate",
      [](const ModelPtr& model, const std::string& prompt, bool parse_special, bool add_special, int64_t max_tokens,
         double temperature, int64_t top_k, double top_p, double min_p, uint64_t seed, const std::string& cache,
         unsigned threads, std::optional<std::function<bool(std::string)>> on_text) {
        GenerateOptions options;
        options.sample = {.temperature = temperature, .top_k = top_k, .top_p = top_p, .min_p = min_p, .seed = seed};
        options.max_tokens = max_tokens;
        return generate_text(model, prompt, parse_special, add_special, options, cache, threads, std::move(on_text));
      },
      "model"_a, "prompt"_a, nb::kw_only(), "parse_special"_a, "add_special"_a, "max_tokens"_a, "temperature"_a,
      "top_k"_a, "top_p"_a, "min_p"_a, "seed"_a, "cache"_a, "threads"_a, "on_text"_a = nb::none());
  m.def("perplexity", &eval_perplexity, "model"_a, "text"_a, nb::kw_only(), "context"_a, "max_chunks"_a, "threads"_a,
        "progress"_a = nb::none());
  m.def("kl", &eval_kl, "model"_a, "reference"_a, "text"_a, nb::kw_only(), "context"_a, "max_chunks"_a, "threads"_a,
        "progress"_a = nb::none());
}
