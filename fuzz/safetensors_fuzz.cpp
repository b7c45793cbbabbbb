#include "formats/safetensors.h"
#include "fuzz.h"

namespace pith {

static int run(const uint8_t* data, size_t size) {
  const auto file = SafetensorsFile::parse(fuzz_bytes(data, size), "input", {});
  if (!file.ok()) return 0;
  uint64_t total = file->header_bytes();
  std::vector<SafetensorsDecl> decls;
  for (const auto& e : file->entries()) {
    touch(file->data(e));
    require(file->find(e.name) == &e);
    total += e.bytes;
    decls.push_back({e.name, e.type, e.shape});
  }
  require(total == size);  // no holes
  // The writer's header of the same entries is read as the same entries.
  auto header = safetensors_header(decls, file->metadata());
  require(header.ok());
  header->resize(header->size() + (size - file->header_bytes()));
  const auto again =
      SafetensorsFile::parse(fuzz_bytes(reinterpret_cast<const uint8_t*>(header->data()), header->size()), "again", {});
  require(again.ok() && again->entries().size() == decls.size());
  return 0;
}

}  // namespace pith

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { return pith::run(data, size); }
