#include "runtime/chat.h"

#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "base/file.h"

namespace pith {
namespace {

using Json = nlohmann::json;

Result<std::string> render(std::string_view source, const std::vector<ChatMessage>& messages = {{"user", "hi"}}) {
  return render_chat_template(source, messages, true, "<s>", "</s>");
}

// Texts and refusals of jinja2, set up as transformers does (tests/peers/make_chat_fixtures.py).
TEST(Chat, EqualsJinja) {
  const auto text = read_text(PITH_SOURCE_DIR "/testdata/tokenizer/chat.json", 1u << 24);
  ASSERT_TRUE(text.ok());
  const Json data = Json::parse(*text);
  int rendered = 0, refused = 0;
  for (const Json& one : data["cases"]) {
    for (const Json& want : one["results"]) {
      std::vector<ChatMessage> messages;
      for (const Json& m : data["conversations"][want["conversation"].get<size_t>()]) messages.push_back({m[0], m[1]});
      const auto got =
          render_chat_template(one["template"].get<std::string>(), messages, want["generate"], "<s>", "</s>");
      SCOPED_TRACE(one["name"].get<std::string>() + ", conversation " + want["conversation"].dump());
      if (want["text"].is_null()) {
        ++refused;
        EXPECT_FALSE(got.ok());
        if (!got.ok()) {
          EXPECT_NE(got.error().message.find("line "), std::string::npos) << got.error().message;
        }
      } else {
        ++rendered;
        ASSERT_TRUE(got.ok()) << got.error().message;
        EXPECT_EQ(*got, want["text"].get<std::string>());
      }
    }
  }
  EXPECT_GT(rendered, 40);
  EXPECT_GT(refused, 9);
}

TEST(Chat, SpecGivesTokensAndTemplate) {
  TokenizerSpec spec;
  spec.tokens = {"<unk>", "<b>", "</b>"};
  spec.bos = 1;
  spec.eos = 2;
  const ChatMessage message{"user", "hi"};
  EXPECT_FALSE(render_chat(spec, {&message, 1}, true).ok());
  spec.chat_template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ add_generation_prompt }}";
  EXPECT_EQ(*render_chat(spec, {&message, 1}, true), "<b>hi</b>True");
}

TEST(Chat, ErrorsSayWhatAndWhere) {
  EXPECT_NE(render("a\n{{ 'x' | nosuch }}").error().message.find("line 2: filter 'nosuch' is not supported"),
            std::string::npos);
  EXPECT_NE(render("{{ raise_exception('roles!') }}").error().message.find("roles!"), std::string::npos);
  EXPECT_NE(render("\n\n{% frob %}").error().message.find("line 3"), std::string::npos);
  EXPECT_EQ(render("{{ 1 + }}").error().kind, ErrorKind::data);
}

// Templates that would run, grow, or nest without end are refused soon.
TEST(Chat, HostileTemplatesEnd) {
  const std::string many(3000, '(');
  std::string sum = "{{ 1";
  for (int i = 0; i < 5000; ++i) sum += " + 1";
  std::string nots = "{{ ";
  for (int i = 0; i < 5000; ++i) nots += "not ";
  std::string ifs;
  for (int i = 0; i < 500; ++i) ifs += "{% if true %}";
  std::string keys = "{% set d = {";
  for (int i = 0; i < 60000; ++i) keys += "'k" + std::to_string(i) + "': 1, ";
  const std::vector<std::string> templates = {
      "{{ " + many,
      "{{ " + many + "1" + std::string(3000, ')') + " }}",
      sum + " }}",
      nots + "1 }}",
      ifs,
      keys + "} %}{{ d }}",
      "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
      "{{ range(100000000) }}",
      "{{ 'a' * 1000000000000 }}",
      "{% set ns = namespace(x='a') %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
      "{% set ns = namespace(x=1) %}{% for i in range(30) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
      "{% set ns = namespace(x=1) %}{% for i in range(30) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x == ns.x }}"
      "{% set a = ns.x %}{{ a|tojson }}",
      "{% set ns = namespace(x=1) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}",
      "{% set ns = namespace(x={}) %}{% for i in range(100000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}",
      "{% set ns = namespace() %}{% set ns.x = ns %}",
      "{% set ns = namespace() %}{% set ns.x = [ns] %}",
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
      "{{ 'aaaaaaaa'.replace('a', 'b' * 10000000) }}",
      "{{ ('a\\n' * 1000000) | indent(64) }}",
      "{{ 9223372036854775807 + 1 }}",
      "{{ (-9223372036854775807 - 1) // -1 }}",
      "{{ 9999999999999999999999 }}",
      "{{ 10 ** 400 }}",
      "{% for i in range(200000) %}{{ ('x' * 1000000).strip('y')[0:1] }}{% endfor %}",
      "{% set s = 'x' * 4000000 %}{% for i in range(2000000) %}{% if s == s ~ '' %}{% endif %}{% endfor %}",
  };
  for (const std::string& source : templates) {
    const auto begin = std::chrono::steady_clock::now();
    const auto got = render(source);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    EXPECT_FALSE(got.ok()) << source.substr(0, 100);
    EXPECT_LT(seconds, 5) << source.substr(0, 100);
  }
}

// Every prefix of a template either renders or is refused; none crashes.
TEST(Chat, EveryPrefixIsSafe) {
  const std::string source =
      "{% set ns = namespace(a=1) %}{% for m in messages[::-1] if m.role is string %}{{- m['content'] | trim ~ "
      "loop.index "
      "-}}{% endfor %}{# c #}{% macro f(x, y=[1, {'a': 2}]) %}{{ x }}{% endmacro %}{{ f('a\\n') }}{% raw %}{{{% endraw "
      "%}";
  for (size_t n = 0; n <= source.size(); ++n) {
    const auto got = render(source.substr(0, n));
    if (!got.ok()) {
      EXPECT_FALSE(got.error().message.empty());
    }
  }
}

}  // namespace
}  // namespace pith
