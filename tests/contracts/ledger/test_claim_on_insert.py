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


def terms(desk, most=40, *, owner="w-1/0", type_=TEAM, **limits):
    """Return on what terms tasks are claimed."""
    of_provider = {VAMBE: Limits(**limits)} if limits else {}
    return ClaimTerms(type=type_, most=most, lease=desk.lease, owner=owner, limits=of_provider)


def at_once(desk, *tasks, seconds=0, event_id="ev_1", on=None):
    """Record an event and these tasks of it, and claim of them what the terms say."""
    desk.record(desk.incoming(event_id))
    plan = desk.plan(*tasks, event_id=event_id)
    return desk.ledger.tasks.insert_and_claim([plan], desk.at(seconds), on or terms(desk))


def team(desk, number, **changes):
    """Return so many tasks of one event."""
    return [desk.task(f"tk_{place}", **changes) for place in range(number)]


def call(desk, id, **changes):  # noqa: A002 - the field's name
    """Return a task of the other provider."""
    return desk.task(id, type=CALL, provider=MINDHUNTERS, **changes)


def test_a_claim_is_on_disk_with_the_plan(desk):
    """What is claimed is sending under a lease and its first epoch, its attempt has begun, and its event is decided."""
    due, (claim,) = at_once(desk, desk.task(contact=Contact(name="Ana")), seconds=5)
    assert () == due
    task = desk.ledger.queries.task("tk_1")
    assert task == claim.task
    assert (TaskState.SENDING, 1, 1, "w-1/0") == (task.state, task.epoch, task.attempts, task.owner)
    assert (1, 1, desk.at(5), desk.at(5), desk.at(65), desk.at(65)) == (
        claim.epoch,
        claim.attempt,
        claim.first_attempt_at,
        claim.claimed_at,
        claim.lease_until_at,
        task.lease_until_at,
    )
    (attempt,) = desk.ledger.queries.attempts("tk_1")
    assert (1, 1, desk.at(5), None, None, False) == (
        attempt.epoch,
        attempt.number,
        attempt.started_at,
        attempt.ended_at,
        attempt.verdict,
        attempt.deferred,
    )
    assert EventState.PROCESSED is desk.ledger.queries.event("ev_1").state


def test_what_was_claimed_so_is_claimed_for_everybody(desk):
    """Nobody else gets it, no sweep sends it, its outcome settles it, and its lease ends it."""
    _, (first, _) = at_once(desk, *team(desk, 2))
    (refused,) = desk.ledger.tasks.claim(["tk_0"], desk.now, desk.lease, "w-2")
    assert (TaskState.SENDING, True) == (refused.state, isinstance(refused, NotClaimed))
    assert [] == desk.ledger.tasks.dispatch_due(desk.at(30), timedelta(seconds=10), BOTH)
    assert desk.ledger.tasks.settle(first, desk.delivered(), desk.at(1))
    assert ["tk_1"] == desk.ledger.tasks.expire_leases(desk.at(61))
    assert [TaskState.DELIVERED, TaskState.UNKNOWN] == [desk.state("tk_0"), desk.state("tk_1")]


def test_no_more_are_claimed_than_were_asked_for(desk):
    """The first of them are claimed, in the plans' order; the others come back as due, marked as queued."""
    due, answers = at_once(desk, *team(desk, 5), on=terms(desk, 3))
    assert ["tk_0", "tk_1", "tk_2"] == [claim.task.id for claim in answers]
    assert [("tk_3", 0, 0), ("tk_4", 0, 0)] == [(ref.id, ref.attempts, ref.epoch) for ref in due]
    assert {TaskState.SENDING: 3, TaskState.QUEUED: 2} == desk.ledger.queries.counts().tasks
    assert desk.now == desk.ledger.queries.task("tk_4").dispatched_at
    assert [] == desk.ledger.queries.attempts("tk_4")


def test_only_tasks_of_the_type_are_claimed(desk):
    """Tasks of another type are recorded and come back as due."""
    due, answers = at_once(desk, call(desk, "tk_call"), desk.task("tk_team"), call(desk, "tk_other"))
    assert ["tk_team"] == [claim.task.id for claim in answers]
    assert ["tk_call", "tk_other"] == [ref.id for ref in due]
    assert TaskState.QUEUED is desk.state("tk_call")


def test_what_is_not_due_or_has_ended_is_only_recorded(desk):
    """Later tasks stay planned, those that planning ended stay ended; neither is claimed nor to be dispatched."""
    tasks = [
        desk.task("tk_later", due_at=desk.at(1)),
        desk.task("tk_dead", state=TaskState.DEAD, reason="no phone"),
        desk.task("tk_late", state=TaskState.SUPPRESSED, reason="too late", reactions=("failure",)),
        desk.task("tk_now"),
    ]
    due, (claim,) = at_once(desk, *tasks)
    assert ((), "tk_now") == (due, claim.task.id)
    states = {"tk_later": "planned", "tk_dead": "dead", "tk_late": "suppressed", "tk_now": "sending"}
    assert states == {task.id: task.state for task in desk.ledger.queries.list_tasks()}
    assert [("tk_late", "failure")] == [
        (each.task.id, each.trigger) for each in desk.ledger.follow_ups.claim(desk.at(1), 10)
    ]


def test_what_expired_meanwhile_is_left_to_its_message(desk):
    """A task past its end is not claimed: its message tells that it came too late."""
    due, (claim,) = at_once(desk, desk.task("tk_1", expires_at=desk.now), desk.task("tk_2", expires_at=desk.at(1)))
    assert (["tk_1"], "tk_2") == ([ref.id for ref in due], claim.task.id)
    (answer,) = desk.ledger.tasks.claim(["tk_1"], desk.now, desk.lease, "w-2")
    assert TaskState.SUPPRESSED is answer.state


def test_a_paused_provider_holds_them(desk):
    """Tasks of a paused provider wait until the pause ends, with the reason, and no attempt is noted."""
    desk.ledger.limits.pause(VAMBE, desk.at(300), "audit", desk.now)
    due, answers = at_once(desk, *team(desk, 2), call(desk, "tk_call"))
    assert ["tk_call"] == [ref.id for ref in due]
    assert [(Held.PAUSE, TaskState.WAITING, desk.at(300))] * 2 == [
        (each.held, each.state, each.due_at) for each in answers
    ]
    task = desk.ledger.queries.task("tk_1")
    assert (TaskState.WAITING, desk.at(300), 0, None) == (task.state, task.due_at, task.attempts, task.first_attempt_at)
    assert "audit" in task.reason
    assert "audit" not in answers[1].why
    assert [] == desk.ledger.queries.attempts("tk_1")
    assert isinstance(desk.claim("tk_1", now=desk.at(300)), Claim)


def test_after_a_pause_one_of_them_probes_for_all(desk):
    """When an answer's pause is over one is claimed; the others wait for what comes of it."""
    desk.planned(desk.task("tk_first", event_id="ev_0"), event_id="ev_0")
    paused = desk.busy(desk.at(60), verdict=Verdict.PAUSE, counted=False, pause_until_at=desk.at(60))
    desk.ledger.tasks.settle(desk.claim("tk_first"), paused, desk.now)
    _, (probe, *others) = at_once(desk, *team(desk, 3), seconds=60)
    assert isinstance(probe, Claim)
    assert [(Held.PAUSE, desk.at(120))] * 2 == [(other.held, other.due_at) for other in others]


def test_the_rate_gives_each_its_own_place(desk):
    """The burst is claimed, all others learn their own places in line, and begin then without another charge."""
    _, answers = at_once(desk, *team(desk, 5), on=terms(desk, rate_per_second=2, burst=2))
    assert [True, True, False, False, False] == [isinstance(answer, Claim) for answer in answers]
    assert [(Held.RATE, TaskState.WAITING, desk.at(n)) for n in (0.5, 1, 1.5)] == [
        (answer.held, answer.state, answer.due_at) for answer in answers[2:]
    ]
    task = desk.ledger.queries.task("tk_2")
    assert (0, desk.at(0.5), desk.at(0.5)) == (task.attempts, task.slot_at, task.due_at)
    limits = {VAMBE: Limits(rate_per_second=2, burst=2)}
    (began,) = desk.ledger.tasks.claim(["tk_2"], desk.at(0.5), desk.lease, "w-2", limits)
    assert isinstance(began, Claim)
    (answer,) = at_once(desk, desk.task("tk_new", event_id="ev_2"), event_id="ev_2", on=replaced(desk, limits))[1]
    assert desk.at(2) == answer.due_at


def replaced(desk, limits):
    """Return the usual terms under these limits."""
    return replace(terms(desk), limits=limits)


def test_concurrency_counts_what_is_on_its_way(desk):
    """With what is sending already no more than the limit are claimed; the next ones wait a moment."""
    desk.planned(desk.task("tk_before", event_id="ev_0"), event_id="ev_0")
    desk.claim("tk_before")
    _, answers = at_once(desk, *team(desk, 4), on=terms(desk, concurrency=2))
    assert [True, False, False, False] == [isinstance(answer, Claim) for answer in answers]
    assert [(Held.CONCURRENCY, desk.at(n)) for n in (1, 1.5, 1)] == [
        (answer.held, answer.due_at) for answer in answers[1:]
    ]


def test_the_daily_cap_counts_them(desk):
    """What is claimed so counts for the day; what is over its sum waits for the next one, UTC."""
    _, answers = at_once(desk, *team(desk, 3), on=terms(desk, daily_cap=2))
    assert (Held.CAP, datetime(2026, 3, 3, tzinfo=UTC)) == (answers[2].held, answers[2].due_at)
    (state,) = desk.ledger.limits.states()
    assert ("2026-03-02", 2) == (state.day, state.sent_today)
    desk.ledger.tasks.give_back(answers[0], desk.at(1))
    assert [1] == [state.sent_today for state in desk.ledger.limits.states()]


def test_a_plan_that_is_recorded_again_claims_nothing(desk):
    """An event that has been decided is skipped as a whole: nothing is claimed, nothing counted, no row changes."""
    limits = {"rate_per_second": 1, "burst": 2, "daily_cap": 9}
    plan = desk.plan(*team(desk, 4), call(desk, "tk_call"))
    desk.record(desk.incoming())
    desk.ledger.tasks.insert_and_claim([plan], desk.now, terms(desk, **limits))
    before = held(desk)
    assert ((), []) == desk.ledger.tasks.insert_and_claim([plan], desk.at(9), terms(desk, owner="w-2", **limits))
    assert () == desk.ledger.tasks.insert([plan], desk.at(9))
    assert before == held(desk)


def test_of_a_replayed_event_only_what_is_new_is_claimed(desk):
    """What was made before stays as it is; what died while it was planned is planned again and left to its message."""
    made, dead = desk.task("tk_made"), desk.task("tk_dead", state=TaskState.DEAD, reason="no phone")
    _, (claim,) = at_once(desk, made, dead)
    desk.ledger.tasks.settle(claim, desk.delivered(), desk.now)
    desk.ledger.admin.replay(["ev_1"], desk.at(60), failed_too=False)
    plan = desk.plan(made, desk.task("tk_dead"), desk.task("tk_new", rule="another"), rule_set="rs_2")
    due, (new,) = desk.ledger.tasks.insert_and_claim([plan], desk.at(61), terms(desk))
    assert (["tk_dead"], "tk_new") == ([ref.id for ref in due], new.task.id)
    states = {"tk_made": "delivered", "tk_dead": "queued", "tk_new": "sending"}
    assert states == {task.id: task.state for task in desk.ledger.queries.list_tasks()}


def test_members_take_turns_among_what_is_claimed(desk):
    """Each task of a team in rotation is claimed for its next member, as it is recorded."""
    rotation = Rotation(team="closers", member_ids=("u1", "u2"))
    _, answers = at_once(desk, *team(desk, 3, rotation=rotation))
    assert [["u1"], ["u2"], ["u1"]] == [claim.task.fields["responsible_ids"] for claim in answers]
    assert ["u2"] == desk.ledger.queries.task("tk_1").fields["responsible_ids"]


@dataclass(frozen=True)
class _Newer(RetryPolicy):
    """A policy with a part that this version does not know."""

    of_the_future: int = 1


def test_what_cannot_be_read_is_given_back(desk):
    """A task whose row this version cannot read waits a minute and loses no attempt; its neighbours are claimed."""
    _, answers = at_once(desk, desk.task("tk_0"), desk.task("tk_1", retry=_Newer()), desk.task("tk_2"))
    assert ["tk_0", "tk_1", "tk_2"] == [
        each.task_id if isinstance(each, NotClaimed) else each.task.id for each in answers
    ]
    assert "this version cannot read" in answers[1].why
    (row,) = [row for row in held(desk)["tasks"] if row["id"] == "tk_1"]
    assert (TaskState.WAITING, 0, None) == (row["state"], row["attempts"], row["first_attempt_at"])
    assert 60_000_000 == row["due_at"] - row["created_at"]


def test_callers_of_one_transaction_keep_their_own_terms(desk):
    """Plans that are written together are claimed each on its own terms, and under the limits of both together."""
    for number in range(4):
        desk.record(desk.incoming(f"ev_{number}"))

    def plan(number):
        tasks = [desk.task(f"tk_{number}{place}", f"ev_{number}") for place in range(3)]
        return desk.plan(*tasks, call(desk, f"tk_{number}c", event_id=f"ev_{number}"), event_id=f"ev_{number}")

    works = [
        insert_plans([plan(0)], desk.at(1), terms(desk, 2, owner="a", concurrency=3)),
        insert_plans([plan(1)], desk.at(2)),
        insert_plans([plan(2), plan(0)], desk.at(3), terms(desk, 9, owner="b", concurrency=3)),
        insert_plans([plan(3)], desk.at(4), terms(desk, 9, owner="c", type_=CALL)),
    ]
    kept = desk.ledger._writer.write(lambda connection: works[0].run_all(connection, [work.part for work in works]))
    assert [["tk_02", "tk_0c"], ["tk_10", "tk_11", "tk_12", "tk_1c"], ["tk_2c"], ["tk_30", "tk_31", "tk_32"]] == [
        [ref.id for ref in each.due] for each in kept
    ]
    assert [["tk_00", "tk_01"], [], ["tk_20", "tk_21", "tk_22"], ["tk_3c"]] == [
        [answer.task_id for answer in each.claimed] for each in kept
    ]
    sending = {
        task.id: (task.owner, task.first_attempt_at) for task in desk.ledger.queries.list_tasks(state=TaskState.SENDING)
    }
    assert {
        "tk_00": ("a", desk.at(1)),
        "tk_01": ("a", desk.at(1)),
        "tk_20": ("b", desk.at(3)),
        "tk_3c": ("c", desk.at(4)),
    } == sending
    assert [TaskState.WAITING] * 2 == [desk.state("tk_21"), desk.state("tk_22")]


def test_what_became_due_after_a_neighbours_moment_is_claimed(desk):
    """Of two callers in one transaction each claims by its own moment: what the later one planned is due for it."""
    works = []
    for number in range(2):
        desk.record(desk.incoming(f"ev_{number}"))
        task = desk.task(f"tk_{number}", f"ev_{number}", due_at=desk.at(number))
        plan = desk.plan(task, event_id=f"ev_{number}")
        works.append(insert_plans([plan], desk.at(number), terms(desk, owner=f"w/{number}")))
    kept = desk.ledger._writer.write(lambda connection: works[0].run_all(connection, [work.part for work in works]))
    assert [[], []] == [each.due for each in kept]
    assert [[True], [True]] == [[isinstance(answer, Taken) for answer in each.claimed] for each in kept]
    assert [desk.at(61), desk.at(60)] == [task.lease_until_at for task in desk.ledger.queries.list_tasks()]
    assert {TaskState.SENDING: 2} == desk.ledger.queries.counts().tasks


def test_workers_that_record_the_same_plans_claim_each_task_once(desk):
    """Of several ledgers that record the same events at once one gets each task, and the limits hold for all together."""
    other = open_ledger(desk.url)
    numbers = range(6)
    for number in numbers:
        desk.record(desk.incoming(f"ev_{number}"))
    plans = [
        desk.plan(*(desk.task(f"tk_{n}_{place}", f"ev_{n}") for place in range(5)), event_id=f"ev_{n}") for n in numbers
    ]

    def take(place):
        mine = plans[place % 6 :] + plans[: place % 6]
        on = terms(desk, 40, owner=f"w-{place}", rate_per_second=5, burst=12, concurrency=8)
        return (desk.ledger, other)[place % 2].tasks.insert_and_claim(mine, desk.now, on)[1]

    with ThreadPoolExecutor(12) as pool:
        answers = [answer for given in pool.map(take, range(12)) for answer in given]
    other.close()
    ids = [answer.task.id if isinstance(answer, Claim) else answer.task_id for answer in answers]
    assert (30, 30) == (len(ids), len(set(ids)))
    claims = [answer for answer in answers if isinstance(answer, Claim)]
    assert 8 == len(claims)
    owners = {task.id: task.owner for task in desk.ledger.queries.list_tasks(state=TaskState.SENDING)}
    assert owners == {claim.task.id: claim.task.owner for claim in claims}


def test_a_fault_leaves_neither_plan_nor_claim(desk):
    """When one plan cannot be recorded nothing of the transaction stands, its limits neither."""
    desk.record(desk.incoming("ev_1"), desk.incoming("ev_2"))
    before = held(desk)
    twin = desk.task("tk_1", "ev_2", rule=None)
    plans = [desk.plan(desk.task("tk_0")), desk.plan(twin, event_id="ev_2")]
    with pytest.raises(Exception, match=r"(?i)null|none"):
        desk.ledger.tasks.insert_and_claim(plans, desk.now, terms(desk, rate_per_second=1, burst=1, daily_cap=2))
    assert before == held(desk)


# -- the same as in two steps ---------------------------------------------------------------------------------------------


def held(desk):
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

    counts = {tally: counted for tally, counted in desk.ledger.queries.measure(desk.now).tallies.items() if counted}
    return desk.ledger._writer.write(rows) | {"counts": counts}


def empty(desk):
    """Leave the ledger without a row."""

    def work(connection):
        for table in reversed(metadata.sorted_tables):
            if table.name != "alembic_version":
                connection.execute(table.delete())

    desk.ledger._writer.write(work)


def in_two_steps(desk, plans, now, on):
    """Record, and then claim the same tasks in the same order."""
    due = desk.ledger.tasks.insert(plans, now)
    ends = {task.id: task.expires_at for plan in plans for task in plan.tasks}
    fit = [ref.id for ref in due if ref.type is on.type and (ends[ref.id] is None or ends[ref.id] > now)][: on.most]
    answers = desk.ledger.tasks.claim(fit, now, on.lease, on.owner, on.limits)
    return tuple(ref for ref in due if ref.id not in fit), answers


def in_one(desk, plans, now, on):
    """Record and claim in one transaction."""
    return desk.ledger.tasks.insert_and_claim(plans, now, on)


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


def tasks_of(desk, event_id, drawn):
    """Return the tasks of one event that were drawn."""
    made = []
    for place, each in enumerate(drawn):
        id_ = f"tk_{event_id}_{place}"
        wanted = {
            "due_at": desk.at(each["due"]),
            "expires_at": None if each["expires"] is None else desk.at(each["expires"]),
            "state": each["state"],
            "reason": None if each["state"] is TaskState.PLANNED else "planning ended it",
            "reactions": each["reactions"],
        }
        if each["type"] is CALL:
            made.append(call(desk, id_, event_id=event_id, **wanted))
        else:
            rotation = Rotation(team="closers", member_ids=("u1", "u2", "u3")) if each["rotates"] else None
            made.append(desk.task(id_, event_id, rotation=rotation, **wanted))
    return made


def prepare(desk, before, events):
    """Bring the ledger where an example begins; of the events the second was decided before, the third is replayed."""
    for event_id in ("ev_before", *events):
        desk.record(desk.incoming(event_id))
    old = [desk.task(f"tk_before_{place}", "ev_before", due_at=desk.at(-9)) for place in range(6)]
    desk.ledger.tasks.insert([desk.plan(*old, event_id="ev_before")], desk.at(-9))
    for provider in ProviderName:  # its row is there, so that it tells nothing who was the first to look
        desk.ledger.limits.charge(provider, Limits(rate_per_second=1), desk.at(-3600))
    ids = [task.id for task in old]
    match before:
        case "sending":
            desk.ledger.tasks.claim(ids[:2], desk.at(-3), desk.lease, "other", {VAMBE: Limits(daily_cap=2)})
        case "paused" | "resumed":
            desk.ledger.limits.pause(VAMBE, desk.at(5), "audit", desk.at(-9))
            if before == "resumed":
                desk.ledger.limits.resume(VAMBE, desk.at(-3))
        case "probing" | "asked":
            kind = PauseKind.ASKED if before == "asked" else PauseKind.ANSWER
            ends = desk.busy(desk.at(-1), verdict=Verdict.PAUSE, pause_until_at=desk.at(-1), pause_kind=kind)
            desk.ledger.tasks.settle(desk.claim(ids[0], now=desk.at(-9)), ends, desk.at(-9))
        case "breaking":
            for task_id in ids[:5]:
                desk.ledger.tasks.settle(desk.claim(task_id, now=desk.at(-9)), desk.busy(), desk.at(-9))
        case "charged":
            for _ in range(4):
                desk.ledger.limits.charge(VAMBE, Limits(rate_per_second=1), desk.at(-1))
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
def test_it_is_the_same_as_recording_and_then_claiming(desk, drawn, before, most, type_, limits, decided):
    """Whatever is planned, under whatever limits: answers, every column of every row, and all counts are the same."""
    events = [f"ev_{number}" for number in range(len(drawn))]
    planned = {event_id: tasks_of(desk, event_id, tasks) for event_id, tasks in zip(events, drawn, strict=True)}
    plans = [desk.plan(*tasks, event_id=event_id) for event_id, tasks in planned.items()]
    on = ClaimTerms(type=type_, most=most, lease=desk.lease, owner="w-1/7", limits={VAMBE: limits, MINDHUNTERS: limits})
    found = []
    for way in (in_two_steps, in_one):
        empty(desk)
        prepare(desk, before, events)
        if decided != "no":
            desk.ledger.tasks.insert([desk.plan(*planned["ev_0"][:1], event_id="ev_0")], desk.at(-6))
        if decided == "replayed":
            desk.ledger.admin.replay(["ev_0"], desk.at(-4), failed_too=False)
        answers = way(desk, plans, desk.now, on)
        found.append((answers, held(desk)))
    (first_answers, first), (answers, rows) = found
    assert first_answers == answers
    assert first == rows


def test_counts_are_those_of_two_steps(desk):
    """Events, decisions, tasks, attempts and delays count as they do for a task that was claimed by its message."""
    counts = []
    for way in (in_two_steps, in_one):
        empty(desk)
        desk.record(desk.incoming())
        plan = desk.plan(*team(desk, 3), desk.task("tk_dead", state=TaskState.DEAD, reason="no phone"))
        _, answers = way(desk, [plan], desk.now, terms(desk, 2))
        desk.ledger.tasks.settle_many([(answers[0], desk.delivered()), (answers[1], desk.busy())], desk.at(7))
        counts.append(
            {tally: dict(counted) for tally, counted in desk.ledger.queries.measure(desk.now).tallies.items()}
        )
    assert counts[0] == counts[1]
    assert {(TEAM,): 4} == counts[1][CounterName.TASKS_PLANNED]
    assert {(VAMBE, "delivered", "2xx"): 1, (VAMBE, "busy", "5xx"): 1} == counts[1][CounterName.ATTEMPTS]
    assert {(TEAM, "delivered"): 1, (TEAM, "dead"): 1} == counts[1][CounterName.TASKS_ENDED]
    assert {(TEAM, "10"): 1} == counts[1][CounterName.AFTER_RECEIVED]
