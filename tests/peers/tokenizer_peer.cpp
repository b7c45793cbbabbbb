// Drives src/runtime/tokenizer and src/runtime/chat for tokenizer_peers_test.py.
// usage: tokenizer_peer encode MODEL TEXT [parse] [special] [repair]: ids of the file TEXT, one a line; MODEL is a
//            tokenizer.json or a GGUF file. With `blocks` ids are those of each block between U+001D, a line each.
//        tokenizer_peer chat TEMPLATE MESSAGES [generate]: the prompt for [[role, content], …].
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "base/file.h"
#include "formats/gguf.h"
#include "formats/gguf_model.h"
#include "runtime/chat.h"
#include "runtime/tokenizer.h"

namespace pith {
namespace {

using Json = nlohmann::json;

Result<TokenizerSpec> read_spec(const std::string& path) {
  if (path.ends_with(".gguf")) {
    PITH_ASSIGN(const auto file, GgufFile::open(path, {}));
    return tokenizer_from_gguf(file.metadata(), {});
  }
  PITH_ASSIGN(const std::string text, read_text(path, 1u << 30));
  return tokenizer_from_hf(Json::parse(text, nullptr, false), nullptr, nullptr, {});
}

Status encode(const std::vector<std::string>& arguments, const std::set<std::string>& flags) {
  PITH_ASSIGN(auto spec, read_spec(arguments.at(1)));
  PITH_ASSIGN(const auto tokenizer, Tokenizer::create(std::move(spec)));
  PITH_ASSIGN(std::string text, read_text(arguments.at(2), 1u << 30));
  if (flags.count("repair") != 0) text = repair_utf8(text);
  const EncodeOptions options{.add_special = flags.count("special") != 0, .parse_special = flags.count("parse") != 0};
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = flags.count("blocks") != 0 ? std::min(text.find('\x1d', begin), text.size()) : text.size();
    PITH_ASSIGN(const auto ids, tokenizer.encode(std::string_view(text).substr(begin, end - begin), options));
    if (flags.count("bytes") != 0) {
      const std::string back = tokenizer.decode(ids);
      std::fwrite(back.data(), 1, back.size(), stdout);
    } else {
      for (const int32_t id : ids) std::printf("%d ", id);
      std::printf("\n");
    }
    begin = end + 1;
  }
  return {};
}

Status chat(const std::vector<std::string>& arguments, const std::set<std::string>& flags) {
  PITH_ASSIGN(const std::string source, read_text(arguments.at(1), 1u << 24));
  PITH_ASSIGN(const std::string text, read_text(arguments.at(2), 1u << 24));
  const Json json = Json::parse(text, nullptr, false);
  std::vector<ChatMessage> messages;
  for (const Json& m : json) messages.push_back({m.at(0).get<std::string>(), m.at(1).get<std::string>()});
  PITH_ASSIGN(const std::string out,
              render_chat_template(source, messages, flags.count("generate") != 0, "<s>", "</s>"));
  std::fwrite(out.data(), 1, out.size(), stdout);
  return {};
}

}  // namespace
}  // namespace pith

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 3) return 2;
  const std::set<std::string> flags(arguments.begin() + 3, arguments.end());
  const auto status = arguments[0] == "chat" ? pith::chat(arguments, flags) : pith::encode(arguments, flags);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.error().message.c_str());
  return status.ok() ? 0 : 1;
}
