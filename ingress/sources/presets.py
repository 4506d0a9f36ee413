"""The sources that are shipped: one YAML file each in this folder; a new one needs no line of code.

A user's source may extend a preset: mappings are merged key by key, everything else is replaced. Two exceptions keep that
from surprising: `auth` with a way in of its own replaces the preset's, and so does a `split`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final

from rules.vocabulary import Json
from rules.yaml_reader import read

_FOLDER: Final = files(__package__)
#: The names of the presets, in order.
PRESETS: Final = tuple(
    sorted(entry.name.removesuffix(".yaml") for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml"))
)
#: Keys that say how a request proves where it is from; the others under `auth` only adjust a preset's.
_ADJUSTMENTS: Final = frozenset({"enable"})


@cache
def preset(name: str) -> Mapping[str, Json]:
    """Return a preset as written."""
    value, places = read(_FOLDER.joinpath(f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml")
    assert isinstance(value, dict), places.faults  # package data: proven by a test over every preset
    return value


def merged(base: Mapping[str, Json], own: Mapping[str, Json]) -> dict[str, Json]:
    """Return a preset with a user's source laid over it."""
    result = dict(base)
    for key, value in own.items():
        if key == "auth" and isinstance(value, dict) and set(value) - _ADJUSTMENTS:
            result[key] = value
        else:
            result[key] = _laid_over(result.get(key), value)
    return result


def _laid_over(base: Json, own: Json) -> Json:
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    return {**base, **{key: _laid_over(base.get(key), value) for key, value in own.items()}}
