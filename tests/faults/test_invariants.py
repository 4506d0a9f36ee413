"""The checker of the chaos run, on histories made up for it: the good ones contradict nothing, each bad one its invariant.

A checker that cannot fail proves nothing: for each invariant there is at least one history that it alone, or it among
others, must refuse.
"""

from dataclasses import replace

import pytest

from tests.faults.chaos.history import Attempt, Disturbed, Effect, History, Post, Touch
from tests.faults.chaos.invariants import ENOUGH, INVARIANTS, beside_storms, judge, leaks_in

CALL = Touch(
    id="tk_1",
    event="evt-1",
    provider="mindhunters",
    title="Call evt-1",
    state="delivered",
    first_due_at=100.1,
    due_at=102.0,
    external_id="m1",
    retry_seconds=1.0,
    attempts=(
        Attempt(started_at=100.2, ended_at=100.3, verdict="busy"),
        Attempt(started_at=102, ended_at=103, verdict="delivered"),
    ),
)
MEET = Touch(
    id="tk_2",
    event="evt-1",
    provider="vambe",
    title="Meet evt-1",
    state="unknown",
    first_due_at=100.1,
    due_at=100.1,
    attempts=(Attempt(started_at=100.2, ended_at=100.5, verdict="unknown"),),
)
CALLED = Effect(provider="mindhunters", title="Call evt-1", at=102.5, external_id="m1")
MET = Effect(provider="vambe", title="Meet evt-1", at=100.4, external_id="v1")
GOOD = History(
    posts=(
        Post(event="evt-1", at=99.0, ended_at=99.5, status=503),
        Post(event="evt-1", at=100.0, ended_at=100.1, status=202),
        Post(event="evt-2", at=100.0, ended_at=105.0, status=None),
    ),
    effects=(CALLED, MET),
    events={"evt-1": "processed"},
    touches=(CALL, MEET),
    expected={
        "evt-1": frozenset({("mindhunters", "Call evt-1"), ("vambe", "Meet evt-1")}),
        "evt-2": frozenset({("mindhunters", "Call evt-2"), ("vambe", "Meet evt-2")}),
    },
    ended_at=200.0,
)


def touches(**changes):
    """Return the good history with the call changed."""
    return replace(GOOD, touches=(replace(CALL, **changes), MEET))


def effects(*more):
    """Return the good history with more effects."""
    return replace(GOOD, effects=(*GOOD.effects, *more))


ONCE_MORE = replace(CALLED, external_id="m2", at=104.0)
TRIED = Attempt(started_at=100.0, ended_at=100.1, verdict="busy")

GOOD_ONES = {
    "as it should be": GOOD,
    "nothing happened": History(),
    "due in the future": touches(state="waiting", due_at=201.0, external_id=None),
    "dead": touches(state="dead"),
    "looked up later": replace(GOOD, touches=(CALL, replace(MEET, sought_at=201.0))),
    "repeated because a person asked for it": replace(
        GOOD,
        touches=(CALL, replace(MEET, if_unsure="repeat", state="delivered", external_id="v2")),
        effects=(*GOOD.effects, replace(MET, external_id="v2", at=110.0)),
    ),
    "early by a clock that was moved": replace(touches(first_due_at=3700.0), clock_moved_seconds=3600.0),
    "an accepted event that was posted again": replace(
        GOOD, posts=(*GOOD.posts, Post(event="evt-1", at=101.0, ended_at=101.1, status=200))
    ),
    "many deferred tries": touches(
        retries=0,
        attempts=tuple(
            Attempt(started_at=at, ended_at=at + 0.1, verdict="busy", deferred=True) for at in range(100, 140)
        ),
    ),
}

BAD_ONES = [
    ("I1", "accepted and not recorded", replace(GOOD, events={})),
    (
        "I1",
        "accepted by another status of success",
        replace(GOOD, events={}, posts=(replace(GOOD.posts[1], status=200),)),
    ),
    ("I2", "never decided", replace(GOOD, events={"evt-1": "received"})),
    ("I2", "a task that was never made", replace(GOOD, touches=(CALL,))),
    ("I2", "being sent for ever", touches(state="sending", due_at=102.0)),
    ("I2", "due and left lying", touches(state="waiting", due_at=199.0)),
    ("I2", "to be looked up long ago", replace(GOOD, touches=(CALL, replace(MEET, sought_at=150.0)))),
    ("I3", "delivered and not there", replace(GOOD, effects=(MET,))),
    ("I3", "delivered under another id", touches(external_id="m9")),
    ("I3", "delivered without an id", touches(external_id=None)),
    ("I4", "twice", effects(ONCE_MORE)),
    ("I4", "twice for an outcome that nobody knew, and nobody asked for it", effects(replace(MET, external_id="v2"))),
    (
        "I4",
        "once more than the doubts explain",
        replace(
            GOOD,
            touches=(CALL, replace(MEET, if_unsure="repeat")),
            effects=(CALLED, MET, replace(MET, external_id="v2"), replace(MET, external_id="v3")),
        ),
    ),
    (
        "I4",
        "twice without any task",
        effects(*[Effect(provider="vambe", title="X", at=1.0, external_id=i) for i in "ab"]),
    ),
    ("I5", "tried too often", touches(retries=0)),
    ("I6", "before its moment", touches(first_due_at=103.5)),
    ("I6", "retried before its pause was over", touches(retry_seconds=5.0)),
    (
        "I6",
        "two tries at once",
        touches(
            attempts=(replace(TRIED, ended_at=103.0, verdict="unknown"), replace(CALL.attempts[1], started_at=101.0))
        ),
    ),
    (
        "I6",
        "tried again while the first try was open",
        touches(attempts=(replace(TRIED, ended_at=None), CALL.attempts[1])),
    ),
    ("I7", "a file that is not whole", replace(GOOD, integrity=("row 7 missing from index",))),
    ("I8", "a name in a log", replace(GOOD, leaks=leaks_in({"worker.log": "Ana Quilapan"}, ["Quilapan"]))),
]


@pytest.mark.parametrize("name", GOOD_ONES)
def test_a_good_history_contradicts_nothing(name):
    """Whatever may happen in a good run is held against nobody."""
    assert {invariant.name: [] for invariant in INVARIANTS} == judge(GOOD_ONES[name])


@pytest.mark.parametrize(("invariant", "name", "history"), BAD_ONES, ids=[f"{one[0]} {one[1]}" for one in BAD_ONES])
def test_a_bad_history_contradicts_its_invariant(invariant, name, history):
    """What must not happen is found, by the invariant that forbids it."""
    assert judge(history)[invariant]


def beside_a_storm(seconds, number=ENOUGH):
    """Return a history in which the team's tasks take 0.1 s, and so many seconds while the other provider is in a storm."""
    posts, happened, expected = [], [], {}
    for at, took in [*((100 + n, 0.1) for n in range(number)), *((1000 + n, seconds) for n in range(number))]:
        event = f"evt-{at}"
        posts.append(Post(event=event, at=at - 0.01, ended_at=at, status=202))
        expected[event] = frozenset({("mindhunters", f"Call {event}"), ("vambe", f"Meet {event}")})
        happened.append(Effect(provider="vambe", title=f"Meet {event}", at=at + took, external_id=event))
        happened.append(Effect(provider="mindhunters", title=f"Call {event}", at=at + 20, external_id=event))
    storm = Disturbed(kind="provider storm", began_at=995, ended_at=1100, provider="mindhunters")
    return History(posts=tuple(posts), effects=tuple(happened), expected=expected, disturbed=(storm,))


def test_a_provider_that_a_storm_at_the_other_delays_is_found():
    """I9 holds while the other's p95 stays as it is in quiet times, and is contradicted when it grows."""
    assert [] == judge(beside_a_storm(0.2))["I9"]
    (found,) = judge(beside_a_storm(9.0))["I9"]
    assert found.startswith("vambe: p95 9.00 s")


def test_a_storm_among_other_faults_judges_nobody():
    """A storm of which too little was seen, or beside another fault, is no proof against the other provider."""
    assert [] == judge(beside_a_storm(9.0, number=ENOUGH - 1))["I9"]
    bad = beside_a_storm(9.0)
    killed = Disturbed(kind="worker killed", began_at=990, ended_at=1100)
    assert {} == beside_storms(replace(bad, disturbed=(*bad.disturbed, killed)))[1]
    assert [] == judge(replace(bad, disturbed=(*bad.disturbed, killed)))["I9"]


def test_leaks_are_named_by_file_and_word():
    """What must not stand in a log is found wherever it stands."""
    texts = {"a.log": "all is well", "b.log": "called +56911112222"}
    assert ("b.log holds '+569'",) == leaks_in(texts, ["secret", "+569"])


def test_every_invariant_has_its_bad_histories():
    """None of the nine goes without a history that contradicts it."""
    assert {invariant.name for invariant in INVARIANTS} == {one[0] for one in BAD_ONES} | {"I9"}
