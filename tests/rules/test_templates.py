"""What templates give, what they refuse, and what they cannot do."""

from __future__ import annotations

import copy
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.filters import ZONE, TemplateError
from rules.templates import FILTERS, about_syntax, compile_template, is_template
from rules.vocabulary import Problem
from rules.yaml_reader import Position, SourceMap, read

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
    places = SourceMap("rules.yaml", **positions)
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
        ("{{ data.x", "{{ is not closed: write }} after the expression"),
        ("{% if data.x %}", "{% if %} is not closed: write {% endif %}"),
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
    """In a literal block the line inside it counts; any other text is told at its own place."""
    path = ("rules", 0, "description")
    text = "first\nsecond {{ contact.nme }}\n"
    _, faults = compiled(text, path, values={path: Position("rules.yaml", 10, 22, literal=True)})
    assert faults[0].startswith("rules.yaml:12:1: rules.0.description: template: line 2 of the text: ")
    _, faults = compiled(text, path, values={path: Position("rules.yaml", 10, 22)})
    assert faults[0].startswith("rules.yaml:10:22: rules.0.description: template: line 2 of the text: ")
    _, faults = compiled("{{ contact.nme }}", path, values={path: Position("rules.yaml", 10, 22)})
    assert faults[0].startswith("rules.yaml:10:22: rules.0.description: template: ")


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("r.yaml:3:1: a: ", "a: |\n  one\n  {{ contact.nme }}\n"),
        ("r.yaml:4:1: a: ", "a: |-  # said\n\n  one\n  {{ contact.nme }}\n"),
        ("r.yaml:2:1: a: ", "a: |\n  {{ contact.nme }}"),
        ("r.yaml:1:4: a: ", "a: >\n  one\n\n\n  {{ contact.nme }}\n"),
        ("r.yaml:1:4: a: ", "a: one\n\n  {{ contact.nme }}\n"),
        ("r.yaml:1:4: a: ", 'a: "one\n\n  {{ contact.nme }}"\n'),
        ("r.yaml:1:4: a: ", 'a: "one\\n{{ contact.nme }}"\n'),
        ("r.yaml:1:4: a: ", "a: 'one\n\n  {{ contact.nme }}'\n"),
    ],
)
def test_the_form_of_a_yaml_text_decides_where_a_fault_is_told(expected, text):
    """Only the lines of a literal block are the file's; folded, plain and quoted texts are told where they begin."""
    value, places = read(text, "r.yaml")
    assert compile_template(value["a"], places, ("a",)) is None
    assert str(places.faults[0]).startswith(expected)


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
        ("{% for i in range(1000) %}{% for j in range(1000) %}x{% endfor %}{% endfor %}", "1,000 turns"),
        ("{% set a = data.long %}" + "{% set a = a ~ a %}" * 30, "more than 100,000 characters"),
        ("{% set a = data.long %}" + "{% set a = a + a %}" * 30, "too large"),
        ("{% for i in range(1000) %}{{ data.long }}{% endfor %}", "more than 100,000 characters"),
        ("{{ data.long | replace('x', data.long) }}", "more than 100,000 characters"),
        ("{{ range(1000) | join(data.long) }}", "more than 100,000 characters"),
        ("{{ 5 | round(-999999999) }}", "from 0 to 10"),
        ("{{ [[1], [2]] | sum }}", "is no number"),
        ("{{ 1 / 0 }}", "1 / 0: nothing can be divided by zero"),
        ("{{ data.value + 'x' }}", "write ~ instead of +"),
        ("{{ data.tags[0].upper }}", "without ()"),
        ("x {{ data.tags[0].upper }}", "without ()"),
        ("{{ none }}", "gives null"),
        ("{{ 1e308 * 10 }}", "JSON"),
        ("{{ data.value | truncate }}", "truncate does not work on 12000"),
        ("{{ data.tags | sort(attribute='x') | first }}", "missing"),
    ],
)
def test_a_slip_costs_a_message_and_not_the_worker(text, part):
    """Repetition, powers, loops and doublings end at their bounds, and every failure is a TemplateError."""
    with pytest.raises(TemplateError) as refused:
        rendered(text)
    assert part in str(refused.value)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("an expression is missing before }}", "{{ }}"),
        ("an expression is missing before %}", "{% if %}x{% endif %}"),
        ("a text is opened with ' and not closed", "{{ 'abc }}"),
        ("the character & means nothing here; write and", "{{ data.x & data.y }}"),
        ("name stands where }} must follow: is an operator, a comma", "{{ contact name }}"),
        ("= means nothing here: to compare, write ==", "{% if data.x = 1 %}{% endif %}"),
        ("a value is missing before }}", "{{ data.x == }}"),
        ("a bracket is opened and not closed: ) must come before }", "{{ (1 }}"),
        (") closes a bracket that was never opened", "{{ 1) }}"),
        ("one } closes nothing here: {{ ends with }}", "{{ data.x }"),
        ("a name is missing after the point", "{{ data. }}"),
        ("{% is not closed: write %}", "{% if data.x"),
        ("{% for %} is not closed: write {% endfor %}", "{% for x in data.y %}"),
        ("{% endfor %} stands where {% endif %} must come first", "{% if data.x %}{% endfor %}"),
        ("{% endif %} belongs to nothing", "{% endif %}"),
        ("data stands where the word in must follow", "{% for x data.y %}{% endfor %}"),
        ("templates have no foo; there is {% if %}", "{% foo %}"),
        ("a word is missing after {%", "{% %}"),
        ("set needs a value", "{% set x %}"),
        ("this cannot be set", "{% set 5 = 1 %}"),
        ("{# is not closed: write #}", "{# x"),
        ("templates have no raw", "{% raw %}x"),
        ("an argument without a name", "{{ data.x | money(decimals=2, 'USD') }}"),
        ("a test stands behind a test", "{{ data.x is defined is none }}"),
        ("the names in a mapping are texts in quotes", "{{ {data.x: 1} }}"),
    ],
)
def test_a_mistake_in_writing_is_told_in_plain_words(expected, text):
    """Messages about a template speak of what stands in it, not of Jinja2's tokens."""
    template, faults = compiled(text)
    assert template is None
    assert expected in faults[0]


@pytest.mark.parametrize("message", ["", "something new", "Expected an expression, got 'x'"])
def test_an_unknown_message_leads_to_an_example(message):
    """What Jinja2 may say in another version is not passed on."""
    assert "here" in about_syntax(message) or "missing" in about_syntax(message)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("a text < a number: only values of one kind have an order", "{{ data.tags[0] < 5 }}"),
        ("this does not work with a text", "{{ -data.tags[0] }}"),
        ("this does not work with a number", "{{ data.value[1:] }}"),
        ("for goes through a list, not through 12000", "{% for x in data.value %}{% endfor %}"),
        ("the if in this expression did not hold and has no else", "{{ 5 if false }}"),
        ("5 // 0: nothing can be divided by zero", "{{ 5 // 0 }}"),
        ('"x" is followed by ()', "{{ 'x'() }}"),
        ("loop is followed by ()", "{% for x in data.tags %}{{ loop() }}{% endfor %}"),
        ('split() does not work on "vip" with (5)', "{{ data.tags[0].split(5) }}"),
        ("sort does not work on", "{{ [1, 'a'] | sort }}"),
        ("divisibleby does not work on 5 with (0)", "{{ 5 is divisibleby 0 }}"),
        ("range takes whole numbers", "{{ range('x') }}"),
        ("an item is taken from a list or a text that is empty", "{{ [] | first }}"),
        ("write the name of a field or the number of an item", "{{ data[data.tags] }}"),
        ("look at the filters, loops and sums", "{% for a, b in [[1]] %}{% endfor %}"),
        ("the numbers are too large", "{{ 2.0 ** 99999 }}"),
    ],
)
def test_a_failed_rendering_is_told_in_plain_words(expected, text):
    """Messages of a dead task name the value and the remedy, not a Python type."""
    with pytest.raises(TemplateError) as refused:
        rendered(text)
    assert expected in str(refused.value)


#: As large as an event can be: lists, texts and words near the limit of a payload.
LARGE = {
    "list": ["x"] * 100_000,
    "text": "xyz" * 300_000,
    "words": "a b " * 250_000,
    "piece": "x" * 200_000,
    "fields": {str(number): number for number in range(50_000)},
}
NESTED = "{% set a = [1, 1, 1, 1, 1, 1, 1, 1] %}" + "".join(
    f"{{% set {name} = [{inner}, {inner}, {inner}, {inner}] %}}"
    for inner, name in zip("abcdefghijklmnop", "bcdefghijklmnopq", strict=True)
)
TWICE = "{{% for a in range(1000) %}}{{% for b in range(9) %}}{}{{% endfor %}}{{% endfor %}}"


@pytest.mark.parametrize(
    "text",
    [
        *(
            NESTED + expression
            for expression in (
                "{{ q }}",
                "x {{ q }}",
                "{{ q | string }}",
                "{{ q | tojson }}",
                "{{ q ~ 'x' }}",
                "{{ {'x': q} }}",
                "{{ data.absent | default(q) }}",
                "{{ 'x'.strip(q) }}",
                "{% for x in q %}{{ x }}{% endfor %}",
                "{{ [q] | unique }}",
                "{{ q is iterable }}",
            )
        ),
        "{% set a = [data.piece] %}" + "{% set a = [a, a, a, a, a, a, a, a, a, a] %}" * 10 + "{{ a }}",
        *(
            TWICE.format(f"{{% set x = {expression} %}}")
            for expression in (
                "'q' in data.list",
                "data.text.strip('xyz')",
                "data.text.rsplit('q')",
                "data.words.split()",
                "data.words | wordcount",
                "data.list[1:]",
                "data.text[1:]",
                "data.list | map('upper')",
                "data.list + data.list",
                "data.fields | items",
                "data.text is lower",
            )
        ),
        "{{ data.list | map('join', data.text) }}",
        "{{ data.text.rsplit(data.piece) }}",
        "{{ data.list | select('in', data.list) }}",
        "{{ range(1000) | map('default', data.list) | map('length') | map('default', data.list) | list | string }}",
    ],
)
def test_no_combination_works_without_end(text):
    """However large an event is: what a template names of it, and what a filter is given, is refused beyond a size."""
    template, faults = compiled(text)
    assert [] == faults
    with pytest.raises(TemplateError, match="too large"):
        template.render({**VIEW, "data": LARGE})


def test_an_ordinary_large_value_is_worked_with():
    """A long letter or a list of a thousand is no reason to refuse a template."""
    view = {**VIEW, "data": {"letter": "word " * 10_000, "rows": [{"n": number} for number in range(900)]}}
    assert "Word word" == rendered("{{ data.letter.split()[:2] | join(' ') | capitalize }}", view)
    assert "x" * 900 == rendered("{% for row in data.rows %}{% if row.n >= 0 %}x{% endif %}{% endfor %}", view)
    assert 404_550 == rendered("{{ data.rows | map(attribute='n') | sum }}", view)


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
        ("{{ data.long | phone }}", "is no phone number"),
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


@given(st.sampled_from(sorted(FILTERS)), arguments, json_values)
def test_every_filter_is_total(name, argument, value):
    """Whatever stands before and behind it, a filter gives JSON or a TemplateError."""
    template, faults = compiled(f"{{{{ data.x | {name}{argument} }}}}")
    assert [] == faults
    with suppress(TemplateError):
        assert template.render({**VIEW, "data": {"x": value}}) is not None


@given(
    st.sampled_from(
        ["{{ data.x }}", "{{ data.x | default('-') }}", "a {{ data.x }}", "{{ data.x | default(1) }} b {{ type }}"]
    ),
    json_values,
)
def test_a_plain_template_gives_what_jinja_gives(text, value):
    """Texts and fields are rendered without Jinja2 while they are there, and nothing comes out another way."""
    view = {**VIEW, "data": {"x": value}}
    template, _ = compiled(text)
    simple = template._parsed.simple(view)
    assert simple is None or (simple, type(simple)) == ((by_jinja := template._render_by_jinja(view)), type(by_jinja))


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
