#include "formats/safetensors.h"

#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pith;  // NOLINT(google-build-using-namespace)
  const auto file = SafetensorsFile::parse(fuzz_bytes(data, size), "fuzz.safetensors", Limits{});
  if (!file.ok()) return 0;
  for (const SafetensorsEntry& entry : (*file).entries()) {
    const Bytes raw = (*file).data(entry);
    const auto count = static_cast<int64_t>(raw.size() / dtype_size(entry.type));
    std::vector<float> values(static_cast<size_t>(count));
    to_float(entry.type, raw.data(), count, values.data());
    fuzz_use(values);
  }
  return 0;
}
