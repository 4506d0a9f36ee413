"""What experiments with faults stand on: the lines of the flow tests, and one worker's parts in this process."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime

import pytest

from rules.vocabulary import Contact, Event, ProviderName
from tests.flow.conftest import RULES, SECRET, house, line, own_line, pytest_generate_tests
from worker.context import build_worker
from worker.delivery import deliver
from worker.ledger import Delivery, IncomingEvent, migrate
from worker.planning import process_events
from worker.sandbox import MINDHUNTERS_TOKEN, VAMBE_API_KEY, Sandbox
from worker.settings import Settings

__all__ = ["house", "line", "own_line", "pytest_generate_tests"]


class Workshop:
    """One ledger, both providers, and as many workers as are asked for, all in this process and without a broker."""

    def __init__(self, folder) -> None:
        (folder / "rules").mkdir()
        (folder / "rules" / "rules.yaml").write_text(RULES)
        self.sandbox = Sandbox().start()
        self.settings = Settings.from_environment(
            {
                "CRM_SECRET": SECRET,
                "LEADWIRE_HOME": str(folder),
                "LEADWIRE_RULES": str(folder / "rules"),
                "LEADWIRE_BROKER_URL": "redis://127.0.0.1:1/0",  # nobody listens there
                "LEADWIRE_MINDHUNTERS_URL": self.sandbox.mindhunters_url,
                "LEADWIRE_MINDHUNTERS_TOKEN": MINDHUNTERS_TOKEN,
                "LEADWIRE_MINDHUNTERS_RATE": "0",
                "LEADWIRE_VAMBE_URL": self.sandbox.vambe_url,
                "LEADWIRE_VAMBE_API_KEY": VAMBE_API_KEY,
                "LEADWIRE_VAMBE_RATE": "0",
                "LEADWIRE_VAMBE_CONCURRENCY": "0",
            }
        )
        migrate(self.settings.database_url)
        self._workers = []
        self.context = self.worker("worker-1")
        self.ledger = self.context.ledger

    def worker(self, owner):
        """Return the services of one more worker."""
        context = build_worker(self.settings, owner=owner)
        self._workers.append(context)
        return context

    def task(self, type_="deal.created", **lead):
        """Record an event, decide it, and return the ids of its tasks."""
        now = datetime.now(UTC)
        name = uuid.uuid4().hex
        data = {"id": name, "name": name, "phone": "+56911112222", **lead}
        event = Event(
            id=f"ev_{name}",
            source="crm",
            type=type_,
            occurred_at=now,
            received_at=now,
            data=data,
            contact=_contact(data),
        )
        delivery = Delivery(id=f"dl_{name}", source="crm", received_at=now, body=b"{}", content_hash=name)
        self.ledger.inbox.record(delivery, [IncomingEvent(event=event, dedupe_key=name, content_hash=name)])
        process_events(self.context, [event.id], lambda *_: None, lambda _: None)
        return [task.id for task in self.ledger.queries.list_tasks() if task.event_id == event.id]

    def state(self, task_id):
        """Return a task's state."""
        return next(task.state for task in self.ledger.queries.list_tasks() if task.id == task_id)

    def deliver(self, task_ids, context=None, provider=ProviderName.VAMBE):
        """Deliver as a message does, and return the outcomes."""
        return deliver(context or self.context, provider, task_ids, lambda _: None)

    def begin(self, task_ids, context=None):
        """Deliver in a thread of its own; `join` waits for the end."""
        thread = threading.Thread(target=self.deliver, args=(task_ids, context))
        thread.start()
        return thread

    def close(self):
        """End it all."""
        for context in self._workers:
            context.close()
        self.sandbox.stop()


def _contact(data):
    return Contact(id=data["id"], name=data["name"], phone=data["phone"])


@pytest.fixture(scope="module")
def shared_workshop(tmp_path_factory):
    """Give a workshop that the tests of a module share."""
    workshop = Workshop(tmp_path_factory.mktemp("workshop"))
    yield workshop
    workshop.close()


@pytest.fixture
def workshop(shared_workshop):
    """Give a workshop whose providers hold nothing and behave."""
    shared_workshop.sandbox.reset()
    return shared_workshop
