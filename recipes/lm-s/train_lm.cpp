// Makes a small language model from plain text: BPE tokenizer, training, a Hugging Face folder. See README.md.
// usage: train_lm CONFIG.json TEXT_FOLDER OUT_FOLDER [--device cuda] [--threads N]
#include <dlfcn.h>
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "formats/huggingface.h"
#include "runtime/bpe_trainer.h"
#include "runtime/tokenizer.h"
#include "train/lm_trainer.h"

namespace pith {
namespace {

using Json = nlohmann::json;

class Lines : public Progress {
 public:
  bool step(const ProgressEvent& event) override {
    const auto now = std::chrono::steady_clock::now();
    if (event.done == event.total || now - last_ > std::chrono::seconds(10)) {
      last_ = now;
      const double seconds = std::chrono::duration<double>(now - begin_).count();
      if (first_ == 0) first_ = event.done - 1;  // a resumed run starts further on
      const double each = seconds / static_cast<double>(event.done - first_);
      std::fprintf(stderr, "%.*s of %llu, %.0f s left\n", static_cast<int>(event.unit.size()), event.unit.data(),
                   static_cast<unsigned long long>(event.total), each * static_cast<double>(event.total - event.done));
    }
    return true;
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now(), last_ = begin_;
  uint64_t first_ = 0;
};

Tensor encode(const Tokenizer& tokenizer, const std::string& path) {
  const std::string text = must(read_text(path, 4ull << 30));
  const auto ids = must(tokenizer.encode(text, {.add_special = false}));
  Tensor out = at::empty({static_cast<int64_t>(ids.size())}, at::kLong);
  std::copy(ids.begin(), ids.end(), out.data_ptr<int64_t>());
  return out;
}

// Perplexity over windows of `length` tokens, each with a fresh context.
double perplexity(const LmWeights& weights, const Tensor& tokens, int64_t length, int64_t windows) {
  windows = std::min(windows, tokens.numel() / length);
  const Tensor nll = lm_nll(weights, tokens.narrow(0, 0, windows * length).view({windows, length}));
  return std::exp(nll.mean().item<double>());
}

void run(const std::string& config_path, const std::string& texts, const std::string& out, const std::string& device) {
  const Json file = Json::parse(must(read_text(config_path, 1u << 20)), nullptr, false);
  if (!file.is_object()) throw Failure(user_error(config_path + " is no JSON object"));
  const Json& training = file.at("training");
  if (device == "cuda" && dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    throw Failure(user_error(fmt::format("libtorch_cuda.so cannot be loaded: {}", dlerror())));
  }
  BpeTrainerOptions bpe;
  bpe.vocab = file.at("model").at("vocab_size").get<int64_t>();
  auto spec = must(train_bpe(must(read_text(texts + "/train.txt", 4ull << 30)), bpe));
  Json model = file.at("model");
  model["vocab_size"] = static_cast<int64_t>(spec.tokens.size());
  const LmConfig config = must(lm_config_from_hf(model));
  const Tokenizer tokenizer = must(Tokenizer::create(spec));
  const Tensor train = encode(tokenizer, texts + "/train.txt");
  const Tensor test = encode(tokenizer, texts + "/test.txt");
  std::fprintf(stderr, "%d tokens in the vocabulary, %lld to train on, %lld to test on\n", tokenizer.vocab_size(),
               static_cast<long long>(train.numel()), static_cast<long long>(test.numel()));

  LmTrainOptions options;
  options.steps = training.at("steps");
  options.batch = training.at("batch");
  options.context = training.at("context");
  options.rate = training.at("rate");
  options.floor = training.at("floor");
  options.warmup = training.at("warmup");
  options.decay = training.at("decay");
  options.seed = training.at("seed");
  options.bf16 = training.at("bf16");
  options.device = device;
  options.checkpoint = out + ".checkpoint.safetensors";
  Lines progress;
  const LmTrained trained = train_lm(config, initial_weights(config, options.seed), train, options, progress);
  must(write_huggingface(
      out, config, spec, DType::f16,
      [&](const TensorSpec& wanted, int64_t r0, int64_t r1, float* into) -> Status {
        const Tensor& w = trained.weights.at(wanted.name);
        const Tensor rows =
            (w.dim() < 2 ? w.view({1, -1}) : w.view({w.size(0), -1})).narrow(0, r0, r1 - r0).contiguous();
        std::memcpy(into, rows.const_data_ptr<float>(), static_cast<size_t>(rows.numel()) * sizeof(float));
        return {};
      },
      /*overwrite=*/true));
  TensorMap rounded;  // what was written
  for (const auto& [name, w] : trained.weights) rounded[name] = w.to(at::kHalf).to(at::kFloat);
  std::printf("perplexity: last tenth of the training %.3f, test %.3f (context %lld, vocabulary %d)\n",
              std::exp(trained.last_loss), perplexity(*weights_of(config, rounded), test, options.context, 400),
              static_cast<long long>(options.context), tokenizer.vocab_size());
}

}  // namespace
}  // namespace pith

int main(int argc, char** argv) {
  std::vector<std::string> arguments;
  std::string device = "cpu";
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--device" && i + 1 < argc) {
      device = argv[++i];
    } else if (word == "--threads" && i + 1 < argc) {
      at::set_num_threads(std::max(1, std::atoi(argv[++i])));
    } else {
      arguments.push_back(word);
    }
  }
  if (arguments.size() != 3) {
    std::fprintf(stderr, "usage: train_lm CONFIG.json TEXT_FOLDER OUT_FOLDER [--device cuda] [--threads N]\n");
    return 2;
  }
  try {
    pith::run(arguments[0], arguments[1], arguments[2], device);
  } catch (const pith::Failure& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return static_cast<int>(failure.error().kind);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 3;
  }
  // Everything is written. With torch 2.11 and CUDA, tearing the process down in the usual way ends in free().
  std::fflush(nullptr);
  std::_Exit(0);
}
