#include "formats/safetensors.h"
#include "fuzz.h"
#include "input.h"

namespace pith {

int fuzz_safetensors(const uint8_t* data, size_t size) {
  const auto file = SafetensorsFile::parse(input_bytes(data, size), "input", {});
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
  const auto again = SafetensorsFile::parse(
      input_bytes(reinterpret_cast<const uint8_t*>(header->data()), header->size()), "again", {});
  require(again.ok() && again->entries().size() == decls.size());
  return 0;
}

}  // namespace pith

PITH_FUZZ_TARGET(fuzz_safetensors)
