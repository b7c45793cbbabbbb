#!/usr/bin/env python3
"""Chat templates with what jinja2 (set up as transformers does) makes of them: testdata/tokenizer/chat.json.

The templates are written for this test in the manner of the supported model families. With folders of *.jinja files as
arguments nothing is written; pith's program of the peers' tests is compared on them (see tokenizer_peers.py).
Run with a Python that has jinja2.
"""
import datetime
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

ROOT = pathlib.Path(__file__).resolve().parents[2]

CONVERSATIONS = [
    [("user", "Hello")],
    [("system", "You are a pirate.  "), ("user", " What's \n up? é😀"),
     ("assistant", "Arr <think>hm\n\nok</think>\n matey"), ("user", "Tell 'me' \"more\" ")],
    [("system", "/no_think be brief"), ("user", "a\n\nb"), ("assistant", "x"), ("user", "c"), ("assistant", "d")],
    [("assistant", "x"), ("user", "c")],
    [],
]

TEMPLATES = {
    "chatml": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
Be helpful.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}""",
    "llama3": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages and messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role == "tool" %}
        {{- message.content | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("roles must alternate user/assistant") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
{{- user_messages|length }}{{ user_messages[-1] == loop_messages[-1] }}
""",
    "qwen3": """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif loop.first %}
        {{- '<|im_start|>system\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "gemma": """{{ bos_token }}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
""",
    "white space": """  {% if true %}
  a
    {%- if true %} b {% endif -%}

  c {# gone #}
  {# a line of its own #}
  {%+ if true %} kept {%+ endif %}
{{ 'x' }}
  {{- 'y' -}}
  z{% raw %}{{ raw }} {% not %}{% endraw %}
{% endif %}

tail
""",
    "values": """{{ true }} {{ none }} {{ 1.0 }} {{ 2 ** 10 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 1e3 }}
{{ [1, 'a', none, true, 2.5, {'k': "it's"}] }} {{ 'a' ~ 1 ~ none }} {{ 'ab' * 3 }} {{ missing }}|{{ missing is defined }}
{{ 'abc'[1] }} {{ 'abcdef'[1:4] }} {{ 'abc'[::-1] }} {{ [1,2,3][-1] }} {{ (1, 2)|length }} {{ 'é😀'|length }}
{{ 1 < 2 < 3 }} {{ 1 < 2 > 5 }} {{ not true or true and false }} {{ 'a' in 'cat' }} {{ 4 not in [1,2] }}
{{ 'a' if false }}|{{ 'x' if 1 == 1.0 else 'y' }} {{ "q\\"uo'te" }} {{ 'tab\\there' }} {{ "\\u00e9\\x41" }}
{{ {'a': [1, {'b': 'ü\\n"\\\\'}], 'c': {}, 'd': []} | tojson }}
{{ {'b': 1, 'a': [1, 2]} | tojson(indent=2) }}
{{ {'b': 1, 'a': 2} | dictsort | map('join', '=') | list }} {{ {'x': 1}.items() | map('last') | list }} {{ {'x': 1}.get('y', 'none') }}""",
    "filters": """{{ '  a b '|trim }}|{{ 'aXbX'|replace('X', '-') }}|{{ [1,2,3]|join(', ') }}|{{ [3,1]|first }}|{{ 'ab'|list }}|{{ 'ab'|reverse }}
{{ missing|default('d') }}|{{ ''|default('e', true) }}|{{ 'hello world'|title }}|{{ 'hELLO'|capitalize }}|{{ 'x'|upper|lower }}
{{ [{'n': 1}, {'n': 2}]|map(attribute='n')|list }}|{{ ['a', 'b']|map('upper')|join }}|{{ [0, 1, 2]|select('odd')|list }}
{{ [{'n': 1}, {'n': 2}]|rejectattr('n', 'equalto', 1)|list }}|{{ 'a\\nb'|indent(2) }}|{{ '12'|int + 1 }}|{{ 'x'|int }}
{{ 'a,b,c'.split(',', 1) }} {{ ' a  b '.split() }} {{ 'abc'.replace('b', '') }} {{ 'abc'.startswith(('x', 'a')) }}
{{ 'path.to'.rsplit('.', 1)[-1] }} {{ 'aXbX'.rstrip('X') }} {{ 'abc'.find('c') }} {{ 'x'.join(['a', 'b']) }} {{ 'Ab'.upper() }}
{{ 3 is odd }} {{ 4 is divisibleby 2 }} {{ 'a' is string }} {{ {} is mapping }} {{ [] is iterable }} {{ 1 is number }} {{ x is undefined }}""",
    "loops": """{% for a, b in {'x': 1, 'y': 2}.items() %}{{ a }}={{ b }}{{ ', ' if not loop.last }}{% endfor %}
{% for i in range(5) if i is odd %}{{ loop.index }}/{{ loop.length }}:{{ i }} {% else %}none{% endfor %}
{% for i in [] %}x{% else %}empty{% endfor %}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{{ loop.previtem }}{% endfor %}
{% set x = 1 %}{% for i in range(2) %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}
{% set ns = namespace(n=0, found=false) %}{% for i in range(4) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}
{% macro tag(name, body='-') %}<{{ name }}>{{ body }}</{{ name }}>{% endmacro %}{{ tag('b', 'x') }}{{ tag('i') }}{{ tag(body='z', name='u') }}
{% set block %}in {{ 1 + 1 }}{% endset %}[{{ block }}]{% set a, b = 1, 2 %}{{ a + b }}
{% for m in messages %}{{ m.role }}{{ m['content']|length }}{% if not loop.last %}-{% endif %}{% endfor %}""",
}
REFUSED = {
    "unclosed": "{% if true %}x",
    "unknown statement": "{% include 'x' %}",
    "unknown filter": "{{ 'a' | frobnicate }}",
    "unknown function": "{{ frobnicate() }}",
    "attribute of nothing": "{{ a.b }}",
    "raised": "{{ raise_exception('no') }}",
    "types": "{{ 'a' + 1 }}",
    "syntax": "{{ 1 + }}",
    "division": "{{ 1 // 0 }}",
}


class Generation(jinja2.ext.Extension):
    """transformers' {% generation %} mark."""
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, jinja2.ext.loopcontrols])

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return env


def render(env, template, conversation, generate):
    """Text, or None when the template refuses."""
    messages = [{"role": r, "content": c} for r, c in conversation]
    try:
        return env.from_string(template).render(messages=messages, add_generation_prompt=generate, tools=None,
                                                documents=None, bos_token="<s>", eos_token="</s>")
    except Exception:  # whatever the template or jinja2 raises: refused
        return None


def main():
    env, cases = environment(), []
    for name, template in {**TEMPLATES, **REFUSED}.items():
        results = []
        uses = "messages" in template
        for i, conversation in enumerate(CONVERSATIONS if uses else CONVERSATIONS[:1]):
            for generate in ((True, False) if uses else (True,)):
                results.append({"conversation": i, "generate": generate, "text": render(env, template, conversation, generate)})
        if name in REFUSED:
            assert all(r["text"] is None for r in results), name
        cases.append({"name": name, "template": template, "results": results})
    data = {"conversations": CONVERSATIONS, "cases": cases}
    (ROOT / "testdata/tokenizer/chat.json").write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
