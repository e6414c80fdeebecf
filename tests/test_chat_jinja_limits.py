"""A hostile chat template, or a hostile row, costs a bad row: little memory, and no more than a million iterations."""

from __future__ import annotations

import tracemalloc

import pytest
from chat_template_traits import TEMPLATES

from mindspeed_llm.chat import Conversation, InvalidRowError, JinjaTemplate, Turn, jinja_limits
from mindspeed_llm.chat.jinja_environment import ChatEnvironment
from mindspeed_llm.errors import ConfigError

ROW = Conversation([Turn("a", "b")])
BIG = "{% set b = 'x' * 1000000 %}"
TWICE = "{% set ns = namespace(x=START) %}{% for i in range(999) %}{% set ns.x = ns.x OPERATOR ns.x %}{% endfor %}"
KEPT = "{% set ns = namespace(l=[]) %}{% for i in range(999) %}{% set ns.l = ns.l + [VALUE] %}{% endfor %}"
NESTED = "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"


def twice(start: str, operator: str) -> str:
    return TWICE.replace("START", start).replace("OPERATOR", operator)


STEPS, TEXT, WIDTH, NUMBER = "loop iterations", "of text", "with a width over", "a number"
HOSTILE = {
    "nested loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", STEPS),
    "filtered loop": ("{% for a in range(99999) if a < 0 %}{% endfor %}" * 11, STEPS),
    "macros": ("{% macro m(n) %}{% if n < 60 %}{{ m(n + 1) }}{{ m(n + 1) }}{% endif %}{% endmacro %}{{ m(1) }}", STEPS),
    "recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    "recursive loop": ("{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}", "recursion"),
    "nested lists": (NESTED + "{{ ns.x }}", STEPS),
    "nested lists as JSON": (NESTED + "{{ ns.x | tojson }}", STEPS),
    "nested lists as text": (NESTED + "{{ ns.x | string | length }}", STEPS),
    "range": ("{% for a in range(10 ** 9) %}{% endfor %}", "Range too big"),
    "repeated text": ("{{ 'x' * 10 ** 9 }}", TEXT),
    "repeated list": ("{{ [1] * 10 ** 9 }}", TEXT),
    "sum": (twice("'abc'", "+"), TEXT),
    "concatenation": (twice("'abc'", "~"), TEXT),
    "sum of lists": (twice("[1]", "+"), TEXT),
    "product": (twice("10", "*"), NUMBER),
    "power": ("{{ 10 ** 100000000 }}", NUMBER),
    "kept texts": (KEPT.replace("VALUE", "'x' * 999999"), TEXT),
    "slices": (BIG + KEPT.replace("VALUE", "b[1:]"), TEXT),
    "output": ("{% for i in range(999) %}{{ 'x' * 100000 }}{% endfor %}", "writes more than 64 MiB"),
    "constant output": ("{% for i in range(999) %}" + "x" * 100000 + "{% endfor %}", "writes more than 64 MiB"),
    "captured output": (BIG + "{% set c %}{% for i in range(999) %}{{ b }}{% endfor %}{% endset %}", TEXT),
    "captured constants": ("{% set c %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}", TEXT),
    "constants of macros": (
        "{% macro m() %}" + "x" * 9999 + "{% endmacro %}{% for i in range(9999) %}{% set c = m() %}{% endfor %}",
        TEXT,
    ),
    "lists of texts": (BIG + "{{ [b] * 999 }}", TEXT),
    "join": (BIG + "{{ ([b] * 999) | join }}", TEXT),
    "join of a method": (BIG + "{{ ''.join([b] * 999) }}", TEXT),
    "join with a text": (BIG + "{{ range(999) | join(b) }}", TEXT),
    "replace": (BIG + "{{ b | replace('x', b) }}", TEXT),
    "replace of a method": (BIG + "{{ b.replace('x', b) }}", TEXT),
    "indent": ("{{ ('\\n' * 999999) | indent(1000) }}", TEXT),
    "upper": (BIG + "{% for i in range(999) %}{% set c = b | upper %}{% endfor %}", TEXT),
    "split": ("{% set b = 'x ' * 999999 %}{% for i in range(99) %}{% set c = b.split(' ') %}{% endfor %}", TEXT),
    "center": ("{{ 'x' | center(10 ** 9) }}", NUMBER),
    "center of a method": ("{{ 'x'.center(10 ** 9) }}", TEXT),
    "zfill": ("{{ '1'.zfill(10 ** 9) }}", TEXT),
    "batch": ("{{ [1] | batch(10 ** 9, 'x') | list }}", NUMBER),
    "format": ("{{ '%1000000000d' | format(1) }}", WIDTH),
    "percent": ("{{ '%*d' % (10 ** 9, 1) }}", WIDTH),
    "format of a method": ("{{ '{:1000000000}'.format(1) }}", WIDTH),
    "format with a width as argument": ("{{ '{:{}}'.format(1, 10 ** 9) }}", WIDTH),
    "formats of a long text": (BIG + "{{ ('{0}' * 999).format(b) }}", TEXT),
    "expandtabs": ("{{ '\\t'.expandtabs(10 ** 9) }}", "not allowed"),
    "translate": ("{{ 'x'.translate({120: 'y'}) }}", "not allowed"),
    "to_bytes": ("{{ (5).to_bytes(10 ** 9) }}", "not allowed"),
    "added lists": ("{{ ([[1] * 999] * 999) | sum(start=[]) }}", "adds up"),
    "indented JSON": ("{{ [[1]] | tojson(indent=10 ** 9) }}", "indentation"),
    "lipsum": ("{{ lipsum(n=10 ** 9) }}", "undefined"),
    "subclasses": ("{{ ''.__class__.__mro__ }}", "unsafe"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_costs_a_bad_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, reason = HOSTILE[name]
    # Lower limits, so that the test is fast.
    if reason == STEPS:
        monkeypatch.setattr(jinja_limits, "MAX_STEPS", 10_000)
    if reason == TEXT:
        monkeypatch.setattr(jinja_limits, "MAX_TEXT", jinja_limits.MAX_TEXT // 64)
    template = JinjaTemplate(source + "{{ messages[0].content }}", {})
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRowError, match=reason):
            template.render(ROW)
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()


def test_a_million_iterations_are_allowed() -> None:
    source = "{% for a in range(1000) %}{% for b in range(N) %}{% endfor %}{% endfor %}{{ messages[-1].content }}"
    environment = ChatEnvironment(str)
    assert environment.from_string(source.replace("N", "990")).render(messages=[{"content": "b"}]) == "b"
    environment.budget.reset()
    with pytest.raises(jinja_limits.LimitExceededError, match="more than 1,000,000 loop iterations"):
        environment.from_string(source.replace("N", "1001")).render(messages=[{"content": "b"}])


def test_a_long_conversation_is_within_the_limits() -> None:
    turns = [Turn("question " * 200, "answer " * 300) for _ in range(300)]
    for name in ("usual", "thoughts", "tools"):
        template = JinjaTemplate(TEMPLATES[name], {}, None, ["<|end|>"])
        assert len(template.render(Conversation(turns))) == 300


def test_a_long_row_is_within_the_limits() -> None:
    text = "word " * 2_000_000
    turns = JinjaTemplate(TEMPLATES["trimmed"], {}, None, ["<|end|>"]).render(Conversation([Turn(text, text)]))
    assert len(turns[0].answer[0].text) > 9_000_000
    with pytest.raises(InvalidRowError, match=r"of text|64 MiB"):
        JinjaTemplate(TEMPLATES["usual"], {}, None, ["<|end|>"]).render(Conversation([Turn(text * 7, "b")]))


def test_filters_without_a_bound_are_no_filters() -> None:
    with pytest.raises(ConfigError, match="No filter named 'wordwrap'"):
        JinjaTemplate("{{ 'x' | wordwrap(1) }}", {})
