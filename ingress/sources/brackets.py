"""How form fields with bracket keys, as PHP and amoCRM write them, become maps and lists.

`leads[add][0][id]=301` is a list in a map in a map: a map keyed 0..n is a list, any other stays a map. `tags[]=a&tags[]=b`
counts up. Expected result: facts of the Kommo format, https://developers.kommo.com/docs/webhooks-general.
"""

from __future__ import annotations

from typing import Final

from ingress.sources.errors import UnreadableBodyError
from rules.vocabulary import Json

#: Brackets one key may have; Kommo's custom fields have six.
BRACKETS_LIMIT: Final = 32
#: Digits of an index that counts; longer ones are names.
_INDEX_DIGITS: Final = 6


class _Node(dict[str, Json]):
    """A map under construction that knows the next free index."""

    __slots__ = ("next_index",)

    def __init__(self) -> None:
        super().__init__()
        self.next_index = 0

    def name(self, step: str, *, at_top: bool) -> str:
        """Return the key for a step: `[]` is the next free index, the name in front of the brackets is itself."""
        if step == "" and not at_top:
            step = str(self.next_index)
        if _is_index(step):
            self.next_index = max(self.next_index, int(step) + 1)
        return step


def unfold(pairs: list[tuple[str, str]]) -> dict[str, Json]:
    """Return the fields as nested maps and lists. Raises UnreadableBodyError for a key with too many brackets."""
    root = _Node()
    for name, value in pairs:
        steps = _steps(name)
        node = root
        for step in steps[:-1]:
            key = node.name(step, at_top=node is root)
            child = node.get(key)
            if not isinstance(child, _Node):  # a plain value under the same name gives way, as in PHP
                child = node[key] = _Node()
            node = child
        _put(node, node.name(steps[-1], at_top=node is root), value, plain=len(steps) == 1)
    return {name: _settled(value) for name, value in root.items()}


def _put(node: _Node, key: str, value: str, *, plain: bool) -> None:
    before = node.get(key)
    if plain and isinstance(before, str):
        node[key] = [before, value]  # a plain name given several times is a list
    elif plain and isinstance(before, list):
        before.append(value)
    elif not isinstance(before, _Node):
        node[key] = value


def _steps(name: str) -> list[str]:
    """Return `a[b][0]` as a, b, 0; a key whose brackets do not match is one plain name."""
    head, bracket, tail = name.partition("[")
    if not bracket or not head or not tail.endswith("]"):
        return [name]
    steps = tail[:-1].split("][", BRACKETS_LIMIT)
    if len(steps) > BRACKETS_LIMIT:
        raise UnreadableBodyError(f"a form field's name has more than {BRACKETS_LIMIT} brackets")
    if any("[" in step or "]" in step for step in steps):
        return [name]
    return [head, *steps]


def _is_index(step: str) -> bool:
    return step.isascii() and step.isdigit() and len(step) <= _INDEX_DIGITS and (step == "0" or step[0] != "0")


def _settled(value: Json) -> Json:
    """Return a finished node as a list when it is keyed 0..n, else as a map; depth is bounded by BRACKETS_LIMIT."""
    if not isinstance(value, _Node):
        return value
    if value.next_index == len(value) and all(map(_is_index, value)):
        return [_settled(value[str(index)]) for index in range(len(value))]
    return {name: _settled(one) for name, one in value.items()}
