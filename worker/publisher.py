"""Publishes messages to the broker; no other module does.

A message has ids and labels without personal data, never a payload. Publishing may fail at any time: the sweeper finds what was
not published. Callers never wait for the broker. A thread publishes, at once when idle; in a burst it collects messages for a
window that grows with the size of the last message, so that load makes fewer and larger messages.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from celery import Celery

from rules.vocabulary import TaskType
from worker.broker import EVENTS_QUEUE, QUEUE_OF, depth_of, why
from worker.ledger.types import TaskRef

log = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Key = TypeVar("_Key")

PROCESS_EVENT: Final = "leadwire.process_event"
#: One Celery task name per task type, so that Flower tells them apart.
CELERY_TASK_OF: Final[Mapping[TaskType, str]] = {type_: f"leadwire.{type_}" for type_ in TaskType}

#: The most ids that one message carries.
IDS_PER_MESSAGE: Final = 100
#: Deliveries carry one id each, so that Flower shows every touch by itself, until more than this many wait at once. With
#: 8 in place of 50 an event under full load cost the worker 2.6 ms of CPU in place of 3.9, and Flower 0.15 in place of 0.41.
SINGLE_DELIVERY_LIMIT: Final = 8
#: A message with many ids expires when nobody took it for this long: the sweeper has repeated it.
MESSAGE_EXPIRES_SECONDS: Final = 120
#: How many ids may wait for the publisher; the rest is left to the sweeper.
WAITING_LIMIT: Final = 20_000
LONGEST_WINDOW_SECONDS: Final = 0.1
WINDOW_SECONDS_PER_ID: Final = 0.004
#: While so many messages stand in a queue nothing is added; the sweeper sends it when there is room.
DEPTH_LIMIT: Final = 200
#: How often the publisher looks how deep a queue is.
DEPTH_SECONDS: Final = 0.1
#: How long the publisher rests after the broker could not be reached.
REST_SECONDS: Final = 1.0


class Publisher:
    """The publishing thread of one process. `events` and `tasks` return at once and never raise.

    `is_failing`: the broker did not accept the last message.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._event_ids: deque[str] = deque()
        self._tasks: deque[TaskRef] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self.is_failing = False
        self._looked_seconds: dict[str, float] = {}
        self._depths: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def events(self, event_ids: Sequence[str]) -> None:
        """Queue messages to plan these events."""
        with self._changed:
            is_first = not self._event_ids
            if len(self._event_ids) < WAITING_LIMIT:
                self._event_ids.extend(event_ids)
            if is_first or len(self._event_ids) >= IDS_PER_MESSAGE:  # else the publisher's window takes them along
                self._changed.notify()

    def tasks(self, tasks: Sequence[TaskRef]) -> None:
        """Queue messages to deliver these tasks."""
        with self._changed:
            if len(self._tasks) < WAITING_LIMIT:
                self._tasks.extend(tasks)
            self._changed.notify()

    def close(self) -> None:
        """Publish what is queued, for 5 s at most, and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        window_seconds = 0.0
        while True:
            with self._changed:
                while not (self._event_ids or self._tasks or self._closing):
                    self._changed.wait()
                if self._closing and not (self._event_ids or self._tasks):
                    return
                if window_seconds and not self._closing:
                    self._changed.wait_for(self._is_full, timeout=window_seconds)
                event_ids = _take(self._event_ids, IDS_PER_MESSAGE)
                tasks = _take(self._tasks, IDS_PER_MESSAGE)
            try:
                largest = self._publish(event_ids, tasks)
            except Exception as error:  # noqa: BLE001 - whatever the transport raises, the sweeper repeats what was not published
                log.warning("the broker cannot be used (%s); the sweep repeats what waits", why(error))
                self.is_failing = True
                self._forget()
                window_seconds = 0.0
            else:
                self.is_failing = False
                window_seconds = min(LONGEST_WINDOW_SECONDS, WINDOW_SECONDS_PER_ID * (largest - 1))

    def _is_full(self) -> bool:
        return self._closing or len(self._event_ids) >= IDS_PER_MESSAGE or len(self._tasks) >= IDS_PER_MESSAGE

    def _forget(self) -> None:
        """Drop what waits, and rest: all of it stands in the ledger, and the sweeper sends it when the broker is back."""
        with self._changed:
            self._event_ids.clear()
            self._tasks.clear()
            self._changed.wait_for(lambda: self._closing, timeout=REST_SECONDS)

    def _publish(self, event_ids: list[str], tasks: list[TaskRef]) -> int:
        """Publish these in as few messages as are right; return how many ids the larger of both had."""
        with self._app.producer_pool.acquire(block=True, timeout=2) as producer:
            if event_ids and self._depth(producer.channel, EVENTS_QUEUE) < DEPTH_LIMIT:
                self._send(producer, PROCESS_EVENT, EVENTS_QUEUE, [event_ids], {})
            for queue, waiting in _grouped(tasks, lambda task: QUEUE_OF[task.provider]).items():
                depth = self._depth(producer.channel, queue)
                if depth >= DEPTH_LIMIT:
                    continue
                if max(len(waiting), depth) > SINGLE_DELIVERY_LIMIT:
                    for group in _grouped(waiting, lambda task: task.type).values():
                        self._send_tasks(producer, queue, group)
                else:
                    for task in waiting:
                        self._send_tasks(producer, queue, [task])
        return max(len(event_ids), len(tasks))

    def _send_tasks(self, producer: Any, queue: str, tasks: Sequence[TaskRef]) -> None:
        """Publish one message with these tasks, which are of one type; a single one has a row of its own in Flower."""
        first, name = tasks[0], CELERY_TASK_OF[tasks[0].type]
        if len(tasks) == 1:
            labels = {"rule": first.rule, "attempt": first.attempts + 1}
            self._send(producer, name, queue, [first.id], labels, single=first)
        else:
            self._send(producer, name, queue, [[task.id for task in tasks]], {"tasks": len(tasks)})

    def _depth(self, channel: Any, queue: str) -> int:
        """Return how many messages stand in a queue; looked up at most every `DEPTH_SECONDS`."""
        now_seconds = time.monotonic()
        if now_seconds - self._looked_seconds.get(queue, 0.0) >= DEPTH_SECONDS:
            self._looked_seconds[queue] = now_seconds
            self._depths[queue] = depth_of(channel, queue)
        return self._depths[queue]

    def _send(
        self,
        producer: Any,
        name: str,
        queue: str,
        args: list[Any],
        labels: dict[str, Any],
        *,
        single: TaskRef | None = None,
    ) -> None:
        """Publish one message; `single` is its task when it carries only that.

        Its id is then the task's, so that Flower has one row for each task, and it never expires: a worker that met an
        expired message drops every later one of the same id for hours. `DEPTH_LIMIT` bounds how many there are.
        """
        self._app.send_task(
            name,
            args=args,
            kwargs=labels,
            task_id=single.id if single else None,
            retries=single.attempts if single else 0,
            queue=queue,
            expires=None if single else MESSAGE_EXPIRES_SECONDS,
            retry=False,
            ignore_result=True,
            producer=producer,
        )


def _grouped(tasks: Sequence[TaskRef], key: Callable[[TaskRef], _Key]) -> dict[_Key, list[TaskRef]]:
    found: dict[_Key, list[TaskRef]] = {}
    for task in tasks:
        found.setdefault(key(task), []).append(task)
    return found


def _take(waiting: deque[_Item], most: int) -> list[_Item]:
    return [waiting.popleft() for _ in range(min(most, len(waiting)))]
