#include <nlohmann/json.hpp>

#include "base/base64.h"
#include "base/hash.h"
#include "base/zstd.h"
#include "entropy/codes.h"
#include "formats/json_text.h"
#include "formats/pith_file.h"
#include "formats/tokenizer_spec.h"
#include "fuzz.h"
#include "represent/node.h"

namespace pith {
namespace {

class FileSections : public SectionSource {
 public:
  explicit FileSections(const PithFile& file) : file_(file) {}
  Result<Section> find(std::string_view name) const override {
    const PithSection* s = file_.find(name);
    if (s == nullptr) return data_error("no section " + std::string(name));
    return Section{s->type, s->shape, s->data};
  }

 private:
  const PithFile& file_;
};

std::string hash_of(std::string_view text) {
  const std::string hex = hash_hex(std::as_bytes(std::span(text.data(), text.size())));
  std::string out;
  for (size_t i = 0; i < hex.size(); i += 2) out.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return out;
}

// A file with right hashes around a manifest of the fuzzer's making: one entry "t" with all the data.
std::string wrap(std::string_view manifest, std::string_view data) {
  const std::string packed = zstd_compress(std::as_bytes(std::span(manifest.data(), manifest.size())), 1);
  const auto header = safetensors_header({{"t", DType::u8, {static_cast<int64_t>(data.size())}}},
                                         {{"pith_version", "1"},
                                          {"pith", to_base64(packed)},
                                          {"pith_hashes", to_base64(hash_of(packed) + hash_of(data))}});
  return header.ok() ? *header + std::string(data) : std::string();
}

}  // namespace

static int run(const uint8_t* data, size_t size) {
  const Limits limits;
  std::string text(fuzz_text(data, size));
  const bool wrapped = !text.empty() && text[0] == 1;
  if (wrapped) {
    const size_t end = std::min(text.find('\n'), text.size());
    text =
        wrap(std::string_view(text).substr(1, end - 1), std::string_view(text).substr(std::min(end + 1, text.size())));
  }
  const auto file =
      PithFile::parse(fuzz_bytes(reinterpret_cast<const uint8_t*>(text.data()), text.size()), "input", limits);
  if (!file.ok()) return 0;
  require(file->verify().ok() || !wrapped);
  const FileSections sections(*file);
  const ParseContext context{sections, limits, entropy_codes_formats()};
  for (const auto& t : file->tensors()) {
    for (const auto& s : t.sections) touch(s.data);
    const auto tree = parse_json(t.tree, "tree", limits);
    if (!tree.ok()) continue;
    const auto node = parse_node(*tree, context);
    if (!node.ok()) continue;
    require(!(*node)->describe().empty());
    (void)(*node)->bits();
    if ((*node)->rows() > 0 && (*node)->cols() > 0 && (*node)->cols() < (1 << 20)) {
      std::vector<float> row(static_cast<size_t>((*node)->cols()));
      (*node)->decode_rows(0, 1, row.data());
      (*node)->decode_rows((*node)->rows() - 1, (*node)->rows(), row.data());
    }
  }
  if (!file->tokenizer().empty()) (void)unpack_tokenizer(file->tokenizer(), limits);
  return 0;
}

}  // namespace pith

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { return pith::run(data, size); }
