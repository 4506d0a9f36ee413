from __future__ import annotations

import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from rules.vocabulary import Event, LedgerBusyError
from tests.servers.postgres import PostgresServer
from worker.ledger import Delivery, IncomingEvent, open_ledger

NOW = datetime(2026, 3, 2, tzinfo=UTC)
SENDERS = 8

RECORDER = """
import sys, threading
from datetime import UTC, datetime
from rules.vocabulary import Event
from worker.ledger import Delivery, IncomingEvent, open_ledger

now = datetime(2026, 3, 2, tzinfo=UTC)
ledger = open_ledger(sys.argv[1])
printing = threading.Lock()

def record(thread):
    for number in range(10**9):
        id = f"ev_{thread}_{number}"
        event = Event(id=id, source="crm", type="lead.created", occurred_at=now, received_at=now, data={})
        delivery = Delivery(id="dl" + id, source="crm", received_at=now, body=bytes(500), content_hash=id)
        recorded = ledger.inbox.record(delivery, [IncomingEvent(event=event, dedupe_key=id, content_hash=id)])
        with printing:
            sys.stdout.write(recorded.event_ids[0] + "\\n")
            sys.stdout.flush()

for thread in range(8):
    threading.Thread(target=record, args=(thread,), daemon=True).start()
threading.Event().wait()
"""


@pytest.fixture(scope="module")
def server():
    """A server that may be killed."""
    server = PostgresServer().start()
    yield server
    server.close()


class Senders:
    """Threads that record events one after the other; what was acknowledged and what was refused is kept."""

    def __init__(self, ledger):
        self._ledger = ledger
        self.acknowledged = set()
        self.refused = []
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    def _run(self, sender):
        number = 0
        while not self._ending.is_set():
            number += 1
            id_ = f"ev_{sender}_{number}"
            event = Event(id=id_, source="crm", type="lead.created", occurred_at=NOW, received_at=NOW, data={})
            delivery = Delivery(id=f"dl_{id_}", source="crm", received_at=NOW, body=bytes(500), content_hash=id_)
            try:
                recorded = self._ledger.inbox.record(
                    delivery, [IncomingEvent(event=event, dedupe_key=id_, content_hash=id_)]
                )
            except LedgerBusyError as error:
                self.refused.append((id_, str(error)))
                time.sleep(0.01)
            else:
                self.acknowledged.update(recorded.event_ids)

    def wait_for(self, more):
        """Wait until so many more are acknowledged."""
        wanted = len(self.acknowledged) + more
        give_up_at = time.monotonic() + 30
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < give_up_at, self.refused[-3:]
            time.sleep(0.01)

    def end(self):
        self._ending.set()
        for thread in self._threads:
            thread.join(30)


def test_a_server_that_is_killed_loses_nothing_it_has_acknowledged(server):
    """Killed in the middle of commits and started again, twice: all that was acknowledged is there, and work goes on."""
    url = server.migrated()
    ledger = open_ledger(url, busy_timeout=timedelta(seconds=2), wait=timedelta(seconds=5))
    senders = Senders(ledger)
    for _ in range(2):
        senders.wait_for(100)
        server.kill()
        time.sleep(0.1)
        server.again()
        senders.wait_for(100)
    senders.end()
    stored = {event.id for event in ledger.queries.list_events()}
    ledger.close()
    assert senders.refused
    assert senders.acknowledged <= stored
    # What stands without having been acknowledged is what nobody could tell about.
    told = dict(senders.refused)
    assert all("not known" in told[event_id] for event_id in stored - senders.acknowledged)


def test_a_process_that_is_killed_loses_nothing_it_has_acknowledged(server):
    """A recorder is killed with SIGKILL: what it has printed is there, and its open transaction holds up nobody."""
    url = server.migrated()
    with subprocess.Popen([sys.executable, "-c", RECORDER, url], stdout=subprocess.PIPE, text=True) as child:
        acknowledged = {child.stdout.readline().strip() for _ in range(200)}
        child.kill()
        rest = child.stdout.read().splitlines(keepends=True)
        acknowledged |= {line.strip() for line in rest if line.endswith("\n")}
    ledger = open_ledger(url)
    stored = {event.id for event in ledger.queries.list_events()}
    ledger.check_writable()
    ledger.close()
    assert acknowledged <= stored
    assert len(stored) - len(acknowledged) <= SENDERS
