"""Putting messages on the broker: the only file that does, and how the broker is spoken to.

The broker only says "now": a message carries ids and safe labels, never a payload. Publishing may fail at any time; what
was not published is found by the sweep. Nobody waits for the broker: a thread publishes, at once when idle, and after a
burst within a window that grows with the last message, so that load makes fewer and larger messages.

Settings of Celery, each for the loss, duplicate or hang it prevents: Celery 5.7 documentation and experiments with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Any, Final, TypeVar

from celery import Celery
from kombu import Connection, Exchange, Queue
from kombu.transport.virtual import Channel as VirtualChannel

from rules.vocabulary import ProviderName, TaskType
from worker.ledger.rows import TaskRef

log = logging.getLogger(__name__)

_Item = TypeVar("_Item")

EVENTS_QUEUE: Final = "leadwire.events"
#: One queue per provider, so that what waits for one never stands in front of the other.
QUEUE_OF: Final[Mapping[ProviderName, str]] = {name: f"leadwire.{name}" for name in ProviderName}
PROCESS_EVENT: Final = "leadwire.process_event"
#: One Celery task name per task type, so that Flower tells them apart.
CELERY_TASK_OF: Final[Mapping[TaskType, str]] = {type_: f"leadwire.{type_}" for type_ in TaskType}

#: Ids that one message carries at the most.
IDS_PER_MESSAGE: Final = 100
#: Deliveries carry one id each, so that Flower shows every touch, until more than this many wait.
SINGLE_DELIVERY_LIMIT: Final = 50
#: A message that nobody took for this long is worth nothing: the sweep has repeated it.
MESSAGE_EXPIRES_SECONDS: Final = 120
#: How many ids may wait for the publisher; what comes on top is left to the sweep.
WAITING_LIMIT: Final = 20_000
LONGEST_WINDOW_SECONDS: Final = 0.05
WINDOW_SECONDS_PER_ID: Final = 0.004
#: Messages that may stand in one queue; while more do, the sweep sends what comes later, when there is room.
DEPTH_LIMIT: Final = 200
#: How often the publisher looks how deep a queue is.
DEPTH_SECONDS: Final = 0.1
#: How long the publisher rests after the broker could not be reached.
REST_SECONDS: Final = 1.0


def celery_app(broker_url: str) -> Celery:
    """Return a Celery application that can publish; `worker/celery_app.py` adds the tasks."""
    app = Celery("leadwire", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,  # the ledger holds results
        result_backend=None,
        task_acks_late=False,  # a message is disposable: no redelivery, no visibility duplicates
        task_reject_on_worker_lost=False,
        task_publish_retry=False,  # the sweep repeats; publishing must fail fast
        broker_pool_acquire_timeout=2,  # else an exhausted pool blocks for ever
        broker_connection_timeout=2,
        broker_connection_retry_on_startup=True,  # start while the broker is down
        broker_connection_max_retries=None,  # else the worker gives up after about 45 minutes
        broker_transport_options=_transport_options(broker_url),
        worker_prefetch_multiplier=1,  # do not hoard
        worker_enable_prefetch_count_reduction=False,
        worker_soft_shutdown_timeout=0,  # warm shutdown waits for running calls; the supervisor bounds it
        worker_send_task_events=True,
        task_send_sent_event=False,  # doubles the cost of publishing, and Flower does not need it
        worker_cancel_long_running_tasks_on_connection_loss=False,  # never end a call half-way
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        task_serializer="json",
        accept_content=["json"],
        task_create_missing_queues=False,  # a misspelt queue raises instead of feeding one that nobody reads
        task_default_queue=EVENTS_QUEUE,
        task_queues=[_queue(name) for name in (EVENTS_QUEUE, *QUEUE_OF.values())],
        timezone="UTC",
        enable_utc=True,
    )
    return app


def _queue(name: str) -> Queue:
    return Queue(name, Exchange("leadwire", type="direct"), routing_key=name, durable=True)


def _transport_options(broker_url: str) -> dict[str, Any]:
    if broker_url.startswith("amqp"):
        return {"confirm_publish": True}  # without it a broker's crash loses what was "published"
    options: dict[str, Any] = {
        "socket_timeout": 5,  # default: none, and a frozen server hangs publishers for ever
        "socket_connect_timeout": 2,
        "health_check_interval": 10,  # a half-open connection is noticed in about 21 s
        "retry_on_timeout": False,  # no hidden second publish
        "visibility_timeout": 300,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        "global_keyprefix": "leadwire:",
    }
    if not broker_url.startswith(("redis+socket", "unix")):
        options["socket_keepalive"] = True
    return options


class Dispatcher:
    """The publisher thread of one process. `events` and `tasks` return at once and never raise."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._event_ids: deque[str] = deque()
        self._tasks: deque[TaskRef] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._looked_seconds: dict[str, float] = {}
        self._depths: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._thread.start()

    def events(self, event_ids: Sequence[str]) -> None:
        """Have these events processed."""
        with self._changed:
            if len(self._event_ids) < WAITING_LIMIT:
                self._event_ids.extend(event_ids)
            self._changed.notify()

    def tasks(self, tasks: Sequence[TaskRef]) -> None:
        """Have these tasks delivered."""
        with self._changed:
            if len(self._tasks) < WAITING_LIMIT:
                self._tasks.extend(tasks)
            self._changed.notify()

    def close(self) -> None:
        """Publish what is waiting, as far as the broker takes it, and stop."""
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
            except Exception as error:  # noqa: BLE001 - whatever the transport raises, the sweep repeats what was not published
                log.warning("the broker cannot be reached (%s); the sweep repeats what waits", type(error).__name__)
                self._forget()
                window_seconds = 0.0
            else:
                window_seconds = min(LONGEST_WINDOW_SECONDS, WINDOW_SECONDS_PER_ID * (largest - 1))

    def _is_full(self) -> bool:
        return self._closing or len(self._event_ids) >= IDS_PER_MESSAGE or len(self._tasks) >= IDS_PER_MESSAGE

    def _forget(self) -> None:
        """Drop what waits and rest: all of it stands in the ledger, and the sweep sends it when the broker is back."""
        with self._changed:
            self._event_ids.clear()
            self._tasks.clear()
            self._changed.wait_for(lambda: self._closing, timeout=REST_SECONDS)

    def _publish(self, event_ids: list[str], tasks: list[TaskRef]) -> int:
        """Publish these, in as few messages as are right; returns the number of ids in the largest burst."""
        with self._app.producer_pool.acquire(block=True, timeout=2) as producer:
            if event_ids and self._depth(producer.channel, EVENTS_QUEUE) < DEPTH_LIMIT:
                self._send(producer, PROCESS_EVENT, EVENTS_QUEUE, [event_ids], {})
            for queue, waiting in _by_queue(tasks).items():
                depth = self._depth(producer.channel, queue)
                if depth >= DEPTH_LIMIT:
                    continue
                if max(len(waiting), depth) > SINGLE_DELIVERY_LIMIT:
                    self._send_together(producer, queue, waiting)
                else:
                    self._send_alone(producer, queue, waiting)
        return max(len(event_ids), len(tasks))

    def _send_alone(self, producer: Any, queue: str, tasks: Sequence[TaskRef]) -> None:
        for task in tasks:
            labels = {"rule": task.rule, "attempt": task.attempts + 1}
            # Never the same twice: a worker that met one expired copy discards every later one of its id for hours.
            message_id = f"{task.id}:{task.epoch + 1}:{token_hex(3)}"
            self._send(producer, CELERY_TASK_OF[task.type], queue, [task.id], labels, message_id)

    def _send_together(self, producer: Any, queue: str, tasks: Sequence[TaskRef]) -> None:
        groups: dict[TaskType, list[str]] = {}
        for task in tasks:
            groups.setdefault(task.type, []).append(task.id)
        for type_, ids in groups.items():
            self._send(producer, CELERY_TASK_OF[type_], queue, [ids], {"tasks": len(ids)})

    def _depth(self, channel: Any, queue: str) -> int:
        """Return how many messages stand in a queue; looked up at most every `DEPTH_SECONDS`."""
        now_seconds = time.monotonic()
        if now_seconds - self._looked_seconds.get(queue, 0.0) >= DEPTH_SECONDS:
            self._looked_seconds[queue] = now_seconds
            self._depths[queue] = _depth(channel, queue)
        return self._depths[queue]

    def _send(
        self,
        producer: Any,
        name: str,
        queue: str,
        args: list[Any],
        labels: dict[str, Any],
        message_id: str | None = None,
    ) -> None:
        self._app.send_task(
            name,
            args=args,
            kwargs=labels,
            task_id=message_id,
            queue=queue,
            expires=MESSAGE_EXPIRES_SECONDS,
            retry=False,
            ignore_result=True,
            producer=producer,
        )


class QueueDepths:
    """How many messages stand in each queue, asked over one connection that is kept; for one thread."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Connection | None = None

    def read(self) -> Mapping[str, int] | None:
        """Return the depth of each queue by name; None when the broker cannot be reached."""
        try:
            if self._connection is None:
                self._connection = self._app.connection_for_read(connect_timeout=2)
            channel = self._connection.default_channel
            return {name: _depth(channel, name) for name in (EVENTS_QUEUE, *QUEUE_OF.values())}
        except Exception as error:  # noqa: BLE001 - the transports share no root of exceptions; any of them means "not now"
            log.debug("queue depths are not to be had: %s", type(error).__name__)
            self.close()
            return None

    def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.release()


def _depth(channel: Any, name: str) -> int:
    """Return a queue's depth.

    Redis is asked for the length itself: kombu's passive declaration overlooks `global_keyprefix` (kombu 5.7, EXISTS is not
    among the commands it prefixes) and takes every queue for one that does not exist.
    """
    if isinstance(channel, VirtualChannel):
        return int(channel._size(name))  # noqa: SLF001 - the transport's own hook; there is no public one
    depth: int = channel.queue_declare(name, passive=True).message_count
    return depth


def _by_queue(tasks: Sequence[TaskRef]) -> dict[str, list[TaskRef]]:
    found: dict[str, list[TaskRef]] = {}
    for task in tasks:
        found.setdefault(QUEUE_OF[task.provider], []).append(task)
    return found


def _take(waiting: deque[_Item], most: int) -> list[_Item]:
    return [waiting.popleft() for _ in range(min(most, len(waiting)))]


def wait_until_reachable(broker_url: str, timeout_seconds: float) -> bool:
    """Say whether the broker can be reached within this time."""
    app = celery_app(broker_url)
    give_up_at = time.monotonic() + timeout_seconds
    while time.monotonic() < give_up_at:
        try:
            with app.connection_for_write(connect_timeout=2) as connection:
                connection.ensure_connection(max_retries=1, interval_start=0)
                return True
        except Exception:  # noqa: BLE001 - as in depths
            time.sleep(0.1)
    return False
