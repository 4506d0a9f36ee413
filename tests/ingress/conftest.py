"""What tests of the front door need: sources made from YAML text, and a ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from ingress.sources import Source, build
from rules.rulebook import SourceText
from rules.vocabulary import Fault
from rules.yaml_text import read

MakeSource = Callable[..., Source]
FindFaults = Callable[..., list[Fault]]


def _texts(name: str, text: str) -> list[SourceText]:
    value, places = read(text, "sources.yaml")
    assert not places.faults, places.faults
    return [SourceText(name=name, value=value, places=places, path=())]


@pytest.fixture(scope="session")
def make_source() -> MakeSource:
    """Return a function that makes the source of a YAML text; every `{env: NAME}` must be in the environment given."""
    made: dict[tuple[object, ...], Source] = {}

    def make(
        text: str,
        environment: Mapping[str, str] | None = None,
        *,
        name: str = "crm",
        public_url: str | None = "https://hooks.example.com",
    ) -> Source:
        key = (text, *(environment or {}).items(), name, public_url)
        if key not in made:
            sources, faults = build(_texts(name, text), environment or {}, public_url=public_url)
            assert [] == faults, "\n".join(map(str, faults))
            made[key] = sources[name]
        return made[key]

    return make


@pytest.fixture(scope="session")
def find_faults() -> FindFaults:
    """Return a function that tells what is wrong with the source of a YAML text."""

    def find(
        text: str,
        environment: Mapping[str, str] | None = None,
        *,
        name: str = "crm",
        public_url: str | None = "https://hooks.example.com",
    ) -> list[Fault]:
        sources, faults = build(_texts(name, text), environment or {}, public_url=public_url)
        assert not (sources and faults)
        return faults

    return find
