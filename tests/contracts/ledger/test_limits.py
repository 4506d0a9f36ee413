"""Limits and breakers as claims and settlements meet them, by several workers at once."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from rules.vocabulary import ProviderName, TaskState, Verdict
from worker.ledger import Claim, Held, Limits, PauseKind, open_ledger

VAMBE, MINDHUNTERS = ProviderName.VAMBE, ProviderName.MINDHUNTERS
BOTH = {VAMBE: 100, MINDHUNTERS: 100}
GRACE = timedelta(seconds=10)


def plan(bench, number, **changes):
    """Plan so many tasks of one provider and return their ids."""
    ids = [f"tk_{place:03}" for place in range(number)]
    bench.planned(*(bench.task(task_id, **changes) for task_id in ids))
    return ids


def claim(bench, ids, seconds=0, **limits):
    """Claim under these limits for Vambe."""
    return bench.ledger.tasks.claim(ids, bench.at(seconds), bench.lease, "w-1", {VAMBE: Limits(**limits)})


def moments(bench, ids):
    """Return by how many seconds each task is due later than the beginning."""
    return [round((bench.ledger.queries.task(task_id).due_at - bench.now).total_seconds(), 3) for task_id in ids]


def test_the_rate_gives_each_task_its_own_place(bench):
    """What comes too soon waits for its own place, loses no attempt, and begins then without another charge."""
    ids = plan(bench, 5)
    answers = claim(bench, ids, rate_per_second=2, burst=2)
    assert [True, True, False, False, False] == [isinstance(answer, Claim) for answer in answers]
    assert [(Held.RATE, TaskState.WAITING, bench.at(n)) for n in (0.5, 1, 1.5)] == [
        (answer.held, answer.state, answer.due_at) for answer in answers[2:]
    ]
    assert [0.5, 1, 1.5] == moments(bench, ids[2:])
    task = bench.ledger.queries.task(ids[2])
    assert (0, bench.at(0.5)) == (task.attempts, task.slot_at)
    (began,) = claim(bench, ids[2:3], 0.5, rate_per_second=2, burst=2)
    assert isinstance(began, Claim)
    assert (1, None) == (began.attempt, bench.ledger.queries.task(ids[2]).slot_at)
    assert [1, 1.5] == moments(bench, ids[3:])


def test_held_work_is_not_due(bench):
    """The sweep leaves what waits for its place until the place comes."""
    ids = plan(bench, 3)
    claim(bench, ids, rate_per_second=1, burst=1)
    assert [] == bench.ledger.tasks.dispatch_due(bench.at(0.9), GRACE, BOTH)
    assert ids[1:2] == [ref.id for ref in bench.ledger.tasks.dispatch_due(bench.at(1), GRACE, BOTH)]


def test_concurrency_counts_what_is_on_its_way(bench):
    """No more than the limit are sending; what is turned away waits a moment; an outcome makes room; others do not count."""
    ids = plan(bench, 4)
    bench.planned(bench.task("tk_m", event_id="ev_2", provider=MINDHUNTERS), event_id="ev_2")
    bench.claim("tk_m")
    answers = claim(bench, ids, concurrency=2)
    assert [True, True, False, False] == [isinstance(answer, Claim) for answer in answers]
    assert [(Held.CONCURRENCY, 0)] * 2 == [(a.held, bench.ledger.queries.task(a.task_id).attempts) for a in answers[2:]]
    assert [1, 1.5] == moments(bench, ids[2:])
    bench.ledger.tasks.settle(answers[0], bench.delivered(), bench.at(1))
    assert [True, False] == [isinstance(each, Claim) for each in claim(bench, ids[2:], 2, concurrency=2)]


def test_the_daily_cap_holds_until_midnight(bench):
    """What is over the day's sum waits for the next day, UTC, and what was sent is told."""
    ids = plan(bench, 3)
    answers = claim(bench, ids, daily_cap=2)
    midnight_at = datetime(2026, 3, 3, tzinfo=UTC)
    assert (Held.CAP, midnight_at) == (answers[2].held, answers[2].due_at)
    (state,) = bench.ledger.limits.states()
    assert ("2026-03-02", 2, None) == (state.day, state.sent_today, state.kind)
    (again,) = bench.ledger.tasks.claim(ids[2:], midnight_at, bench.lease, "w", {VAMBE: Limits(daily_cap=2)})
    assert isinstance(again, Claim)


def test_a_charge_takes_a_place(bench):
    """A look-up is never refused, and the next task's place comes after it."""
    ids = plan(bench, 1)
    limits = Limits(rate_per_second=1, burst=1)
    bench.ledger.limits.charge(VAMBE, limits, bench.now)
    bench.ledger.limits.charge(VAMBE, limits, bench.now)
    (answer,) = claim(bench, ids, rate_per_second=1, burst=1)
    assert bench.at(2) == answer.due_at


TWENTY = {"rate_per_second": 20, "burst": 20}


def queue(bench, number, seconds=0):
    """Plan so many tasks of one event and let them stand in line; return their ids."""
    ids = plan(bench, number)
    claim(bench, ids, seconds, **TWENTY)
    return ids


def newcomer(bench, task_id="tk_new"):
    """Plan one more task, which is urgent."""
    bench.planned(bench.task(task_id, event_id=f"ev_{task_id}"), event_id=f"ev_{task_id}")
    return task_id


def test_places_of_cancelled_tasks_are_given_again(bench):
    """With most of a line cancelled a new task does not wait for what is not there any more, nor takes a place in use."""
    ids = queue(bench, 400)
    bench.ledger.admin.cancel_many(ids[20:390], [TaskState.WAITING], None, bench.now)
    new = [newcomer(bench, f"tk_new_{place}") for place in range(12)]
    (first,) = claim(bench, new[:1], 1, **TWENTY)
    assert (Held.RATE, bench.at(1.05)) == (first.held, first.due_at)
    slots = [answer.due_at for answer in claim(bench, new[1:], 1, **TWENTY)]
    slots += [bench.ledger.queries.task(task_id).slot_at for task_id in (new[0], *ids[390:])]
    assert 22 == len(set(slots))
    assert {timedelta(seconds=0.05)} == {b - a for a, b in pairwise(sorted(slots)[:12])}


def test_a_full_line_is_not_jumped(bench):
    """Where all stand that were given a place, the next one is behind the last of them."""
    ids = queue(bench, 120)
    (answer,) = claim(bench, [newcomer(bench)], 0, **TWENTY)
    assert bench.ledger.queries.task(ids[-1]).slot_at + timedelta(seconds=0.05) == answer.due_at


def test_places_of_tasks_that_met_a_pause_are_given_again(bench):
    """After a pause nobody waits for places that were dropped in it."""
    ids = queue(bench, 220)
    bench.ledger.limits.pause(VAMBE, bench.at(60), "audit", bench.at(0.01))
    claim(bench, ids[20:], 20, **TWENTY)
    bench.ledger.limits.resume(VAMBE, bench.at(21))
    bench.ledger.limits.charge(VAMBE, Limits(rate_per_second=0.01), bench.at(0))  # the line's end is far ahead
    (answer,) = claim(bench, ids[20:21], 21, **TWENTY)
    assert bench.at(21.05) == answer.due_at


def test_a_clock_that_was_set_back_delays_nobody(bench):
    """What the line's end was by the clock before is not believed after it."""
    claim(bench, plan(bench, 20), 3600, **TWENTY)
    (answer,) = claim(bench, [newcomer(bench)], 0, **TWENTY)
    assert bench.at(0.05) == answer.due_at


def test_a_worker_whose_clock_is_ahead_delays_only_its_own(bench):
    """The others' places come between now and those that it gave; a charge gets one too."""
    claim(bench, plan(bench, 60), 90, **TWENTY)
    new = [newcomer(bench, f"tk_new_{place}") for place in range(3)]
    answers = [claim(bench, [task_id], 0, **TWENTY)[0] for task_id in new]
    assert [bench.at(n) for n in (0.05, 0.1, 0.15)] == [answer.due_at for answer in answers]


def test_two_ledgers_never_exceed_a_limit_together(bench):
    """Workers that claim at the same time, each from a ledger of its own, get no more than the limits give them together."""
    ids = plan(bench, 60)
    other = open_ledger(bench.url)
    limits = {VAMBE: Limits(rate_per_second=5, burst=12, concurrency=8)}

    def take(place):
        ledger = (bench.ledger, other)[place % 2]
        return ledger.tasks.claim(ids[place::12], bench.now, bench.lease, f"w-{place}", limits)

    with ThreadPoolExecutor(12) as pool:
        answers = [answer for given in pool.map(take, range(12)) for answer in given]
    claims = [answer for answer in answers if isinstance(answer, Claim)]
    assert 8 == len(claims)
    other.tasks.settle_many([(each, bench.delivered(each.task.id)) for each in claims], bench.now)
    with ThreadPoolExecutor(12) as pool:
        limits = {VAMBE: Limits(rate_per_second=5, burst=12)}
        left = [task.id for task in bench.ledger.queries.list_tasks(state=TaskState.WAITING)]
        shares = [left[place::6] for place in range(6)]
        later = bench.at(2.2)
        given = pool.map(
            lambda share: (bench.ledger, other)[len(share) % 2].tasks.claim(share, later, bench.lease, "w", limits),
            shares,
        )
        answers = [answer for part in given for answer in part]
    other.close()
    began = [answer for answer in answers if isinstance(answer, Claim)]
    slots = sorted(answer.due_at for answer in answers if not isinstance(answer, Claim))
    assert 12 == len(began)  # in 2.2 s at 5 a second the burst of 12 has come back
    assert len(slots) == len(set(slots))
    assert {timedelta(seconds=0.2)} == {b - a for a, b in pairwise(slots)}


def fail(bench, task_id, seconds, status=503):
    """Let a task's try meet a provider that does not serve."""
    claimed = bench.claim(task_id, now=bench.at(seconds))
    begun = []
    bench.ledger.tasks.settle_many(
        [(claimed, bench.busy(bench.at(9999), status=status))], bench.at(seconds), begun.append
    )
    return begun


def broken(bench, number=7):
    """Plan tasks and fail with five; return the ids that are left and the pauses that were told of."""
    ids = plan(bench, 5 + number)
    begun = [pause for place, task_id in enumerate(ids[:5]) for pause in fail(bench, task_id, place)]
    return ids[5:], begun


def test_failures_in_a_row_open_the_breaker_with_one_alert(bench):
    """The fifth failure pauses this provider alone, says why, counts once and is told once."""
    ids, begun = broken(bench)
    assert [(VAMBE, PauseKind.BREAKER, bench.at(9))] == [(p.name, p.kind, p.paused_until_at) for p in begun]
    (state,) = bench.ledger.limits.states()
    assert (PauseKind.BREAKER, 5, 1, False) == (state.kind, state.failures, state.openings, state.held)
    assert "5 tries in a row failed; the last one: 503: try later" == state.reason
    (answer,) = claim(bench, ids[:1], 5)
    assert (Held.PAUSE, bench.at(9), 0) == (answer.held, answer.due_at, bench.ledger.queries.task(ids[0]).attempts)
    bench.planned(bench.task("tk_m", event_id="ev_2", provider=MINDHUNTERS), event_id="ev_2")
    assert isinstance(bench.claim("tk_m", now=bench.at(5)), Claim)
    assert {("vambe", "breaker"): 1} == dict(bench.ledger.queries.measure(bench.at(9)).tallies["pauses"])


def test_one_probe_decides_about_an_open_breaker(bench):
    """At its moment one task goes; its failure doubles the span without another alert, its success frees all who wait."""
    ids, _ = broken(bench)
    assert [] == fail(bench, ids[0], 9)
    (state,) = bench.ledger.limits.states()
    assert (bench.at(19), 2) == (state.paused_until_at, state.openings)
    assert [Held.PAUSE] * 6 == [answer.held for answer in claim(bench, ids[1:], 12)]
    probe, *others = claim(bench, ids[1:], 19)
    assert [Held.PAUSE] * 5 == [answer.held for answer in others]
    assert {bench.at(29)} == {answer.due_at for answer in others}
    bench.ledger.tasks.settle(probe, bench.delivered(), bench.at(20))
    (state,) = bench.ledger.limits.states()
    assert (None, None, 0, 0) == (state.kind, state.paused_until_at, state.failures, state.openings)
    assert {20} == set(moments(bench, ids[2:]))


def test_a_limit_does_not_waste_the_probe(bench):
    """Where all requests that may be are on their way, the probe is not taken; the rate does not hold it."""
    ids, _ = broken(bench)
    (hanging,) = claim(bench, ids[:1], 9)
    (answer,) = claim(bench, ids[1:2], 14, concurrency=1)
    assert Held.CONCURRENCY is answer.held
    bench.ledger.limits.charge(VAMBE, Limits(rate_per_second=0.01), bench.at(13))
    (probe,) = claim(bench, ids[2:3], 14, rate_per_second=0.01, burst=1)
    assert isinstance(probe, Claim)
    bench.ledger.tasks.settle(hanging, bench.delivered(), bench.at(15))


def test_a_success_between_keeps_the_breaker_closed(bench):
    """Failures count only in a row."""
    ids = plan(bench, 10)
    for task_id in ids[:4]:
        fail(bench, task_id, 0)
    bench.ledger.tasks.settle(bench.claim(ids[4]), bench.delivered(), bench.now)
    assert [] == [pause for task_id in ids[5:9] for pause in fail(bench, task_id, 1)]
    assert 1 == len(fail(bench, ids[9], 1))


def test_a_rest_that_was_asked_for(bench):
    """Of many 429 at once one is told of; the longest wish counts; a success from before does not end it, a probe's does."""
    ids = plan(bench, 6)
    claims = [bench.claim(task_id) for task_id in ids[:4]]
    begun = []
    for place, wish in ((0, 30), (1, 20), (2, 40)):
        rest = bench.busy(
            bench.at(wish),
            status=429,
            counted=False,
            pause_until_at=bench.at(wish),
            pause_kind=PauseKind.ASKED,
            reason="429",
        )
        bench.ledger.tasks.settle_many([(claims[place], rest)], bench.at(1), begun.append)
    assert [(PauseKind.ASKED, bench.at(30))] == [(pause.kind, pause.paused_until_at) for pause in begun]
    bench.ledger.tasks.settle(claims[3], bench.delivered(), bench.at(2))
    (state,) = bench.ledger.limits.states()
    assert (PauseKind.ASKED, bench.at(40), 0) == (state.kind, state.paused_until_at, state.failures)
    assert 0 == bench.ledger.queries.task(ids[0]).attempts
    probe, other = claim(bench, ids[4:], 40)
    assert (True, Held.PAUSE) == (isinstance(probe, Claim), other.held)
    bench.ledger.tasks.settle(probe, bench.delivered("x-9"), bench.at(41))
    assert [None] == [each.kind for each in bench.ledger.limits.states()]


def test_a_person_lifts_any_pause_and_the_count_begins_anew(bench):
    """After `resume` five more failures are needed; a person's own pause says so."""
    ids, _ = broken(bench)
    bench.ledger.limits.resume(VAMBE, bench.at(5))
    assert isinstance(claim(bench, ids[:1], 5)[0], Claim)
    assert [] == [pause for task_id in ids[1:5] for pause in fail(bench, task_id, 6)]
    bench.ledger.limits.pause(VAMBE, bench.at(100), "audit", bench.at(7))
    assert [PauseKind.PERSON] == [state.kind for state in bench.ledger.limits.states()]


def test_a_pause_of_a_clock_ahead_is_cut(bench):
    """A breaker opened two hours ahead ends after its own span here, for those too that wait for its end; a success ends it."""
    ids = plan(bench, 8)
    for task_id in ids[:5]:
        fail(bench, task_id, 7200)
    (early,) = claim(bench, ids[5:6], 7201)
    assert bench.at(7205) == early.due_at
    (answer,) = claim(bench, ids[6:7], 10)
    assert (Held.PAUSE, bench.at(15)) == (answer.held, answer.due_at)
    assert [15, 15] == moments(bench, ids[5:7])
    (probe,) = claim(bench, ids[5:6], 15)
    bench.ledger.tasks.settle(probe, bench.delivered(), bench.at(16))
    assert [None] == [state.kind for state in bench.ledger.limits.states()]


def test_a_rest_of_a_clock_ahead_is_cut_and_ends(bench):
    """It is an hour at the most, and the probe's success ends it."""
    ids = plan(bench, 2)
    rest = bench.busy(
        status=429, counted=False, pause_until_at=bench.at(10800), pause_kind=PauseKind.ASKED, reason="429"
    )
    bench.ledger.tasks.settle(bench.claim(ids[0], now=bench.at(7200)), rest, bench.at(7200))
    (answer,) = claim(bench, ids[1:], 0)
    assert bench.at(3600) == answer.due_at
    (probe,) = claim(bench, ids[1:], 3600)
    bench.ledger.tasks.settle(probe, bench.delivered(), bench.at(3601))
    assert [None] == [state.kind for state in bench.ledger.limits.states()]


def test_what_cost_the_provider_nothing_is_not_counted_for_the_day(bench):
    """A claim given back, an answer that asks to wait and a request that never left are taken out; a day that is over stays."""
    ids = plan(bench, 5)
    back, owned, busy, never, kept = claim(bench, ids, daily_cap=5)

    def sent_today():
        return [state.sent_today for state in bench.ledger.limits.states()]

    assert [5] == sent_today()
    bench.ledger.tasks.give_back(back, bench.at(1))
    assert [4] == sent_today()
    bench.ledger.tasks.give_back_of("w-1", [owned.task.id], bench.at(1))
    assert [3] == sent_today()
    rest = bench.busy(status=429, counted=False, pause_until_at=bench.at(2), pause_kind=PauseKind.ASKED)
    bench.ledger.tasks.settle_many([(busy, rest), (never, bench.busy(status=None))], bench.at(1))
    assert [1] == sent_today()
    bench.ledger.tasks.settle(kept, bench.busy(counted=False), datetime(2026, 3, 3, tzinfo=UTC))
    assert [0] == sent_today()


def test_a_day_that_is_over_gets_nothing_back(bench):
    """What began yesterday is not taken out of today's sum."""
    ids = plan(bench, 2)
    (old,) = claim(bench, ids[:1], daily_cap=5)
    claim(bench, ids[1:], 86400, daily_cap=5)
    bench.ledger.tasks.give_back(old, bench.at(86401))
    assert [1] == [state.sent_today for state in bench.ledger.limits.states()]


def test_a_start_leaves_breakers_alone(bench):
    """A worker's start mends credentials, not a provider that is down."""
    ids, _ = broken(bench)
    bench.ledger.limits.resume_rejected(bench.at(5))
    assert Held.PAUSE is claim(bench, ids[:1], 5)[0].held


def test_a_time_out_is_a_failure_and_a_missing_id_is_none(bench):
    """What became unknown without an answer counts; a success that cannot be read says nothing about the provider."""
    ids = plan(bench, 9)
    for status, task_id in zip([None, 200, 502, 200, None, 202, 504, 200, None], ids, strict=True):
        unknown = bench.busy(verdict=Verdict.UNKNOWN, state=TaskState.UNKNOWN, due_at=None, status=status)
        bench.ledger.tasks.settle(bench.claim(task_id), unknown, bench.now)
    assert [(5, PauseKind.BREAKER)] == [(state.failures, state.kind) for state in bench.ledger.limits.states()]


def test_only_that_very_claim_is_given_back(bench):
    """What another claim of the same process holds stays; the task loses no attempt."""
    plan(bench, 3)
    for task_id, owner in (("tk_000", "w/1"), ("tk_001", "w/11"), ("tk_002", "w/2")):
        bench.claim(task_id, owner=owner)
    ids = ["tk_000", "tk_001", "tk_002"]
    assert ["tk_000"] == bench.ledger.tasks.give_back_of("w/1", ids, bench.at(3))
    assert [] == bench.ledger.tasks.give_back_of("w/1", ids, bench.at(3))
    task = bench.ledger.queries.task("tk_000")
    assert (TaskState.WAITING, bench.at(3), 0) == (task.state, task.due_at, task.attempts)
    assert [(None, True)] == [(row.verdict, row.deferred) for row in bench.ledger.queries.attempts("tk_000")]
    assert TaskState.SENDING is bench.state("tk_001")
