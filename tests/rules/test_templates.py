"""What templates give, what they refuse, and what they cannot do."""

from __future__ import annotations

import copy
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rules.places import Places, Position
from rules.template_sandbox import FILTERS
from rules.templates import ZONE, TemplateError, compile_template, is_template
from rules.vocabulary import Problem

VIEW = {
    "id": "ev_1",
    "type": "lead.created",
    "now": "2026-03-02T13:00:00.000Z",
    "attempt": None,
    "contact": {"name": "Ana López", "phone": "+56911112222", "country": "CL", "email": None},
    "data": {
        "value": 12_000,
        "ratio": 1.5,
        "flag": True,
        "tags": ["vip", "web"],
        "items": {"size": 2},
        "nothing": None,
        "when": "2026-03-02T13:00:00Z",
        "odd key": "odd",
        "long": "x" * 1_000,
        "rows": [{"n": 1}, {"n": 2}, {"n": None}],
    },
    ZONE: "America/Santiago",
}


def compiled(text, path=("rules", 0, "title"), **positions):
    """Read a template; return it and what is wrong with it."""
    places = Places("rules.yaml", **positions)
    template = compile_template(text, places, path)
    return template, [str(fault) for fault in places.faults]


def rendered(text, view=VIEW):
    """Read and render a template that is good."""
    template, faults = compiled(text)
    assert [] == faults
    return template.render(view)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("Call Ana López", "Call {{ contact.name }}"),
        ("+56911112222", "{{ contact.phone }}"),
        (12_000, "{{ data.value }}"),
        (1.5, "{{ data.ratio }}"),
        (True, "{{ data.flag }}"),
        (["vip", "web"], "{{ data.tags }}"),
        ({"size": 2}, "{{ data.items }}"),
        (2, "{{ data.items.size }}"),
        ("12000", "{{ data.value }}{{ '' }}"),
        (' ["vip", "web"] true 1.5', " {{ data.tags }} {{ data.flag }} {{ data.ratio }}"),
        (12_000, "{{ data.value }}\n"),
        ("vip", "{{ data.tags[0] }}"),
        ("vip", "{{ data.tags.0 }}"),
        ("odd", "{{ data['odd key'] }}"),
        (
            "1: vip, 2: web",
            "{% for t in data.tags %}{{ loop.index }}: {{ t }}{% if not loop.last %}, {% endif %}{% endfor %}",
        ),
        ("big", "{% if data.value > 10000 %}big{% else %}small{% endif %}"),
        ("ANA LÓPEZ", "{{ contact.name.upper() }}"),
        ("Ana", "{{ contact.name.split()[0] }}"),
        (["VIP", "WEB"], "{{ data.tags | map('upper') }}"),
        ("12000 and 1.5", "{{ data.value ~ ' and ' ~ data.ratio }}"),
        (24_000, "{{ data.value * 2 }}"),
        ([0, 1, 2], "{{ range(3) }}"),
        ("x", "{% set name = 'x' %}{{ name }}"),
        ('{"size": 2}', "{{ data.items | tojson }}"),
        (3, "{{ 2.5 | round }}"),
        (3, "{{ [1, 2] | sum }}"),
    ],
)
def test_a_template_gives_text_and_a_lone_expression_its_value(expected, text):
    """One expression alone keeps the type of its value; anything else is a text."""
    assert expected == rendered(text)
    assert type(expected) is type(rendered(text))


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("none", "{{ data.absent | default('none') }}"),
        ("none", "{{ data.nothing | default('none') }}"),
        ("none", "{{ data.a.b.c | default('none') }}"),
        ("none", "{{ data.nothing.x['y'] | default('none') }}"),
        ("none", "{{ attempt | default('none') }}"),
        ("none", "{{ data.tags[7] | default('none') }}"),
        ("none", "{{ data.value.deeper | default('none') }}"),
        ("none", "{{ '' | default('none', true) }}"),
        (False, "{{ data.nothing is defined }}"),
        (True, "{{ data.nothing is none }}"),
        ("1 2 - ", "{% for row in data.rows %}{{ row.n | default('-') }} {% endfor %}"),
    ],
)
def test_null_is_undefined_and_default_replaces_both(expected, text):
    """`default` helps where a field is absent, null, or below something that is."""
    assert expected == rendered(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.absent", "{{ data.absent }}"),
        ("data.absent", "a {{ data.absent }}"),
        ("data.a.b.c", "{{ data.a.b.c }}"),
        ("data.nothing", "a {{ data.nothing }}"),
        ("contact.email", "{{ contact.email | upper }}"),
        ("contact.email", "{{ contact.email | first_name }}"),
        ("attempt", "{{ attempt }}"),
        ("data.tags[7]", "{{ data.tags[7] }}"),
        ('data["no key"]', "{{ data['no key'] }}"),
        ("data.absent", "{% if data.absent %}x{% endif %}"),
        ("data.absent", "{% for x in data.absent %}x{% endfor %}"),
        ("data.absent", "{{ [data.absent] }}"),
        ("data.absent", "a {{ {'b': data.absent} }}"),
        ("data.absent", "{{ data.absent ~ 'x' }}"),
        ("data.absent", "{{ data.absent + 1 }}"),
        ("data.absent", "{{ data.absent * 2 }}"),
        ("data.absent", "{{ data.absent == 1 }}"),
        ("data.absent", "{{ data.absent[:3] }}"),
        ("data.absent", "{{ data.absent | money }}"),
    ],
)
def test_what_is_missing_is_named(name, text):
    """A missing or null field that is used ends the rendering with its full name and the remedy."""
    with pytest.raises(TemplateError) as refused:
        rendered(text)
    assert f"{name} is missing; where it may be, write {{{{ {name} | default('...') }}}}" == str(refused.value)
    assert isinstance(refused.value, Problem)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{{ contact.nme }}", "did you mean contact.name?"),
        ("{{ value }}", "did you mean data.value?"),
        ("{{ contact.name | uper }}", "there is no filter uper; did you mean upper? allowed are abs"),
        ("{{ data.x is defnied }}", "there is no test defnied; did you mean defined?"),
        ("{{ data.x", "unexpected end of template"),
        ("{% if data.x %}", "Unexpected end of template"),
        ("{% macro f() %}{% endmacro %}", "templates have no macro"),
        ("{% include 'x' %}", "templates have no include"),
        ("{% set x %}y{% endset %}", "templates have no set blocks"),
        ("{% for x in data.y recursive %}{{ loop(x) }}{% endfor %}", "no recursive loops"),
        ("{% filter upper %}x{% endfilter %}", "no filter blocks"),
        ("{{ self }}", "an event has no self"),
        ("{{ _budget }}", "an event has no _budget"),
        ("{% set _budget = 1 %}", "cannot be set"),
        ("{% set data = 1 %}", "cannot be set"),
        ("{{ contact.__class__ }}", "contact has no __class__"),
        ("{{ lipsum() }}", "an event has no lipsum"),
        ("{{" + "(" * 5_000 + "1" + ")" * 5_000 + "}}", "nested too deep"),
        ("{{ 1" + " + 1" * 500 + " }}", "nested too deep"),
        ("{{ " + "1" * 5_000 + " }}", "too many digits"),
        ("{{ data.x }}" + "x" * 20_000, "20,000 are allowed"),
    ],
)
def test_a_faulty_template_is_refused_when_it_is_read(text, part):
    """Syntax, names, filters and statements are checked before there is an event."""
    template, faults = compiled(text)
    assert template is None
    assert part in faults[0]


def test_a_fault_is_told_at_its_line():
    """In a block of several lines the line inside it counts; a text on one line is told at its own place."""
    path = ("rules", 0, "description")
    positions = {path: Position("rules.yaml", 10, 22)}
    _, faults = compiled("first\nsecond {{ contact.nme }}\n", path, values=positions)
    assert faults[0].startswith("rules.yaml:12:1: rules.0.description: template: line 2 of the text: ")
    _, faults = compiled("{{ contact.nme }}", path, values=positions)
    assert faults[0].startswith("rules.yaml:10:22: rules.0.description: template: ")


def test_a_template_knows_its_text_and_place():
    """What was compiled can be told: the text and where it stands."""
    template, _ = compiled("{{ data.x }}", ("a",), values={("a",): Position("rules.yaml", 3, 4)})
    assert ("{{ data.x }}", "rules.yaml:3:4") == (template.text, template.place)


def test_fields_without_default_are_known():
    """A field that is used without `default` and without `is defined` is one the task depends on."""
    text = (
        "{{ contact.name.upper() }} {{ data.a | default('x') }} {{ data.list[0] }} {{ type }}"
        "{% if data.b is defined %}{{ data.b }}{% endif %}{% for t in data.tags %}{{ t.x }}{% endfor %}"
    )
    assert ("contact.name", "data.list[0]", "data.tags") == compiled(text)[0].optional_fields


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{{ '-' * 100000000 }}", "both must be numbers"),
        ("{{ [1] * 100000000 }}", "both must be numbers"),
        ("{{ 9 ** 9 ** 9 }}", "too large"),
        ("{% set a = 99999999 %}" + "{% set a = a * a %}" * 30, "too large"),
        ("{{ '%0500000000d' % 1 }}", "both must be numbers"),
        ("{{ data.tags[0].ljust(200000000) }}", "a text has only"),
        ("{{ '{0:>200000000}'.format(1) }}", "a text has only"),
        ("{{ data.tags.append('x') }}", "missing"),
        ("{{ ''.__class__.__mro__ }}", "a text has only"),
        ("{{ range(1001) | list }}", "1,000 numbers are allowed"),
        ("{% for i in range(1000) %}{% for j in range(1000) %}x{% endfor %}{% endfor %}", "10,000 turns"),
        ("{% set a = data.long %}" + "{% set a = a ~ a %}" * 30, "more than 100,000 characters"),
        ("{% set a = data.long %}" + "{% set a = a + a %}" * 30, "5,000,000"),
        ("{% for i in range(1000) %}{{ data.long }}{% endfor %}", "more than 100,000 characters"),
        ("{{ data.long | replace('x', data.long) }}", "more than 100,000 characters"),
        ("{{ range(1000) | join(data.long) }}", "more than 100,000 characters"),
        ("{{ 5 | round(-999999999) }}", "from 0 to 10"),
        ("{{ [[1], [2]] | sum }}", "is no number"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ data.value + 'x' }}", "write ~ instead of +"),
        ("{{ data.tags[0].upper }}", "builtin_function"),
        ("x {{ data.tags[0].upper }}", "without ()"),
        ("{{ none }}", "gives null"),
        ("{{ 1e308 * 10 }}", "JSON"),
        ("{{ data.value | truncate }}", "TypeError"),
        ("{{ data.tags | sort(attribute='x') | first }}", "missing"),
    ],
)
def test_a_slip_costs_a_message_and_not_the_worker(text, part):
    """Repetition, powers, loops and doublings end at their bounds, and every failure is a TemplateError."""
    with pytest.raises(TemplateError) as refused:
        rendered(text)
    assert part in str(refused.value)


def test_rendering_changes_nothing():
    """An event is the same after every template."""
    before = copy.deepcopy(VIEW)
    rendered("{% set x = data.tags | sort %}{% set y = data.tags | reverse | list %}{{ x }}")
    assert before == VIEW


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("+56 911112222", "{{ '911112222' | phone }}"),
        ("+56911112222", "{{ contact.phone | phone('e164') }}"),
        ("(202) 555-0123", "{{ '+12025550123' | phone('national') }}"),
        ("12,000", "{{ data.value | money }}"),
        ("12,000.50", "{{ '12000.5' | money }}"),
        ("USD 12,000.00", "{{ data.value | money('USD', 2) }}"),
        ("1.234.567,89", "{{ 1234567.891 | money(thousands='.') }}"),
        ("-1 000", "{{ -1000 | money(thousands=' ') }}"),
        ("0.13", "{{ 0.125 | money }}"),
        ("2026-03-02", "{{ data.when | date }}"),
        ("2026-03-03", "{{ '2026-03-02T22:00:00Z' | date('Asia/Tokyo') }}"),
        ("02/03/2026", "{{ data.when | date(form='%d/%m/%Y') }}"),
        ("2026-12-01", "{{ '2026-12-01' | date('Asia/Tokyo') }}"),
        ("10:00", "{{ data.when | local_time }}"),
        ("08:00", "{{ data.when | local_time('America/Lima') }}"),
        ("14:30", "{{ '2026-12-01T14:30' | local_time }}"),
        ("Ana", "{{ contact.name | first_name }}"),
        ("Ana", "{{ 'López, Ana María' | first_name }}"),
    ],
)
def test_the_filters_do_what_their_documentation_says(expected, text):
    """Phones, amounts, dates and times for people, in the contact's zone."""
    assert expected == rendered(text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{{ 'abc' | phone }}", 'phone: "abc" is no phone number'),
        ("{{ contact.phone | phone('x') }}", "write one of international, national, e164"),
        ("{{ contact.name | money }}", "is no amount"),
        ("{{ true | money }}", "is no text"),
        ("{{ 1e300 | money }}", "is no amount"),
        ("{{ 5 | money(decimals=99) }}", "from 0 to 10"),
        ("{{ 5 | money(thousands='x') }}", "thousands is"),
        ("{{ 'tomorrow' | date }}", "write ISO 8601"),
        ("{{ data.when | date('%d/%m') }}", 'form="%d/%m/%Y"'),
        ("{{ data.when | date(form='%c') }}", "the form"),
        ("{{ data.when | local_time('Nowhere') }}", "is no time zone"),
        ("{{ '2026-12-01' | local_time }}", "has no time of day"),
        ("{{ ' ' | first_name }}", "there is no name"),
        ("{{ data.tags | first_name }}", "is no text"),
    ],
)
def test_a_filter_says_what_it_cannot_work_with(text, part):
    """Bad input is a message with the remedy."""
    with pytest.raises(TemplateError) as refused:
        rendered(text)
    assert part in str(refused.value)


def test_without_a_zone_a_time_needs_one():
    """Where the contact's zone is not known, `date` and `local_time` ask for one instead of guessing."""
    with pytest.raises(TemplateError, match="the zone of the contact is not known"):
        rendered("{{ data.when | local_time }}", {**VIEW, ZONE: None})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
arguments = st.sampled_from(["", "('x')", "(5)", "(none)", "('America/Lima')", "('a', 'b')", "(attribute='x')", "(-1)"])


@settings(deadline=None)
@given(st.sampled_from(sorted(FILTERS)), arguments, json_values)
def test_every_filter_is_total(name, argument, value):
    """Whatever stands before and behind it, a filter gives JSON or a TemplateError."""
    template, faults = compiled(f"{{{{ data.x | {name}{argument} }}}}")
    assert [] == faults
    with suppress(TemplateError):
        assert template.render({**VIEW, "data": {"x": value}}) is not None


@settings(deadline=None)
@given(st.text(st.sampled_from("{}%# dataxif().|'\"[]+-*~1\n"), max_size=40))
def test_any_text_is_refused_or_renders_or_says_why_not(text):
    """Reading never fails; rendering gives JSON or a TemplateError."""
    template, faults = compiled(text)
    assert (template is None) == bool(faults)
    with suppress(TemplateError):
        assert template is None or template.render(VIEW) is not None


def test_marks_make_a_template():
    """Expressions, statements and comments are marks; other braces are text."""
    assert all(is_template(text) for text in ("{{ x }}", "{% if x %}", "a {# b #}"))
    assert not any(is_template(text) for text in ("", "{x}", "100 %"))
