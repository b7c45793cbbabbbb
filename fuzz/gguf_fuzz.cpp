#include "formats/gguf.h"

#include "formats/ggml_blocks.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pith;  // NOLINT(google-build-using-namespace)
  const auto file = GgufFile::parse(fuzz_bytes(data, size), "fuzz.gguf", Limits{});
  if (!file.ok()) return 0;
  for (const auto& [key, value] : (*file).metadata().items()) {
    fuzz_use(value.as_strings());
    fuzz_use(value.as_i64s());
    fuzz_use(value.as_f32s());
  }
  for (const GgufTensor& tensor : (*file).tensors()) {
    const Bytes raw = (*file).data(tensor);
    uint8_t sum = 0;
    for (const std::byte b : raw.view) sum = static_cast<uint8_t>(sum + static_cast<uint8_t>(b));
    fuzz_use(sum);
  }
  return 0;
}
