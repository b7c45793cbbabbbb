// A cache file (--load-cache): read for a small shape; what is read must write back to as many bytes as it says.
#include "fuzz.h"
#include "runtime/kv_store.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pith;  // NOLINT(google-build-using-namespace)
  for (const KvType type : {KvType::f16, KvType::f32}) {
    const auto kv = KvStore::read(fuzz_text(data, size), {2, {{32, 32}, {16, 48}}}, type);
    if (!kv.ok()) continue;
    require(kv->write().size() == kv->header_bytes() + kv->bytes());
    for (int64_t i = 0; i < 4; ++i) fuzz_use(kv->entries(i / 2, i % 2));
  }
  return 0;
}
