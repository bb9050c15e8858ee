"""Templates of checkpoints: harmless ones run as anywhere, hostile ones reach nothing and end soon."""

import time

import pytest

from mmjax.data.sandbox import Template, TemplateError

MESSAGES = [dict(role="user", content="hi"), dict(role="assistant", content="yo\nyo")]
GROW = (
    "{% set ns = namespace(a='xxxxxxxxxx') %}{% for i in range(60) %}{% set ns.a = GROWN %}{% endfor %}{{ ns.a }}"
)
NEST = "{% set ns = namespace(a=['x']) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}"


def render(source):
    return Template(source).render(messages=MESSAGES)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role|upper }}{% endfor %}",
            "ASSISTANT",
        ),
        (
            "{{ messages|tojson }}",
            '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo\\nyo"}]',
        ),
        ("{{ {'a': '<é>'}|tojson(indent=2) }}", '{\n  "a": "<é>"\n}'),
        ("{{ messages|map(attribute='role')|join('|') }}", "user|assistant"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ messages[::-1]|length }}", "12"),
        ("{{ messages[1].content|indent(2) }}{{ messages[1]['content'].split('\\n')[-1] }}", "yo\n  yoyo"),
        (
            "{% macro m(x) %}<{{ x }}{{ caller() if caller }}>{% endmacro %}"
            "{{ m(3) }}{% call m(4) %}in{% endcall %}",
            "<3><4in>",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for i in range(5) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "10",
        ),
        ("{% generation %}{{ 'a' ~ 1 ~ none }}{% endgeneration %}", "a1None"),
        ("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}", "role=user;content=hi;"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc{{ strftime_now('%Y')|length }}", "a\nb\nc4"),
        (
            "{{ tools is defined }}{{ tools is none }}{{ 'x' in 'xyz' }}{{ 'a-b'.replace('-', '+') }}",
            "FalseFalseTruea+b",
        ),
    ],
)
def test_what_templates_need(source, expected):
    assert render(source) == expected


HOSTILE = {
    "{{ ''.__class__ }}": "attribute '__class__'",
    "{{ ''['__class__'].__mro__ }}": "attribute '__class__'",
    "{{ messages|map(attribute='__class__')|list }}": "attribute '__class__'",
    "{{ messages|sum(attribute='__class__') }}": "attribute '__class__'",
    "{{ messages|attr('__class__') }}": "No filter named 'attr'",
    "{{ namespace.__init__.__globals__ }}": "attribute '__init__'",
    "{{ raise_exception.__globals__ }}": "attribute '__globals__'",
    "{{ cycler.__init__.__globals__.os }}": "attribute '__init__'",
    "{{ self._TemplateReference__context }}": "attribute '_TemplateReference__context'",
    "{% macro m() %}{% endmacro %}{{ m._func }}": "attribute '_func'",
    "{% set ns = namespace(__class__=1) %}": "sets the attribute",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}": "sets the attribute",
    "{{ messages.append(1) }}": "attribute 'append'",
    "{{ messages[0].update({'a': 1}) }}": "attribute 'update'",
    "{{ '{0.__class__}'.format('') }}": "calls 'format'",
    "{{ '%10000000000d' % 1 }}": "formats text by %",
    "{{ (5).to_bytes(1000000000) }}": "calls 'to_bytes'",
    "{{ 'x'.center(10000000000) }}": "calls 'center'",
    "{{ strftime_now('%999999999d') }}": "formats a time",
    "{% import 'os' as os %}": "no loader",
    "{% include '/etc/passwd' %}": "no loader",
    "{{ lipsum(1000000) }}": "'lipsum' is undefined",
    "{{ 'x' * 10000000000 }}": "more text",
    "{{ [1] * 10000000000 }}": "more text",
    "{{ 9 ** 9 ** 9 }}": "beyond all bounds",
    "{% for i in range(1000000000) %}{% endfor %}": "Range too big",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "more steps",
    "{% set r = range(99999) %}{% for a in r %}{% for b in r if b < 0 %}{% endfor %}{% endfor %}": "more steps",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}": "more steps",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}": "recursion",
    GROW.replace("GROWN", "ns.a + ns.a"): "more text",
    GROW.replace("GROWN", "ns.a ~ ns.a"): "more text",
    GROW.replace("GROWN", "ns.a.replace('x', ns.a)"): "more text",
    GROW.replace("GROWN", "ns.a|replace('x', ns.a)"): "more text",
    GROW.replace("GROWN", "ns.a.join(ns.a)"): "more text",
    GROW.replace(
        "{% set ns.a = GROWN %}", "{% set b %}{{ ns.a }}{{ ns.a }}{% endset %}{% set ns.a = b %}"
    ): "more text",
    NEST + "{{ ns.a }}": "more text",
    NEST + "{{ ns.a|tojson }}": "more text",
    NEST + "{{ ns.a ~ '' }}": "more text",
    NEST + "{{ ns.a|string }}": "more text",
    "{{ range(90000)|map('string')|join('x' * 1000) }}": "more text",
    "{{ messages|tojson(indent=1000000000) }}": "indents",
    "{{ 'a\nb'|indent(1000000000) }}": "indents",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}": "recursion",
    "{{ " + "x" * 300_000 + " }}": "300,006 characters",
}


@pytest.mark.parametrize("source", HOSTILE, ids=lambda source: source[:40])
def test_hostile_templates_are_refused(source):
    begun = time.perf_counter()
    with pytest.raises(TemplateError, match=HOSTILE[source]):
        render(source)
    assert time.perf_counter() - begun < 10
