"""What limits cost where there are none."""

from datetime import UTC, datetime, timedelta

import pytest

from rules.vocabulary import Event, EventState, Plan, ProviderName, Task, TaskState, TaskType, Verdict
from worker.ledger import Delivery, IncomingEvent, Limits, Settlement, migrate, open_ledger

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
LEASE = timedelta(seconds=60)


@pytest.fixture
def ledger(tmp_path):
    """Give a ledger with a task that is due."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    migrate(url)
    ledger = open_ledger(url)
    event = Event(id="ev_1", source="crm", type="lead.created", occurred_at=NOW, received_at=NOW, data={})
    delivery = Delivery(id="dl_1", source="crm", received_at=NOW, headers={}, body=b"{}", content_hash="h")
    ledger.inbox.record(delivery, [IncomingEvent(event=event, dedupe_key="k", content_hash="h")])
    task = Task(
        id="tk_1",
        key="k",
        event_id="ev_1",
        rule="r",
        name="n",
        type=TaskType.TEAM_TASK,
        provider=ProviderName.VAMBE,
        due_at=NOW,
        fields={},
        rule_set="rs_1",
    )
    plan = Plan(event_id="ev_1", rule_set="rs_1", state=EventState.PROCESSED, decisions=(), tasks=(task,))
    ledger.tasks.insert([plan], NOW)
    yield ledger
    ledger.close()


@pytest.mark.parametrize("limits", [{}, {ProviderName.VAMBE: Limits()}])
def test_without_limits_a_provider_is_looked_at_once_and_not_written(ledger, limits):
    """A claim reads the pauses, a success asks whether there was trouble; no provider's row is made, locked or changed."""
    seen = []
    driver = ledger._writer._connection.connection.driver_connection
    driver.set_trace_callback(lambda statement: seen.append(statement) if " providers" in statement else None)
    (claim,) = ledger.tasks.claim(["tk_1"], NOW, LEASE, "w", limits)
    assert ["SELECT"] == [statement.split()[0] for statement in seen]
    delivered = Settlement(verdict=Verdict.DELIVERED, state=TaskState.DELIVERED, external_id="x", status=201)
    ledger.tasks.settle_many([(claim, delivered)], NOW)
    assert ["SELECT", "SELECT"] == [statement.split()[0] for statement in seen]
    assert [] == ledger.limits.states()
