// The makers of tests/represent/tiny_model.h.
#include "represent/tiny_model.h"

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "represent/dense.h"

namespace pith::test {

LmConfig tiny_config(const std::string& architecture) {
  LmConfig c;
  c.architecture = architecture;
  c.hidden = 64;
  c.layers = 2;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 16;
  c.intermediate = 96;
  c.vocab = 300;
  c.context = 128;
  if (architecture == "llama") c.tied_embeddings = true;
  if (architecture == "mistral") c.sliding_window = 32;
  if (architecture == "qwen2") c.qkv_bias = true;
  if (architecture == "qwen3" || architecture == "gemma3") c.qk_norm = true;
  if (architecture == "smollm3") {
    c.tied_embeddings = true;
    c.layers = 4;  // every fourth has no RoPE
    c.no_rope_layers = {0, 0, 0, 1};
  }
  if (architecture == "gemma2" || architecture == "gemma3") {
    c.tied_embeddings = c.norm_plus_one = c.post_norms = true;
    c.embedding_scale = 8;
    c.activation = Activation::gelu_tanh;
    c.sliding_window = 32;
    c.sliding_layers = {1, 0};
    if (architecture == "gemma2") {
      c.attention_softcap = 50;
      c.logit_softcap = 30;
    } else {
      c.rope_theta = 1e6;
      c.rope_theta_local = 10000;
    }
  }
  if (architecture == "mixtral") {
    c.experts = 3;
    c.experts_per_token = 2;
  }
  return c;
}

TokenizerSpec tiny_tokenizer() {
  TokenizerSpec t;
  t.kind = TokenizerSpec::Kind::byte_bpe;
  t.tokens = {"<s>", "</s>"};
  t.types = {TokenizerSpec::TokenType::control, TokenizerSpec::TokenType::control};
  for (char a = 'a'; a <= 'z'; ++a) t.tokens.push_back({a});
  for (char a = 'a'; t.tokens.size() < 300; ++a)
    for (char b = 'a'; b <= 'z' && t.tokens.size() < 300; ++b) {
      t.tokens.push_back({a, b});
      t.merges.push_back({std::string(1, a), std::string(1, b)});
    }
  t.types.resize(t.tokens.size(), TokenizerSpec::TokenType::normal);
  t.pre_name = "gpt-2";
  if (auto pre = pre_tokenizer_from_gguf("gpt-2"); pre.ok()) t.splits = pre->splits;
  t.bos = 0;
  t.eos = 1;
  return t;
}

Model tiny_model(const std::string& architecture, DType type, uint64_t seed) {
  Random random(seed);
  Model model;
  model.config = tiny_config(architecture);
  model.tokenizer = tiny_tokenizer();
  for (const TensorSpec& spec : expected_tensors(model.config)) {
    const MatrixShape shape = matrix_shape(spec.shape).value();
    std::vector<float> values(static_cast<size_t>(shape.rows * shape.cols));
    for (float& v : values) v = spec.shape.size() == 1 ? 1 + random.real() / 4 : random.real() / 8;
    model.tensors.push_back({spec.name, spec.shape, Dense::from(type, shape.rows, shape.cols, values).value()});
  }
  return model;
}

void expect_same_weights(const Model& a, const Model& b) {
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    const ModelTensor &x = a.tensors[i], &y = b.tensors[i];
    EXPECT_EQ(x.name, y.name);
    EXPECT_EQ(x.shape, y.shape) << x.name;
    const auto u = decode_all(*x.node), v = decode_all(*y.node);
    ASSERT_EQ(u.size(), v.size()) << x.name;
    EXPECT_EQ(std::memcmp(u.data(), v.data(), u.size() * sizeof(float)), 0) << x.name;
  }
}

TempFolder::TempFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "pith-test-XXXXXX").string();
  path_ = ::mkdtemp(pattern.data()) != nullptr ? pattern : std::string();
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

}  // namespace pith::test
