"""A command line to call, in an empty working folder without any of the user's settings, and a ledger with a history."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from console.cli import main
from rules.engine import decide
from rules.loader import load
from rules.vocabulary import Contact, Event, TaskState, Verdict
from worker.ledger import Delivery, IncomingEvent, Ledger, Settlement, migrate, open_ledger

AGENT = "11111111-1111-4111-8111-111111111111"
RULES = f"""\
version: 1
defaults: {{timezone: America/Santiago}}
sources:
  crm: {{extend: generic, secrets: [{{env: CRM_SECRET}}], region: CL}}
rules:
  - id: high-value-lead
    when: lead.created
    if:
      data.value: {{gt: 10000}}
      any:
        - data.source: web_form
        - data.tags: {{contains: vip}}
    then:
      - make_call: {{agent: {AGENT}, title: "Call {{{{ contact.name }}}}"}}
      - team_task: {{title: "Follow up", priority: high, assign: [22222222-2222-4222-8222-222222222222], due: +2h}}
    tests:
      - name: a small lead is left alone
        given: {{data: {{value: 9000, source: web_form}}}}
        expect: []
"""


@dataclass(frozen=True)
class Said:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder; every setting of the machine is out of sight."""
    import os  # noqa: PLC0415 - only here

    for name in list(os.environ):
        if name.startswith("LEADWIRE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CRM_SECRET", "not-a-secret-but-long-enough")
    monkeypatch.setenv("LEADWIRE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the rules folder with one file; LEADWIRE_RULES names it."""
    place = folder / "my-rules"
    place.mkdir()
    (place / "leads.yaml").write_text(RULES)
    monkeypatch.setenv("LEADWIRE_RULES", str(place))
    return place


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Return a function that runs `leadwire` with some arguments in the working folder."""

    def call(*arguments: str, stdin: str = "") -> Said:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = capsys.readouterr()
        return Said(ended.value.code, printed.out, printed.err)

    return call


@pytest.fixture
def ledger(folder: Path) -> Iterator[Ledger]:
    """Return an empty ledger at the place where the settings say."""
    url = f"sqlite:///{folder / 'home' / 'ledger.sqlite3'}"
    migrate(url)
    opened = open_ledger(url)
    yield opened
    opened.close()


@pytest.fixture
def history(ledger: Ledger, now: datetime) -> Ledger:
    """Return a ledger with a big lead (one task delivered, one unknown), a small lead and an event nobody listens to."""
    rule_set = load({"leads.yaml": RULES}, {"CRM_SECRET": "not-a-secret-but-long-enough"})
    ledger.rule_sets.store(rule_set.version, rule_set.files, now)
    events = [
        _lead("ev_1", {"value": 15000, "source": "web_form"}, now),
        _lead("ev_2", {"value": 9000, "source": "web_form"}, now + timedelta(seconds=1)),
        _lead("ev_3", {"value": 15000, "source": "import"}, now + timedelta(seconds=2)),
        _lead("ev_4", {}, now + timedelta(seconds=3), type="deal.created"),
    ]
    for event in events:
        ledger.inbox.record(_delivery(event), [_incoming(event)])
        ledger.tasks.insert([decide(rule_set, event, now=event.received_at)], event.received_at)
    call, team = ledger.queries.tasks_of("ev_1")
    for task, settlement in (
        (call, Settlement(verdict=Verdict.DELIVERED, state=TaskState.DELIVERED, external_id="mh-1", status=201)),
        (team, Settlement(verdict=Verdict.UNKNOWN, state=TaskState.UNKNOWN, reason="no answer: timed out")),
    ):
        (claim,) = ledger.tasks.claim([task.id], now + timedelta(seconds=5), timedelta(seconds=60), "test")
        ledger.tasks.settle(claim, settlement, now + timedelta(seconds=6))
    return ledger


@pytest.fixture
def filled(ledger: Ledger, now: datetime) -> Ledger:
    """Return a ledger with three big leads of a while ago, their six tasks about to be sent."""
    rule_set = load({"leads.yaml": RULES}, {"CRM_SECRET": "not-a-secret-but-long-enough"})
    for number in range(3):
        event = _lead(f"ev_{number}", {"value": 15000, "source": "web_form"}, now)
        ledger.inbox.record(_delivery(event), [_incoming(event)])
        ledger.tasks.insert([decide(rule_set, event, now=now)], now)
    return ledger


def _lead(identity: str, data: dict[str, object], at: datetime, type: str = "lead.created") -> Event:  # noqa: A002
    return Event(
        id=identity,
        source="crm",
        type=type,
        occurred_at=at,
        received_at=at,
        contact=Contact(name="Ana \x1b[31mRojas", phone="+56911112222", country="CL"),
        data=data,
    )


def _delivery(event: Event) -> Delivery:
    return Delivery(
        id=f"dl_{event.id}", source=event.source, received_at=event.received_at, body=b"{}", content_hash=event.id
    )


def _incoming(event: Event) -> IncomingEvent:
    return IncomingEvent(event=event, dedupe_key=event.id, content_hash=hashlib.sha256(event.id.encode()).hexdigest())
