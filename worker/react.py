"""What follows on the end of a task: planned by the rules that planned the task, recorded once, and sent like any other.

The ledger notes an end in the transaction that makes it, and strikes it off in the one that records what follows; so a
worker that dies at any moment delays an answer by seconds and never loses or doubles it. What cannot be planned (its rule set
is gone, or a variable of it) is tried five times, then put aside, with a remark on the task.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from rules.engine import Ended, react
from rules.vocabulary import FAILURE, LedgerBusyError, LedgerError, Problem, Task, TaskState
from worker.context import WORKER_SECTIONS, WorkerContext
from worker.deliver import Delivered
from worker.ledger import Reaction
from worker.ledger.answering import TRIES_LIMIT
from worker.rule_sets import KeptRuleSets

log = logging.getLogger(__name__)

#: How often noted ends are looked for; one that this worker made itself is looked for at once.
PERIOD_SECONDS: Final = 0.5
#: Ends taken at once.
BATCH: Final = 20

_NO_REASON: Final = "no reason was recorded"


class FollowUps:
    """The answering thread of one worker process; `show` is told the tasks that no message goes out for now."""

    def __init__(self, context: WorkerContext, show: Callable[[Sequence[Task]], None] = lambda _: None) -> None:
        self._context = context
        self._show = show
        self._sets = KeptRuleSets(context.ledger, context.rule_set, context.settings.environment, WORKER_SECTIONS)
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="react", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round under way."""
        self._stopping.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def note(self, outcomes: Iterable[Delivered]) -> None:
        """Look at once when this worker has just ended a task badly."""
        if any(outcome.state in {TaskState.DEAD, TaskState.SUPPRESSED} for outcome in outcomes):
            self._woken.set()

    def _run(self) -> None:
        tried_again = False
        while not self._stopping.is_set():
            self._woken.wait(PERIOD_SECONDS)
            self._woken.clear()
            try:
                if not tried_again:
                    self.try_again()
                    tried_again = True
                while not self._stopping.is_set() and self.once() == BATCH:
                    pass
            except LedgerError as error:
                log.warning("what follows on ends waits, the ledger cannot be used now: %s", error)
            except Exception:
                log.exception("a round of answering ends failed; the next one tries again")

    def try_again(self) -> None:
        """Have tried again what was put aside: what was missing may be there for this process."""
        number = self._context.ledger.follow_ups.retry_set_aside(self._context.clock.now())
        if number:
            log.info("%s tasks have ended whose answer could not be planned before; it is tried again", number)

    def once(self) -> int:
        """Answer what has ended; return how many ends were taken."""
        taken = self._context.ledger.follow_ups.claim(self._context.clock.now(), BATCH)
        for reaction in taken:
            self._answer(reaction)
        return len(taken)

    def _answer(self, reaction: Reaction) -> None:
        context, task = self._context, reaction.task
        try:
            rule_set = self._sets.rule_set(task.rule_set)
            now = context.clock.now()
            planned, note = react(rule_set, reaction.event, _ended(reaction), reaction.trigger, now=now)
            due = context.ledger.follow_ups.record(reaction, planned, now, note)
        except LedgerBusyError:
            raise  # nothing is wrong with the answer: it is taken again
        except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this end alone
            self._failed(reaction, error)
            return
        context.publisher.tasks(due)
        sent = {ref.id for ref in due}
        self._show([each for each in planned if each.id not in sent])
        names = ", ".join(each.name for each in planned) or "nothing"
        log.info("task %s of rule %s: on %s follows %s", task.id, task.rule, reaction.trigger, names)

    def _failed(self, reaction: Reaction, error: Exception) -> None:
        """Leave an end to its next try, or put it aside; the log gets no message that may quote a payload."""
        told = f": {error}" if isinstance(error, Problem) else ""
        task, trigger = reaction.task, reaction.trigger
        name = type(error).__name__
        if reaction.tries < TRIES_LIMIT:
            log.warning("task %s: what follows on %s cannot be planned yet (%s%s)", task.id, trigger, name, told)
            return
        log.error(
            "task %s: what follows on %s cannot be planned (%s%s); see leadwire show", task.id, trigger, name, told
        )
        self._context.ledger.follow_ups.set_aside(reaction, f"{name}: {error}", self._context.clock.now())


def _ended(reaction: Reaction) -> Ended:
    """Return what the templates of what follows may say of a task's end."""
    task = reaction.task
    outcome = None if reaction.trigger == FAILURE else reaction.trigger.partition(":")[2]
    return Ended(
        id=task.id,
        rule=task.rule,
        name=task.name,
        title=str(task.fields.get("title") or ""),
        reason=task.reason or _NO_REASON if outcome is None else f"{task.provider} says it has ended: {outcome}",
        status=reaction.status if outcome is None else None,
        outcome=outcome,
    )
