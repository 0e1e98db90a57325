"""The sandbox of chat templates: what transformers' has, and nothing that a stranger's template could misuse."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.data import template as template_module
from tunesmith.data.template import ChatTemplate, TemplateRefusesError
from tunesmith.errors import InputRefused

TURNS = [{"role": "user", "content": "a <b> & 'c' é"}, {"role": "assistant", "content": "d"}]


def text_of(source: str, *, tools: Any = None, turns: Any = TURNS) -> str:
    made = ChatTemplate(source, special_tokens={"bos_token": "<s>", "eos_token": "</s>"})
    return made.render(turns, tools=tools, add_generation_prompt=False)


@pytest.mark.slow  # the import of transformers
@pytest.mark.parametrize(
    "source",
    [
        "{{ bos_token }}{% for m in messages %}\n    {{ m.role }}: {{ m['content'] }}\n{% endfor %}\n{{ eos_token }}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
        "{{ messages | tojson }}{{ messages | tojson(indent=2) }}",
        "{% generation %}{{ messages[0].content | trim }}{% endgeneration %}!",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n * 3 % 4 }}",
        "{{ dict(a=1)['a'] }}{{ messages | length }}{{ '-' * 3 }}{{ messages[0].content.split(' ')[-1] }}",
        "{% macro show(m) %}[{{ m.content }}]{% endmacro %}{% for m in messages %}{{ show(m) }}{% endfor %}",
        "{% if tools is defined and tools %}{{ tools }}{% else %}none{% endif %}{{ documents is none }}",
    ],
)
def test_text_is_that_of_transformers(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    expected, _ = render_jinja_template(
        [TURNS], chat_template=source, add_generation_prompt=False, bos_token="<s>", eos_token="</s>"
    )
    assert text_of(source) == expected[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ 'x' * 10000000 }}",
        "{{ [1] * 10000000 }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 9 ** 999999 }}",
        "{{ '{:>1000000000}'.format('x') }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'x' * 1000 }}{% endfor %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('no') }}",
        "{{ nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{{ messages[0].content.no_such_method() }}",
    ],
)
def test_template_that_misbehaves_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_OUTPUT_CHARACTERS", 1_000_000)
    with pytest.raises(TemplateRefusesError):
        text_of(source)


def test_template_that_runs_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_SECONDS", 0.05)
    with pytest.raises(TemplateRefusesError, match="runs longer"):
        text_of("{% for i in range(99999) %}{% for j in range(99999) %}{{ '' }}{% endfor %}{% endfor %}")


def test_the_clock_is_not_there() -> None:
    assert text_of("{% if strftime_now is defined %}today{% else %}26 Jul 2024{% endif %}") == "26 Jul 2024"
    with pytest.raises(TemplateRefusesError, match="clock"):
        text_of("{{ strftime_now('%Y') }}")


def test_template_that_does_not_compile_is_refused_with_a_way_out() -> None:
    with pytest.raises(InputRefused) as refused:
        text_of("{% for m in messages %}")
    assert refused.value.code == "TEMPLATE_UNREADABLE"
    assert "--render plain" in (refused.value.hint or "")
