#include "formats/gguf.h"
#include "formats/gguf_model.h"
#include "fuzz.h"

namespace pith {

static int run(const uint8_t* data, size_t size) {
  const Limits limits;
  const auto file = GgufFile::parse(fuzz_bytes(data, size), "input", limits);
  if (!file.ok()) return 0;
  for (const auto& [key, value] : file->metadata().items()) {
    require(file->metadata().find(key) != nullptr);
    (void)value.as_i64(), (void)value.as_u64(), (void)value.as_f64(), (void)value.as_bool(), (void)value.as_string();
    (void)value.as_strings(), (void)value.as_i64s(), (void)value.as_f32s();
  }
  std::vector<float> row;
  for (const auto& t : file->tensors()) {
    touch(file->data(t));
    // A row is at most 32 times as large as its bytes (Q1_0: 7.1 values a byte, 4 bytes each).
    if (t.bytes == 0 || t.row_length() > static_cast<int64_t>(8 * size)) continue;
    row.resize(static_cast<size_t>(t.row_length()));
    dequantize_row(t.type, file->data(t).data(), t.row_length(), row.data());
  }
  const auto config = lm_config_from_gguf(*file);
  if (config.ok()) {
    (void)gguf_metadata_from_config(*config);
    if (config->layers < 64 && config->experts < 64) require(!expected_tensors(*config).empty());
  }
  const auto tokenizer = tokenizer_from_gguf(file->metadata(), limits);
  if (tokenizer.ok()) {
    const auto again = unpack_tokenizer(pack_tokenizer(*tokenizer), limits);
    require(again.ok() && again->tokens == tokenizer->tokens && again->merges == tokenizer->merges);
  }
  return 0;
}

}  // namespace pith

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { return pith::run(data, size); }
