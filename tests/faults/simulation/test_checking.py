from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from tests.faults.simulation.checking import Record, Step, violations
from tests.faults.simulation.providers import Effect

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
MOMENTS = {"due": NOW, "wall": NOW, "latest": NOW}


def good():
    """Return the record of a run in which one event led to one task, which was made once."""
    task = {
        "id": "tk_1",
        "key": "aaaaaaaaaaaabbbb",
        "event_id": "ev_1",
        "rule": "r",
        "name": "n",
        "parent": None,
        "state": "delivered",
        "reason": None,
        "external_id": "x-1",
        "retry": '{"max_attempts": 1}',
        "if_unsure": "ask",
    }
    return Record(
        accepted={"e1": {("r", "n")}},
        planned={"tk_1": NOW},
        steps=[
            Step(1.0, "claimed", "w1", "tk_1", epoch=1, **MOMENTS),
            Step(2.0, "began", "w1", "tk_1"),
            Step(3.0, "settled", "w1", "tk_1", epoch=1, verdict="delivered"),
        ],
        events=[{"id": "ev_1", "dedupe_key": "e1", "state": "processed", "reason": None}],
        tasks=[task],
        attempts=[{"task_id": "tk_1", "epoch": 1, "deferred": 0}],
        effects=[Effect("lw:aaaaaaaaaaaa", "vambe", 2.0, "x-1")],
    )


def test_a_good_run_has_no_violation():
    """Nothing is said of a run in which all holds."""
    assert [] == violations(good())


def _change_task(record, **changes):
    record.tasks[0] |= changes


def _claim(record, who, at, epoch, place=None, **moments):
    step = Step(at, "claimed", who, "tk_1", epoch=epoch, **(MOMENTS | moments))
    record.steps.insert(len(record.steps) if place is None else place, step)


BAD = {
    "lost: event e2 .* 0 times": lambda r: r.accepted.update(e2=set()),
    "lost: event e1 .* 2 times": lambda r: r.events.append(dict(r.events[0])),
    "lost: event e1 is received": lambda r: r.events[0].update(state="received"),
    r"lost: event e1 has the tasks \[\('r', 'n'\)\], not": lambda r: r.accepted.update(e1={("r", "n"), ("r", "m")}),
    "stuck: task tk_1 is waiting": lambda r: (_change_task(r, state="waiting"), r.effects.clear()),
    "stuck: task tk_1 is unknown": lambda r: (_change_task(r, state="unknown"), r.doubts.add("tk_1")),
    "twice: task tk_1 was made 2 times": lambda r: r.effects.append(Effect("lw:aaaaaaaaaaaa", "vambe", 4.0, "x-2")),
    "unknown: vambe made 'lw:cccc'": lambda r: r.effects.append(Effect("lw:cccc", "vambe", 4.0, "x-3")),
    "false: task tk_1 is delivered and was never": lambda r: r.effects.clear(),
    "false: task tk_1 is delivered as x-9": lambda r: _change_task(r, external_id="x-9"),
    "false: task tk_1 is dead and was made": lambda r: _change_task(r, state="dead"),
    "tries: task tk_1 was tried 3 times of 2": lambda r: r.attempts.extend(
        {"task_id": "tk_1", "epoch": epoch, "deferred": 0} for epoch in (2, 3)
    ),
    "early: task tk_1 .* due at": lambda r: _claim(r, "w2", 4.0, 2, due=NOW + timedelta(seconds=1)),
    "early: task tk_1 .* planned for": lambda r: r.planned.update(tk_1=NOW + timedelta(seconds=1)),
    "claims: w2 claimed task tk_1 while w1": lambda r: _claim(r, "w2", 2.5, 2, place=2),
    "claims: task tk_1 has epoch 1 after 1": lambda r: _claim(r, "w2", 4.0, 1),
    "sent: w2 sent task tk_1 without a claim": lambda r: r.steps.append(Step(2.0, "began", "w2", "tk_1")),
    "sent: w1 sent task tk_1 without a claim": lambda r: r.steps.append(Step(4.0, "began", "w1", "tk_1")),
    "sent: w1 sent task tk_1 61 s after": lambda r: r.steps.insert(2, Step(62.0, "began", "w1", "tk_1")),
    "fencing: task tk_1 took busy of epoch 1 in 2": lambda r: (
        _claim(r, "w2", 4.0, 2),
        r.steps.append(Step(5.0, "settled", "w1", "tk_1", epoch=1, verdict="busy")),
    ),
    "keys: 2 tasks have the key": lambda r: r.tasks.append({**r.tasks[0], "id": "tk_2", "event_id": "ev_2"}),
    "keys: 2 tasks have the place": lambda r: r.tasks.append({**r.tasks[0], "id": "tk_2", "key": "dd"}),
    "follows: task tk_1 is dead and is followed by \\[\\]": lambda r: (
        _change_task(r, state="dead"),
        r.effects.clear(),
        r.following.update({("r", "n"): "n/m"}),
    ),
    "follows: task tk_1 is delivered and is followed by": lambda r: r.tasks.append(
        {**r.tasks[0], "id": "tk_2", "key": "dd", "name": "n/m", "parent": "tk_1"}
    ),
    "fault: thread 1": lambda r: r.faults.append("thread 1: KeyError"),
}


@pytest.mark.parametrize("said", BAD)
def test_a_bad_history_is_told(said):
    """Each way in which a run can be bad is said in words that name it."""
    record = good()
    BAD[said](record)
    assert [each for each in violations(record) if re.search(said, each)], violations(record)


def test_repeating_is_allowed_to_who_asked_for_it_as_often_as_nobody_could_tell():
    """A task of `if_unsure: repeat` may be made once more for each doubt that was ended so; no other task may."""
    record = good()
    record.effects.append(Effect("lw:aaaaaaaaaaaa", "vambe", 4.0, "x-2"))
    record.steps.append(Step(3.5, "repeated", "w1", "tk_1"))
    assert ["twice: task tk_1 was made 2 times"] == violations(record)
    _change_task(record, if_unsure="repeat")
    assert [] == violations(record)
    record.effects.append(Effect("lw:aaaaaaaaaaaa", "vambe", 5.0, "x-3"))
    assert ["twice: task tk_1 was made 3 times"] == violations(record)
