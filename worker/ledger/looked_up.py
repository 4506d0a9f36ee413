"""What a look-up does to a task in doubt: found is delivered, absent is sent again, and what nobody can tell is a person's.

That the provider has the task is true whatever has been decided since, so it counts like a late success. Everything else
counts only while the doubt is held and the task is still unknown under the same claim: done twice, or late, it changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, and_, bindparam, func, select, update

from rules.vocabulary import TERMINAL_TASK_STATES, TaskState
from worker.ledger import counters, doubts, outcomes, reacting, settling
from worker.ledger.counters import Tally
from worker.ledger.encoding import label, micros, micros_or_none, sentence_or_none
from worker.ledger.schema import tasks
from worker.ledger.statements import Statement
from worker.ledger.types import PendingReconciliation, Settlement

_LOCK: Final = Statement(select(tasks.c.id).where(tasks.c.id == bindparam("this_id")).with_for_update(key_share=True))
_DECIDE: Final = Statement(
    update(tasks)
    .where(
        and_(
            tasks.c.id == bindparam("this_id"),
            tasks.c.epoch == bindparam("held_epoch"),
            tasks.c.state == TaskState.UNKNOWN,
        )
    )
    .values(
        state=bindparam("new_state"),
        due_at=func.coalesce(bindparam("new_due_at", type_=tasks.c.due_at.type), tasks.c.due_at),
        reason=bindparam("new_reason"),
        dispatched_at=None,
        updated_at=bindparam("now"),
    )
)


def end(doubt: PendingReconciliation, settlement: Settlement, now: datetime) -> Callable[[Connection], bool]:
    """Return the work that ends a doubt; its result says whether the task took it.

    DELIVERED, WAITING, DEAD: that is what it comes to. UNKNOWN: it stays so, and nobody looks it up any more.
    """

    def work(connection: Connection) -> bool:
        external_id = None if settlement.external_id is None else label(settlement.external_id)
        row = {
            "this_id": doubt.task.id,
            "held_epoch": doubt.task.epoch,
            "new_state": settlement.state,
            "new_due_at": micros_or_none(settlement.due_at),
            "new_external_id": external_id,
            "new_reason": sentence_or_none(settlement.reason),
            "now": micros(now),
        }
        if settlement.state == TaskState.DELIVERED:
            fits, ended = settling.deliver_late(connection, row)
            doubts.drop(connection, [doubt.task.id])
            if fits:
                outcomes.follow_found(connection, doubt.task.id, doubt.task.provider, external_id, micros(now))
        else:
            _LOCK.rows(connection, row)  # the task before its doubt, as everybody does: no two wait for each other
            fits = ended = doubts.end(connection, doubt) and _DECIDE.run(connection, row) == 1
        if ended and settlement.state in TERMINAL_TASK_STATES:
            counters.of(connection).count(Tally.TASKS_ENDED, doubt.task.type, settlement.state)
        if ended and settlement.state in reacting.FAILED_STATES:
            reacting.note_ends(connection, [(doubt.task.id, doubt.task.reactions)], micros(now))
        return fits

    return work
