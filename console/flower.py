"""Flower as operators get it: behind the operator token, read-only, and with a memory that survives it.

It is set up here and not by `celery flower`, whose options would show the password to everybody who may list processes.
Flower 2.2 asks nobody for a password at `/metrics`; here only `/healthcheck` and the static files are open.

What Flower remembers differs from its own way in four things:

- It is saved in one file that is replaced as a whole: a kill between the several files of a `dbm` would lose it.
- When it is full, successes go first: up to 10,000 rows of what failed or waits are kept.
- `task-delivered` events (`worker/flower_events.py`) end rows without making any.
- Rows of messages whose worker has died are ended, since no event will.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import time
from ast import literal_eval
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from celery.events import EventReceiver
from flower.app import Flower  # type: ignore[import-untyped]
from flower.events import Events, EventsState  # type: ignore[import-untyped]
from flower.options import options  # type: ignore[import-untyped]
from flower.urls import settings as flower_settings  # type: ignore[import-untyped]
from flower.views.monitor import Metrics  # type: ignore[import-untyped]
from pydantic import SecretStr
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.web import authenticated

from rules.vocabulary import SettingsError
from worker.broker import DELIVERED_TOGETHER, TASK_ID_PREFIX, celery_app, why
from worker.settings import Settings, broker_of

log = logging.getLogger(__name__)

#: Rows that are kept: 6 kB each, and saving 20,000 takes half a second.
MAX_TASKS: Final = 20_000
MAX_WORKERS: Final = 200
#: How often it is saved, when something came. A kill loses no more than that, and workers send most of it again.
SAVE_SECONDS: Final = 10.0
#: After so long a worker that is gone is shown no more.
PURGE_WORKERS_SECONDS: Final = 300
#: The columns on the page of tasks; the result says why, `kwargs` under which rule.
COLUMNS: Final = "name,state,result,kwargs,received,uuid,runtime,worker"

RECONNECT_SECONDS: Final = 2.0
ORPHANS_PERIOD_SECONDS: Final = 15.0
#: No message takes longer.
LONGEST_MESSAGE_SECONDS: Final = 900.0
_UNENDED: Final = ("started", "received")
_KEPT_LONGER: Final = frozenset({"failure", "retry", "revoked"})
#: The states in which an event that is sent again changes nothing. A RETRY is also sent before each REVOKED.
_STATES_AFTER: Final = {"task-failed": ("FAILURE",), "task-retried": ("RETRY", "REVOKED"), "task-revoked": ("REVOKED",)}


class FlowerState(EventsState):  # type: ignore[misc]  # Flower has no types
    """Flower's table of tasks and workers, with its search."""

    def event(self, event: dict[str, Any]) -> None:
        """Apply an event. A `DELIVERED_TOGETHER` event turns existing rows to SUCCESS and creates none."""
        if event["type"] == DELIVERED_TOGETHER:
            for task_id in event["uuids"]:
                row = self.tasks.data.get(task_id)
                if row is not None and row.state != "SUCCESS":
                    super().event({**event, "type": "task-succeeded", "uuid": task_id, "uuids": None})
            return
        if event["type"].startswith("task-"):
            row = self.tasks.data.get(event["uuid"])
            if row is None:
                self._make_room()
            elif _is_repeated(row, event):
                return
        super().event(event)

    def _make_room(self) -> None:
        """Let the oldest success go when a row must, unless what failed or waits has half of the places already."""
        rows, limit = self.tasks.data, self.tasks.limit
        if len(rows) < limit:
            return
        postings = self.search_engine.exact_postings["state"]
        kept = sum(len(postings.get(state, ())) for state in _KEPT_LONGER)
        for _ in range(kept if kept <= limit // 2 else 0):
            oldest_id, oldest = next(iter(rows.items()))
            if oldest.state.lower() not in _KEPT_LONGER:
                return
            rows.move_to_end(oldest_id)

    def end_orphans(self) -> None:
        """End the rows of messages whose worker died; rows of tasks are left to `FlowerSync`, which reads the ledger."""
        now_seconds = time.time()
        postings = self.search_engine.exact_postings["state"]
        for task_id in [task_id for state in _UNENDED for task_id in postings.get(state, ())]:
            row = self.tasks.data.get(task_id)
            if row is not None and not task_id.startswith(TASK_ID_PREFIX) and _is_orphan(row, now_seconds):
                row.event(
                    "revoked", now_seconds, now_seconds, {"result": "its worker ended; what it carried is sent again"}
                )
                self._index_task(row, None)


def _is_repeated(row: Any, event: dict[str, Any]) -> bool:
    """Whether a row shows already what the event says: it shall be counted once. `FlowerEvents.row` sets `received`."""
    return "received" in event and row.state in _STATES_AFTER.get(event["type"], ()) and row.result == event["result"]


def _is_orphan(row: Any, now_seconds: float) -> bool:
    worker, pid = row.worker, getattr(row, "pid", None)
    if (
        now_seconds - (row.received or row.timestamp or 0) > LONGEST_MESSAGE_SECONDS
        or worker is None
        or not worker.alive
    ):
        return True
    return bool(pid and worker.pid and pid != worker.pid)


class PersistentEvents(Events):  # type: ignore[misc]  # as above
    """Receives the workers' events and saves the resulting state to a file."""

    state: Any

    def __init__(self, capp: Any, io_loop: IOLoop, file: Path) -> None:
        self._file = file
        self._saved_count = -1
        super().__init__(
            capp,
            io_loop,
            db=str(file),
            persistent=True,
            state_save_interval=SAVE_SECONDS * 1000,
            max_tasks_in_memory=MAX_TASKS,
            max_workers_in_memory=MAX_WORKERS,
        )
        if not isinstance(self.state, FlowerState):
            self.state = FlowerState(max_tasks_in_memory=MAX_TASKS, max_workers_in_memory=MAX_WORKERS)
        self._orphans = PeriodicCallback(self.state.end_orphans, ORPHANS_PERIOD_SECONDS * 1000)

    def start(self) -> None:
        """Start receiving and saving."""
        super().start()
        self._orphans.start()

    def run(self) -> None:
        """Receive events for ever. Replaces Flower's loop, whose pause doubles with each failure up to hours."""
        away = False
        while True:
            try:
                with self.capp.connection() as connection:
                    receiver = EventReceiver(connection, handlers={"*": self.on_event}, app=self.capp)
                    for _ in receiver.itercapture(limit=None, timeout=None, wakeup=True):
                        away = False
            except Exception as error:  # noqa: BLE001 - the transports share no root of exceptions
                if not away:
                    log.warning(
                        "the broker cannot be heard (%s): tried again every %.0f s", why(error), RECONNECT_SECONDS
                    )
                away = True
            time.sleep(RECONNECT_SECONDS)

    def load_state(self) -> FlowerState | None:
        """Return the saved state, or None; an unreadable file is renamed."""
        try:
            with self._file.open("rb") as file:
                state, counter = pickle.load(file)  # noqa: S301 - our own file, in a folder that only this user may enter
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 - whatever a damaged file makes of unpickling
            aside = self._file.with_name(f"{self._file.name}.corrupt")
            log.error("%s cannot be read (%s): put aside as %s", self._file, type(error).__name__, aside.name)
            with suppress(OSError):
                self._file.replace(aside)
            return None
        if not isinstance(state, FlowerState):
            return None
        state.counter.update(counter)
        return state

    def save_state(self) -> None:
        """Save the state to one file, unless no event came since the last time."""
        if self.state.event_count == self._saved_count:
            return
        new = self._file.with_name(f"{self._file.name}.new")
        try:
            with open(new, "wb", opener=_for_us_alone) as file:
                pickle.dump((self.state, dict(self.state.counter)), file)
            new.replace(self._file)
        except OSError as error:
            log.error("what Flower knows cannot be saved: %s", error)
            return
        self._saved_count = self.state.event_count


def _for_us_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _GuardedMetrics(Metrics):  # type: ignore[misc]  # as above
    """Flower's own metrics, behind the token."""

    get = authenticated(Metrics.get)


def tidy(row: Any) -> Any:
    """Return a row for display: values without Python's quotes and braces, and without fields that mean nothing here."""
    row.__dict__.update(dict.fromkeys(("root", "root_id", "parent", "parent_id", "clock", "timestamp"), None))
    if isinstance(row.result, str):
        row.result = row.result.strip("'")
    with suppress(ValueError, SyntaxError, TypeError, AttributeError):
        row.kwargs = ", ".join(f"{name} {value}" for name, value in literal_eval(row.kwargs).items())
    return row


def run_flower(settings: Settings, password: SecretStr) -> None:
    """Run Flower until it is stopped. Raises SettingsError when it cannot listen or cannot create its folder."""
    folder = settings.home / "flower"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"LEADWIRE_HOME: {folder} cannot be made: {error.strerror}") from error
    _set_options(settings, password)
    app = celery_app(broker_of(settings))
    memory = PersistentEvents(app, IOLoop.current(), folder / "memory")
    flower = Flower(options=options, capp=app, events=memory, **flower_settings)
    flower.add_handlers(".*", [("/metrics", _GuardedMetrics)])
    try:
        port = flower.start_http_server()
    except OSError as error:
        raise SettingsError(
            f"LEADWIRE_FLOWER_PORT: cannot listen on port {settings.flower_port} of {settings.operator_host}: {error.strerror}"
        ) from error
    signal.signal(signal.SIGTERM, _stop)
    where = f"port {port} of {settings.operator_host}"
    log.info("Flower is at %s, behind the operator token; broker: %s", where, flower.broker_uri)
    try:
        flower.start()
    except (KeyboardInterrupt, SystemExit):
        pass
    finally:
        flower.stop()


def _stop(_number: int, _frame: object) -> None:
    raise SystemExit(0)


def _set_options(settings: Settings, password: SecretStr) -> None:
    """Set Flower's options, whatever FLOWER_... variables there are."""
    formatter: Callable[[Any], Any] = tidy
    wanted: dict[str, Any] = {
        "address": settings.operator_host,
        "port": settings.flower_port,
        "basic_auth": [f"operator:{password.get_secret_value()}"],
        "read_only": True,
        "natural_time": True,
        "tasks_columns": COLUMNS,
        "format_task": formatter,
        "purge_offline_workers": PURGE_WORKERS_SECONDS,
        "max_tasks": MAX_TASKS,
        "max_workers": MAX_WORKERS,
    }
    for name, value in wanted.items():
        setattr(options, name, value)
