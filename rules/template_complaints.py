"""What Jinja2's and Python's messages about a template mean for the author of a rule, and how to mend it.

Jinja2 speaks of its tokens ("expected token 'end of print statement'"), Python of its types. Where a message is not known
here, the place is told and no foreign words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

#: How Jinja2 names its tokens -> what stands in the text.
_TOKENS: Final = {
    "end of print statement": "}}",
    "end of statement block": "%}",
    "begin of print statement": "{{",
    "begin of statement block": "{%",
}
_ENDS: Final = {"if": "endif", "for": "endfor"}
_STATEMENTS: Final = "there is {% if %}, {% for %} and {% set x = ... %}"
_KINDS: Final = {
    "str": "a text",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "range": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}


def about_syntax(message: str) -> str:
    """Return what is wrong with a template that Jinja2 could not read, from its message."""
    for pattern, told in _SYNTAX:
        found = pattern.match(message)
        if found:
            return told(found)
    return "it cannot be read here; compare with {{ contact.name }} and {% if data.x %}...{% endif %}"


def about_missing(message: str) -> str:
    """Return what is missing, from a message that names no field."""
    if "sequence was empty" in message:
        return "an item is taken from a list or a text that is empty: add | default('...')"
    return message


def about_rendering(error: Exception) -> str:
    """Return why a template could not be rendered, from an error that nothing else has explained."""
    if isinstance(error, RecursionError | MemoryError):
        return "the values this template works on are nested too deep or too large"
    kinds = [_KINDS[name] for name in re.findall(r"'(\w+)'", str(error)) if name in _KINDS]
    compared = re.match(r"'(<|>|<=|>=)' not supported", str(error))
    if compared and len(kinds) == 2:  # noqa: PLR2004 - the two sides
        return f"{kinds[0]} {compared[1]} {kinds[1]}: only values of one kind have an order; | int makes a number"
    if isinstance(error, TypeError) and kinds:
        return (
            f"this does not work with {' and '.join(dict.fromkeys(kinds))}: what is written suits another kind of value"
        )
    return "its values cannot be worked with as it is written: look at the filters, loops and sums in it"


def _unclosed(found: re.Match[str]) -> str:
    tag = found[1]
    if tag == "set":
        return "set needs a value: write {% set x = data.value %}"
    return f"{{% {tag} %}} is not closed: write {{% {_ENDS.get(tag, f'end{tag}')} %}} where it ends"


def _unknown_tag(found: re.Match[str]) -> str:
    tag = found[1]
    opened = re.search(r"The innermost block that needs to be closed is '(\w+)'", found[0])
    if opened and (tag.startswith("end") or tag in {"else", "elif"}):
        end = _ENDS.get(opened[1], f"end{opened[1]}")
        return f"{{% {tag} %}} stands where {{% {end} %}} must come first: {{% {opened[1]} %}} is still open"
    if tag.startswith("end") or tag in {"else", "elif"}:
        opener = tag.removeprefix("end") if tag.startswith("end") else "if"
        return f"{{% {tag} %}} belongs to nothing: the {{% {opener} %}} before it is missing"
    return f"templates have no {tag}; {_STATEMENTS}"


def _ends_early(found: re.Match[str]) -> str:
    wanted = found[1]
    mark = _TOKENS.get(wanted, wanted)
    if mark == "}}":
        return "{{ is not closed: write }} after the expression"
    if mark == "%}":
        return "{% is not closed: write %} after the statement"
    return f"the text ends where {mark} must follow: something is not closed"


def _expected(found: re.Match[str]) -> str:
    wanted, got = (_TOKENS.get(name, name) for name in found.groups())
    if got == "=":
        return "= means nothing here: to compare, write =="
    if wanted in {"}}", "%}"}:
        return f"{_seen(got)} stands where {wanted} must follow: is an operator, a comma, a quote or a bracket missing?"
    return f"{_seen(got)} stands where {_wanted(wanted)} must follow"


def _wanted(word: str) -> str:
    return {"name": "a name", "string": "a text", "integer": "a number", "in": "the word in"}.get(word, word)


def _seen(word: str) -> str:
    return {"string": "a text", "integer": "a number", "float": "a number", "end of template": "the end"}.get(
        word, word
    )


def _no_expression(found: re.Match[str]) -> str:
    got = _TOKENS.get(found[1], found[1])
    if got == "}}":
        return "an expression is missing before }}: write one such as {{ contact.name }}"
    if got == "%}":
        return "an expression is missing before %}: write one such as {% if data.value > 10 %}"
    return f"an expression is missing before {_seen(got)}"


def _stray(found: re.Match[str]) -> str:
    character = found[1] if found[1] != "\\'" else "'"
    if character in {"'", '"'}:
        return f"a text is opened with {character} and not closed"
    meant = {"&": "; write and", "!": "; write not", "$": "", "?": "; write a if b else c"}.get(character, "")
    return f"the character {character} means nothing here{meant}"


def _unexpected(found: re.Match[str]) -> str:
    got, partner = _TOKENS.get(found[1], found[1]), found[2]
    if partner:
        return f"a bracket is opened and not closed: {partner} must come before {got}"
    if got == "}":
        return "one } closes nothing here: {{ ends with }} and {% ends with %}"
    if got in {")", "]"}:
        return f"{got} closes a bracket that was never opened"
    return f"a value is missing before {_seen(got)}"


_Told = Callable[[re.Match[str]], str]
_SYNTAX: Final[tuple[tuple[re.Pattern[str], _Told], ...]] = tuple(
    (re.compile(pattern, re.DOTALL), told)
    for pattern, told in (
        (r"Unexpected end of template.*needs to be closed is '(\w+)'", _unclosed),
        (r"Encountered unknown tag '([^']*)'.*", _unknown_tag),
        (r"unexpected end of template, expected '(.*)'", _ends_early),
        (r"expected token '(.*)', got '(.*)'", _expected),
        (r"Expected an expression, got '(.*)'", _no_expression),
        (r"unexpected char ['\"](.*)['\"] at", _stray),
        (r"unexpected '(.+?)'(?:, expected '(.+)')?$", _unexpected),
        (r"Missing end of comment tag", lambda _: "{# is not closed: write #} after the comment"),
        (r"Missing end of raw directive", lambda _: "templates have no raw; a text without marks needs none"),
        (r"tag name expected", lambda _: f"a word is missing after {{%; {_STATEMENTS}"),
        (r"can't assign to", lambda _: "this cannot be set: write a new name, as in {% set x = data.value %}"),
        (r"expected name or number", lambda _: "a name is missing after the point"),
        (r"invalid syntax for function call", lambda _: "an argument without a name stands behind one with a name"),
        (r"You cannot chain multiple tests", lambda _: "a test stands behind a test: join them with and"),
        (r"Invalid character in identifier", lambda _: "a name has a character that no name can have"),
    )
)
