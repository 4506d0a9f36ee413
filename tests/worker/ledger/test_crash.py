from __future__ import annotations

import subprocess
import sys

import pytest

from rules.vocabulary import EventState
from worker.ledger import open_ledger

RECORDER = """
import sys, threading
from datetime import UTC, datetime
from rules.vocabulary import Event
from worker.ledger import Delivery, IncomingEvent, open_ledger

url, round_ = sys.argv[1:]
now = datetime(2026, 3, 2, tzinfo=UTC)
ledger = open_ledger(url)
printing = threading.Lock()

def record(thread):
    number = 0
    while True:
        number += 1
        id = f"ev_{round_}_{thread}_{number}"
        event = Event(id=id, source="crm", type="lead.created", occurred_at=now, received_at=now, data={"n": number})
        delivery = Delivery(id="dl" + id, source="crm", received_at=now, body=bytes(500), content_hash=id)
        recorded = ledger.inbox.record(delivery, [IncomingEvent(event=event, dedupe_key=id, content_hash=id)])
        with printing:
            sys.stdout.write(recorded.event_ids[0] + "\\n")
            sys.stdout.flush()

for thread in range(8):
    threading.Thread(target=record, args=(thread,), daemon=True).start()
threading.Event().wait()
"""


@pytest.mark.parametrize("lines", [1, 300])
def test_what_was_acknowledged_survives_a_kill(url, file, elsewhere, lines):
    """A process that is killed while it records loses nothing that it has acknowledged, twice in a row."""
    acknowledged = set()
    for round_ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", RECORDER, url, str(round_)], stdout=subprocess.PIPE, text=True
        ) as child:
            for _ in range(lines):
                acknowledged.add(child.stdout.readline().strip())
            child.kill()
            rest = child.stdout.read().splitlines(keepends=True)
            acknowledged |= {line.strip() for line in rest if line.endswith("\n")}
    ledger = open_ledger(url)
    stored = {event.id for event in ledger.queries.list_events(state=EventState.RECEIVED)}
    ledger.close()
    assert lines * 2 <= len(acknowledged)
    assert acknowledged <= stored
    assert len(stored) - len(acknowledged) <= 2 * 8
    assert [("ok",)] == elsewhere.execute("PRAGMA integrity_check").fetchall()
    assert [] == elsewhere.execute("PRAGMA foreign_key_check").fetchall()
