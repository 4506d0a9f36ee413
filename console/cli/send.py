"""The command `send`: sample webhooks of any configured source, signed and posted as its sender would."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

import click

from console.cli.options import settings_in_force
from console.cli.output import printable
from console.cli.rules import rules_place
from console.samples import Lead, Sample, post, sample, sign, variants
from ingress import sources
from ingress.sources import Source, Unreadable, WebhookRequest
from ingress.sources.schema import BodyFormat
from rules.loader import load
from rules.vocabulary import Problem, RuleError
from worker.clock import new_id, utc_now
from worker.rule_sets import INGRESS_SECTIONS, read_files
from worker.settings import Settings

CONTENT_TYPES = {
    BodyFormat.XML: "text/xml",
    BodyFormat.FORM: "application/x-www-form-urlencoded",
    BodyFormat.FORM_BRACKETS: "application/x-www-form-urlencoded",
}


@click.command()
@click.argument("source_name", metavar="SOURCE")
@click.option("--type", "event_type", metavar="TYPE", help="Event type, such as deal.stage_changed; default: a lead.")
@click.option("--value", type=float, default=12_000.0, show_default=True, help="What the lead is worth.")
@click.option("--name", default="Ana Prueba", show_default=True, help="Name of the contact.")
@click.option("--phone", default="+56911112222", show_default=True, help="Phone of the contact, in E.164.")
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="So many different samples.")
@click.option("--twice", is_flag=True, help="Post each one twice, as a CRM does that missed the answer.")
@click.option("--body", "body_file", metavar="FILE", help="Post this file's bytes instead of a sample.")
@click.option("--url", metavar="URL", help="Front door; default: the one that runs, else LEADWIRE_HOST and _PORT.")
def send(
    source_name: str,
    event_type: str | None,
    value: float,
    name: str,
    phone: str,
    count: int,
    body_file: str | None,
    url: str | None,
    *,
    twice: bool,
) -> None:
    """Sign and post a sample webhook for a source of LEADWIRE_RULES.

    Exit code 0 only if every answer was a 2xx.
    """
    settings = settings_in_force()
    source = _source(settings, source_name)
    base_url = url or _running_url(settings)
    first = Lead(name=name, phone=phone, value=int(value) if value.is_integer() else value)
    all_accepted = True
    for number in range(count):
        now = utc_now()
        payload = _from_file(source, body_file) if body_file else _made(source, _nth(first, number), event_type, now)
        request = sign(source, payload, base_url, now)
        types = ", ".join(_types(source, payload, now)) or "a body that cannot be read"
        for _ in range(2 if twice else 1):
            posted = post(request)
            all_accepted = all_accepted and posted.accepted
            click.echo(printable(f"{posted.status}  {types} to /webhooks/{source.name}: {posted.text.strip()[:200]}"))
    if not all_accepted:
        raise Problem("not accepted: the ingress log says why (`leadwire up` keeps it under LEADWIRE_HOME/logs)")
    click.echo("next: leadwire explain --last", err=True)


def _source(settings: Settings, name: str) -> Source:
    place, shown_as = rules_place(settings, None)
    rule_set = load(read_files(place, shown_as=shown_as), settings.environment, resolve=INGRESS_SECTIONS)
    built, faults = sources.build(rule_set.sources, settings.environment, public_url=settings.public_url)
    if name in built:
        return built[name]
    known = [text.name for text in rule_set.sources]
    if name in known:
        raise RuleError(faults)
    raise Problem(f"{printable(name)}: no such source in {shown_as}; there are: {', '.join(known) or 'none'}")


def _running_url(settings: Settings) -> str:
    """Return the address of the `leadwire up` that runs in the data folder, else the one in the settings."""
    try:
        return str(json.loads((settings.home / "up.json").read_bytes())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        host = "127.0.0.1" if settings.host in {"", "0.0.0.0", "::"} else settings.host  # noqa: S104 - a comparison
        return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _made(source: Source, lead: Lead, event_type: str | None, now: datetime) -> Sample:
    """Return a fresh sample of a source; of several the one that is understood as the wanted type."""
    known = []
    for variant in variants(source):
        made = sample(source, now=now, new_id=new_id, variant=variant, lead=lead)
        types = _types(source, made, now)
        if event_type is None or event_type in types:
            return made
        known += types
    of_these = ", ".join(dict.fromkeys(known)) or "none"
    raise Problem(f"no sample of {source.name} has the type {event_type}; there are: {of_these}; or send --body FILE")


def _from_file(source: Source, path: str) -> Sample:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise Problem(f"{path}: cannot be read: {error.strerror}") from error
    return Sample(body=content, content_type=CONTENT_TYPES.get(source.body.format, "application/json"))


def _types(source: Source, payload: Sample, now: datetime) -> list[str]:
    """Return the types of the events that a payload is understood as."""
    headers = {**payload.headers, "content-type": payload.content_type}
    received = WebhookRequest(method="POST", path=f"/webhooks/{source.name}", headers=headers, body=payload.body)
    read = source.read(received, now, partial(new_id, "ev"))
    return [] if isinstance(read, Unreadable) else [incoming.event.type for incoming in read]


def _nth(lead: Lead, number: int) -> Lead:
    """Return the nth of several leads: another person each time."""
    if number == 0:
        return lead
    digits = lead.phone.removeprefix("+")
    phone = f"+{int(digits) + number}" if digits.isdecimal() and digits.isascii() else lead.phone
    return replace(lead, name=f"{lead.name} {number + 1}", phone=phone)
