"""What must hold of a run, judged from what was seen outside and from what the ledger says in the end.

Nothing of the product is asked: a history of steps, the providers' own list of what they made, and plain rows. So the
checker can be tested with histories that no product ever made (test_checking.py).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

#: States in which nothing more is done by itself; `unknown` counts only when no look-up is left.
ENDED = frozenset({"delivered", "dead", "cancelled", "suppressed"})
#: An attempt begins no request after this: the claim would not be its own any more.
LEASE_SECONDS = 60.0


@dataclass(frozen=True)
class Step:
    """One thing that was seen: `who` is a process, `kind` what it did or what became of its claim.

    Kinds: claimed, began (a request left), settled, ended (a claim, without an outcome), repeated (a doubt ended by sending
    again unseen), and a person's cancel or retry.

    Of a claim: `due` is when its task is due, `wall` what the clock says, `latest` the latest that it ever said before.
    """

    at: float
    kind: str
    who: str
    task: str
    epoch: int = 0
    due: object = None
    wall: object = None
    latest: object = None
    taken: bool = True
    verdict: str = ""


@dataclass
class Record:
    """All that is known of a run when it has come to rest.

    `accepted` maps the key of each acknowledged event to the tasks, (rule, name), that it must lead to; `planned` maps the
    ids of tasks to the moment they were planned for; `events`, `tasks`, `attempts` are the ledger's rows; `doubts` the ids
    of tasks that are still looked up; `effects` what providers made. `following` names, by
    the (rule, name) of a task, the one that follows on its failure. `at_once` counts the claims that were made with the plan.
    """

    accepted: dict = field(default_factory=dict)
    planned: dict = field(default_factory=dict)
    steps: list = field(default_factory=list)
    events: list = field(default_factory=list)
    tasks: list = field(default_factory=list)
    attempts: list = field(default_factory=list)
    doubts: set = field(default_factory=set)
    effects: list = field(default_factory=list)
    following: dict = field(default_factory=dict)
    faults: list = field(default_factory=list)
    at_once: int = 0


def violations(record):
    """Return what does not hold, in words; nothing when all does."""
    checks = (_lost, _follows, _ends, _twice, _told, _tries, _before_due, _claims, _sends, _fencing, _keys)
    return [f"fault: {fault}" for fault in record.faults] + [said for check in checks for said in check(record)]


def _mark(task):
    return f"lw:{task['key'][:12]}"


def _lost(record):
    """Every acknowledged event is there, once, decided, with exactly its tasks."""
    events = {}
    for event in record.events:
        events.setdefault(event["dedupe_key"], []).append(event)
    made = {}
    for task in record.tasks:
        if task["parent"] is None:
            made.setdefault(task["event_id"], Counter())[task["rule"], task["name"]] += 1
    for key, expected in record.accepted.items():
        found = events.get(key, [])
        if len(found) != 1:
            yield f"lost: event {key} was acknowledged and is there {len(found)} times"
        elif found[0]["state"] not in {"processed", "ignored"}:
            yield f"lost: event {key} is {found[0]['state']} in the end: {found[0]['reason']}"
        elif Counter(expected) != made.get(found[0]["id"], Counter()):
            yield f"lost: event {key} has the tasks {sorted(made.get(found[0]['id'], ()))}, not {sorted(expected)}"


def _follows(record):
    """What failed for good is followed by what its rule says, once, and nothing else is."""
    following = {}
    for task in record.tasks:
        if task["parent"] is not None:
            following.setdefault(task["parent"], []).append(task["name"])
    revived = {step.task for step in record.steps if step.kind == "retry"}
    for task in record.tasks:
        wanted = record.following.get((task["rule"], task["name"]))
        failed = task["state"] in {"dead", "suppressed"}
        expected = [wanted] if wanted and failed else []
        found = following.pop(task["id"], [])
        if found != expected and not (task["id"] in revived and found == [wanted]):
            yield f"follows: task {task['id']} is {task['state']} and is followed by {found}, not {expected}"
    for parent, names in following.items():
        yield f"follows: {names} follow on {parent}, which is no task"


def _ends(record):
    """Every task ends, or waits for a person."""
    for task in record.tasks:
        waits_for_person = task["state"] == "unknown" and task["id"] not in record.doubts
        if task["state"] not in ENDED and not waits_for_person:
            yield f"stuck: task {task['id']} is {task['state']} in the end: {task['reason']}"


def _twice(record):
    """No provider makes a task twice; only who asked for `repeat` may get that, as often as nobody could tell."""
    made = Counter(effect.mark for effect in record.effects)
    repeats = Counter(step.task for step in record.steps if step.kind == "repeated")
    for task in record.tasks:
        repeated = repeats[task["id"]] if task["if_unsure"] == "repeat" else 0
        if made[_mark(task)] > 1 + repeated:
            yield f"twice: task {task['id']} was made {made[_mark(task)]} times"
    known = {_mark(task) for task in record.tasks}
    for effect in record.effects:
        if effect.mark not in known:
            yield f"unknown: {effect.provider} made {effect.mark!r}, which is no task"


def _told(record):
    """What the ledger says of a task is what its provider made."""
    made = {}
    for effect in record.effects:
        made.setdefault(effect.mark, set()).add(effect.external_id)
    for task in record.tasks:
        ids = made.get(_mark(task), set())
        if task["state"] == "delivered" and not ids:
            yield f"false: task {task['id']} is delivered and was never made"
        elif task["state"] == "delivered" and task["external_id"] not in ids:
            yield f"false: task {task['id']} is delivered as {task['external_id']}, and was made as {sorted(ids)}"
        elif ids and task["state"] not in {"delivered", "unknown"} and "executed" not in (task["reason"] or ""):
            yield f"false: task {task['id']} is {task['state']} and was made: {task['reason']}"


def _tries(record):
    """No task is tried more often than its rule allows, and as often again after each retry by hand."""
    tries = Counter(row["task_id"] for row in record.attempts if not row["deferred"])
    revived = Counter(step.task for step in record.steps if step.kind == "retry")
    for task in record.tasks:
        most = (json.loads(task["retry"])["max_attempts"] + 1) * (1 + revived[task["id"]])
        if tries[task["id"]] > most:
            yield f"tries: task {task['id']} was tried {tries[task['id']]} times of {most}"


def _before_due(record):
    """Nothing is claimed before it is due."""
    seen, revived = set(), set()
    for step in record.steps:
        if step.kind == "retry":
            revived.add(step.task)
        if step.kind != "claimed":
            continue
        planned = record.planned.get(step.task)
        if step.due > step.wall:
            yield f"early: task {step.task} was claimed at {step.wall}, due at {step.due}"
        elif step.task not in seen | revived and planned is not None and planned > max(step.wall, step.latest):
            yield f"early: task {step.task} was claimed at {step.wall}, planned for {planned}"
        seen.add(step.task)


def _claims(record):
    """Nobody claims what somebody else holds, and the epochs of a task rise."""
    held, epochs = {}, {}
    for step in record.steps:
        if step.kind == "claimed":
            if step.task in held:
                yield f"claims: {step.who} claimed task {step.task} while {held[step.task].who} held it"
            if step.epoch <= epochs.get(step.task, 0):
                yield f"claims: task {step.task} has epoch {step.epoch} after {epochs[step.task]}"
            held[step.task] = step
            epochs[step.task] = step.epoch
        elif step.kind == "ended" or (step.kind == "settled" and step.taken):
            holder = held.get(step.task)
            if holder is not None and step.epoch in {0, holder.epoch}:
                del held[step.task]


def _sends(record):
    """No request leaves without a claim of the same process, which is young and not settled yet."""
    own = {}
    for step in record.steps:
        if step.kind == "claimed":
            own[step.who, step.task] = step
        elif step.kind in {"settled", "ended"} and step.epoch:  # a lease that ended was not let go by its holder
            own.pop((step.who, step.task), None)
        elif step.kind == "began":
            claim = own.get((step.who, step.task))
            if claim is None:
                yield f"sent: {step.who} sent task {step.task} without a claim"
            elif step.at - claim.at > LEASE_SECONDS:
                yield f"sent: {step.who} sent task {step.task} {step.at - claim.at:.0f} s after its claim"


def _fencing(record):
    """Under an older claim only a success counts."""
    epochs = {}
    for step in record.steps:
        if step.kind == "claimed":
            epochs[step.task] = step.epoch
            continue
        is_old = step.epoch < epochs.get(step.task, 0)
        if step.kind == "settled" and step.taken and step.verdict != "delivered" and is_old:
            yield f"fencing: task {step.task} took {step.verdict} of epoch {step.epoch} in {epochs[step.task]}"


def _keys(record):
    """An event makes a task of a rule once, and a key is nobody else's."""
    for name, of in (("key", lambda t: t["key"]), ("place", lambda t: (t["event_id"], t["rule"], t["name"]))):
        for value, number in Counter(of(task) for task in record.tasks).items():
            if number > 1:
                yield f"keys: {number} tasks have the {name} {value}"
