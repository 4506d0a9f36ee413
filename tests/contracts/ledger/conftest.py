"""What the conformance suite of the ledger stands on: a fresh ledger of every engine, and short ways to fill it."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta

import pytest

from rules.vocabulary import (
    Decision,
    DecisionOutcome,
    Event,
    EventState,
    Plan,
    ProviderName,
    Task,
    TaskState,
    TaskType,
    Verdict,
)
from worker.ledger import Claim, Delivery, IncomingEvent, Settlement, migrate, open_ledger

#: Every engine the suite runs on.
ENGINES = ("sqlite", "postgresql")

NOW = datetime(2026, 3, 2, 12, 0, 0, 123456, tzinfo=UTC)
LEASE = timedelta(seconds=60)


class LedgerBench:
    """A ledger and short ways to bring it where a test begins. `at(seconds)` is a moment counted from `now`."""

    now = NOW
    lease = LEASE

    def __init__(self, ledger, url):
        self.ledger = ledger
        self.url = url

    @staticmethod
    def at(seconds):
        return NOW + timedelta(seconds=seconds)

    def delivery(self, id="dl_1", **changes):  # noqa: A002 - the field's name
        parts = {
            "id": id,
            "source": "crm",
            "received_at": NOW,
            "headers": {"x-request": id},
            "body": b"{}",
            "content_hash": f"hash of {id}",
        }
        return Delivery(**(parts | changes))

    def event(self, id="ev_1", **changes):  # noqa: A002 - the field's name
        parts = {"id": id, "source": "crm", "type": "lead.created", "occurred_at": NOW, "received_at": NOW, "data": {}}
        return Event(**(parts | changes))

    def incoming(self, id="ev_1", *, key=None, content="c1", event=None, **changes):  # noqa: A002 - as above
        event = event or self.event(id)
        return IncomingEvent(event=event, dedupe_key=key or id, content_hash=content, **changes)

    def record(self, *incoming, id=None, **changes):  # noqa: A002 - as above
        """Record one delivery with these events, at `now` unless told otherwise."""
        first = incoming[0].event.id if incoming else "nothing"
        return self.ledger.inbox.record(self.delivery(id or f"dl_{first}", **changes), incoming)

    def task(self, id="tk_1", event_id="ev_1", **changes):  # noqa: A002 - as above
        parts = {
            "id": id,
            "key": f"key of {id}",
            "event_id": event_id,
            "rule": "follow-up",
            "name": f"name of {id}",
            "type": TaskType.TEAM_TASK,
            "provider": ProviderName.VAMBE,
            "due_at": NOW,
            "fields": {"title": f"title of {id}"},
            "rule_set": "rs_1",
        }
        return Task(**(parts | changes))

    def plan(self, *tasks, event_id="ev_1", **changes):
        decision = Decision(
            rule="follow-up",
            outcome=DecisionOutcome.MATCHED,
            reason="all of it holds",
            tasks=tuple(task.name for task in tasks),
            place="a.yaml:1:1",
        )
        parts = {
            "event_id": event_id,
            "rule_set": "rs_1",
            "state": EventState.PROCESSED,
            "decisions": (decision,),
            "tasks": tasks,
        }
        return Plan(**(parts | changes))

    def planned(self, *tasks, event_id="ev_1", now=NOW):
        """Record an event and these tasks of it."""
        self.record(self.incoming(event_id))
        return self.ledger.tasks.insert([self.plan(*tasks, event_id=event_id)], now)

    def claimed(self, id="tk_1", *, now=NOW, owner="w-1", **changes):  # noqa: A002 - as above
        """Plan one task and claim it."""
        self.planned(self.task(id, **changes), event_id=changes.get("event_id", "ev_1"))
        return self.claim(id, now=now, owner=owner)

    def claim(self, id="tk_1", *, now=NOW, owner="w-1"):  # noqa: A002 - as above
        (claim,) = self.ledger.tasks.claim([id], now, LEASE, owner)
        assert isinstance(claim, Claim), claim
        return claim

    @staticmethod
    def delivered(external_id="x-1", **changes):
        parts = {"verdict": Verdict.DELIVERED, "state": TaskState.DELIVERED, "external_id": external_id, "status": 201}
        return Settlement(**(parts | changes))

    @staticmethod
    def busy(due_at=NOW + timedelta(hours=1), **changes):
        parts = {
            "verdict": Verdict.BUSY,
            "state": TaskState.WAITING,
            "due_at": due_at,
            "reason": "503: try later",
            "status": 503,
        }
        return Settlement(**(parts | changes))

    @staticmethod
    def ended(state, verdict=Verdict.REFUSED, reason="422: no"):
        return Settlement(verdict=verdict, state=state, reason=reason, status=422)

    def state(self, id="tk_1"):  # noqa: A002 - as above
        return self.ledger.queries.task(id).state


@pytest.fixture(scope="session")
def made_file(tmp_path_factory):
    """An empty SQLite ledger that was migrated once; tests take copies."""
    file = tmp_path_factory.mktemp("ledger") / "made.sqlite3"
    migrate(f"sqlite:///{file}")
    return file


@pytest.fixture(params=ENGINES)
def url(request, tmp_path):
    """The URL of a fresh ledger of each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{shutil.copy(request.getfixturevalue('made_file'), tmp_path / 'ledger.sqlite3')}"
    return request.getfixturevalue("postgres").emptied()


@pytest.fixture
def bench(url):
    """A fresh ledger, open."""
    ledger = open_ledger(url, busy_timeout=timedelta(milliseconds=100), wait=timedelta(seconds=5))
    yield LedgerBench(ledger, url)
    ledger.close()
