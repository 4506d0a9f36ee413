"""Tasks that are claimed in the transaction which records them end where recording and then claiming brings them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from rules.vocabulary import Contact, EventState, ProviderName, RetryPolicy, Rotation, TaskState, TaskType, Verdict
from worker.ledger import Claim, ClaimTerms, Held, Limits, NotClaimed, PauseKind, open_ledger
from worker.ledger.counters import CounterName
from worker.ledger.schema import metadata
from worker.ledger.tasks import Taken, insert_plans

VAMBE, MINDHUNTERS = ProviderName.VAMBE, ProviderName.MINDHUNTERS
TEAM, CALL = TaskType.TEAM_TASK, TaskType.MAKE_CALL
BOTH = {VAMBE: 100, MINDHUNTERS: 100}


def terms(bench, most=40, *, owner="w-1/0", type_=TEAM, **limits):
    """Return on what terms tasks are claimed."""
    of_provider = {VAMBE: Limits(**limits)} if limits else {}
    return ClaimTerms(type=type_, most=most, lease=bench.lease, owner=owner, limits=of_provider)


def at_once(bench, *tasks, seconds=0, event_id="ev_1", on=None):
    """Record an event and these tasks of it, and claim of them what the terms say."""
    bench.record(bench.incoming(event_id))
    plan = bench.plan(*tasks, event_id=event_id)
    return bench.ledger.tasks.insert_and_claim([plan], bench.at(seconds), on or terms(bench))


def team(bench, number, **changes):
    """Return so many tasks of one event."""
    return [bench.task(f"tk_{place}", **changes) for place in range(number)]


def call(bench, id, **changes):  # noqa: A002 - the field's name
    """Return a task of the other provider."""
    return bench.task(id, type=CALL, provider=MINDHUNTERS, **changes)


def test_a_claim_is_on_disk_with_the_plan(bench):
    """What is claimed is sending under a lease and its first epoch, its attempt has begun, and its event is decided."""
    due, (claim,) = at_once(bench, bench.task(contact=Contact(name="Ana")), seconds=5)
    assert () == due
    task = bench.ledger.queries.task("tk_1")
    assert task == claim.task
    assert (TaskState.SENDING, 1, 1, "w-1/0") == (task.state, task.epoch, task.attempts, task.owner)
    assert (1, 1, bench.at(5), bench.at(5), bench.at(65), bench.at(65)) == (
        claim.epoch,
        claim.attempt,
        claim.first_attempt_at,
        claim.claimed_at,
        claim.lease_until_at,
        task.lease_until_at,
    )
    (attempt,) = bench.ledger.queries.attempts("tk_1")
    assert (1, 1, bench.at(5), None, None, False) == (
        attempt.epoch,
        attempt.number,
        attempt.started_at,
        attempt.ended_at,
        attempt.verdict,
        attempt.deferred,
    )
    assert EventState.PROCESSED is bench.ledger.queries.event("ev_1").state


def test_what_was_claimed_so_is_claimed_for_everybody(bench):
    """Nobody else gets it, no sweep sends it, its outcome settles it, and its lease ends it."""
    _, (first, _) = at_once(bench, *team(bench, 2))
    (refused,) = bench.ledger.tasks.claim(["tk_0"], bench.now, bench.lease, "w-2")
    assert (TaskState.SENDING, True) == (refused.state, isinstance(refused, NotClaimed))
    assert [] == bench.ledger.tasks.dispatch_due(bench.at(30), timedelta(seconds=10), BOTH)
    assert bench.ledger.tasks.settle(first, bench.delivered(), bench.at(1))
    assert ["tk_1"] == bench.ledger.tasks.expire_leases(bench.at(61))
    assert [TaskState.DELIVERED, TaskState.UNKNOWN] == [bench.state("tk_0"), bench.state("tk_1")]


def test_no_more_are_claimed_than_were_asked_for(bench):
    """The first of them are claimed, in the plans' order; the others come back as due, marked as queued."""
    due, answers = at_once(bench, *team(bench, 5), on=terms(bench, 3))
    assert ["tk_0", "tk_1", "tk_2"] == [claim.task.id for claim in answers]
    assert [("tk_3", 0, 0), ("tk_4", 0, 0)] == [(ref.id, ref.attempts, ref.epoch) for ref in due]
    assert {TaskState.SENDING: 3, TaskState.QUEUED: 2} == bench.ledger.queries.counts().tasks
    assert bench.now == bench.ledger.queries.task("tk_4").dispatched_at
    assert [] == bench.ledger.queries.attempts("tk_4")


def test_only_tasks_of_the_type_are_claimed(bench):
    """Tasks of another type are recorded and come back as due."""
    due, answers = at_once(bench, call(bench, "tk_call"), bench.task("tk_team"), call(bench, "tk_other"))
    assert ["tk_team"] == [claim.task.id for claim in answers]
    assert ["tk_call", "tk_other"] == [ref.id for ref in due]
    assert TaskState.QUEUED is bench.state("tk_call")


def test_what_is_not_due_or_has_ended_is_only_recorded(bench):
    """Later tasks stay planned, those that planning ended stay ended; neither is claimed nor to be dispatched."""
    tasks = [
        bench.task("tk_later", due_at=bench.at(1)),
        bench.task("tk_dead", state=TaskState.DEAD, reason="no phone"),
        bench.task("tk_late", state=TaskState.SUPPRESSED, reason="too late", reactions=("failure",)),
        bench.task("tk_now"),
    ]
    due, (claim,) = at_once(bench, *tasks)
    assert ((), "tk_now") == (due, claim.task.id)
    states = {"tk_later": "planned", "tk_dead": "dead", "tk_late": "suppressed", "tk_now": "sending"}
    assert states == {task.id: task.state for task in bench.ledger.queries.list_tasks()}
    assert [("tk_late", "failure")] == [
        (each.task.id, each.trigger) for each in bench.ledger.follow_ups.claim(bench.at(1), 10)
    ]


def test_what_expired_meanwhile_is_left_to_its_message(bench):
    """A task past its end is not claimed: its message tells that it came too late."""
    due, (claim,) = at_once(bench, bench.task("tk_1", expires_at=bench.now), bench.task("tk_2", expires_at=bench.at(1)))
    assert (["tk_1"], "tk_2") == ([ref.id for ref in due], claim.task.id)
    (answer,) = bench.ledger.tasks.claim(["tk_1"], bench.now, bench.lease, "w-2")
    assert TaskState.SUPPRESSED is answer.state


def test_a_paused_provider_holds_them(bench):
    """Tasks of a paused provider wait until the pause ends, with the reason, and no attempt is noted."""
    bench.ledger.limits.pause(VAMBE, bench.at(300), "audit", bench.now)
    due, answers = at_once(bench, *team(bench, 2), call(bench, "tk_call"))
    assert ["tk_call"] == [ref.id for ref in due]
    assert [(Held.PAUSE, TaskState.WAITING, bench.at(300))] * 2 == [
        (each.held, each.state, each.due_at) for each in answers
    ]
    task = bench.ledger.queries.task("tk_1")
    assert (TaskState.WAITING, bench.at(300), 0, None) == (
        task.state,
        task.due_at,
        task.attempts,
        task.first_attempt_at,
    )
    assert "audit" in task.reason
    assert "audit" not in answers[1].why
    assert [] == bench.ledger.queries.attempts("tk_1")
    assert isinstance(bench.claim("tk_1", now=bench.at(300)), Claim)


def test_after_a_pause_one_of_them_probes_for_all(bench):
    """When an answer's pause is over one is claimed; the others wait for what comes of it."""
    bench.planned(bench.task("tk_first", event_id="ev_0"), event_id="ev_0")
    paused = bench.busy(bench.at(60), verdict=Verdict.PAUSE, counted=False, pause_until_at=bench.at(60))
    bench.ledger.tasks.settle(bench.claim("tk_first"), paused, bench.now)
    _, (probe, *others) = at_once(bench, *team(bench, 3), seconds=60)
    assert isinstance(probe, Claim)
    assert [(Held.PAUSE, bench.at(120))] * 2 == [(other.held, other.due_at) for other in others]


def test_the_rate_gives_each_its_own_place(bench):
    """The burst is claimed, all others learn their own places in line, and begin then without another charge."""
    _, answers = at_once(bench, *team(bench, 5), on=terms(bench, rate_per_second=2, burst=2))
    assert [True, True, False, False, False] == [isinstance(answer, Claim) for answer in answers]
    assert [(Held.RATE, TaskState.WAITING, bench.at(n)) for n in (0.5, 1, 1.5)] == [
        (answer.held, answer.state, answer.due_at) for answer in answers[2:]
    ]
    task = bench.ledger.queries.task("tk_2")
    assert (0, bench.at(0.5), bench.at(0.5)) == (task.attempts, task.slot_at, task.due_at)
    limits = {VAMBE: Limits(rate_per_second=2, burst=2)}
    (began,) = bench.ledger.tasks.claim(["tk_2"], bench.at(0.5), bench.lease, "w-2", limits)
    assert isinstance(began, Claim)
    (answer,) = at_once(bench, bench.task("tk_new", event_id="ev_2"), event_id="ev_2", on=replaced(bench, limits))[1]
    assert bench.at(2) == answer.due_at


def replaced(bench, limits):
    """Return the usual terms under these limits."""
    return replace(terms(bench), limits=limits)


def test_concurrency_counts_what_is_on_its_way(bench):
    """With what is sending already no more than the limit are claimed; the next ones wait a moment."""
    bench.planned(bench.task("tk_before", event_id="ev_0"), event_id="ev_0")
    bench.claim("tk_before")
    _, answers = at_once(bench, *team(bench, 4), on=terms(bench, concurrency=2))
    assert [True, False, False, False] == [isinstance(answer, Claim) for answer in answers]
    assert [(Held.CONCURRENCY, bench.at(n)) for n in (1, 1.5, 1)] == [
        (answer.held, answer.due_at) for answer in answers[1:]
    ]


def test_the_daily_cap_counts_them(bench):
    """What is claimed so counts for the day; what is over its sum waits for the next one, UTC."""
    _, answers = at_once(bench, *team(bench, 3), on=terms(bench, daily_cap=2))
    assert (Held.CAP, datetime(2026, 3, 3, tzinfo=UTC)) == (answers[2].held, answers[2].due_at)
    (state,) = bench.ledger.limits.states()
    assert ("2026-03-02", 2) == (state.day, state.sent_today)
    bench.ledger.tasks.give_back(answers[0], bench.at(1))
    assert [1] == [state.sent_today for state in bench.ledger.limits.states()]


def test_a_plan_that_is_recorded_again_claims_nothing(bench):
    """An event that has been decided is skipped as a whole: nothing is claimed, nothing counted, no row changes."""
    limits = {"rate_per_second": 1, "burst": 2, "daily_cap": 9}
    plan = bench.plan(*team(bench, 4), call(bench, "tk_call"))
    bench.record(bench.incoming())
    bench.ledger.tasks.insert_and_claim([plan], bench.now, terms(bench, **limits))
    before = held(bench)
    assert ((), []) == bench.ledger.tasks.insert_and_claim([plan], bench.at(9), terms(bench, owner="w-2", **limits))
    assert () == bench.ledger.tasks.insert([plan], bench.at(9))
    assert before == held(bench)


def test_of_a_replayed_event_only_what_is_new_is_claimed(bench):
    """What was made before stays as it is; what died while it was planned is planned again and left to its message."""
    made, dead = bench.task("tk_made"), bench.task("tk_dead", state=TaskState.DEAD, reason="no phone")
    _, (claim,) = at_once(bench, made, dead)
    bench.ledger.tasks.settle(claim, bench.delivered(), bench.now)
    bench.ledger.admin.replay(["ev_1"], bench.at(60), failed_too=False)
    plan = bench.plan(made, bench.task("tk_dead"), bench.task("tk_new", rule="another"), rule_set="rs_2")
    due, (new,) = bench.ledger.tasks.insert_and_claim([plan], bench.at(61), terms(bench))
    assert (["tk_dead"], "tk_new") == ([ref.id for ref in due], new.task.id)
    states = {"tk_made": "delivered", "tk_dead": "queued", "tk_new": "sending"}
    assert states == {task.id: task.state for task in bench.ledger.queries.list_tasks()}


def test_members_take_turns_among_what_is_claimed(bench):
    """Each task of a team in rotation is claimed for its next member, as it is recorded."""
    rotation = Rotation(team="closers", member_ids=("u1", "u2"))
    _, answers = at_once(bench, *team(bench, 3, rotation=rotation))
    assert [["u1"], ["u2"], ["u1"]] == [claim.task.fields["responsible_ids"] for claim in answers]
    assert ["u2"] == bench.ledger.queries.task("tk_1").fields["responsible_ids"]


@dataclass(frozen=True)
class _Newer(RetryPolicy):
    """A policy with a part that this version does not know."""

    of_the_future: int = 1


def test_what_cannot_be_read_is_given_back(bench):
    """A task whose row this version cannot read waits a minute and loses no attempt; its neighbours are claimed."""
    _, answers = at_once(bench, bench.task("tk_0"), bench.task("tk_1", retry=_Newer()), bench.task("tk_2"))
    assert ["tk_0", "tk_1", "tk_2"] == [
        each.task_id if isinstance(each, NotClaimed) else each.task.id for each in answers
    ]
    assert "this version cannot read" in answers[1].why
    (row,) = [row for row in held(bench)["tasks"] if row["id"] == "tk_1"]
    assert (TaskState.WAITING, 0, None) == (row["state"], row["attempts"], row["first_attempt_at"])
    assert 60_000_000 == row["due_at"] - row["created_at"]


def test_callers_of_one_transaction_keep_their_own_terms(bench):
    """Plans that are written together are claimed each on its own terms, and under the limits of both together."""
    for number in range(4):
        bench.record(bench.incoming(f"ev_{number}"))

    def plan(number):
        tasks = [bench.task(f"tk_{number}{place}", f"ev_{number}") for place in range(3)]
        return bench.plan(*tasks, call(bench, f"tk_{number}c", event_id=f"ev_{number}"), event_id=f"ev_{number}")

    works = [
        insert_plans([plan(0)], bench.at(1), terms(bench, 2, owner="a", concurrency=3)),
        insert_plans([plan(1)], bench.at(2)),
        insert_plans([plan(2), plan(0)], bench.at(3), terms(bench, 9, owner="b", concurrency=3)),
        insert_plans([plan(3)], bench.at(4), terms(bench, 9, owner="c", type_=CALL)),
    ]
    kept = bench.ledger._writer.write(lambda connection: works[0].run_all(connection, [work.part for work in works]))
    assert [["tk_02", "tk_0c"], ["tk_10", "tk_11", "tk_12", "tk_1c"], ["tk_2c"], ["tk_30", "tk_31", "tk_32"]] == [
        [ref.id for ref in each.due] for each in kept
    ]
    assert [["tk_00", "tk_01"], [], ["tk_20", "tk_21", "tk_22"], ["tk_3c"]] == [
        [answer.task_id for answer in each.claimed] for each in kept
    ]
    sending = {
        task.id: (task.owner, task.first_attempt_at)
        for task in bench.ledger.queries.list_tasks(state=TaskState.SENDING)
    }
    assert {
        "tk_00": ("a", bench.at(1)),
        "tk_01": ("a", bench.at(1)),
        "tk_20": ("b", bench.at(3)),
        "tk_3c": ("c", bench.at(4)),
    } == sending
    assert [TaskState.WAITING] * 2 == [bench.state("tk_21"), bench.state("tk_22")]


def test_what_became_due_after_a_neighbours_moment_is_claimed(bench):
    """Of two callers in one transaction each claims by its own moment: what the later one planned is due for it."""
    works = []
    for number in range(2):
        bench.record(bench.incoming(f"ev_{number}"))
        task = bench.task(f"tk_{number}", f"ev_{number}", due_at=bench.at(number))
        plan = bench.plan(task, event_id=f"ev_{number}")
        works.append(insert_plans([plan], bench.at(number), terms(bench, owner=f"w/{number}")))
    kept = bench.ledger._writer.write(lambda connection: works[0].run_all(connection, [work.part for work in works]))
    assert [[], []] == [each.due for each in kept]
    assert [[True], [True]] == [[isinstance(answer, Taken) for answer in each.claimed] for each in kept]
    assert [bench.at(61), bench.at(60)] == [task.lease_until_at for task in bench.ledger.queries.list_tasks()]
    assert {TaskState.SENDING: 2} == bench.ledger.queries.counts().tasks


def test_workers_that_record_the_same_plans_claim_each_task_once(bench):
    """Of several ledgers that record the same events at once one gets each task, and the limits hold for all together."""
    other = open_ledger(bench.url)
    numbers = range(6)
    for number in numbers:
        bench.record(bench.incoming(f"ev_{number}"))
    plans = [
        bench.plan(*(bench.task(f"tk_{n}_{place}", f"ev_{n}") for place in range(5)), event_id=f"ev_{n}")
        for n in numbers
    ]

    def take(place):
        mine = plans[place % 6 :] + plans[: place % 6]
        on = terms(bench, 40, owner=f"w-{place}", rate_per_second=5, burst=12, concurrency=8)
        return (bench.ledger, other)[place % 2].tasks.insert_and_claim(mine, bench.now, on)[1]

    with ThreadPoolExecutor(12) as pool:
        answers = [answer for given in pool.map(take, range(12)) for answer in given]
    other.close()
    ids = [answer.task.id if isinstance(answer, Claim) else answer.task_id for answer in answers]
    assert (30, 30) == (len(ids), len(set(ids)))
    claims = [answer for answer in answers if isinstance(answer, Claim)]
    assert 8 == len(claims)
    owners = {task.id: task.owner for task in bench.ledger.queries.list_tasks(state=TaskState.SENDING)}
    assert owners == {claim.task.id: claim.task.owner for claim in claims}


def test_a_fault_leaves_neither_plan_nor_claim(bench):
    """When one plan cannot be recorded nothing of the transaction stands, its limits neither."""
    bench.record(bench.incoming("ev_1"), bench.incoming("ev_2"))
    before = held(bench)
    twin = bench.task("tk_1", "ev_2", rule=None)
    plans = [bench.plan(bench.task("tk_0")), bench.plan(twin, event_id="ev_2")]
    with pytest.raises(Exception, match=r"(?i)null|none"):
        bench.ledger.tasks.insert_and_claim(plans, bench.now, terms(bench, rate_per_second=1, burst=1, daily_cap=2))
    assert before == held(bench)


# -- the same as in two steps ---------------------------------------------------------------------------------------------


def held(bench):
    """Return every row of the ledger but the counts', without what only says in which order rows came; and the counts."""

    def rows(connection):
        found = {}
        for table in metadata.sorted_tables:
            if table.name in {"tallies", "alembic_version"}:
                continue
            keys = list(table.primary_key.columns)
            read = connection.execute(select(table).order_by(*keys)).mappings()
            found[table.name] = [{name: value for name, value in row.items() if name != "seq"} for row in read]
        return found

    counts = {tally: counted for tally, counted in bench.ledger.queries.measure(bench.now).tallies.items() if counted}
    return bench.ledger._writer.write(rows) | {"counts": counts}


def empty(bench):
    """Leave the ledger without a row."""

    def work(connection):
        for table in reversed(metadata.sorted_tables):
            if table.name != "alembic_version":
                connection.execute(table.delete())

    bench.ledger._writer.write(work)


def in_two_steps(bench, plans, now, on):
    """Record, and then claim the same tasks in the same order."""
    due = bench.ledger.tasks.insert(plans, now)
    ends = {task.id: task.expires_at for plan in plans for task in plan.tasks}
    fit = [ref.id for ref in due if ref.type is on.type and (ends[ref.id] is None or ends[ref.id] > now)][: on.most]
    answers = bench.ledger.tasks.claim(fit, now, on.lease, on.owner, on.limits)
    return tuple(ref for ref in due if ref.id not in fit), answers


def in_one(bench, plans, now, on):
    """Record and claim in one transaction."""
    return bench.ledger.tasks.insert_and_claim(plans, now, on)


SECONDS = st.sampled_from([-5, 0, 0, 0, 0.000001, 30])
TASKS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from([TEAM, TEAM, TEAM, CALL]),
            "due": SECONDS,
            "expires": st.sampled_from([None, None, None, 0, 0.000001, 60]),
            "state": st.sampled_from([TaskState.PLANNED] * 5 + [TaskState.DEAD, TaskState.SUPPRESSED]),
            "reactions": st.sampled_from([(), ("failure",)]),
            "rotates": st.booleans(),
        }
    ),
    max_size=5,
)
LIMITS = st.builds(
    Limits,
    rate_per_second=st.sampled_from([0.0, 0.0, 0.5, 3.0]),
    burst=st.integers(1, 4),
    concurrency=st.sampled_from([0, 0, 1, 3]),
    daily_cap=st.sampled_from([0, 0, 2]),
)
#: What has happened to the provider before.
BEFORE = ("nothing", "sending", "paused", "probing", "asked", "breaking", "charged", "resumed")


def tasks_of(bench, event_id, drawn):
    """Return the tasks of one event that were drawn."""
    made = []
    for place, each in enumerate(drawn):
        id_ = f"tk_{event_id}_{place}"
        wanted = {
            "due_at": bench.at(each["due"]),
            "expires_at": None if each["expires"] is None else bench.at(each["expires"]),
            "state": each["state"],
            "reason": None if each["state"] is TaskState.PLANNED else "planning ended it",
            "reactions": each["reactions"],
        }
        if each["type"] is CALL:
            made.append(call(bench, id_, event_id=event_id, **wanted))
        else:
            rotation = Rotation(team="closers", member_ids=("u1", "u2", "u3")) if each["rotates"] else None
            made.append(bench.task(id_, event_id, rotation=rotation, **wanted))
    return made


def prepare(bench, before, events):
    """Bring the ledger where an example begins; of the events the second was decided before, the third is replayed."""
    for event_id in ("ev_before", *events):
        bench.record(bench.incoming(event_id))
    old = [bench.task(f"tk_before_{place}", "ev_before", due_at=bench.at(-9)) for place in range(6)]
    bench.ledger.tasks.insert([bench.plan(*old, event_id="ev_before")], bench.at(-9))
    for provider in ProviderName:  # its row is there, so that it tells nothing who was the first to look
        bench.ledger.limits.charge(provider, Limits(rate_per_second=1), bench.at(-3600))
    ids = [task.id for task in old]
    match before:
        case "sending":
            bench.ledger.tasks.claim(ids[:2], bench.at(-3), bench.lease, "other", {VAMBE: Limits(daily_cap=2)})
        case "paused" | "resumed":
            bench.ledger.limits.pause(VAMBE, bench.at(5), "audit", bench.at(-9))
            if before == "resumed":
                bench.ledger.limits.resume(VAMBE, bench.at(-3))
        case "probing" | "asked":
            kind = PauseKind.ASKED if before == "asked" else PauseKind.ANSWER
            ends = bench.busy(bench.at(-1), verdict=Verdict.PAUSE, pause_until_at=bench.at(-1), pause_kind=kind)
            bench.ledger.tasks.settle(bench.claim(ids[0], now=bench.at(-9)), ends, bench.at(-9))
        case "breaking":
            for task_id in ids[:5]:
                bench.ledger.tasks.settle(bench.claim(task_id, now=bench.at(-9)), bench.busy(), bench.at(-9))
        case "charged":
            for _ in range(4):
                bench.ledger.limits.charge(VAMBE, Limits(rate_per_second=1), bench.at(-1))
        case _:
            pass


@given(
    drawn=st.lists(TASKS, min_size=1, max_size=4),
    before=st.sampled_from(BEFORE),
    most=st.integers(1, 12),
    type_=st.sampled_from([TEAM, TEAM, TEAM, CALL]),
    limits=LIMITS,
    decided=st.sampled_from(["no", "no", "once", "replayed"]),
)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_it_is_the_same_as_recording_and_then_claiming(bench, drawn, before, most, type_, limits, decided):
    """Whatever is planned, under whatever limits: answers, every column of every row, and all counts are the same."""
    events = [f"ev_{number}" for number in range(len(drawn))]
    planned = {event_id: tasks_of(bench, event_id, tasks) for event_id, tasks in zip(events, drawn, strict=True)}
    plans = [bench.plan(*tasks, event_id=event_id) for event_id, tasks in planned.items()]
    on = ClaimTerms(
        type=type_, most=most, lease=bench.lease, owner="w-1/7", limits={VAMBE: limits, MINDHUNTERS: limits}
    )
    found = []
    for way in (in_two_steps, in_one):
        empty(bench)
        prepare(bench, before, events)
        if decided != "no":
            bench.ledger.tasks.insert([bench.plan(*planned["ev_0"][:1], event_id="ev_0")], bench.at(-6))
        if decided == "replayed":
            bench.ledger.admin.replay(["ev_0"], bench.at(-4), failed_too=False)
        answers = way(bench, plans, bench.now, on)
        found.append((answers, held(bench)))
    (first_answers, first), (answers, rows) = found
    assert first_answers == answers
    assert first == rows


def test_counts_are_those_of_two_steps(bench):
    """Events, decisions, tasks, attempts and delays count as they do for a task that was claimed by its message."""
    counts = []
    for way in (in_two_steps, in_one):
        empty(bench)
        bench.record(bench.incoming())
        plan = bench.plan(*team(bench, 3), bench.task("tk_dead", state=TaskState.DEAD, reason="no phone"))
        _, answers = way(bench, [plan], bench.now, terms(bench, 2))
        bench.ledger.tasks.settle_many([(answers[0], bench.delivered()), (answers[1], bench.busy())], bench.at(7))
        counts.append(
            {tally: dict(counted) for tally, counted in bench.ledger.queries.measure(bench.now).tallies.items()}
        )
    assert counts[0] == counts[1]
    assert {(TEAM,): 4} == counts[1][CounterName.TASKS_PLANNED]
    assert {(VAMBE, "delivered", "2xx"): 1, (VAMBE, "busy", "5xx"): 1} == counts[1][CounterName.ATTEMPTS]
    assert {(TEAM, "delivered"): 1, (TEAM, "dead"): 1} == counts[1][CounterName.TASKS_ENDED]
    assert {(TEAM, "10"): 1} == counts[1][CounterName.AFTER_RECEIVED]
