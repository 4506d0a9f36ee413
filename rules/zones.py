"""In which time zone a contact is, from what an event says of them.

First that is known: the contact's own `timezone`; the only zone of the country of their phone; the only zone of their
country; what `country_zones` says for those countries; else all zones of the country, and whoever asks must hold in all.
Source of the zones of a country: `zone.tab` of the IANA time zone database, in the `tzdata` package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Protocol

import phonenumbers

from rules.showing import as_json
from rules.times import is_zone
from rules.vocabulary import Contact


class ZoneDefaults(Protocol):
    """What zones_of needs to know of the rule set: `rulebook.Defaults` has it."""

    @property
    def country_zones(self) -> Mapping[str, str]:
        """The zone to assume in a country, by ISO 3166-1 alpha-2 code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneChoice:
    """The zones a contact may be in: one, several, or none at all; `note` says where that comes from."""

    zones: tuple[str, ...]
    note: str

    @property
    def only(self) -> str | None:
        """The zone, when exactly one is possible."""
        return self.zones[0] if len(self.zones) == 1 else None


def zones_of(contact: Contact, defaults: ZoneDefaults) -> ZoneChoice:
    """Return the zones a contact may be in, and why these."""
    ignored = ""
    if contact.timezone is not None:
        if is_zone(contact.timezone):
            return ZoneChoice(zones=(contact.timezone,), note=f"zone {contact.timezone} from contact.timezone")
        ignored = f"; contact.timezone {as_json(contact.timezone, 60)} is no zone name and was ignored"
    countries = {
        "the country of the phone": country_of(contact.phone) if isinstance(contact.phone, str) else None,
        "contact.country": contact.country.strip().upper() if isinstance(contact.country, str) else None,
    }
    named = [(origin, country) for origin, country in countries.items() if country]
    for origin, country in named:
        zones = country_zones().get(country, ())
        if len(zones) == 1:
            return ZoneChoice(zones=zones, note=f"zone {zones[0]} from {origin} ({country}){ignored}")
    for _, country in named:
        assumed = defaults.country_zones.get(country)
        if assumed:
            return ZoneChoice(zones=(assumed,), note=f"zone {assumed} from country_zones ({country}){ignored}")
    for origin, country in named:
        zones = country_zones().get(country, ())
        if zones:
            note = (
                f"{country} ({origin}) has {len(zones)} zones, all of them count; country_zones can name one{ignored}"
            )
            return ZoneChoice(zones=zones, note=note)
    return ZoneChoice(zones=(), note=f"no zone is known for the contact{ignored}")


@lru_cache(maxsize=4096)
def country_of(phone: str) -> str | None:
    """Return the country of an E.164 number as ISO 3166-1 alpha-2, or None where it has none or several fit."""
    try:
        number = phonenumbers.parse(phone)
    except phonenumbers.NumberParseException:
        return None
    exact = phonenumbers.region_code_for_number(number)
    regions = phonenumbers.region_codes_for_country_code(number.country_code or 0)
    region = exact or (regions[0] if len(regions) == 1 else None)
    return None if region in {None, "001", "ZZ"} else region


@lru_cache(maxsize=1)
def country_zones() -> Mapping[str, tuple[str, ...]]:
    """Return the zones of every country, by ISO 3166-1 alpha-2 code."""
    table: dict[str, tuple[str, ...]] = {}
    for line in (files("tzdata") / "zoneinfo" / "zone.tab").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            country, _, zone = line.split("\t")[:3]
            table[country] = (*table.get(country, ()), zone)
    return table
