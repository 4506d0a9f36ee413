"""Telling Flower again what it may have missed, out of the ledger.

Flower knows only what it heard: a worker that is killed says nothing more of what it was sending, doubts are ended by a
look-up or by `leadwire settle` in another process, and while Flower or the broker was away nobody listened. So every worker

- looks every five seconds which tasks are `unknown`, tells those that are so newly, and how a doubt has ended;
- tells what came of the latest tasks when it starts, and when somebody begins to listen.

What is told is what stands, so that telling it twice, or by several workers, changes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, Final

from celery.worker.control import Panel, control_command

from rules.vocabulary import TERMINAL_TASK_STATES, LedgerError, TaskState, Verdict, instant
from worker import board
from worker.awake import awake_seconds
from worker.deliver import Delivered, outcome_words
from worker.dispatch import CELERY_TASK_OF
from worker.ledger import Ledger, StoredTask
from worker.wiring import utc_now

log = logging.getLogger(__name__)

_HEARTBEAT: Final = Panel.data["heartbeat"]
#: How often doubts are looked for.
PERIOD_SECONDS: Final = 5.0
#: How long a newcomer gets to listen, and what is told in answer to several of them.
LISTENING_SECONDS: Final = 1.0
#: The latest tasks, whatever their state, and the latest in each of the states that a person looks for.
LATEST: Final = 1000
LATEST_OF_STATE: Final = 500
TOLD_STATES: Final = (TaskState.UNKNOWN, TaskState.DEAD, TaskState.SUPPRESSED, TaskState.CANCELLED, TaskState.WAITING)
#: What has not changed for longer is left to `leadwire tasks`.
TOLD_AGE: Final = timedelta(hours=24)
#: Rows of a repeated telling are the same; a broker that comes and goes shall not have them sent all the time.
REST_SECONDS: Final = 20.0


class FlowerSync:
    """The telling thread of one worker process."""

    def __init__(self, ledger: Ledger, send: board.Send) -> None:
        self._ledger = ledger
        self._send = send
        self._doubtful: set[str] = set()
        self._noted: deque[str] = deque()
        self._asked = threading.Event()
        self._asked.set()
        self._told_seconds = -REST_SECONDS
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retelling", daemon=True)

    def when_somebody_listens(self) -> None:
        """Tell everything again when a monitor begins to listen: it calls for the workers' heartbeats then."""

        @control_command(name="heartbeat")
        def heard(state: Any) -> None:
            _HEARTBEAT(state)
            self._asked.set()

    def note(self, outcomes: Iterable[Delivered]) -> None:
        """Know of doubts that this worker has just shown: one may be ended before the next look."""
        self._noted.extend(outcome.task_id for outcome in outcomes if outcome.state is TaskState.UNKNOWN)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        doubts_seconds = 0.0
        while not self._stopping.wait(LISTENING_SECONDS):
            try:
                everything = self._asked.is_set() and awake_seconds() - self._told_seconds >= REST_SECONDS
                if everything or awake_seconds() - doubts_seconds >= PERIOD_SECONDS:
                    doubts_seconds = awake_seconds()
                    self.doubts()  # first: it knows more of how a doubt ended
                if everything:
                    self._asked.clear()
                    self.everything()
                    self._told_seconds = awake_seconds()
            except LedgerError as error:
                log.debug("Flower is told later: %s", error)
            except Exception:
                log.exception("Flower could not be told what it may have missed; the next round tries again")

    def doubts(self) -> None:
        """Tell which tasks are newly in doubt, and which were delivered after all or have ended otherwise."""
        known = self._doubtful | {self._noted.popleft() for _ in range(len(self._noted))}
        found = {task.id: task for task in self._ledger.list_tasks(LATEST_OF_STATE, state=TaskState.UNKNOWN)}
        for task_id in found.keys() - known:
            self._tell(found[task_id])
        ended = [self._ledger.task(task_id) for task_id in known - found.keys()]
        delivered = [task.id for task in ended if task and task.state is TaskState.DELIVERED]
        if delivered:
            board.together(delivered, self._send, "delivered, after a doubt")
        for task in ended:
            if task and task.state in TERMINAL_TASK_STATES and task.state is not TaskState.DELIVERED:
                self._tell(task)
        self._doubtful = set(found)

    def everything(self) -> None:
        """Tell what came of the latest tasks."""
        delivered: list[str] = []
        for task in self._latest():
            if self._stopping.is_set():
                return
            if task.state is TaskState.DELIVERED:
                delivered.append(task.id)
            else:
                self._tell(task)
        for start in range(0, len(delivered), 100):
            board.together(delivered[start : start + 100], self._send, "delivered")

    def _latest(self) -> Iterator[StoredTask]:
        oldest_at = utc_now() - TOLD_AGE
        seen: set[str] = set()
        lists = [self._ledger.list_tasks(LATEST)]
        lists += [self._ledger.list_tasks(LATEST_OF_STATE, state=state) for state in TOLD_STATES]
        for tasks in lists:
            for task in tasks:
                if task.id not in seen and task.updated_at >= oldest_at:
                    seen.add(task.id)
                    yield task

    def _tell(self, task: StoredTask) -> None:
        waits = task.state in {TaskState.PLANNED, TaskState.WAITING}
        if waits and task.due_at - utc_now() < board.WAITS_AT_LEAST:
            return  # its next message is about to tell more
        board.announce([self._outcome(task)], CELERY_TASK_OF[task.type], self._send)

    def _outcome(self, task: StoredTask) -> Delivered:
        """Return what is to be shown of a task, in the words of the worker that settled it."""
        attempts = [attempt for attempt in self._ledger.attempts(task.id) if not attempt.deferred or attempt.verdict]
        last = attempts[-1] if attempts else None
        waiting = task.state is TaskState.WAITING
        if last is None or last.verdict is None:
            words = f"again at {instant(task.due_at)}" if waiting else board.planning_words(task)
        else:
            due_at = task.due_at if waiting else None
            words = outcome_words(last.verdict, last.status, task.state, due_at=due_at, attempt=last.number)
            if last.verdict is Verdict.UNKNOWN and task.state is TaskState.DEAD:
                words = f"its provider does not have it; given up after attempt {last.number}"
        return Delivered(
            task_id=task.id,
            state=task.state,
            words=words,
            rule=task.rule,
            attempt=last.number if last else 1,
            began_at=last.started_at if last else task.created_at,
            ended_at=last.ended_at if last and last.ended_at else task.updated_at,
        )
