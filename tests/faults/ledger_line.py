"""The ledger's whole line, step by step: from an old schema through all that a task can meet. Each step is one transaction.

The steps say everything themselves, moments and ids, and look up what they hold; so the line can be begun at any of them by
a process that knows nothing, and always leads to the same rows.
"""

from __future__ import annotations

from datetime import timedelta

from rules.vocabulary import (
    Decision,
    DecisionOutcome,
    Event,
    EventState,
    Plan,
    ProviderName,
    Rotation,
    Task,
    TaskState,
    TaskType,
    Verdict,
)
from tests.faults.old_ledgers import NOW
from worker.ledger import (
    Claim,
    ClaimTerms,
    Delivery,
    IncomingEvent,
    Limits,
    PendingReconciliation,
    Reaction,
    Settlement,
    migrate,
    open_ledger,
)
from worker.ledger.follow_ups import BACK_OFF

LEASE = timedelta(seconds=60)
GRACE = timedelta(seconds=5)
OWNER = "w-1"
TURNS = Rotation(team="closers", member_ids=("u1", "u2"))


def at(seconds):
    """Return a moment counted from the beginning."""
    return NOW + timedelta(seconds=seconds)


def _record(*ids):
    def step(ledger):
        events = [Event(id=i, source="crm", type="t", occurred_at=NOW, received_at=NOW, data={}) for i in ids]
        delivery = Delivery(id=f"dl_{ids[0]}", source="crm", received_at=NOW, body=bytes(3000), content_hash=ids[0])
        ledger.inbox.record(
            delivery, [IncomingEvent(event=each, dedupe_key=each.id, content_hash="c") for each in events]
        )

    return step


def _task(event_id, name, **changes):
    parts = {
        "id": f"tk_{name}",
        "key": f"key of {name}",
        "event_id": event_id,
        "rule": "r",
        "name": name,
        "type": TaskType.TEAM_TASK,
        "provider": ProviderName.VAMBE,
        "due_at": NOW,
        "fields": {"title": name, "description": "d" * 2000},
        "rule_set": "rs_2",
    }
    return Task(**(parts | changes))


def _plan(event_id, *tasks):
    reason = Decision(rule="r", outcome=DecisionOutcome.MATCHED, reason="it holds", place="a.yaml:1:1")
    return Plan(event_id=event_id, rule_set="rs_2", state=EventState.PROCESSED, decisions=(reason,), tasks=tasks)


def _plans(ledger):
    calls = {"type": TaskType.MAKE_CALL, "provider": ProviderName.MINDHUNTERS}
    first = [_task("ev_1", name) for name in ("good", "doubt", "lost", "spare", "held")]
    second = [_task("ev_2", "call", reactions=("failure",), **calls), _task("ev_2", "later", due_at=at(3600))]
    ledger.tasks.insert([_plan("ev_1", *first), _plan("ev_2", *second)], at(1))


def _plans_claimed(ledger):
    first = [_task("ev_4", name, rotation=TURNS, reactions=("failure",)) for name in ("first", "second", "third")]
    second = [_task("ev_5", name, rotation=TURNS) for name in ("fourth", "fifth")]
    later = _task("ev_5", "call-later", type=TaskType.MAKE_CALL, provider=ProviderName.MINDHUNTERS)
    limits = {ProviderName.VAMBE: Limits(rate_per_second=0.1, burst=2, daily_cap=9)}
    terms = ClaimTerms(type=TaskType.TEAM_TASK, most=3, lease=LEASE, owner=OWNER, limits=limits)
    ledger.tasks.insert_and_claim([_plan("ev_4", *first), _plan("ev_5", *second, later)], at(136), terms)


def _claim(*ids):
    return lambda ledger: ledger.tasks.claim(ids, at(2), LEASE, OWNER)


def held(ledger, task_id):
    """Return the claim that stands on a task."""
    task = ledger.queries.task(task_id)
    return Claim(
        task=task,
        epoch=task.epoch,
        attempt=task.attempts,
        first_attempt_at=task.first_attempt_at,
        claimed_at=at(2),
        lease_until_at=task.lease_until_at,
    )


_DELIVERED = Settlement(verdict=Verdict.DELIVERED, state=TaskState.DELIVERED, external_id="x-1", status=201)
_UNKNOWN = Settlement(verdict=Verdict.UNKNOWN, state=TaskState.UNKNOWN, reason="no answer")
_BUSY = Settlement(verdict=Verdict.BUSY, state=TaskState.WAITING, due_at=at(60), reason="503", status=503)
_REFUSED = Settlement(verdict=Verdict.REFUSED, state=TaskState.DEAD, reason="422", status=422)
_PAUSING = Settlement(
    verdict=Verdict.PAUSE, state=TaskState.WAITING, due_at=at(60), reason="401", status=401, counted=False,
    pause_until_at=at(60),
)  # fmt: skip


def _settle(**outcomes):
    def step(ledger):
        ledger.tasks.settle_many([(held(ledger, f"tk_{name}"), outcome) for name, outcome in outcomes.items()], at(3))

    return step


def _doubt(ledger, task_id):
    """Return the doubt about a task as the step before took it."""
    moments = {"began_at": at(2), "ended_at": at(3), "due_at": at(130) + LEASE}
    return PendingReconciliation(
        task=ledger.queries.task(task_id), look_ups=0, absent_at=None, query_works=False, **moments
    )


def _answer(ledger):
    task = ledger.queries.task("tk_call")
    event = ledger.queries.event("ev_2").event
    due_at = at(132) + BACK_OFF
    reaction = Reaction(task=task, event=event, trigger="failure", status=422, tries=1, due_at=due_at)
    ledger.follow_ups.record(reaction, [_task("ev_2", "follow", parent="tk_call", due_at=at(132))], at(132))


#: The whole line; the first step is given the URL and not the ledger, which cannot be opened before it.
STEPS = (
    migrate,
    lambda ledger: ledger.rule_sets.store("rs_2", {"a.yaml": "x" * 5000}, NOW),
    lambda ledger: ledger.tasks.release("old-", at(0)),  # the old version's call, which nobody settled
    _record("ev_1"),
    _record("ev_2", "ev_3"),
    _plans,
    lambda ledger: ledger.inbox.event_failed("ev_3", "ValueError: no", at(1)),
    lambda ledger: ledger.inbox.dispatch_overdue(at(9), GRACE, 10),
    lambda ledger: ledger.inbox.events_to_process(["ev_open"], at(9)),
    _claim("tk_good", "tk_doubt", "tk_call", "tk_queued"),
    _settle(good=_DELIVERED, doubt=_UNKNOWN),
    _settle(call=_REFUSED),
    lambda ledger: ledger.tasks.give_back(held(ledger, "tk_queued"), at(3)),
    _claim("tk_held"),
    _settle(held=_PAUSING),
    _claim("tk_spare"),  # meets the pause
    lambda ledger: ledger.limits.resume(ProviderName.VAMBE, at(4)),
    lambda ledger: ledger.tasks.dispatch_due(at(10), GRACE, {ProviderName.VAMBE: 3}),
    lambda ledger: ledger.tasks.put_back(["tk_spare", "tk_queued", "tk_waiting"], at(10)),
    _claim("tk_lost", "tk_spare"),
    _settle(spare=_BUSY),
    lambda ledger: ledger.tasks.expire_leases(at(120)),
    lambda ledger: ledger.reconciliation.claim(ProviderName.VAMBE, at(130), LEASE, 10),
    lambda ledger: ledger.reconciliation.postpone(_doubt(ledger, "tk_doubt"), at(200), failed=False, absent_at=at(130)),
    lambda ledger: ledger.reconciliation.resolve(_doubt(ledger, "tk_sending"), _DELIVERED, at(131)),
    lambda ledger: ledger.reconciliation.note_query_works(ProviderName.VAMBE, at(131)),
    lambda ledger: ledger.follow_ups.claim(at(132), 10),
    _answer,
    lambda ledger: ledger.limits.charge(ProviderName.MINDHUNTERS, Limits(rate_per_second=1.0), at(133)),
    lambda ledger: ledger.tasks.claim(
        ["tk_follow"], at(133), LEASE, OWNER, {ProviderName.VAMBE: Limits(concurrency=9)}
    ),
    lambda ledger: ledger.tasks.give_back_of(OWNER, ["tk_follow"], at(133)),
    lambda ledger: ledger.admin.cancel("tk_doubt", "not wanted", at(134)),
    lambda ledger: ledger.admin.retry("tk_doubt", at(135)),
    _record("ev_4", "ev_5"),
    _plans_claimed,  # two are claimed, the third gets its place in line, the others are left to their messages
    _settle(first=_DELIVERED, second=_UNKNOWN),
    lambda ledger: ledger.admin.settle("tk_lost", False, None, at(121)),
    lambda ledger: ledger.admin.settle("tk_unknown", True, "x-2", at(121)),
    lambda ledger: ledger.admin.retry("tk_dead", at(122)),
    lambda ledger: ledger.limits.pause(ProviderName.MINDHUNTERS, at(900), "a person said so", at(122)),
    lambda ledger: ledger.inbox.count_requests({("crm", "accepted", "new"): 3}),
    lambda ledger: ledger.check_writable(),
)


def run(url, first=0, done=lambda _: None):
    """Do the steps from `first` on; `done` is told the number of each when the ledger has acknowledged it."""
    ledger = None
    try:
        for number, step in enumerate(STEPS[first:], first):
            if number == 0:
                step(url)
            else:
                ledger = ledger or open_ledger(url)
                step(ledger)
            done(number)
    finally:
        if ledger is not None:
            ledger.close()
