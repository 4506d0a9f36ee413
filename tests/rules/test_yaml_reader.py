from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.yaml_reader import ALIAS_LIMIT, FILE_LIMIT_BYTES, LEVEL_LIMIT, Position, read


def faults(text, **options):
    """Return what is wrong with a text, as it is printed."""
    value, places = read(text, "f.yaml", **options)
    assert options or value is None
    return [str(fault) for fault in places.faults]


def one(scalar):
    """Return what a single scalar is read as."""
    value, places = read(f"a: {scalar}\n", "f.yaml")
    assert [] == places.faults
    return value["a"]


@pytest.mark.parametrize(
    ("expected", "scalar"),
    [
        (True, "true"),
        (False, "false"),
        (None, "null"),
        (None, "~"),
        (None, ""),
        (0, "0"),
        (12, "12"),
        (-7, "-7"),
        (1.5, "1.5"),
        (-0.25, "-0.25"),
    ],
)
def test_core_scalars_are_values(expected, scalar):
    """The constants and decimal numbers of YAML 1.2 are values of their type."""
    found = one(scalar)

    assert expected == found
    assert type(expected) is type(found)


@pytest.mark.parametrize(
    "scalar",
    [
        "on",
        "off",
        "yes",
        "no",
        "NO",
        "True",
        "NULL",
        "12:30",
        "12:30:45",
        "007",
        "0x1f",
        "0o17",
        "1_000",
        "1e3",
        "+5",
        ".5",
        "5.",
        ".inf",
        ".nan",
        "2026-11-20",
        "+56911112222",
    ],
)
def test_what_yaml_1_1_would_change_stays_text(scalar):
    """Words, times, dates, phone numbers and odd numerals are the text that is written."""
    assert scalar == one(scalar)


@pytest.mark.parametrize(("expected", "scalar"), [("1", '"1"'), ("true", "'true'"), ("null", '"null"'), ("", "''")])
def test_quoted_scalars_are_text(expected, scalar):
    """Whatever stands in quotes is text."""
    assert expected == one(scalar)


def test_block_scalars_are_text():
    """A block is text even when it looks like a number."""
    assert {"a": "12\n", "b": "x y\n"} == read("a: |\n  12\nb: >\n  x\n  y\n", "f.yaml")[0]


def test_every_key_and_value_has_its_place():
    """Keys, values, list items and flow collections know their line and column, counted from 1."""
    _, places = read("a:\n  - b: [1, {c: x}]\n  - second\n", "f.yaml")

    assert Position("f.yaml", 2, 3) == places.of_value(("a",))
    assert Position("f.yaml", 1, 1) == places.of_key(("a",))
    assert Position("f.yaml", 2, 5) == places.of_key(("a", 0, "b"))
    assert Position("f.yaml", 2, 16) == places.of_value(("a", 0, "b", 1, "c"))
    assert Position("f.yaml", 3, 5) == places.of_key(("a", 1))
    assert Position("f.yaml", 3, 5) == places.of_value(("a", 1, "unknown", 5))
    assert all(places.values.get(path) for path in ((), ("a",), ("a", 0), ("a", 0, "b"), ("a", 0, "b", 0)))
    assert all(places.keys.get(path) for path in (("a",), ("a", 0, "b"), ("a", 0, "b", 1, "c")))
    assert not any(places.keys.get(path) or places.values.get(path) for path in (("b",), ("a", 7), ("a", 0, "b", "x")))


@pytest.mark.parametrize("text", ["", "\n\n", "# only a remark\n", "---\n", b"", "\ufeff"], ids=repr)
def test_an_empty_text_is_empty_and_fine(text):
    """Nothing written is nothing wrong."""
    value, places = read(text, "f.yaml")

    assert value is None
    assert [] == places.faults


def test_a_byte_order_mark_is_no_part_of_the_text():
    """A byte order mark disappears and moves no column."""
    value, places = read(b"\xef\xbb\xbfa: 1\n", "f.yaml")

    assert {"a": 1} == value
    assert Position("f.yaml", 1, 4) == places.of_value(("a",))


def test_an_alias_stands_for_its_anchor():
    """A whole value may be used again; it is reported where it is used, its parts where they were written."""
    value, places = read("a: &x {b: 1}\nc: *x\n", "f.yaml")

    assert {"a": {"b": 1}, "c": {"b": 1}} == value
    assert value["a"] is not value["c"]
    assert Position("f.yaml", 2, 4) == places.of_value(("c",))
    assert Position("f.yaml", 1, 11) == places.of_value(("c", "b"))


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("f.yaml:1:41: 0.0.0.0: nested too deep: more than 40 levels", "[" * 100_000),
        ("f.yaml:1:81: 0.0.0.0: nested too deep: more than 40 levels", "- " * 100_000),
        ("f.yaml:1:41: nested too deep: more than 40 levels", "{" * 100_000),
        ("f.yaml:41:41: a.a.a.a: nested too deep: more than 40 levels", "".join(" " * n + "a:\n" for n in range(1000))),
    ],
    ids=["list", "dashes", "braces", "block"],
)
def test_deep_nesting_is_refused(expected, text):
    """A hundred thousand levels are refused at the forty-first, without a crash."""
    assert expected == faults(text)[-1]


def test_forty_levels_are_allowed():
    """The limit itself is still fine."""
    text = "[" * LEVEL_LIMIT + "]" * LEVEL_LIMIT

    assert json.loads(text) == read(text, "f.yaml")[0]


def test_an_alias_bomb_is_refused_at_once():
    """Aliases of aliases that stand for a billion nodes are refused before any of them is written out."""
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
    )

    assert ["f.yaml:4:10: too many aliases: together they stand for more than 1,000 nodes"] == faults(bomb)


def test_more_than_twenty_aliases_are_refused():
    """Twenty aliases are fine, the twenty-first is one too many."""
    text = "a: &a x\nb: [" + ", ".join(["*a"] * ALIAS_LIMIT)

    assert 20 == len(read(text + "]\n", "f.yaml")[0]["b"])
    assert ["f.yaml:2:85: too many aliases: more than 20 in one file"] == faults(text + ", *a]\n")


def test_aliases_cannot_nest_deeper_than_the_limit():
    """Levels are counted as if every alias were written out."""
    half = "[" * 30 + "x" + "]" * 30

    assert ["f.yaml:2:23: nested too deep: more than 40 levels when this alias is written out"] == faults(
        f"a: &a {half}\nb: {'[' * 19}*a{']' * 19}\n"
    )


def test_an_alias_inside_its_own_anchor_is_refused():
    """A value cannot contain itself."""
    assert ["f.yaml:1:8: the alias `*a` stands inside its own anchor: it would never end"] == faults("a: &a [*a]\n")


def test_a_large_file_is_refused():
    """More than one MiB is refused; one MiB is read."""
    line = "#" * 63 + "\n"

    assert ["f.yaml:1:1: the file is larger than 1 MiB: divide it into several"] == faults(
        line * (FILE_LIMIT_BYTES // 64) + "x"
    )
    assert [] == read(line * (FILE_LIMIT_BYTES // 64), "f.yaml")[1].faults
    assert ["f.yaml:1:1: the file is larger than 1 MiB: divide it into several"] == faults("é" * 600_000)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("f.yaml:2:4: the character U+0000 is not allowed: remove it", "a: 1\nb: \0\n"),
        ("f.yaml:1:4: the byte 0xff is not UTF-8: save the file as UTF-8", b"a: \xff\n"),
        ("f.yaml:1:4: the byte 0xe9 is not UTF-8: save the file as UTF-8", "a: \udce9\n"),
        ("f.yaml:1:1: the file is UTF-16: save it as UTF-8", "a: 1".encode("utf-16")),
    ],
)
def test_what_is_no_text_is_refused(expected, text):
    """Bytes that are no UTF-8 and control characters are named with their place."""
    assert [expected] == faults(text)


def test_a_number_of_many_digits_is_refused():
    """A numeral nobody can keep exactly is refused instead of being rounded."""
    assert ["f.yaml:1:4: a: a number of 400 digits cannot be kept exactly: quote it if it is text"] == faults(
        f"a: {'9' * 400}\n"
    )


def test_faulty_keys_do_not_hide_one_another():
    """Repeated keys, keys that are no text, merge keys and tags all come out in one run, with what is left."""
    text = "a: 1\na: 2\n1: x\n<<: {b: 1}\n? [c]\n: d\ne: !!str f\n? !x g\n: h\n"
    value, places = read(text, "f.yaml", salvage=True)

    assert {"a": 1, "e": "f"} == value
    assert [
        "f.yaml:2:1: a: duplicate key `a`: it already stands at f.yaml:1:1",
        'f.yaml:3:1: a key must be text: write "1" in quotes',
        "f.yaml:4:1: merge keys (`<<`) are not supported: write the keys out, or use an alias for a whole value",
        "f.yaml:5:3: a key must be text, not a list or a mapping",
        "f.yaml:7:4: e: tags (words that begin with `!`) are not supported: quote the value if it is text",
        "f.yaml:8:3: tags are not supported on keys: remove it",
    ] == [str(fault) for fault in places.faults]


def test_without_salvage_a_faulty_text_gives_no_value():
    """Whoever asks for a sound text gets none that is not."""
    assert read("a: 1\na: 2\n", "f.yaml")[0] is None


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ('f.yaml:1:4: a: YAML reads `{{` as a mapping: quote it, as in "{{ contact.name }}"', "a: {{ x }}\n"),
        ('f.yaml:1:4: a: YAML reads `{{` as a mapping: quote it, as in "{{ contact.name }}"', "a: {{ x }} and more\n"),
        ("f.yaml:1:5: YAML reads `{%` as a mapping: quote it, the whole text", "a: {% if x %}\n"),
        ("f.yaml:1:1: a tab cannot stand here: indent with spaces", "\ta: 1\n"),
        ("f.yaml:2:1: a tab cannot indent: use spaces", "a: >\n\tb\n"),
        ("f.yaml:1:4: a value cannot begin with `@`: quote it if it is text", "a: @x\n"),
        ("f.yaml:1:4: a value cannot begin with `%`: quote it if it is text", "a: %x\n"),
        ("f.yaml:1:4: this quote is never closed", "a: 'x\nb: 1\n"),
        (
            "f.yaml:1:4: this `[` is not closed, or a `,` is missing before line 2, column 2",
            "a: [1, 2\nb: 1\n",
        ),
        (
            "f.yaml:1:5: a `:` does not belong here: put the value that holds it in quotes, or check the indentation",
            "a: b: c\n",
        ),
        ("f.yaml:1:4: a list item cannot begin here: put `-` on a line of its own below the key", "a: - b\n"),
        ("f.yaml:2:1: a list item beginning with `-` is expected here: check the indentation", "- a\nb: 1\n"),
        (
            (
                "f.yaml:1:10: this is no key of the mapping that begins in line 1: "
                "check the indentation, and the quotes just before it"
            ),
            "key: 'it's'\n",
        ),
        ('f.yaml:1:4: YAML gives `*` a meaning of its own: quote it if it is text, as in "*"', "a: *\n"),
        ('f.yaml:1:4: a: no anchor `&x` stands above the alias `*x`; quote it if it is text: "*x"', "a: *x\n"),
        ("f.yaml:2:1: a file holds one document: remove this `---`, or make it a file of its own", "a: 1\n---\nb: 2\n"),
        (
            'f.yaml:1:9: inside [ ] or { } a text with a variable needs quotes, as in "${NAME}": quote it',
            "a: {b: ${X}, c: 1}\n",
        ),
    ],
)
def test_a_syntax_error_leads_to_its_cause(expected, text):
    """A text that cannot be parsed is told in plain English, at the place to look at."""
    assert expected == faults(text)[0]


@given(st.one_of(st.text(), st.binary(), st.text(alphabet="{}[]&*!|>'\"%@`-?:,# \n\tab<0.~")))
def test_reading_never_raises(text):
    """Any text and any bytes are read or refused, never a crash; without faults there is JSON."""
    value, places = read(text, "f.yaml")

    if places.faults:
        assert value is None
    else:
        json.dumps(value, allow_nan=False)
    assert all(fault.line > 0 and fault.column > 0 and "\n" not in str(fault) for fault in places.faults)


#: JSON whose keys are text as rule files take it.
_KEYS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(st.characters(codec="ascii"), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=20,
)


def paths_in(value, path=()):
    """Yield the path of a value and of all that it holds."""
    yield path
    if isinstance(value, dict | list):
        for step, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_in(child, (*path, step))


@given(_JSON)
def test_json_is_read_as_it_is(value):
    """JSON is YAML: what was written comes back, and every path has a place."""
    found, places = read(json.dumps(value), "f.yaml")

    assert [] == places.faults
    assert value == found
    assert all(places.values.get(path) for path in paths_in(value))


@pytest.mark.parametrize(
    ("literal", "text"), [(True, "a: |\n  x"), (False, "a: >\n  x"), (False, "a: x"), (False, 'a: "x"')]
)
def test_a_literal_block_is_known_as_one(literal, text):
    """Only in a literal block are the lines of the text those of the file."""
    assert literal is read(text, "f.yaml")[1].of_value(("a",)).literal
