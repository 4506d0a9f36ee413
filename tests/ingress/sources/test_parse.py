"""Bodies of every form, honest and hostile, become a value or one sentence; never another exception, never slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingress.sources.parse import DEPTH_LIMIT, UnreadableBodyError, decode
from ingress.sources.schema import BodyFormat, BodySection

SAMPLES = Path(__file__).parents[2] / "samples"
FORM = "application/x-www-form-urlencoded"


def _decode(body: bytes, format_: BodyFormat = BodyFormat.AUTO, content_type: str = "", **spec: object) -> object:
    return decode(body, content_type, BodySection(format=format_, **spec))


def test_kommos_form() -> None:
    """The published example of bracket keys gives the published result."""
    body = (SAMPLES / "kommo_form.txt").read_bytes().strip()
    expected = json.loads((SAMPLES / "kommo_form.json").read_text(encoding="utf-8"))

    assert expected == _decode(body, BodyFormat.FORM_BRACKETS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a[]=1&a[]=2", {"a": ["1", "2"]}),
        ("a[1]=x&a[0]=y", {"a": ["y", "x"]}),
        ("a[1]=x&a[2]=y", {"a": {"1": "x", "2": "y"}}),
        ("a[99999999]=1", {"a": {"99999999": "1"}}),
        ("a[00]=1", {"a": {"00": "1"}}),
        ("a[-1]=1", {"a": {"-1": "1"}}),
        ("a=1&a=2&a=3", {"a": ["1", "2", "3"]}),
        ("a=1&a[b]=2", {"a": {"b": "2"}}),
        ("a[b]=2&a=1", {"a": {"b": "2"}}),
        ("a[b=1", {"a[b": "1"}),
        ("a]b=1", {"a]b": "1"}),
        ("[a]=1", {"[a]": "1"}),
        ("a[b]c=1", {"a[b]c": "1"}),
        ("a[[b]]=1", {"a[[b]]": "1"}),
        ("=1", {"": "1"}),
        ("a", {"a": ""}),
        ("a[]", {"a": [""]}),
        ("a[²]=1", {"a": {"²": "1"}}),
        ("a=%00x", {"a": "x"}),
        ("a=%ff", {"a": "\ufffd"}),
        ("p=+56", {"p": " 56"}),
    ],
)
def test_bracket_keys(text, expected) -> None:
    """Maps keyed 0..n are lists, odd keys are names, and no key is a position that memory is taken for."""
    assert expected == _decode(text.encode(), BodyFormat.FORM_BRACKETS)


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("application/json", b'{"a": 1}', {"a": 1}),
        ("application/json; charset=utf-8", b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        ("", b' [{"a": 1}]', [{"a": 1}]),
        (FORM, b'{"a": 1}', {"a": 1}),
        ("text/plain", b'{"a": 1}', {"a": 1}),
        ("application/octet-stream", b"a=1&b=2", {"a": "1", "b": "2"}),
        (FORM, b"a=1&b[c]=2", {"a": "1", "b": {"c": "2"}}),
        ("", b"a=1", {"a": "1"}),
        (FORM, b"{a=1", {"{a": "1"}),
        ("text/xml", b"<r><a>1</a></r>", {"r": {"a": "1"}}),
        ("", b"<r><a>1</a><a>2</a></r>", {"r": {"a": ["1", "2"]}}),
        (f"{FORM}; charset=iso-8859-1", b"a=\xf1", {"a": "ñ"}),
        (FORM, b"a=\xf1", {"a": "ñ"}),
        ("application/json; charset=klingon", b'{"a": 1}', {"a": 1}),
    ],
)
def test_auto_reads_what_senders_declare_wrongly(content_type, body, expected) -> None:
    """JSON is read where it looks like JSON, whatever was declared; else the body is a form."""
    assert expected == _decode(body, content_type=content_type)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b"{",
        b"\xff\xfe{",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 100 + b"]" * 100,
        b'{"a": 1} trailing',
        b'"\x00"',
        b"multipart",
    ],
    ids=lambda body: f"{body[:12]!r}{len(body)}",
)
def test_what_is_not_json_is_said_in_a_sentence(body) -> None:
    """No traceback, no crash, and nothing of the body in the message."""
    with pytest.raises(UnreadableBodyError) as fault:
        _decode(body, BodyFormat.JSON)

    assert len(str(fault.value)) < 120


@pytest.mark.parametrize(
    "body",
    [
        b"<!DOCTYPE r [<!ENTITY a 'x'><!ENTITY b '&a;&a;'>]><r>&b;</r>",
        b"<!DOCTYPE r SYSTEM 'file:///etc/passwd'><r/>",
        b"<?xml version='1.0' encoding='klingon'?><r/>",
        b"<r>&unknown;</r>",
        b"<r>",
        b"<r/><r/>",
        b"<a>" * 100_000,
        b"\x00<r/>",
    ],
    ids=lambda body: repr(body[:30]),
)
def test_hostile_xml_is_refused(body) -> None:
    """No entity is expanded, nothing outside is read, depth is bounded."""
    with pytest.raises(UnreadableBodyError):
        _decode(body, BodyFormat.XML)


def test_xml_attributes_and_text() -> None:
    """Namespaces are dropped, attributes marked, an empty element is nothing."""
    body = b'<x:r xmlns:x="u"><i x:type="sf:Lead">t</i><e/><n><m>1</m></n></x:r>'

    assert {"r": {"i": {"@type": "sf:Lead", "#text": "t"}, "e": None, "n": {"m": "1"}}} == _decode(body, BodyFormat.XML)


def test_json_keeps_what_it_can() -> None:
    """The last of a repeated key counts, long integers stay exact, what cannot be stored is replaced."""
    body = b'{"a": 1, "a": 2, "id": 123456789012345678901234567890, "s": "x\\ud800y\\u0000z", "\\udfff": 1, "n": 1.5}'

    assert {"a": 2, "id": 123456789012345678901234567890, "s": "x\ufffdyz", "\ufffd": 1, "n": 1.5} == _decode(
        body, BodyFormat.JSON
    )


def test_depth_at_the_limit() -> None:
    """As deep as the limit is read, one level more is not."""
    assert _decode(b"[" * DEPTH_LIMIT + b"]" * DEPTH_LIMIT, BodyFormat.JSON)
    with pytest.raises(UnreadableBodyError, match="nested deeper"):
        _decode(b"[" * (DEPTH_LIMIT + 1) + b"]" * (DEPTH_LIMIT + 1), BodyFormat.JSON)


@pytest.mark.parametrize("format_", [BodyFormat.FORM, BodyFormat.FORM_BRACKETS])
def test_forms_are_bounded(format_) -> None:
    """20,000 fields are read, one more is not; a bomb of brackets is refused."""
    fields = "&".join(f"a[{number}][b]={number}" for number in range(20_000)).encode()

    assert _decode(fields, format_)
    with pytest.raises(UnreadableBodyError, match="more than 20000 fields"):
        _decode(fields + b"&x=1", format_)
    with pytest.raises(UnreadableBodyError):
        _decode(b"&" * 20, format_)
    if format_ is BodyFormat.FORM_BRACKETS:
        with pytest.raises(UnreadableBodyError, match="brackets"):
            _decode(b"a" + b"[0]" * 100_000 + b"=1", format_)


def test_appending_stays_quick() -> None:
    """Free positions are counted, not searched: twenty thousand appends after explicit ones are done at once."""
    body = "&".join([f"a[{number}]=1" for number in range(10_000)] + ["a[]=1"] * 10_000).encode()
    found = _decode(body, BodyFormat.FORM_BRACKETS)

    assert isinstance(found, dict)
    assert 20_000 == len(found["a"])


@given(
    body=st.binary(max_size=400),
    content_type=st.sampled_from(["", FORM, "application/json", "text/xml", "a/b;charset=x"]),
)
@example(body=b"<\xff", content_type="")
@example(body=b"[\x00]", content_type=FORM)
def test_any_bytes_in_any_form(body, content_type) -> None:
    """What comes out can be written as JSON and as UTF-8; what does not come out is one kind of fault."""
    for format_ in BodyFormat:
        try:
            value = decode(body, content_type, BodySection(format=format_))
        except UnreadableBodyError:
            continue
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_json_comes_out_as_it_went_in(value) -> None:
    """Apart from NUL, which no database stores, every JSON value survives."""
    text = json.dumps(value)

    assert json.loads(text.replace("\\u0000", "")) == decode(text.encode(), "", BodySection())
